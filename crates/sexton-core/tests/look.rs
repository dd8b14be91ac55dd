//! A look over many processes, over some that come and go meanwhile, and over a `/proc` that hides them.

#![allow(clippy::disallowed_types, reason = "a test starts programs as a user does")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use sexton_core::handle::{Handle, Life};
use sexton_core::look::{Adopter, look_adopted, look_at};
use sexton_core::proc;
use sexton_plan::id::Pid;
use sexton_testkit::{SOON, eventually};

/// How many processes: `SEXTON_TEST_PROCESSES`, or what is made in a few seconds.
fn how_many() -> usize {
    std::env::var("SEXTON_TEST_PROCESSES").ok().and_then(|text| text.parse().ok()).unwrap_or(2_000)
}

/// A shell with that many children, which wait for its input to end; and end with it.
struct Crowd(Child);

impl Crowd {
    /// The shell makes them, says so, and then does `after`.
    fn make(count: usize, after: &str) -> Crowd {
        let script = format!(
            "exec 3<&0; i=0; while [ $i -lt {count} ]; do (read end <&3) & i=$((i+1)); done; echo made; {after} read end"
        );
        let mut shell = Command::new("sh");
        let shell = shell.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut crowd = Crowd(shell.expect("sh"));
        let mut line = String::new();
        BufReader::new(crowd.0.stdout.take().expect("piped")).read_line(&mut line).expect("told");
        assert_eq!(line, "made\n");
        crowd
    }

    fn pid(&self) -> Pid {
        Pid::new(i32::try_from(self.0.id()).expect("fits")).expect("not init")
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // The end of its input is the end of all of them.
        drop(self.0.stdin.take());
        self.0.wait().expect("ended");
    }
}

#[test]
fn everybody_in_a_crowd_is_found_and_nobody_else() {
    let count = how_many();
    let crowd = Crowd::make(count, "");
    let shell = crowd.pid();
    let found = look_adopted(&[Adopter::Process(shell)]);
    assert_eq!((found.pids.len(), &found.unread[..]), (count, &[][..]));
    assert!(found.pids.is_sorted());
    for pid in &found.pids {
        assert_eq!(proc::stat(*pid).expect("it lives").ppid, shell.as_raw());
    }
    let here = proc::here().expect("here");
    let looked_at = found.pids.iter().step_by(100).map(|pid| {
        let seen = look_at(*pid, &here).expect("readable").expect("it lives");
        assert_eq!((seen.parent, seen.handle.identity().pid), (shell.as_raw(), *pid));
        seen.handle
    });
    let looked_at: Vec<Handle> = looked_at.collect();
    drop(crowd);
    eventually("all have ended", SOON, || {
        let is_alive = |handle: &&Handle| matches!(handle.life(), Ok(Life::Alive));
        let living = looked_at.iter().filter(is_alive).count();
        if living == 0 { Ok(()) } else { Err(living.to_string()) }
    });
    assert_eq!(look_adopted(&[Adopter::Process(shell)]).unread, [], "the dead are no error");
}

#[test]
fn those_who_come_and_go_meanwhile_hide_nobody_who_stays() {
    let mut crowd = Crowd::make(200, "while :; do (:); done;");
    let shell = crowd.pid();
    let staying: BTreeSet<Pid> = stable(shell);
    let here = proc::here().expect("here");
    for _ in 0..200 {
        let found = look_adopted(&[Adopter::Process(shell)]);
        assert_eq!(found.unread, []);
        // The kernel's list may lack one that is behind another which just ends: hence two looks.
        let again: BTreeSet<Pid> = look_adopted(&[Adopter::Process(shell)]).pids.into_iter().collect();
        let seen: BTreeSet<Pid> = found.pids.into_iter().chain(again).collect();
        assert!(staying.is_subset(&seen), "{:?}", staying.difference(&seen));
        for pid in seen.difference(&staying) {
            if let Some(seen) = look_at(*pid, &here).expect("one that vanishes is no error") {
                assert_eq!(seen.handle.identity().pid, *pid);
            }
        }
    }
    // It does not wait for its input.
    crowd.0.kill().expect("killed");
}

/// The children that are there whenever one looks.
fn stable(shell: Pid) -> BTreeSet<Pid> {
    let mut found = BTreeSet::new();
    eventually("the same 200 twice", SOON, || {
        let look = || look_adopted(&[Adopter::Process(shell)]).pids.into_iter().collect::<BTreeSet<Pid>>();
        found = &(&look() & &look()) & &look();
        if found.len() == 200 { Ok(()) } else { Err(format!("{}", found.len())) }
    });
    found
}

/// Runs `case` of this file as nobody, in a PID namespace whose `/proc` hides what is others', with a process of root's
/// beside it.
fn run_hidden(case: &str) {
    let exe = std::env::current_exe().expect("exe");
    let script = "mount -o remount,hidepid=2 /proc || exit; sleep 1000 > /dev/null 2>&1 & SEXTON_TEST_HIDDEN=$! \
                  setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script, "sh"]);
    command.arg(exe).args(["--exact", case, "--nocapture"]).env("SEXTON_TEST_CASE", case);
    let output = command.output().expect("launched");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn what_is_hidden_is_told_and_never_gone() {
    let case = "what_is_hidden_is_told_and_never_gone";
    if std::env::var_os("SEXTON_TEST_CASE").is_none_or(|name| name != case) {
        return run_hidden(case);
    }
    let hidden = std::env::var("SEXTON_TEST_HIDDEN").expect("told").parse().expect("a number");
    let hidden = Pid::new(hidden).expect("a PID");
    assert!(std::fs::metadata(format!("/proc/{hidden}")).is_err(), "it is hidden");
    assert!(matches!(proc::stat(hidden), Err(proc::ReadProcError::Unreadable { .. })), "it lives");
    let here = proc::here().expect("here");
    assert_eq!(look_at(hidden, &here).expect_err("it lives, and cannot be read").pid, Some(hidden));

    let mine = Command::new("sleep").arg("1000").spawn().expect("sleep");
    let found = look_adopted(&[Adopter::Init, Adopter::Process(me())]);
    assert!(!found.unread.is_empty(), "that PID 1 may have more children is told: {found:?}");
    let child = Pid::new(i32::try_from(mine.id()).expect("fits")).expect("pid");
    assert_eq!(found.pids.into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([me(), child]), "nothing is invented");

    let mut gone = mine;
    gone.kill().expect("killed");
    gone.wait().expect("reaped");
    assert!(look_at(child, &here).expect("what is gone is no error").is_none());
}

fn me() -> Pid {
    Pid::new(i32::try_from(std::process::id()).expect("fits")).expect("not init")
}
