//! `sexton-init` as PID 1 beside the programs whose place it takes: each in a PID namespace of its own, in turns. Both of
//! its builds are: the one for images, which is no more than the others are, and the one that is the keeper too.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sexton_core::handle::Handle;
use sexton_core::proc;
use sexton_plan::id::Pid;
use sexton_sys::poll::{PollFd, poll};

use super::process::{Memory, activity, memory, since};
use super::{Aim, Bench, Figure, Row, Samples, timed};
use crate::step::has_program;

/// Orphans whose reaping is measured as CPU time.
const ORPHANS: usize = 10_000;
/// How often, in turns.
const TURNS: usize = 3;
/// Orphans that end one by one.
const TRICKLE: usize = 200;
/// For how long an idle init is watched.
const IDLE: Duration = Duration::from_secs(3);
/// How long anything may take that ends at all.
const PATIENCE: Duration = Duration::from_secs(120);

/// What PID 1 runs. It leaves some orphans that live, and at each line that it reads as many as that says, which end at
/// once.
const WORK: &str = "#!/bin/sh
i=0; while [ $i -lt TRICKLE ]; do (sleep 100000 &); i=$((i+1)); done
echo ready
while read count; do
  i=0; while [ $i -lt $count ]; do (: &); i=$((i+1)); done
  echo done
done";

/// A program that can be PID 1.
struct Peer {
    name: &'static str,
    path: PathBuf,
}

/// What one program brought.
struct Measured {
    name: &'static str,
    file: u64,
    /// What else must be there: the libraries that it has mapped.
    libraries: u64,
    memory: Memory,
    idle_wakes: u64,
    latencies: Samples,
    /// Of each turn.
    cpu: Vec<Duration>,
}

impl Measured {
    fn cpu(&self) -> Figure {
        Figure::Time(Samples::from(self.cpu.clone()).median())
    }
}

/// `sexton-init`, for images and whole, then its peers.
pub fn init(bench: &Bench) -> Result<Vec<Row>> {
    let mut programs = vec![
        Peer { name: "PID 1", path: bench.init_for_images.clone() },
        Peer { name: "PID 1 and keeper", path: bench.sexton.with_file_name("sexton-init") },
    ];
    for name in ["tini", "dumb-init", "catatonit", "s6-svscan"] {
        match find(name) {
            Some(path) => programs.push(Peer { name, path }),
            None => println!("{name} is not installed: not compared"),
        }
    }
    let mut running = programs.iter().map(Running::start).collect::<Result<Vec<_>>>()?;
    let both = programs.iter().zip(&running);
    let mut all = both.map(|(peer, running)| measure(peer, running)).collect::<Result<Vec<_>>>()?;
    for _ in 0..TURNS {
        for (measured, running) in all.iter_mut().zip(&mut running) {
            measured.cpu.push(running.leave(ORPHANS)?);
        }
    }
    let [for_images, whole, peers @ ..] = &all[..] else { bail!("ours are the first") };
    let mut rows = Vec::new();
    for ours in [for_images, whole] {
        rows.extend(alone(ours));
        rows.extend(peers.iter().flat_map(|peer| compare(ours, peer)));
    }
    // None of the others is a keeper.
    rows.extend(peers.iter().map(|peer| compare_files(for_images, peer).aim(Aim::Times(1.0))));
    rows.push(compare_files(whole, for_images));
    Ok(rows)
}

/// What a program of ours is measured by without a peer.
fn alone(ours: &Measured) -> [Row; 2] {
    let row = |what: &str, figure, most| Row::new(format!("{}: {what}", ours.name), figure).aim(Aim::AtMost(most));
    [
        row("memory when idle, RSS", Figure::Bytes(ours.memory.rss), Figure::Bytes(128 << 10)),
        row("context switches in 3 s idle", Figure::Count(ours.idle_wakes), Figure::Count(0)),
    ]
}

fn compare_files(ours: &Measured, peer: &Measured) -> Row {
    let libraries = Some(peer.libraries).filter(|&bytes| bytes > 0);
    let beside = libraries.map(|bytes| format!(", and its libraries: {}", Figure::Bytes(bytes))).unwrap_or_default();
    let row = Row::new(format!("{}: program file", ours.name), Figure::Bytes(ours.file));
    row.against(format!("{}{beside}", peer.name), Figure::Bytes(peer.file))
}

fn compare(ours: &Measured, peer: &Measured) -> Vec<Row> {
    let name = ours.name;
    let row = |what: &str, ours, theirs| Row::new(format!("{name}: {what}"), ours).against(peer.name, theirs);
    let less = Aim::Times(1.0);
    vec![
        row("memory when idle, RSS", Figure::Bytes(ours.memory.rss), Figure::Bytes(peer.memory.rss)).aim(less),
        row("memory when idle, PSS", Figure::Bytes(ours.memory.pss), Figure::Bytes(peer.memory.pss)).aim(less),
        row("CPU for 10,000 orphans", ours.cpu(), peer.cpu()).aim(less),
        row(
            "orphan's end to its reaping, p50",
            Figure::Time(ours.latencies.median()),
            Figure::Time(peer.latencies.median()),
        ),
        row(
            "orphan's end to its reaping, p99",
            Figure::Time(ours.latencies.percentile(99)),
            Figure::Time(peer.latencies.percentile(99)),
        ),
    ]
}

