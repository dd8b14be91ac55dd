//! From a child's end to its owner's knowledge, while 1, 1,000 or 10,000 children live: the reaper beside what others
//! do, which is polling every 250 ms, `SIGCHLD` with a wait for any child, or tokio.
//!
//! Here, and nowhere in the product, a wait is for any child: that is what is measured against.

use std::io::{BufRead, BufReader, PipeReader, PipeWriter};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sexton_core::handle::Handle;
use sexton_core::proc;
use sexton_core::reaper::Reaper;
use sexton_plan::id::Pid;
use sexton_sys::signal::{self, Signal, SignalSet};
use sexton_sys::{limit, wait};

use super::process::{Activity, activity, since};
use super::{Aim, Bench, Figure, Row, Samples};

/// Exits measured one by one, each after the one before was told; few where each takes 250 ms.
const EXITS: usize = 200;
const SLOW_EXITS: usize = 12;
/// For how long nothing happens.
const IDLE: Duration = Duration::from_secs(2);
/// Registered, and killed at once.
const MANY: usize = 4_096;
/// How long anything may take that ends at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// An owner of children that runs: whose it is, where it tells of each exit, and how to stop it.
struct Owner {
    children: Vec<u32>,
    told: Receiver<(u32, Instant)>,
    stop: Box<dyn FnOnce()>,
}

/// What one owner brought.
struct Measured {
    latencies: Samples,
    /// For each exit.
    cpu: Duration,
    idle: Activity,
}

