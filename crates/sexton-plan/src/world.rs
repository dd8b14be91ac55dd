//! What one look at this host found.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::claim::Claim;
use crate::id::{Incarnation, Name, Pid};
use crate::identity::Identity;
use crate::judge::{Claimed, MarkSeen, ProcessSeen};
use crate::pool::Wish;
use crate::slot::{Holder, Seen, SlotClaim};

/// Clock ticks in a second of `/proc` (`USER_HZ`), the same on every architecture that Linux runs on today.
const TICKS_PER_SECOND: u64 = 100;

/// One look: what was seen, and what could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// Time since boot at the look (`CLOCK_BOOTTIME`).
    pub now: Duration,
    /// Watched processes, each once a watch.
    pub sightings: Vec<Sighting>,
    /// Instances of this node that were proven neither ours nor gone, looked at again.
    pub doubted: Vec<Doubted>,
    /// What bears the mark of this node, whoever claims it.
    pub marked: Vec<Marked>,
    /// Network slots.
    pub network: Network,
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

/// An instance of this node whose process was proven neither ours nor gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubted {
    /// Its name.
    pub name: Name,
    /// Its life.
    pub incarnation: Incarnation,
    /// The recorded process.
    pub identity: Option<Identity>,
    /// What its row says.
    pub claimed: Claimed,
    /// What is found of its process now.
    pub process: ProcessSeen,
    /// What its mark says, where its start was not seen through.
    pub mark: MarkSeen,
    /// Why it is doubted.
    pub why: String,
}

/// Something on this host that bears the mark of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// What it is.
    pub kind: MarkedKind,
    /// Its name.
    pub key: String,
    /// Its inode, where another one could bear its name.
    pub ino: Option<u64>,
    /// Whose it is.
    pub owner: Owner,
    /// What is in it.
    pub content: Content,
}

/// Kinds of things that are made for instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MarkedKind {
    /// The mark by which a started child tells how far it came.
    Mark,
    /// The logs of an instance.
    Logs,
    /// A pin.
    Pin,
    /// A cgroup.
    Cgroup,
}

/// Whose something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A row claims it.
    Row,
    /// No row does.
    Nobody,
    /// No row does, but the ledger is new, and it may be all that is left of an older one.
    Forgotten,
}

/// What is in something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing that lives.
    Dead,
    /// A process, or another daemon's things.
    Living,
    /// It could not be read.
    Unread,
}

/// The network slots of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Recorded slots, and numbers that were passed by, each number once.
    pub slots: Vec<SlotSighting>,
    /// What is wanted of the unused ones.
    pub wish: Wish,
    /// What slots share, where it may be on the host.
    pub tables: Vec<SharedTable>,
}

/// An nft table of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedTable {
    /// Its name.
    pub name: String,
    /// Whether no slot is made with it any more: the daemon's cgroup was another one then.
    pub is_former: bool,
}

/// A network slot, or a number that was passed by because something foreign was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSighting {
    /// Its number.
    pub index: u32,
    /// Its entry below `/run/netns`.
    pub netns: String,
    /// Inode of its namespace, once it was made.
    pub ns_ino: Option<u64>,
    /// The nft table that it was made with.
    pub table: String,
    /// What its row says, where it has one.
    pub claim: Option<SlotClaim>,
    /// Whose it is.
    pub holder: Option<Holder>,
    /// What was found of it.
    pub seen: Seen,
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
    /// Whether nobody answers for it: what has a parent that may care, or an owner, is nobody's orphan.
    pub fn is_alone(&self) -> bool {
        self.parent == Parent::Adopter && self.custody == Custody::None
    }

    /// How old the process is at least, by its own start; `None` where its start is not known.
    pub fn age(&self, now: Duration) -> Option<Duration> {
        let ticks = self.identity.start_ticks?;
        // A start tick is rounded down, so the process may have begun up to one tick later.
        let millis = ticks.saturating_add(1).saturating_mul(1_000 / TICKS_PER_SECOND);
        Some(now.saturating_sub(Duration::from_millis(millis)))
    }
}
