//! `RUN/keeper.status`: what the keeper does and why, for people and for `sexton doctor`.
//!
//! One sentence, then `key=value` lines. It is written when a worker has been ready for the first time, and from then
//! on when something in it changes: a start that is refused leaves no trace.

use core::ffi::CStr;
use core::fmt;
use core::time::Duration;

use sexton_sys::file::{self, AT_FDCWD, flags};
use sexton_sys::wait::Ended;
use sexton_sys::{SysError, process};

use crate::swap::Outcome;
use crate::text::{Text, millis};
use crate::wire::LastEnd;

const FILE: &CStr = c"keeper.status";
const NEW_FILE: &CStr = c"keeper.status.new";

/// What is to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// The worker, where one is alive, and whether it serves.
    pub(crate) worker: Option<(u32, bool)>,
    pub(crate) restarts: u64,
    pub(crate) last_end: Option<LastEnd>,
    /// The pause before the next start, where no worker is alive.
    pub(crate) next_start: Option<Duration>,
    pub(crate) outcome: Outcome,
    /// Whether a candidate is preparing or on trial.
    pub(crate) swapping: bool,
    pub(crate) shutdown: u8,
}

/// How a process ended, in words.
pub(crate) struct Words(pub(crate) Ended);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ended::Exited(code) => write!(f, "exited with code {code}"),
            Ended::Killed { signal, core: false } => write!(f, "was killed by {signal}"),
            Ended::Killed { signal, core: true } => write!(f, "was killed by {signal} and left a core"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::None => f.write_str("never tried"),
            Outcome::Replaced => f.write_str("the program on disk runs"),
            Outcome::NotStarted(error) => write!(f, "kept the old program: the new one could not be started: {error}"),
            Outcome::EndedEarly(ended) => write!(f, "kept the old program: the new one {}", Words(*ended)),
            Outcome::Silent => f.write_str("kept the old program: the new one said nothing in time"),
            Outcome::FellBack => f.write_str("went back to the old program: the new one did not become ready"),
        }
    }
}

/// A status as the file shows it.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.worker, self.next_start) {
            (Some((pid, true)), _) => writeln!(f, "Worker {pid} serves.")?,
            (Some((pid, false)), _) => writeln!(f, "Worker {pid} is starting.")?,
            (None, Some(pause)) => writeln!(f, "No worker is alive; the next is started in {} ms.", millis(pause))?,
            (None, None) => writeln!(f, "No worker is alive.")?,
        }
        writeln!(f, "keeper_pid={}", process::pid())?;
        writeln!(f, "worker_pid={}", self.worker.map_or(0, |(pid, _)| pid))?;
        writeln!(f, "worker_ready={}", self.worker.is_some_and(|(_, ready)| ready))?;
        writeln!(f, "restarts={}", self.restarts)?;
        if let Some((last, ended)) = self.last_end.and_then(|last| Some((last, Ended::from_raw(last.status)?))) {
            writeln!(f, "last_end=worker {} {}", last.pid, Words(ended))?;
        }
        if let Some(pause) = self.next_start {
            writeln!(f, "next_start_ms={}", millis(pause))?;
        }
        writeln!(f, "swapping={}", self.swapping)?;
        writeln!(f, "last_swap={}", self.outcome)?;
        writeln!(f, "shutdown={}", self.shutdown)
    }
}

/// Puts `status` in the place of the one before.
///
/// # Errors
/// As `open`, `write` and `rename`; the old one then stays.
pub(crate) fn write(run_dir: &CStr, status: &Status) -> Result<(), SysError> {
    let text = Text::<1024>::of(format_args!("{status}"));
    let dir = file::open(AT_FDCWD, run_dir, flags::RDONLY | flags::DIRECTORY, 0)?;
    let new = file::open(dir.raw(), NEW_FILE, flags::WRONLY | flags::CREAT | flags::TRUNC | flags::NOFOLLOW, 0o644)?;
    sexton_sys::fd::write_all(new.raw(), text.as_bytes())?;
    file::rename(dir.raw(), NEW_FILE, FILE)
}

/// Removes the file, at a clean end.
pub(crate) fn remove(run_dir: &CStr) {
    if let Ok(dir) = file::open(AT_FDCWD, run_dir, flags::RDONLY | flags::DIRECTORY, 0) {
        let _gone = file::unlink(dir.raw(), FILE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sexton_sys::signal::Signal;
    use std::string::ToString;

    #[test]
    fn it_says_who_runs_and_how_the_last_one_ended() {
        let killed = Ended::Killed { signal: Signal::TERM, core: false };
        let status = Status {
            worker: Some((7, true)),
            restarts: 3,
            last_end: Some(LastEnd { pid: 6, status: killed.raw() }),
            next_start: None,
            outcome: Outcome::EndedEarly(Ended::Exited(64)),
            swapping: false,
            shutdown: 0,
        };
        let text = status.to_string();
        let expected = "Worker 7 serves.\nkeeper_pid=@\nworker_pid=7\nworker_ready=true\nrestarts=3\n\
                        last_end=worker 6 was killed by SIGTERM\nswapping=false\n\
                        last_swap=kept the old program: the new one exited with code 64\nshutdown=0\n";
        assert_eq!(text, expected.replace("@", &process::pid().to_string()));
    }
}
