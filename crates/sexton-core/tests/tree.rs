//! What descends from a process, found on the real kernel.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sexton_core::handle::{Handle, Life};
use sexton_core::proc::{self, Here};
use sexton_core::tree::Tree;
use sexton_plan::id::Pid;
use sexton_sys::process;

const SIGKILL: u8 = 9;
const SIGSTOP: u8 = 19;

/// A shell that leads a session of its own.
fn shell(script: &str) -> (Child, Handle, Here) {
    let here = proc::here().expect("here");
    let child = Command::new("setsid").args(["sh", "-c", script]).stdin(Stdio::null()).spawn().expect("started");
    let pid = i32::try_from(child.id()).ok().and_then(Pid::new).expect("a PID");
    let main = Handle::open(pid, &here).expect("held");
    (child, main, here)
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The `sleep`s below `main` that sleep for `seconds`, wherever they are.
fn sleeping(seconds: u32) -> Vec<Pid> {
    let line = format!("sleep {seconds}");
    let sleeps = |pid: &Pid| proc::command_line(*pid).is_some_and(|found| found == line);
    proc::all().expect("listed").into_iter().filter(sleeps).collect()
}

fn end(mut child: Child, main: &Handle, tree: &mut Tree) {
    // As a stop does it: on a busy host who was told to stop may not have run for all the passes of one call.
    eventually("everybody stands still", || tree.settle(main, |member| assert!(member.signal(SIGSTOP).is_ok())));
    for member in tree.living() {
        member.signal(SIGKILL).expect("killed");
    }
    main.signal(SIGKILL).expect("killed");
    eventually("nobody lives", || !tree.is_alive());
    child.wait().expect("reaped");
}

#[test]
fn children_sessions_and_double_forks_within_a_session_are_found() {
    let seconds = 3_000_000 + std::process::id();
    let (child, main, here) = shell(&format!(
        "sleep {seconds} & setsid sleep {seconds} & (sleep {seconds} &); setsid sh -c '(sleep {seconds} &); sleep {seconds}' & wait"
    ));
    // Nobody forks any more.
    eventually("all sleep", || sleeping(seconds).len() == 5);
    let mut tree = Tree::new(here);
    tree.look(&main);
    let held: Vec<Pid> = tree.living().iter().map(|member| member.identity().pid).collect();
    for pid in sleeping(seconds) {
        assert!(held.contains(&pid), "{pid} is not among {held:?}");
    }
    assert!(!held.contains(&main.identity().pid), "the main process is not its own descendant");
    assert_eq!(tree.look(&main), 0, "nobody is found twice");
    end(child, &main, &mut tree);
    assert_eq!(sleeping(seconds), []);
}

#[test]
fn who_is_held_stays_held_and_who_left_unseen_is_nobodys() {
    let seconds = 4_000_000 + std::process::id();
    let (child, main, here) =
        shell(&format!("setsid sleep {seconds} & (setsid sleep {seconds} &); sleep {seconds} & wait"));
    eventually("all sleep", || sleeping(seconds).len() == 3);
    // The subshell has ended before the other is looked for.
    let orphan = || {
        sleeping(seconds).into_iter().find(|pid| {
            let leads = process::session(pid.as_raw()) == Ok(pid.as_raw());
            leads && proc::stat(*pid).is_ok_and(|stat| stat.ppid != main.identity().pid.as_raw())
        })
    };
    eventually("it is an orphan", || orphan().is_some());
    let orphan = orphan().expect("an orphan");
    let stranger = Handle::open(orphan, &here).expect("held");
    let mut tree = Tree::new(here);
    tree.look(&main);
    let held: Vec<Pid> = tree.living().iter().map(|member| member.identity().pid).collect();
    assert!(!held.contains(&orphan), "nothing proves whose it is");
    let mut child = child;
    main.signal(SIGKILL).expect("killed");
    child.wait().expect("reaped");
    tree.look(&main);
    assert!(tree.living().len() >= 2, "held, though the main process is gone: {held:?}");
    for member in tree.living() {
        member.signal(SIGKILL).expect("killed");
    }
    eventually("they are over", || !tree.is_alive());
    assert_eq!(stranger.life().expect("asked"), Life::Alive);
    stranger.signal(SIGKILL).expect("the test's own");
}
