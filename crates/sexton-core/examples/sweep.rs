//! Becomes a subreaper, leaves an orphan behind, and sweeps it: `cargo run -p sexton-core --example sweep`.

use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use sexton_core::sweep::{Sweep, SweepSettings};

#[allow(clippy::print_stdout, reason = "an example shows what it does")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    sexton_sys::process::become_subreaper()?;
    let settings =
        SweepSettings { enabled: true, interval: Duration::from_millis(100), grace: Duration::from_millis(200) };
    let (told, news) = mpsc::channel();
    let sweep = Sweep::start_with(settings, None, move |report| {
        let _heard = told.send(report.clone());
    });
    if let Some(reason) = sweep.status().inactive {
        println!("not sweeping: {reason}");
        return Ok(());
    }
    // The shell ends at once; what it started becomes ours, and nobody here will ever wait for it.
    Command::new("sh").args(["-c", "(sleep 0.1; exit 7) & exit 0"]).status()?;
    for zombie in news.recv_timeout(Duration::from_secs(10))?.reaped {
        println!("reaped {} ({}), which ended with {:?}", zombie.pid, zombie.name, zombie.status);
    }
    Ok(())
}
