//! Thousands of exits at once.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sexton_core::handle::Handle;
use sexton_core::proc;
use sexton_core::reaper::{Fate, Reaper, Registration};
use sexton_plan::id::Pid;
use sexton_plan::state::ExitStatus;

const LONG: Option<Duration> = Some(Duration::from_secs(60));

fn pid(id: u32) -> Pid {
    Pid::new(i32::try_from(id).expect("fits")).expect("not init")
}

/// Allows this process `limit` descriptors.
fn allow_descriptors(limit: u32) {
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--pid", &std::process::id().to_string(), &format!("--nofile={limit}:{limit}")]);
    assert!(prlimit.status().expect("prlimit").success());
}

#[test]
fn four_thousand_registered_and_killed_at_once_each_tell_their_own_signal() {
    const COUNT: usize = 4_096;
    allow_descriptors(20_000);
    let here = proc::here().expect("proc");
    let reaper = Reaper::start().expect("reaper");
    let spawn = || Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("spawned");
    let children: Vec<Child> = (0..COUNT).map(|_| spawn()).collect();
    let hold = |child: &Child| Handle::open(pid(child.id()), &here).expect("handle");
    let handles: Vec<Handle> = children.iter().map(hold).collect();
    let registrations: Vec<Registration> =
        handles.iter().map(|handle| reaper.register_handle(handle).expect("a child")).collect();
    assert_eq!(reaper.stats().registered, COUNT);
    // None of those that a shell has the programs of its background ignore.
    let signals = [9, 15, 10, 12].into_iter().cycle();
    for (handle, signal) in handles.iter().zip(signals.clone()) {
        assert!(handle.signal(signal).expect("signalled"));
    }
    for (registration, signal) in registrations.iter().zip(signals) {
        let exit = registration.wait(LONG).expect("ended");
        assert_eq!(exit.fate, Fate::Reaped(ExitStatus::Signal(signal)));
    }
    let stats = reaper.stats();
    assert_eq!((stats.registered, stats.reaped, stats.vanished), (0, COUNT as u64, 0));
}
