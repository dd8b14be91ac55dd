//! Every owner of children in one process at once: the standard library, tokio, the reaper, and the sweep for orphans.
//! A file of its own, for what is a subreaper inherits all that other tests leave.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use sexton_core::proc;
use sexton_core::reaper::{Fate, Reaper, Registration};
use sexton_core::sweep::{Sweep, SweepSettings};
use sexton_plan::id::Pid;
use sexton_plan::state::ExitStatus;

/// Four owners make ten thousand.
const EACH: usize = 2_500;
const BURST: usize = 125;

const LONG: Duration = Duration::from_secs(60);

fn code_of(i: usize) -> u8 {
    u8::try_from(i % 256).expect("below 256")
}

/// A child that ends with the code of `i`.
fn command(i: usize) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exit {}", code_of(i))]).stdin(Stdio::null());
    command
}

fn pid(id: u32) -> Pid {
    Pid::new(i32::try_from(id).expect("fits")).expect("not init")
}

fn zombies() -> Vec<Pid> {
    let children = proc::children(pid(std::process::id())).expect("proc");
    children.into_iter().filter(|child| proc::stat(*child).is_ok_and(|stat| stat.state == 'Z')).collect()
}

/// The number of the first of each burst.
fn bursts() -> impl Iterator<Item = usize> {
    (0..EACH).step_by(BURST)
}

#[test]
fn ten_thousand_exits_reach_their_owners() {
    sexton_sys::process::become_subreaper().expect("prctl");
    let reaper = Reaper::start().expect("reaper");
    let settings =
        SweepSettings { enabled: true, interval: Duration::from_millis(100), grace: Duration::from_millis(500) };
    let (tell, swept) = mpsc::channel();
    let sweep = Sweep::start_with(settings, Some(&reaper), move |report| {
        report.reaped.iter().for_each(|zombie| tell.send(zombie.status).expect("heard"));
    });
    assert_eq!(sweep.status().inactive, None);
    thread::scope(|scope| {
        scope.spawn(|| bursts().for_each(burst_of_std));
        scope.spawn(all_bursts_of_tokio);
        scope.spawn(|| bursts().for_each(|from| burst_of_reaper(&reaper, from)));
        scope.spawn(|| bursts().for_each(burst_of_orphans));
    });
    let ended = Instant::now();
    while !zombies().is_empty() {
        assert!(ended.elapsed() < Duration::from_secs(2), "{:?}", zombies());
        thread::yield_now();
    }
    let stats = reaper.stats();
    assert_eq!((stats.registered, stats.vanished, stats.restarts), (0, 0, 0));
    assert_eq!(stats.reaped, EACH as u64);
    assert_eq!(count(&swept), (0..EACH).map(code_of).map(ExitStatus::Code).fold(BTreeMap::new(), add));
}

fn add(mut counts: BTreeMap<ExitStatus, usize>, status: ExitStatus) -> BTreeMap<ExitStatus, usize> {
    *counts.entry(status).or_default() += 1;
    counts
}

/// What the sweep told of all orphans.
fn count(swept: &Receiver<ExitStatus>) -> BTreeMap<ExitStatus, usize> {
    (0..EACH).map(|_| swept.recv_timeout(LONG).expect("told")).fold(BTreeMap::new(), add)
}

fn burst_of_std(from: usize) {
    let children: Vec<_> = (from..from + BURST).map(|i| (i, command(i).spawn().expect("spawned"))).collect();
    for (i, mut child) in children {
        assert_eq!(child.wait().expect("its own").code(), Some(code_of(i).into()));
    }
}

fn all_bursts_of_tokio() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("runtime").block_on(async {
        for from in bursts() {
            burst_of_tokio(from).await;
        }
    });
}

async fn burst_of_tokio(from: usize) {
    let spawn = |i: usize| tokio::process::Command::from(command(i)).spawn().expect("spawned");
    let children: Vec<_> = (from..from + BURST).map(|i| (i, spawn(i))).collect();
    for (i, mut child) in children {
        assert_eq!(child.wait().await.expect("its own").code(), Some(code_of(i).into()));
    }
}

fn burst_of_reaper(reaper: &Reaper, from: usize) {
    let start = |i: usize| reaper.register(pid(command(i).spawn().expect("spawned").id())).expect("a child");
    let registered: Vec<(usize, Registration)> = (from..from + BURST).map(|i| (i, start(i))).collect();
    for (i, registration) in registered {
        let exit = registration.wait(Some(LONG)).expect("ended");
        assert_eq!(exit.fate, Fate::Reaped(ExitStatus::Code(code_of(i))));
    }
}

/// Orphans that nobody registers; they end when their first parent is gone and the pipe with it.
fn burst_of_orphans(from: usize) {
    let codes: Vec<String> = (from..from + BURST).map(|i| code_of(i).to_string()).collect();
    let script = format!("exec 3<&0; for code in {}; do (read end <&3; exit $code) & done", codes.join(" "));
    let mut command = Command::new("sh");
    let mut shell = command.args(["-c", &script]).stdin(Stdio::piped()).spawn().expect("sh");
    let end = shell.stdin.take();
    assert!(shell.wait().expect("its own").success());
    drop(end);
}
