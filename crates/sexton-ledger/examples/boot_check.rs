//! A tool that starts agents and forgets them: no daemon, many short-lived processes, one ledger.
//!
//! Each run first settles what the previous boot left, exactly once however many runs race, and then lists what can
//! be resumed: `cargo run -p sexton-ledger --example boot_check -- STATE_DIR`.

use std::error::Error;
use std::io::Write as _;
use std::path::PathBuf;

use sexton_ledger::{BootCheck, Ledger, OpenOptions, boot_check};
use sexton_plan::id::BootId;
use sexton_plan::state::State;

fn main() -> Result<(), Box<dyn Error>> {
    let state_dir = PathBuf::from(std::env::args_os().nth(1).ok_or("which state directory?")?);
    let boot_id: BootId = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().parse()?;

    let check = BootCheck { boot_id: &boot_id, node: None, now: jiff::Timestamp::now };
    let settled = boot_check(&state_dir, check)?.settled;

    let (_ledger, contents) = Ledger::open(&state_dir, OpenOptions::new(boot_id))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "settled {settled}, {} instances on record", contents.entries.len())?;
    for entry in contents.entries.iter().filter(|entry| entry.state == State::Lost) {
        let snapshot = entry.snapshot.as_ref().map_or_else(|| "nothing".to_owned(), |kept| kept.as_json().to_owned());
        writeln!(out, "{}: resume {:?} from {snapshot}", entry.name, entry.spec.argv)?;
    }
    Ok(())
}
