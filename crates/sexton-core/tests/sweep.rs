//! Zombies of processes nobody here started, and those of somebody, with real processes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use sexton_core::proc;
use sexton_core::reaper::{Fate, Reaper};
use sexton_core::sweep::{Inactive, Sweep, SweepReport, SweepSettings, Sweeper};
use sexton_plan::id::Pid;
use sexton_plan::state::ExitStatus;

const NO_GRACE: SweepSettings =
    SweepSettings { enabled: true, interval: Duration::from_millis(50), grace: Duration::ZERO };

/// All orphans of this process go to one place, so its tests take turns.
fn as_subreaper() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    sexton_sys::process::become_subreaper().expect("prctl");
    turn
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < end, "never: {what}");
        std::thread::yield_now();
    }
}

fn state(pid: Pid) -> Option<char> {
    proc::stat(pid).ok().map(|stat| stat.state)
}

/// An orphan whose parent is this process, running `script`: it begins once its first parent is gone, which could
/// reap it else.
fn orphan(script: &str) -> Pid {
    let script = format!("exec 3<&0; (read go <&3; {script}) >/dev/null 2>&1 & echo $!");
    let mut command = Command::new("sh");
    let mut shell = command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sh");
    let go = shell.stdin.take();
    let output = shell.wait_with_output().expect("waited");
    drop(go);
    let text = String::from_utf8(output.stdout).expect("text");
    Pid::new(text.trim().parse().expect("a number")).expect("a PID")
}

fn zombie_orphan(script: &str) -> Pid {
    let pid = orphan(script);
    eventually("the orphan is a zombie", || (state(pid) == Some('Z')).then_some(pid))
}

/// Passes until one reaps something; a zombie is never reaped by the first that sees it.
fn sweep_once(sweeper: &mut Sweeper) -> SweepReport {
    let seen = sweeper.pass().expect("looked");
    assert_eq!(seen.reaped, []);
    sweeper.pass().expect("looked")
}

#[test]
fn an_orphan_is_reaped_when_it_has_been_seen_twice() {
    let _turn = as_subreaper();
    let mut sweeper = Sweeper::new(NO_GRACE, None).expect("active");
    let pids = [zombie_orphan("exit 7"), zombie_orphan("exec python3 -c 'import os; os.kill(os.getpid(), 9)'")];
    let report = sweep_once(&mut sweeper);
    let mut found: Vec<_> = report.reaped.iter().map(|zombie| (zombie.pid, zombie.status)).collect();
    found.sort();
    let mut expected = vec![(pids[0], ExitStatus::Code(7)), (pids[1], ExitStatus::Signal(9))];
    expected.sort();
    assert_eq!(found, expected);
    let names: Vec<&str> = report.reaped.iter().map(|zombie| zombie.name.as_str()).collect();
    assert!(names.contains(&"sh") && names.contains(&"python3"), "{names:?}");
    assert_eq!((report.waiting, state(pids[0])), (0, None));
}

#[test]
fn within_its_grace_a_zombie_is_left_to_an_owner() {
    let _turn = as_subreaper();
    let patient = SweepSettings { grace: Duration::from_secs(3600), ..NO_GRACE };
    let mut sweeper = Sweeper::new(patient, None).expect("active");
    let pid = zombie_orphan("exit 1");
    for _ in 0..5 {
        let report = sweeper.pass().expect("looked");
        assert_eq!((report.reaped, report.waiting), (vec![], 1));
    }
    assert_eq!(state(pid), Some('Z'));
    assert_eq!(sweep_once(&mut Sweeper::new(NO_GRACE, None).expect("active")).reaped.len(), 1);
}

#[test]
fn a_child_of_this_program_is_never_touched_however_late_its_owner_is() {
    let _turn = as_subreaper();
    let mut own = Command::new("sh").args(["-c", "exit 99"]).spawn().expect("sh");
    let pid = Pid::new(i32::try_from(own.id()).expect("fits")).expect("a PID");
    eventually("it is a zombie", || (state(pid) == Some('Z')).then_some(()));
    let mut sweeper = Sweeper::new(NO_GRACE, None).expect("active");
    for _ in 0..10 {
        let report = sweeper.pass().expect("looked");
        assert_eq!((report.reaped, report.waiting), (vec![], 0));
    }
    assert_eq!(own.wait().expect("its owner's").code(), Some(99));
}

