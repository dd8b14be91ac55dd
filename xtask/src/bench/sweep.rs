//! What a look for zombies costs, by how many processes are on the host: the sweep, which asks the kernel for its own
//! children, beside a scan that reads `/proc/PID/stat` of everybody.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sexton_core::proc;
use sexton_core::sweep::{SweepSettings, Sweeper};
use sexton_plan::id::Pid;
use sexton_sys::process;

use super::{Aim, Bench, Figure, Row, in_turns, timed};

/// How long it may take to make many processes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Looks, with strangers on the host and none of them a child.
pub fn sweep(bench: &Bench) -> Result<Vec<Row>> {
    process::become_subreaper()?;
    let settings = SweepSettings { enabled: true, ..SweepSettings::default() };
    let mut sweeper = Sweeper::new(settings, None).map_err(|reason| anyhow::anyhow!("{reason}"))?;
    let rounds = bench.rounds.min(50);
    let mut rows = Vec::new();
    for count in [1_000, 10_000] {
        let strangers = Strangers::make(count)?;
        let mut ours = |_| Ok(timed(|| Ok(sweeper.pass()?))?.0);
        let mut scan = |_| Ok(timed(zombies_by_scan)?.0);
        let [ours, scan] = in_turns(rounds, [&mut ours, &mut scan])?;
        drop(strangers);
        let row = Row::new(format!("a look of the sweep, {count} strangers on the host"), Figure::Time(ours.median()));
        rows.push(row.against("scan of /proc/PID/stat", Figure::Time(scan.median())).aim(Aim::Times(1.0)));
    }
    Ok(rows)
}

/// Zombies whose parent this process is, found as one would without asking for children: by reading everybody's stat.
fn zombies_by_scan() -> Result<Vec<u32>> {
    let me = std::process::id();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // What is gone by now is no zombie.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        let (state, parent) = (fields.next(), fields.next().and_then(|parent| parent.parse().ok()));
        if state == Some("Z") && parent == Some(me) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Processes that are nobody's children here: those of a PID namespace, which ends with this.
pub struct Strangers {
    unshare: Child,
    init: Pid,
}

impl Strangers {
    /// Makes that many, and waits until they are there.
    pub fn make(count: usize) -> Result<Strangers> {
        // A shell as PID 1, that forks itself: a process each, and no program for it.
        let script = format!("i=0; while [ $i -lt {count} ]; do (read end <&3) & i=$((i+1)); done 3<&0; read end");
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "sh", "-c", &script]);
        let unshare = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let parent = Pid::new(i32::try_from(unshare.id())?).context("a PID")?;
        let mut strangers = Strangers { unshare, init: parent };
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(init) = proc::children(parent)?.first() {
                strangers.init = *init;
            }
            let made = if strangers.init == parent { 0 } else { proc::children(strangers.init)?.len() };
            if made >= count {
                return Ok(strangers);
            }
            ensure!(Instant::now() < end, "{made} of {count} processes were made");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The parent of all of them.
    pub fn init(&self) -> Pid {
        self.init
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        // Whatever went wrong has been told already.
        let _killed = self.unshare.kill();
        let _reaped = self.unshare.wait();
    }
}
