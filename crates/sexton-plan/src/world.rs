//! What one look at watched processes found.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::claim::Claim;
use crate::id::Pid;
use crate::identity::Identity;

/// Clock ticks in a second of `/proc` (`USER_HZ`), the same on every architecture that Linux runs on today.
const TICKS_PER_SECOND: u64 = 100;

/// One look: what was seen, and what could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// Time since boot at the look (`CLOCK_BOOTTIME`).
    pub now: Duration,
    /// Watched processes, each once a watch.
    pub sightings: Vec<Sighting>,
    /// What is let alone whatever is planned: what could not be read, and what other parts of the look found.
    pub left: Vec<Left>,
}

/// One watched process, as one watch sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The watch.
    pub watch: String,
    /// The id that its command line carries.
    pub id: String,
    /// Which process it is.
    pub identity: Identity,
    /// Whose child it is.
    pub parent: Parent,
    /// Whether somebody answers for it.
    pub custody: Custody,
    /// Whether the pass before saw it too.
    pub before: Before,
    /// Where its metadata is, or would be.
    pub file: String,
    /// What its metadata says.
    pub claim: Claim,
}

/// Whose child a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// PID 1, the keeper, or another subreaper of ours: its own parent is gone.
    Adopter,
    /// A process that may still care for it.
    Other,
}

/// Whether some Sexton answers for a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Custody {
    /// It is somebody's instance, or part of one.
    Held,
    /// Nobody's.
    None,
}

/// Whether the pass before saw a process too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// It did, as an orphan without metadata.
    Seen,
    /// It did not.
    Unseen,
}

/// Something that is let alone, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Left {
    /// What it is.
    pub what: String,
    /// Its process, if it is or has one.
    pub pid: Option<Pid>,
    /// Why.
    pub reason: String,
}

impl Sighting {
    /// How old the process is at least, by its own start; `None` where its start is not known.
    pub fn age(&self, now: Duration) -> Option<Duration> {
        let ticks = self.identity.start_ticks?;
        // A start tick is rounded down, so the process may have begun up to one tick later.
        let millis = ticks.saturating_add(1).saturating_mul(1_000 / TICKS_PER_SECOND);
        Some(now.saturating_sub(Duration::from_millis(millis)))
    }
}
