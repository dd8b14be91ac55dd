//! From `kill` to the owner's knowledge, and the CPU it costs, while 1, 1,000 or 10,000 children live: the reaper beside
//! polling every 250 ms, `SIGCHLD` with a wait for any child, and tokio. `cargo bench -p sexton-core --bench reap [N…]`.
//!
//! Absolute numbers are the machine's; the ratios are what counts.

#![allow(clippy::print_stdout, reason = "a bench prints what it found")]
#![allow(clippy::zombie_processes, reason = "what is measured waits for them")]

use std::fs;
use std::io::{PipeReader, PipeWriter};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sexton_core::handle::Handle;
use sexton_core::proc::{self, Here};
use sexton_core::reaper::Reaper;
use sexton_plan::id::Pid;
use sexton_sys::signal::{self, Signal, SignalSet};
use sexton_sys::{Errno, wait};

type Res<T> = Result<T, Box<dyn std::error::Error>>;

/// Exits measured one by one, each after the one before was told; fewer for what takes 250 ms each.
const EXITS: usize = 200;
const SLOW_EXITS: usize = 12;
const IDLE: Duration = Duration::from_secs(1);

/// A running owner: where it tells of each exit, and how to stop it.
struct Owner {
    told: Receiver<(u32, Instant)>,
    stop: Box<dyn FnOnce()>,
}

struct Measured {
    name: &'static str,
    latencies: Vec<Duration>,
    cpu_of_exit: Duration,
    idle_cpu: Duration,
}

fn main() -> Res<()> {
    let asked: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let counts = if asked.is_empty() { vec![1, 1_000, 10_000] } else { asked };
    let most = counts.iter().max().copied().unwrap_or_default();
    let limit = format!("--nofile={}:", most + 1_000);
    let prlimit = Command::new("prlimit").args(["--pid", &std::process::id().to_string(), &limit]).status()?;
    if !prlimit.success() {
        return Err("the limit of open files is too low for so many children".into());
    }
    // Before any thread: `SIGCHLD` is taken by a wait for it.
    let _before = signal::replace_mask(SignalSet::EMPTY.with(Signal::CHLD));
    for count in counts {
        let results = [
            measure("sexton", count, EXITS, reaper)?,
            measure("poll 250 ms", count, SLOW_EXITS, polling)?,
            measure("SIGCHLD + wait", count, EXITS, sigchld)?,
            measure_tokio(count)?,
        ];
        print(count, &results);
    }
    Ok(())
}

fn print(count: usize, results: &[Measured]) {
    println!("\n{count} children      p50 µs     p99 µs  CPU µs/exit  idle CPU µs/s   p50, CPU and idle as multiples");
    let Some(first) = results.first() else { return };
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    for result in results {
        let (p50, p99) = (micros(quantile(&result.latencies, 50)), micros(quantile(&result.latencies, 99)));
        let (cpu, idle) = (micros(result.cpu_of_exit), micros(result.idle_cpu));
        let times = |a: f64, b: Duration| a / micros(b).max(0.1);
        println!(
            "{:<15} {p50:>9.0}  {p99:>9.0}  {cpu:>11.0}  {idle:>13.0}   {:.1} {:.1} {:.1}",
            result.name,
            times(p50, quantile(&first.latencies, 50)),
            times(cpu, first.cpu_of_exit),
            times(idle, first.idle_cpu),
        );
    }
}

