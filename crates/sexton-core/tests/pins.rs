//! Pins in a mount namespace of one's own, as every container is one.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use sexton_core::handle::Handle;
use sexton_core::pin::PinBoard;
use sexton_core::proc;
use sexton_plan::id::Pid;

/// Set in the process that has a mount namespace of its own: to the number of its parent outside.
const INSIDE: &str = "SEXTON_TEST_INSIDE";
const NAMESPACES: u32 = 8;
const BOARDS: u32 = 8;

#[test]
fn exit_codes_can_be_pinned_in_a_container_whichever_cpu_made_it() {
    if let Ok(whose) = std::env::var(INSIDE) {
        return open_boards(&whose);
    }
    let test = "exit_codes_can_be_pinned_in_a_container_whichever_cpu_made_it";
    if !Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success()) {
        sexton_testkit::skip!("no mount namespace of one's own");
    }
    // On another CPU each time, as likely as not.
    for _ in 0..NAMESPACES {
        let mut inside = Command::new("unshare");
        inside.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe().expect("own program"));
        inside.args(["--exact", test, "--nocapture"]).env(INSIDE, std::process::id().to_string()).process_group(0);
        let out = inside.output().expect("unshare runs");
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{said}\n{}", String::from_utf8_lossy(&out.stderr));
        assert!(said.contains("1 passed"), "{said}");
    }
}

fn open_boards(whose: &str) {
    let dir = std::env::temp_dir().join(format!("sexton-test-pins-{whose}"));
    let me = Pid::new(i32::try_from(std::process::id()).expect("fits")).expect("not init");
    let me = Arc::new(Handle::open(me, &proc::here().expect("proc")).expect("alive"));
    for number in 0..BOARDS {
        fs::create_dir_all(&dir).expect("made");
        let board = PinBoard::open(&dir).unwrap_or_else(|error| panic!("board {number}: {error}: {error:?}"));
        let me = Arc::clone(&me);
        let keys = board.run(move |pins| {
            pins.pin(&me, "a").expect("pinned");
            let opened = pins.open("a", me.identity()).expect("opened").is_some();
            (pins.keys().expect("keys"), opened)
        });
        assert_eq!(keys, Some((vec!["a".to_owned()], true)), "board {number}");
        // As a later worker does.
        let later = PinBoard::open(&dir).expect("kept");
        assert_eq!(later.run(|pins| pins.keys().expect("keys")), Some(vec!["a".to_owned()]), "board {number}");
        board.remove().expect("removed");
        fs::remove_dir_all(&dir).expect("removed");
    }
}