/// A way to own children: its name, how many exits are measured, and how it begins with so many children.
type Way = (&'static str, usize, fn(&Nursery, usize) -> Result<Owner>);

const WAYS: [Way; 4] = [
    ("sexton", EXITS, by_reaper),
    ("polling every 250 ms", SLOW_EXITS, by_polling),
    ("SIGCHLD and wait for any", EXITS, by_sigchld),
    ("tokio", EXITS, by_tokio),
];

/// All of it.
pub fn reaper(_bench: &Bench) -> Result<Vec<Row>> {
    allow_descriptors(12_000)?;
    // Before any thread, so that `SIGCHLD` goes to the one that waits for it.
    let before = signal::replace_mask(SignalSet::EMPTY.with(Signal::CHLD));
    let mut rows = Vec::new();
    let mut costs = Vec::new();
    for count in [1, 1_000, 10_000] {
        let [ours, peers @ ..] = WAYS.map(|way| measure(count, way));
        let ours = ours?;
        costs.push(ours.cpu);
        rows.extend(idle_rows(count, &ours));
        for ((name, ..), theirs) in WAYS.iter().skip(1).zip(peers) {
            rows.extend(compare(count, &ours, name, &theirs?));
        }
    }
    if let [one, .., many] = costs[..] {
        let row = Row::new("CPU of an exit while 10,000 children live", Figure::Time(many));
        rows.push(row.against("while 1 does", Figure::Time(one)).aim(Aim::Times(1.5)));
    }
    rows.push(many_at_once()?);
    rows.push(beside_a_traced_one()?);
    signal::replace_mask(before);
    Ok(rows)
}

/// Allows this process so many descriptors at least.
fn allow_descriptors(least: u64) -> Result<()> {
    let [soft, hard] = limit::open_files()?;
    if soft < least {
        limit::set_open_files([least, hard.max(least)]).context("the limit of open files")?;
    }
    Ok(())
}

fn compare(count: usize, ours: &Measured, name: &str, theirs: &Measured) -> [Row; 3] {
    let row = |what: &str, ours, theirs| {
        let row = Row::new(format!("{count} children: {what}"), Figure::Time(ours));
        row.against(name, Figure::Time(theirs))
    };
    let tail = |samples: &Samples| samples.percentile(99);
    [
        row("exit to notice, p50", ours.latencies.median(), theirs.latencies.median()),
        row("exit to notice, p99", tail(&ours.latencies), tail(&theirs.latencies))
            .aim(Aim::AtMost(Figure::Time(Duration::from_micros(500)))),
        row("CPU of an exit", ours.cpu, theirs.cpu),
    ]
}

fn idle_rows(count: usize, ours: &Measured) -> [Row; 1] {
    let row = Row::new(format!("{count} children: wake-ups in 2 s idle"), Figure::Count(ours.idle.switches));
    [row.aim(Aim::AtMost(Figure::Count(0)))]
}

/// Children that read a pipe until it ends, and so end when this is dropped, or when the bench dies.
struct Nursery {
    reader: PipeReader,
    _writer: PipeWriter,
}

impl Nursery {
    fn new() -> Result<Nursery> {
        let (reader, writer) = std::io::pipe()?;
        Ok(Nursery { reader, _writer: writer })
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new("cat");
        command.stdin(self.reader.try_clone()?).stdout(Stdio::null());
        Ok(command)
    }

    #[allow(clippy::zombie_processes, reason = "what is measured waits for them")]
    fn children(&self, count: usize) -> Result<Vec<u32>> {
        (0..count).map(|_| Ok(self.command()?.spawn()?.id())).collect()
    }
}

fn pid(id: u32) -> Result<Pid> {
    Pid::new(i32::try_from(id)?).context("a PID")
}

fn hold(ids: &[u32]) -> Result<Vec<Handle>> {
    let here = proc::here()?;
    ids.iter().map(|id| Ok(Handle::open(pid(*id)?, &here)?)).collect()
}

fn measure(count: usize, (_, exits, start): Way) -> Result<Measured> {
    let nursery = Nursery::new()?;
    // Those that end come on top, so that as many live all the while.
    let owner = start(&nursery, count + exits)?;
    let ending = hold(owner.children.get(..exits).context("as many at least")?)?;
    let measured = rounds(&ending, &owner.told)?;
    drop(nursery);
    for _ in 0..count {
        owner.told.recv_timeout(PATIENCE).context("an exit was never told")?;
    }
    (owner.stop)();
    Ok(measured)
}

fn rounds(ending: &[Handle], told: &Receiver<(u32, Instant)>) -> Result<Measured> {
    let me = i32::try_from(std::process::id())?;
    thread::sleep(Duration::from_millis(300));
    let before = activity(me)?;
    thread::sleep(IDLE);
    // This thread slept once.
    let mut idle = since(before, activity(me)?);
    idle.switches = idle.switches.saturating_sub(1);
    let before = activity(me)?;
    let latencies = ending.iter().map(|handle| end_one(handle, told)).collect::<Result<Vec<_>>>()?;
    let cpu = since(before, activity(me)?).cpu / u32::try_from(ending.len())?;
    Ok(Measured { latencies: Samples::from(latencies), cpu, idle })
}

fn end_one(handle: &Handle, told: &Receiver<(u32, Instant)>) -> Result<Duration> {
    let killed = Instant::now();
    handle.signal(9)?;
    let (_, at) = told.recv_timeout(PATIENCE).context("an exit was never told")?;
    Ok(at.duration_since(killed))
}

fn started_reaper() -> Result<(Reaper, Receiver<(u32, Instant)>)> {
    let (tell, told) = mpsc::channel();
    let reaper = Reaper::builder().on_exit(move |exit| {
        let _heard = tell.send((exit.pid.as_raw().cast_unsigned(), Instant::now()));
    });
    Ok((reaper.start()?, told))
}

fn by_reaper(nursery: &Nursery, count: usize) -> Result<Owner> {
    let (reaper, told) = started_reaper()?;
    let children = nursery.children(count)?;
    for id in &children {
        reaper.register(pid(*id)?)?;
    }
    Ok(Owner { children, told, stop: Box::new(move || reaper.stop()) })
}

/// How to stop a thread that runs `turn` until then.
fn looping(mut turn: impl FnMut() + Send + 'static) -> Box<dyn FnOnce()> {
    let stopping = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stopping);
    let thread = thread::spawn(move || {
        while !seen.load(Ordering::Acquire) {
            turn();
        }
    });
    Box::new(move || {
        stopping.store(true, Ordering::Release);
        let _ended = thread.join();
    })
}

fn by_polling(nursery: &Nursery, count: usize) -> Result<Owner> {
    let (tell, told) = mpsc::channel();
    let children = nursery.children(count)?;
    let mut left = children.clone();
    let stop = looping(move || {
        left.retain(|id| match wait::reap(*id) {
            Ok(None) => true,
            Ok(Some(_)) => tell.send((*id, Instant::now())).is_err(),
            Err(_) => false,
        });
        thread::sleep(Duration::from_millis(250));
    });
    Ok(Owner { children, told, stop })
}