fn quantile(latencies: &[Duration], percent: usize) -> Duration {
    let mut sorted = latencies.to_vec();
    sorted.sort();
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

/// CPU time of all threads of this process.
fn cpu() -> Res<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir("/proc/self/task")? {
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanos += text.split(' ').next().and_then(|field| field.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(Duration::from_nanos(nanos))
}

/// Children that end when this is dropped, and so also when the bench dies.
struct Nursery {
    reader: PipeReader,
    _writer: PipeWriter,
}

impl Nursery {
    fn new() -> Res<Nursery> {
        let (reader, writer) = std::io::pipe()?;
        Ok(Nursery { reader, _writer: writer })
    }

    /// A child that reads until the pipe ends.
    fn child(&self) -> Res<Command> {
        let mut command = Command::new("cat");
        command.stdin(self.reader.try_clone()?).stdout(Stdio::null());
        Ok(command)
    }
}

fn hold(id: u32, here: &Here) -> Res<Handle> {
    Ok(Handle::open(Pid::new(id.try_into()?).ok_or("a PID")?, here)?)
}

fn measure(name: &'static str, count: usize, exits: usize, start: fn(&[u32]) -> Res<Owner>) -> Res<Measured> {
    let here = proc::here()?;
    // Those that end come on top, so that as many live all the while.
    let nursery = Nursery::new()?;
    let children = (0..count + exits).map(|_| Ok(nursery.child()?.spawn()?.id())).collect::<Res<Vec<u32>>>()?;
    let ending = children.iter().take(exits).map(|id| hold(*id, &here)).collect::<Res<Vec<Handle>>>()?;
    let owner = start(&children)?;
    let result = rounds(name, &ending, &owner.told)?;
    (owner.stop)();
    drop(nursery);
    for id in children {
        while matches!(wait::reap(id), Ok(None)) {
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(result)
}

fn rounds(name: &'static str, ending: &[Handle], told: &Receiver<(u32, Instant)>) -> Res<Measured> {
    thread::sleep(Duration::from_millis(300));
    let before = cpu()?;
    thread::sleep(IDLE);
    let idle_cpu = cpu()?.saturating_sub(before);
    let before = cpu()?;
    let mut latencies = Vec::new();
    for handle in ending {
        let killed = Instant::now();
        handle.signal(9)?;
        let (_, at) = told.recv_timeout(Duration::from_secs(10))?;
        latencies.push(at.duration_since(killed));
    }
    let cpu_of_exit = cpu()?.saturating_sub(before) / u32::try_from(ending.len())?;
    Ok(Measured { name, latencies, cpu_of_exit, idle_cpu })
}

fn reaper(children: &[u32]) -> Res<Owner> {
    let (tell, told) = mpsc::channel();
    let reaper = Reaper::builder().on_exit(move |exit| {
        let _heard = tell.send((exit.pid.as_raw().cast_unsigned(), Instant::now()));
    });
    let reaper = reaper.start()?;
    for id in children {
        reaper.register(Pid::new((*id).try_into()?).ok_or("a PID")?)?;
    }
    Ok(Owner { told, stop: Box::new(move || reaper.stop()) })
}

/// A thread that runs `turn` until it is stopped.
fn owner(told: Receiver<(u32, Instant)>, mut turn: impl FnMut() + Send + 'static) -> Owner {
    let stopping = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stopping);
    let thread: JoinHandle<()> = thread::spawn(move || {
        while !seen.load(Ordering::Acquire) {
            turn();
        }
    });
    let stop = move || {
        stopping.store(true, Ordering::Release);
        let _ended = thread.join();
    };
    Owner { told, stop: Box::new(stop) }
}

fn polling(children: &[u32]) -> Res<Owner> {
    let (tell, told) = mpsc::channel();
    let mut left = children.to_vec();
    Ok(owner(told, move || {
        left.retain(|id| match wait::reap(*id) {
            Ok(None) => true,
            Ok(Some(_)) => tell.send((*id, Instant::now())).is_err(),
            Err(_) => false,
        });
        thread::sleep(Duration::from_millis(250));
    }))
}

fn sigchld(_children: &[u32]) -> Res<Owner> {
    let (tell, told) = mpsc::channel();
    Ok(owner(told, move || {
        match signal::wait(SignalSet::EMPTY.with(Signal::CHLD), Some(Duration::from_millis(500))) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.errno, Errno::EINTR),
        }
        while let Ok(Some((id, _))) = wait::peek_any() {
            let _reaped = wait::reap(id);
            let _heard = tell.send((id, Instant::now()));
        }
    }))
}

fn measure_tokio(count: usize) -> Res<Measured> {
    let here = proc::here()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (tell, told) = mpsc::channel();
    let nursery = Nursery::new()?;
    let mut ending = Vec::new();
    for at in 0..count + EXITS {
        let guard = runtime.enter();
        let mut child = tokio::process::Command::from(nursery.child()?).spawn()?;
        drop(guard);
        let id = child.id().ok_or("it lives")?;
        if at < EXITS {
            ending.push(hold(id, &here)?);
        }
        let tell = tell.clone();
        runtime.spawn(async move {
            let _status = child.wait().await;
            let _heard = tell.send((id, Instant::now()));
        });
    }
    let result = rounds("tokio", &ending, &told)?;
    drop(nursery);
    for _ in 0..count {
        told.recv_timeout(Duration::from_secs(60))?;
    }
    Ok(result)
}
