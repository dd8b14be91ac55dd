//! Custody: starting, stopping, finding again, and what it costs to do nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::node::{self, Bare, Node, SLEEPER};
use super::process::{Prompt, activity, memory, since};
use super::{Aim, Bench, Figure, Row, Samples, in_turns};

/// For how long an idle daemon is watched.
const IDLE: Duration = Duration::from_secs(10);

/// Where state may lie, with what is said of it.
fn places() -> [(&'static str, PathBuf); 2] {
    [("disk", std::env::temp_dir()), ("tmpfs", PathBuf::from("/dev/shm"))]
}

/// A start over REST, answered when the program runs and that is durable; each side as a thread sees it that runs as
/// soon as it is woken.
pub fn start(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (place, parent) in places() {
        let node = Node::serve(&bench.sexton, &parent)?;
        let (mut connection, bare) = (node.connect()?, Bare::new()?);
        let _prompt = Prompt::new()?;
        let mut ours = |round| {
            let name = format!("start-{round}");
            let (took, ()) = super::timed(|| node.create(&mut connection, &name))?;
            node.stop_and_remove(&mut connection, &name)?;
            Ok(took)
        };
        let mut bare = |round| {
            let (took, process) = bare.spawn(&format!("start-{round}"), &SLEEPER)?;
            bare.kill(vec![process])?;
            Ok(took)
        };
        let [ours, bare, std] = in_turns(bench.rounds, [&mut ours, &mut bare, &mut |_| node::spawn_by_std()])?;
        rows.extend(start_rows(place, &ours, &bare, &std));
    }
    Ok(rows)
}

fn start_rows(place: &str, ours: &Samples, bare: &Samples, std: &Samples) -> Vec<Row> {
    let median = Row::new(format!("start over REST, p50, state on {place}"), Figure::Time(ours.median()));
    let clone3 = median.clone().against("clone3 into a new cgroup", Figure::Time(bare.median()));
    let tail = |percent| {
        let what = format!("start over REST, p{percent}, state on {place}");
        let against = Figure::Time(bare.percentile(percent));
        Row::new(what, Figure::Time(ours.percentile(percent))).against("clone3 into a new cgroup", against)
    };
    vec![
        clone3.aim(Aim::AtMost(Figure::Time(Duration::from_millis(1)))).aim(Aim::Times(3.0)),
        median.against("fork and exec in one cgroup", Figure::Time(std.median())),
        tail(90),
        tail(99),
    ]
}

/// Ending many at once by force, to the last record.
pub fn stop(bench: &Bench) -> Result<Vec<Row>> {
    let node = Node::serve(&bench.sexton, &std::env::temp_dir())?;
    let bare = Bare::new()?;
    let mut rows = Vec::new();
    for (count, rounds) in [(100, 9), (1_000, 3)] {
        let mut ours = |_| {
            node.create_many("stop", count)?;
            let took = node.stop_many("stop", count)?;
            node.remove_many("stop", count)?;
            Ok(took)
        };
        let spawn = || {
            let spawned = (0..count).map(|index| Ok(bare.spawn(&format!("stop-{index}"), &SLEEPER)?.1));
            spawned.collect::<Result<Vec<_>>>()
        };
        let mut floor = |_| bare.kill(spawn()?);
        let mut by_hand = |_| bare.kill_each(spawn()?);
        let timed = in_turns(rounds, [&mut ours, &mut floor, &mut by_hand])?;
        let [ours, floor, by_hand] = timed.map(|samples| Figure::Time(samples.median()));
        let row = Row::new(format!("stop of {count} instances, each in its cgroup"), ours);
        rows.push(row.against("one cgroup.kill above as many", floor).aim(Aim::Times(3.0)));
        let row = Row::new(format!("stop of {count} instances, each in its cgroup"), ours);
        rows.push(row.against("cgroup.kill, reap and rmdir of each by hand", by_hand));
    }
    Ok(rows)
}

/// A killed worker's successor finds all instances again.
pub fn adopt(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (count, aim, rounds) in [(1_000, 50, 9), (10_000, 200, 5)] {
        let mut node = Node::serve(&bench.sexton, &std::env::temp_dir())?;
        node.create_many("adopt", count)?;
        let pids = node.pids()?;
        let (mut seen, mut told, mut stats) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let replaced = node.replace_worker()?;
            seen.push(replaced.seen);
            told.push(replaced.told);
            stats.push(node::read_stats(&pids)?);
        }
        let [seen, told, stats] = [seen, told, stats].map(|spans| Figure::Time(Samples::from(spans).median()));
        let aim = Aim::AtMost(Figure::Time(Duration::from_millis(aim)));
        let row = Row::new(format!("worker's start to ready, {count} found again"), told);
        rows.push(row.against("reading /proc/PID/stat of each", stats).aim(aim));
        rows.push(Row::new(format!("worker's death to ready, as a client sees it, {count}"), seen));
    }
    Ok(rows)
}

/// Memory, and what an idle daemon does.
pub fn size(bench: &Bench) -> Result<Vec<Row>> {
    const COUNT: usize = 1_000;
    const MIB: u64 = 1 << 20;
    let mut node = Node::serve(&bench.sexton, &std::env::temp_dir())?;
    let mut rows =
        vec![program_size(&bench.sexton, "sexton", 8 * MIB)?, program_size(&bench.sexton, "sexton-init", 40 << 10)?];
    rows.extend(memory_rows(&node, "0 instances")?);
    node.create_many("size", COUNT)?;
    rows.extend(memory_rows(&node, "1,000 instances")?);
    node.replace_worker()?;
    rows.extend(memory_rows(&node, "1,000 found again")?);
    rows.extend(idle_rows(&node)?);
    Ok(rows)
}

fn program_size(sexton: &Path, name: &str, most: u64) -> Result<Row> {
    let size = std::fs::metadata(sexton.with_file_name(name))?.len();
    Ok(Row::new(format!("program {name}, file"), Figure::Bytes(size)).aim(Aim::AtMost(Figure::Bytes(most))))
}

fn memory_rows(node: &Node, when: &str) -> Result<[Row; 2]> {
    let row = |who: &str, pid, most| {
        let found = memory(pid)?;
        let row = Row::new(format!("memory of the {who}, {when}"), Figure::Bytes(found.rss));
        let row = row.against("unshared (PSS)", Figure::Bytes(found.pss));
        anyhow::Ok(row.aim(Aim::AtMost(Figure::Bytes(most))))
    };
    Ok([row("keeper", node.keeper_pid()?, 256 << 10)?, row("worker", node.worker_pid()?, 24 << 20)?])
}

fn idle_rows(node: &Node) -> Result<Vec<Row>> {
    let pids = [("worker", node.worker_pid()?), ("keeper", node.keeper_pid()?)];
    // What a start leaves to be done is done by then.
    std::thread::sleep(Duration::from_secs(2));
    let before = pids.map(|(_, pid)| activity(pid));
    std::thread::sleep(IDLE);
    let mut rows = Vec::new();
    for ((who, pid), before) in pids.into_iter().zip(before) {
        let did = since(before?, activity(pid)?);
        let what = format!("idle {who}, 1,000 instances, 10 s");
        rows.push(Row::new(format!("{what}: time on a processor"), Figure::Time(did.cpu)));
        let wakes = Row::new(format!("{what}: context switches"), Figure::Count(did.switches));
        rows.push(wakes.aim(Aim::AtMost(Figure::Count(0))));
    }
    Ok(rows)
}