fn by_sigchld(nursery: &Nursery, count: usize) -> Result<Owner> {
    let (tell, told) = mpsc::channel();
    let stop = looping(move || {
        // No signal within that time is a reason to look whether to stop.
        let _woken = signal::wait(SignalSet::EMPTY.with(Signal::CHLD), Some(Duration::from_secs(1)));
        while let Ok(Some((id, _))) = wait::peek_any() {
            let _reaped = wait::reap(id);
            let _heard = tell.send((id, Instant::now()));
        }
    });
    Ok(Owner { children: nursery.children(count)?, told, stop })
}

fn by_tokio(nursery: &Nursery, count: usize) -> Result<Owner> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (tell, told) = mpsc::channel();
    let mut children = Vec::new();
    for _ in 0..count {
        let entered = runtime.enter();
        let mut child = tokio::process::Command::from(nursery.command()?).spawn()?;
        drop(entered);
        let id = child.id().context("it lives")?;
        children.push(id);
        let tell = tell.clone();
        runtime.spawn(async move {
            let _status = child.wait().await;
            let _heard = tell.send((id, Instant::now()));
        });
    }
    Ok(Owner { children, told, stop: Box::new(move || drop(runtime)) })
}

/// Thousands that end at once, from the first signal to the last exit that is told.
fn many_at_once() -> Result<Row> {
    let nursery = Nursery::new()?;
    let owner = by_reaper(&nursery, MANY)?;
    let handles = hold(&owner.children)?;
    let killed = Instant::now();
    for handle in &handles {
        handle.signal(9)?;
    }
    let mut last = killed;
    for _ in &handles {
        (_, last) = owner.told.recv_timeout(PATIENCE).context("an exit was never told")?;
    }
    (owner.stop)();
    let row = Row::new("4,096 children killed at once: all reaped and told", Figure::Time(last.duration_since(killed)));
    Ok(row.aim(Aim::AtMost(Figure::Time(Duration::from_secs(1)))))
}

/// The longest of many exits while a tracer holds a zombie, against the longest without.
fn beside_a_traced_one() -> Result<Row> {
    let nursery = Nursery::new()?;
    let owner = by_reaper(&nursery, 2 * EXITS + 1)?;
    let handles = hold(&owner.children)?;
    let (traced, others) = handles.split_first().context("there is one")?;
    let (before, beside) = others.split_at(EXITS);
    let longest = |handles: &[Handle]| {
        let all = handles.iter().map(|handle| end_one(handle, &owner.told)).collect::<Result<Vec<_>>>()?;
        anyhow::Ok(Samples::from(all).percentile(100))
    };
    let without = longest(before)?;
    let mut tracer = tracer(traced.identity().pid)?;
    traced.signal(9)?;
    let with = longest(beside)?;
    ensure!(owner.told.try_recv().is_err(), "the traced one was reaped: nothing was measured");
    drop(tracer.stdin.take());
    tracer.wait()?;
    owner.told.recv_timeout(PATIENCE).context("the traced one was never told")?;
    (owner.stop)();
    let row = Row::new("beside a traced zombie: longest of 200 exits", Figure::Time(with));
    Ok(row.against("without one", Figure::Time(without)).aim(Aim::AtMost(Figure::Time(Duration::from_millis(10)))))
}

/// Traces `pid` until its stdin is closed, without ever reaping what it traces.
fn tracer(pid: Pid) -> Result<Child> {
    const SCRIPT: &str = "
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.ptrace(0x4206, int(sys.argv[1]), 0, 0) == 0, ctypes.get_errno()
print('tracing', flush=True)
sys.stdin.read()
";
    let mut command = Command::new("python3");
    command.args(["-c", SCRIPT, &pid.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut tracer = command.spawn()?;
    let mut line = String::new();
    BufReader::new(tracer.stdout.as_mut().context("piped")?).read_line(&mut line)?;
    ensure!(line == "tracing\n", "no tracer");
    Ok(tracer)
}
