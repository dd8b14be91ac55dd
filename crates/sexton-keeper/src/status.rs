//! `RUN/keeper.status`: what the keeper does and why, for people and for `sexton doctor`.
//!
//! One sentence, then `key=value` lines. It is written when a worker has been ready for the first time, and from then
//! on when something in it changes: a start that is refused leaves no trace.

use core::ffi::CStr;

use sexton_sys::file::{self, AT_FDCWD, flags};
use sexton_sys::text::{Show, Text};
use sexton_sys::wait::Ended;
use sexton_sys::{SysError, process};

use crate::clock::Time;
use crate::swap::Outcome;
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
    /// When the next worker is started, where none is alive.
    pub(crate) next_start: Time,
    pub(crate) outcome: Outcome,
    /// Whether a candidate is preparing or on trial.
    pub(crate) swapping: bool,
    pub(crate) shutdown: u8,
}

/// How a process ended, in words.
pub(crate) struct Words(pub(crate) Ended);

impl Show for Words {
    fn show(&self, text: &mut Text) {
        match self.0 {
            Ended::Exited(code) => text.add("exited with code ").add(u32::from(code)),
            Ended::Killed { signal, core: false } => text.add("was killed by ").add(signal),
            Ended::Killed { signal, core: true } => text.add("was killed by ").add(signal).add(" and left a core"),
        };
    }
}

impl Show for Outcome {
    fn show(&self, text: &mut Text) {
        match self {
            Outcome::None => text.add("never tried"),
            Outcome::Replaced => text.add("the program on disk runs"),
            Outcome::NotStarted(error) => {
                text.add("kept the old program: the new one could not be started: ").add(error)
            }
            Outcome::EndedEarly(ended) => text.add("kept the old program: the new one ").add(Words(*ended)),
            Outcome::Silent => text.add("kept the old program: the new one said nothing in time"),
            Outcome::FellBack => text.add("went back to the old program: the new one did not become ready"),
        };
    }
}

impl Status {
    /// The status as the file shows it `now`.
    fn show(&self, now: Time, text: &mut Text) {
        let pause = self.next_start - now;
        let is_planned = self.next_start != Time::NEVER;
        match self.worker {
            Some((pid, true)) => text.add("Worker ").add(pid).add(" serves."),
            Some((pid, false)) => text.add("Worker ").add(pid).add(" is starting."),
            None if is_planned => text.add("No worker is alive; the next is started in ").add(pause).add(" ms."),
            None => text.add("No worker is alive."),
        };
        text.add("\nkeeper_pid=").add(process::pid());
        text.add("\nworker_pid=").add(self.worker.map_or(0, |(pid, _)| pid));
        text.add("\nworker_ready=").add(yes(self.worker.is_some_and(|(_, ready)| ready)));
        text.add("\nrestarts=").add(self.restarts);
        if let Some((last, ended)) = self.last_end.and_then(|last| Some((last, Ended::from_raw(last.status)?))) {
            text.add("\nlast_end=worker ").add(last.pid).add(" ").add(Words(ended));
        }
        if is_planned {
            text.add("\nnext_start_ms=").add(pause);
        }
        text.add("\nswapping=").add(yes(self.swapping));
        text.add("\nlast_swap=").add(self.outcome);
        text.add("\nshutdown=").add(u32::from(self.shutdown)).add("\n");
    }
}

/// A fact as the file says it.
fn yes(fact: bool) -> &'static str {
    if fact { "true" } else { "false" }
}

/// Puts `status` in the place of the one before.
///
/// # Errors
/// As `open`, `write` and `rename`; the old one then stays.
pub(crate) fn write(run_dir: &CStr, status: &Status, now: Time) -> Result<(), SysError> {
    let mut text = Text::new();
    status.show(now, &mut text);
    let dir = file::open(AT_FDCWD, run_dir, flags::RDONLY | flags::DIRECTORY, 0)?;
    let new = file::open(dir.raw(), NEW_FILE, flags::WRONLY | flags::CREAT | flags::TRUNC | flags::NOFOLLOW, 0o644)?;
    file::write_all_at(new.raw(), text.as_bytes(), 0)?;
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
            next_start: Time::NEVER,
            outcome: Outcome::EndedEarly(Ended::Exited(64)),
            swapping: false,
            shutdown: 0,
        };
        let expected = "Worker 7 serves.\nkeeper_pid=@\nworker_pid=7\nworker_ready=true\nrestarts=3\n\
                        last_end=worker 6 was killed by SIGTERM\nswapping=false\n\
                        last_swap=kept the old program: the new one exited with code 64\nshutdown=0\n";
        let expected = expected.replace("@", &process::pid().to_string());
        let mut text = Text::new();
        status.show(Time::ZERO, &mut text);
        assert_eq!(text.as_bytes(), expected.as_bytes());
    }
}