fn find(name: &str) -> Option<PathBuf> {
    if !has_program(name) {
        return None;
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let dirs = path.split(':').chain(["/usr/bin", "/usr/sbin", "/sbin"]);
    dirs.map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
}

/// All but the CPU.
fn measure(peer: &Peer, running: &Running) -> Result<Measured> {
    let init = running.init.as_raw();
    let memory = memory(init)?;
    let before = activity(init)?;
    std::thread::sleep(IDLE);
    let idle_wakes = since(before, activity(init)?).switches;
    let latencies = Samples::from(running.end_one_by_one()?);
    let (file, libraries) = files(init)?;
    Ok(Measured { name: peer.name, file, libraries, memory, idle_wakes, latencies, cpu: Vec::new() })
}

/// How large the program of `init` is, and what else it has mapped.
fn files(init: i32) -> Result<(u64, u64)> {
    let maps = fs::read_to_string(format!("/proc/{init}/maps"))?;
    let mapped: BTreeSet<&str> = maps.lines().filter_map(|line| line.find('/').and_then(|at| line.get(at..))).collect();
    let sizes = mapped.into_iter().map(|path| Ok(fs::metadata(path)?.len())).collect::<Result<Vec<u64>>>()?;
    let file = fs::metadata(format!("/proc/{init}/exe"))?.len();
    Ok((file, sizes.iter().sum::<u64>() - file))
}

/// A program as PID 1, with its command.
struct Running {
    unshare: Child,
    orders: ChildStdin,
    told: BufReader<ChildStdout>,
    init: Pid,
    dir: PathBuf,
}

impl Running {
    fn start(peer: &Peer) -> Result<Running> {
        let dir = std::env::temp_dir().join(format!("sexton-bench-{}-{}", std::process::id(), peer.name));
        let arguments = arguments(peer, &dir)?;
        let mut command = Command::new("unshare");
        // The death of `unshare` is the end of the whole namespace.
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(&peer.path).args(arguments);
        let mut unshare = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let orders = unshare.stdin.take().context("piped")?;
        let told = BufReader::new(unshare.stdout.take().context("piped")?);
        let parent = Pid::new(i32::try_from(unshare.id())?).context("a PID")?;
        let mut running = Running { unshare, orders, told, init: parent, dir };
        running.hear("ready")?;
        running.init = *proc::children(parent)?.first().context("unshare has a child")?;
        running.wait_until("all orphans are its own", |init| Ok(sleepers(init)?.len() == TRICKLE))?;
        Ok(running)
    }

    fn hear(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        self.told.read_line(&mut line)?;
        ensure!(line.trim_end() == word, "it said `{line}` and not `{word}`");
        Ok(())
    }

    fn wait_until(&self, what: &str, holds: impl Fn(Pid) -> Result<bool>) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !holds(self.init)? {
            ensure!(Instant::now() < end, "never: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Kills the orphans that live; for each, how long until it was reaped.
    fn end_one_by_one(&self) -> Result<Vec<Duration>> {
        let here = proc::here()?;
        let end = |pid: Pid| {
            let handle = Handle::open(pid, &here)?;
            let (took, reaped) = timed(|| {
                handle.signal(9)?;
                // Nothing is asked for: that it hung up, which is when it was reaped, is told all the same.
                Ok(poll(&mut [PollFd::new(handle.as_raw_fd(), 0)], Some(PATIENCE))? > 0)
            })?;
            ensure!(reaped, "an orphan was never reaped");
            Ok(took)
        };
        sleepers(self.init)?.into_iter().map(end).collect()
    }

    /// Has the command leave `count` orphans, and waits until every one has been reaped; the CPU that took.
    fn leave(&mut self, count: usize) -> Result<Duration> {
        let before = (proc::children(self.init)?.len(), activity(self.init.as_raw())?);
        writeln!(self.orders, "{count}")?;
        self.hear("done")?;
        self.wait_until("all orphans are reaped", |init| Ok(proc::children(init)?.len() <= before.0))?;
        Ok(since(before.1, activity(self.init.as_raw())?).cpu)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Whatever went wrong has been told already.
        let _killed = self.unshare.kill();
        let _reaped = self.unshare.wait();
        let _removed = fs::remove_dir_all(&self.dir);
    }
}

/// What a program is given so that it runs the work; for `s6-svscan`, as a service of a directory.
fn arguments(peer: &Peer, dir: &Path) -> Result<Vec<OsString>> {
    let is_svscan = peer.name == "s6-svscan";
    let script = if is_svscan { dir.join("work/run") } else { dir.join("work") };
    fs::create_dir_all(script.parent().context("it has one")?)?;
    fs::write(&script, WORK.replace("TRICKLE", &TRICKLE.to_string()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(if is_svscan { vec![dir.into()] } else { vec!["--".into(), script.into()] })
}

/// The children of `init` that sleep.
fn sleepers(init: Pid) -> Result<Vec<Pid>> {
    let sleeps = |pid: &Pid| proc::executable(*pid).is_ok_and(|path| path.ends_with("sleep"));
    Ok(proc::children(init)?.into_iter().filter(sleeps).collect())
}