#[test]
fn a_spared_child_is_left_to_its_owner() {
    let _turn = as_subreaper();
    let mut sweeper = Sweeper::new(NO_GRACE, None).expect("active");
    let (spared, other) = (zombie_orphan("exit 1"), zombie_orphan("exit 2"));
    sweeper.spare(spared);
    assert_eq!(sweep_once(&mut sweeper).reaped.iter().map(|zombie| zombie.pid).collect::<Vec<_>>(), [other]);
    assert_eq!(sweeper.pass().expect("looked"), SweepReport::default());
    assert_eq!(state(spared), Some('Z'));
    let mut forgetful = Sweeper::new(NO_GRACE, None).expect("active");
    assert_eq!(sweep_once(&mut forgetful).reaped.len(), 1);
}

#[test]
fn a_registered_orphan_is_the_reapers_even_when_that_has_stopped() {
    let _turn = as_subreaper();
    let reaper = Reaper::start().expect("reaper");
    let pid = orphan("sleep 0.2; exit 3");
    let registration = eventually("it has reparented", || reaper.register(pid).ok());
    reaper.stop();
    eventually("it is a zombie", || (state(pid) == Some('Z')).then_some(()));
    let mut sweeper = Sweeper::new(NO_GRACE, Some(&reaper)).expect("active");
    for _ in 0..5 {
        assert_eq!(sweeper.pass().expect("looked"), SweepReport::default());
    }
    assert_eq!((registration.try_exit(), state(pid)), (None, Some('Z')));
    let second = Reaper::start().expect("reaper");
    let exit = second.register(pid).expect("registered").wait(Some(Duration::from_secs(20))).expect("ended");
    assert_eq!(exit.fate, Fate::Reaped(ExitStatus::Code(3)));
}

#[test]
fn a_zombie_leader_with_live_threads_is_left_and_not_counted() {
    const SCRIPT: &str = "
import ctypes, os, sys, threading
if os.fork():
    os._exit(0)
threading.Thread(target=sys.stdin.read).start()
print(os.getpid(), flush=True)
ctypes.CDLL(None).pthread_exit(None)
";
    let _turn = as_subreaper();
    let (mut python, pid) = script(SCRIPT, &[]);
    eventually("its leader is a zombie", || (state(pid) == Some('Z')).then_some(()));
    assert_untouched(pid);
    drop(python.stdin.take());
    python.wait().expect("waited");
    let mut sweeper = Sweeper::new(NO_GRACE, None).expect("active");
    eventually("it is swept once its threads have ended", || {
        sweeper.pass().expect("looked").reaped.iter().any(|zombie| zombie.pid == pid).then_some(())
    });
}

#[test]
fn a_traced_zombie_is_left_and_not_counted() {
    const SCRIPT: &str = "
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.ptrace(0x4206, int(sys.argv[1]), 0, 0) == 0, ctypes.get_errno()
print(sys.argv[1], flush=True)
sys.stdin.read()
";
    let _turn = as_subreaper();
    let victim = orphan("sleep 1000");
    let (mut tracer, pid) = script(SCRIPT, &[&victim.to_string()]);
    eventually("it is ours", || proc::own_children().expect("proc").contains(&pid).then_some(()));
    sexton_core::handle::Handle::open(pid, &proc::here().expect("proc")).expect("handle").signal(9).expect("signalled");
    eventually("it is a zombie", || (state(pid) == Some('Z')).then_some(()));
    assert_untouched(pid);
    drop(tracer.stdin.take());
    tracer.wait().expect("waited");
    let mut sweeper = Sweeper::new(NO_GRACE, None).expect("active");
    eventually("it is swept once its tracer is gone", || {
        sweeper.pass().expect("looked").reaped.iter().any(|zombie| zombie.pid == pid).then_some(())
    });
}

