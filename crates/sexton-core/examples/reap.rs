//! Starts children and has the reaper collect them, while one of them keeps its own owner:
//! `cargo run -p sexton-core --example reap`.

use std::process::Command;

use sexton_core::reaper::Reaper;
use sexton_plan::id::Pid;

#[allow(clippy::print_stdout, reason = "an example shows what it does")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let reaper = Reaper::start()?;
    let mut mine = Command::new("sh").args(["-c", "exit 3"]).spawn()?;

    let mut registered = Vec::new();
    for code in 0..5 {
        let child = Command::new("sh").args(["-c", &format!("exit {code}")]).spawn()?;
        // Dropping `child` neither ends the process nor waits for it; from here on it is the reaper's.
        let pid = Pid::new(child.id().try_into()?).ok_or("no child has PID 1")?;
        registered.push(reaper.register(pid)?);
    }
    for child in registered {
        println!("{}: {:?}", child.pid(), child.wait(None).map(|exit| exit.fate));
    }
    println!("its own owner still gets {}", mine.wait()?);
    println!("{:?}", reaper.stats());
    Ok(())
}
