//! A drain by force of a full node, beside what the kernel itself takes to end as many processes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sexton_testkit::processes_in;

use super::node::{Bare, Node};
use super::{Aim, Bench, Figure, Row, Samples, in_turns};

const INSTANCES: usize = 1_000;
/// What each runs: three processes.
const THREE: [&str; 3] = ["/bin/sh", "-c", "sleep 100000 & sleep 100000 & wait"];
/// How often each side is measured.
const ROUNDS: usize = 5;
/// How long it may take until all run.
const PATIENCE: Duration = Duration::from_secs(60);

/// A forced drain, to `drained`; one `cgroup.kill` above as many; a kill of each, and a look at all every 100 ms.
pub fn drain(bench: &Bench) -> Result<Vec<Row>> {
    let bare = Bare::new()?;
    let full = || {
        let node = Node::serve(&bench.sexton, &std::env::temp_dir())?;
        node.create_many_of("drain", INSTANCES, &THREE)?;
        wait_for_all(|| node.processes())?;
        anyhow::Ok(node)
    };
    let mut ours = |_| full()?.drain_by_force();
    let mut followed = |_| full()?.drain_by_force_followed();
    let all = || {
        let spawned = (0..INSTANCES).map(|index| Ok(bare.spawn(&format!("drain-{index}"), &THREE)?.1));
        let spawned = spawned.collect::<Result<Vec<_>>>()?;
        wait_for_all(|| bare.root().map_or(0, |root| processes_in(&root).len()))?;
        anyhow::Ok(spawned)
    };
    let mut floor = |_| bare.kill(all()?);
    let mut polled = |_| bare.kill_and_poll(all()?, Duration::from_millis(100));
    let [ours, floor, polled, followed] = in_turns(ROUNDS, [&mut ours, &mut floor, &mut polled, &mut followed])?;
    let followed = Row::new("as a client learns of it that follows every event", Figure::Time(followed.median()));
    let followed = followed.against("one cgroup.kill above as many", Figure::Time(floor.median()));
    Ok(rows(&ours, &floor, &polled).into_iter().chain([followed]).collect())
}

fn rows(ours: &Samples, floor: &Samples, polled: &Samples) -> Vec<Row> {
    let row = Row::new(format!("forced drain of {INSTANCES} instances, 3 processes each"), Figure::Time(ours.median()));
    let against_floor = row.clone().against("one cgroup.kill above as many", Figure::Time(floor.median()));
    let against_polled = row.against("kill each, look every 100 ms", Figure::Time(polled.median()));
    vec![against_floor.aim(Aim::Times(2.0)), against_polled]
}

/// Waits until all processes of all instances are there.
fn wait_for_all(count: impl Fn() -> usize) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while count() < 3 * INSTANCES {
        ensure!(Instant::now() < end, "{} of {} processes are there", count(), 3 * INSTANCES);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