/// Runs Python and reads the PID that it prints.
fn script(text: &str, args: &[&str]) -> (Child, Pid) {
    let mut command = Command::new("python3");
    command.args(["-c", text]).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = command.spawn().expect("python3");
    let mut line = String::new();
    BufReader::new(python.stdout.as_mut().expect("piped")).read_line(&mut line).expect("read");
    (python, Pid::new(line.trim().parse().expect("a number")).expect("a PID"))
}

fn assert_untouched(pid: Pid) {
    let mut sweeper = Sweeper::new(NO_GRACE, None).expect("active");
    for _ in 0..5 {
        let report = sweeper.pass().expect("looked");
        assert!(report.reaped.iter().all(|zombie| zombie.pid != pid));
        assert_eq!(report.waiting, 0);
    }
    assert_eq!(state(pid), Some('Z'));
}

#[test]
fn any_name_is_told_on_one_line() {
    let _turn = as_subreaper();
    let dir = std::env::temp_dir().join(format!("sexton-test-{}-names", std::process::id()));
    fs::create_dir_all(&dir).expect("dir");
    let program = dir.join("a) Z 1 (b\n");
    fs::copy("/bin/true", &program).expect("copied");
    let shell = format!("exec '{}'", program.display());
    let pid = zombie_orphan(&shell);
    let report = sweep_once(&mut Sweeper::new(NO_GRACE, None).expect("active"));
    fs::remove_dir_all(&dir).expect("removed");
    let zombie = report.reaped.iter().find(|zombie| zombie.pid == pid).expect("reaped");
    assert_eq!((zombie.name.as_str(), zombie.status), ("a) Z 1 (b\\n", ExitStatus::Code(0)));
}

#[test]
fn the_thread_sweeps_within_two_intervals_and_the_grace_and_sooner_when_rung() {
    let _turn = as_subreaper();
    let (told, news) = mpsc::channel();
    let settings =
        SweepSettings { enabled: true, interval: Duration::from_secs(3600), grace: Duration::from_millis(100) };
    let mut sweep = Sweep::start_with(settings, None, move |report: &SweepReport| {
        told.send(report.clone()).expect("heard");
    });
    let pid = zombie_orphan("exit 12");
    let ended = Instant::now();
    sweep.ring();
    let report = news.recv_timeout(Duration::from_secs(20)).expect("told");
    assert!(ended.elapsed() >= Duration::from_millis(100), "{:?}", ended.elapsed());
    assert_eq!(report.reaped.iter().map(|zombie| zombie.pid).collect::<Vec<_>>(), [pid]);
    assert_eq!(sweep.status().reaped, 1);
    sweep.stop();
    assert_eq!(sweep.status().inactive, Some(Inactive::Stopped));

    let (told, news) = mpsc::channel();
    let settings = SweepSettings { interval: Duration::from_millis(100), ..settings };
    let _sweep = Sweep::start_with(settings, None, move |report: &SweepReport| {
        told.send(report.clone()).expect("heard");
    });
    let pid = zombie_orphan("exit 13");
    let report = news.recv_timeout(Duration::from_secs(20)).expect("told");
    assert_eq!(report.reaped.iter().map(|zombie| zombie.pid).collect::<Vec<_>>(), [pid]);
}

#[test]
fn a_panic_of_the_callback_does_not_end_the_sweeping() {
    let _turn = as_subreaper();
    let settings = SweepSettings { interval: Duration::from_millis(20), ..NO_GRACE };
    let sweep = Sweep::start_with(settings, None, |_| panic!("as the test wants it"));
    for reaped in 1..=3 {
        // It may be swept before anybody sees the zombie.
        orphan("exit 0");
        eventually("it is swept", || (sweep.status().reaped == reaped).then_some(()));
    }
    eventually("the panics are counted", || (sweep.status().panics == 3).then_some(()));
}

#[test]
fn settings_out_of_bounds_are_replaced_and_stop_nobody() {
    let _turn = as_subreaper();
    let absurd = SweepSettings { enabled: true, interval: Duration::ZERO, grace: Duration::MAX };
    assert_eq!(Sweep::start(absurd, None).status().inactive, None);
}
