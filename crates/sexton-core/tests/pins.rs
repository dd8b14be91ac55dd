//! Pins in a mount namespace of one's own, as every container is one; and where mounts are shared with others.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread;

use sexton_core::handle::Handle;
use sexton_core::pin::PinBoard;
use sexton_core::proc;
use sexton_plan::id::Pid;
use sexton_sys::mount::{self, MountKind};
use sexton_testkit::{alone, pidfds_can_be_mounted};

/// Set in the process that has a mount namespace of its own: to the number of its parent outside.
const INSIDE: &str = "SEXTON_TEST_INSIDE";
const NAMESPACES: u32 = 8;
const BOARDS: u32 = 8;

#[test]
fn exit_codes_can_be_pinned_in_a_container_whichever_cpu_made_it() {
    if let Ok(whose) = std::env::var(INSIDE) {
        return open_boards(&whose);
    }
    if !pidfds_can_be_mounted() {
        sexton_testkit::skip!("pidfds cannot be mounted (Linux 6.15)");
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

/// Mounts at or below `dir`, as the calling thread's namespace has them.
fn mounts_in(dir: &Path) -> Vec<String> {
    let all = fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
    all.lines().filter(|line| line.contains(&format!(" {}", dir.display()))).map(str::to_owned).collect()
}

#[test]
fn exit_codes_can_be_pinned_where_mounts_are_shared_with_other_namespaces() {
    if !pidfds_can_be_mounted() {
        sexton_testkit::skip!("pidfds cannot be mounted (Linux 6.15)");
    }
    let dir = Path::new("/run/pinned");
    let shared = || {
        mount::mount(MountKind::Shared, c"/").expect("shared");
        fs::create_dir(dir).expect("made");
        thread::scope(|scope| {
            let (ready, began) = mpsc::channel();
            let (ask, asked) = mpsc::channel::<()>();
            // As systemd's services are that have a namespace of their own.
            let peer = scope.spawn(move || {
                mount::unshare_mounts().expect("a namespace of its own");
                ready.send(()).expect("heard");
                asked.recv().expect("asked");
                mounts_in(dir)
            });
            began.recv().expect("a peer");
            let me = Pid::new(i32::try_from(std::process::id()).expect("fits")).expect("not init");
            let me = Handle::open(me, &proc::here().expect("proc")).expect("alive");
            let board = PinBoard::open(dir).expect("pins");
            board.run(move |pins| pins.pin(&me, "a")).expect("thread").expect("pinned");
            drop(board);
            // As a later worker does.
            let board = PinBoard::open(dir).expect("kept");
            assert_eq!(board.run(|pins| pins.keys().expect("keys")), Some(vec!["a".to_owned()]));
            board.remove().expect("removed");
            assert_eq!(mounts_in(dir), Vec::<String>::new(), "nothing is left here");
            ask.send(()).expect("asks");
            assert_eq!(peer.join().expect("told"), Vec::<String>::new(), "nor anywhere else");
        });
    };
    if let Err(why) = alone(shared) {
        sexton_testkit::skip!("{why}");
    }
}
