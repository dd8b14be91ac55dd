//! What the kernel tells of a process: its memory, and how often it ran; and how soon it runs this one.

use std::process::Command;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result, ensure};

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// All that is resident, shared pages too.
    pub rss: u64,
    /// As `rss`, with shared pages divided among those who share them.
    pub pss: u64,
}

/// What a process has done since it began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Activity {
    /// Time on a processor, of all its threads.
    pub cpu: Duration,
    /// Context switches of all its threads: each wake-up is one.
    pub switches: u64,
}

/// Makes this thread run as soon as it is woken, until this is dropped; not its children, and not the daemon.
///
/// A virtual machine's idle processor may pass for a taken one. Then whoever is woken by a new program's beginning is
/// put on the processor where that program loads its libraries, and waits for it: 0.6 ms, now on this side of a
/// comparison and now on that.
#[derive(Debug)]
pub struct Prompt(());

impl Prompt {
    /// Makes it so.
    pub fn new() -> Result<Prompt> {
        schedule(&["--reset-on-fork", "--fifo", "--pid", "1"])?;
        Ok(Prompt(()))
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        if let Err(error) = schedule(&["--other", "--pid", "0"]) {
            eprintln!("bench: {error:#}");
        }
    }
}

/// Has chrt(1), of util-linux, change how this thread is scheduled.
fn schedule(how: &[&str]) -> Result<()> {
    let thread = fs::read_link("/proc/thread-self").context("/proc/thread-self")?;
    let thread = thread.file_name().context("its number")?;
    let status = Command::new("chrt").args(how).arg(thread).status().context("chrt")?;
    ensure!(status.success(), "chrt {how:?}: {status}");
    Ok(())
}

/// Reads `/proc/PID/smaps_rollup`.
pub fn memory(pid: i32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).context(path)?;
    let kib = |name: &str| field(&text, name).map(|kib| kib << 10);
    Ok(Memory { rss: kib("Rss:")?, pss: kib("Pss:")? })
}

/// Reads `schedstat` and `status` of every thread that lives.
pub fn activity(pid: i32) -> Result<Activity> {
    let mut sum = Activity::default();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?.path();
        let read = |name| fs::read_to_string(thread.join(name));
        let (schedstat, status) = match read("schedstat").and_then(|schedstat| Ok((schedstat, read("status")?))) {
            Ok(found) => found,
            Err(error) if has_ended(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        let on_cpu = schedstat.split(' ').next().and_then(|ns| ns.parse().ok()).context("schedstat")?;
        sum.cpu += Duration::from_nanos(on_cpu);
        sum.switches += field(&status, "voluntary_ctxt_switches:")? + field(&status, "nonvoluntary_ctxt_switches:")?;
    }
    Ok(sum)
}

/// Whether a thread could not be read because it is over; see proc(5).
fn has_ended(error: &io::Error) -> bool {
    const ESRCH: i32 = 3;
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ESRCH)
}

/// What a process did between two looks.
pub fn since(before: Activity, now: Activity) -> Activity {
    Activity { cpu: now.cpu.saturating_sub(before.cpu), switches: now.switches.saturating_sub(before.switches) }
}

/// The number behind `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_ascii_whitespace().next()).and_then(|number| number.parse().ok());
    number.with_context(|| format!("`{name}` is not told"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_ran() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let memory = memory(pid).unwrap();
        assert!(memory.rss >= memory.pss && memory.pss > 0, "{memory:?}");
        assert!(activity(pid).unwrap().cpu > Duration::ZERO);
    }
}
