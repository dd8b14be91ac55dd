//! The reaper when the process has no descriptor left; alone in its process, which others would share the want with.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sexton_core::reaper::{Fate, Reaper};
use sexton_plan::id::Pid;
use sexton_plan::state::ExitStatus;

fn child(code: u8) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("read x; exit {code}")]).stdin(Stdio::piped()).spawn().expect("spawned")
}

fn pid(child: &Child) -> Pid {
    Pid::new(i32::try_from(child.id()).expect("fits")).expect("not init")
}

fn limit_descriptors(limit: u32) {
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--pid", &std::process::id().to_string(), &format!("--nofile={limit}:4096")]);
    assert!(prlimit.status().expect("prlimit").success());
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn without_a_descriptor_the_rest_is_polled_until_there_is_one() {
    limit_descriptors(256);
    let reaper = Reaper::start().expect("reaper");
    let mut children: Vec<Child> = (1..=4).map(child).collect();
    let first = reaper.register(pid(&children[0])).expect("with a pidfd");
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    let rest: Vec<_> = children[1..].iter().map(|own| reaper.register(pid(own)).expect("without one")).collect();
    assert_eq!((reaper.stats().registered, reaper.stats().polled), (4, 3));
    let me = Pid::new(i32::try_from(std::process::id()).expect("fits")).expect("not init");
    assert!(reaper.register(me).is_err(), "also without a descriptor only children are registered");

    children[..2].iter_mut().for_each(|own| drop(own.stdin.take()));
    let ended = [first.wait(Some(Duration::from_secs(20))), rest[0].wait(Some(Duration::from_secs(20)))];
    let ended = ended.map(|exit| exit.expect("ended").fate);
    assert_eq!(ended, [1, 2].map(|code| Fate::Reaped(ExitStatus::Code(code))));

    drop(hoard);
    eventually("the others have pidfds again", || reaper.stats().polled == 0);
    assert_eq!((reaper.stats().registered, reaper.stats().held), (2, 0));
    children[2..].iter_mut().for_each(|own| drop(own.stdin.take()));
    for (registration, code) in rest[1..].iter().zip([3, 4]) {
        let exit = registration.wait(Some(Duration::from_secs(20))).expect("ended");
        assert_eq!(exit.fate, Fate::Reaped(ExitStatus::Code(code)));
    }
}
