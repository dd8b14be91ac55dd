//! The event log's words: one event per fact, numbered without a gap.

use core::fmt;
use core::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sexton_plan::id::{BootId, Incarnation, Name, NodeId};
use sexton_plan::state::UnknownWord;

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $word:literal,)*) => {
        /// What happened; the words are part of the outer contract.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum EventKind {
            $($(#[$doc])* #[serde(rename = $word)] $variant,)*
        }

        impl EventKind {
            /// Every kind, in the order of their declaration.
            pub const ALL: &'static [EventKind] = &[$(EventKind::$variant,)*];

            /// The word used outside.
            pub const fn as_str(self) -> &'static str {
                match self { $(EventKind::$variant => $word,)* }
            }
        }
    };
}

kinds! {
    /// The intent to start is durable.
    InstanceStarting = "instance.starting",
    /// The main process runs.
    InstanceRunning = "instance.running",
    /// Asked to end, or the main process has ended.
    InstanceStopping = "instance.stopping",
    /// SIGKILL was delivered and something still lives.
    InstanceStuck = "instance.stuck",
    /// The recorded process can be proven neither ours nor gone.
    InstanceUnverified = "instance.unverified",
    /// Gone, and its exit is known.
    InstanceExited = "instance.exited",
    /// Never ran; everything acquired was given back.
    InstanceFailed = "instance.failed",
    /// Gone, and nobody can know how.
    InstanceLost = "instance.lost",
    /// A process that something else started was taken into custody.
    InstanceAdopted = "instance.adopted",
    /// The name is free again; carries the last incarnation.
    InstanceRemoved = "instance.removed",
    /// A live process that nobody claims was seen.
    OrphanSeen = "orphan.seen",
    /// An orphan's PID was written back into its owner's metadata.
    OrphanAdopted = "orphan.adopted",
    /// An orphan was ended.
    OrphanTerminated = "orphan.terminated",
    /// A zombie of a process nobody here started was collected.
    ZombieReaped = "zombie.reaped",
    /// Something acquired from the host was given back.
    ResourceReleased = "resource.released",
    /// Giving something back did not succeed; it is tried again.
    ResourceReleaseFailed = "resource.release_failed",
    /// The node's status changed.
    NodeStatus = "node.status",
    /// No process, resource or open operation is left.
    NodeDrained = "node.drained",
    /// A new worker took over.
    WorkerRestarted = "worker.restarted",
    /// A new keeper took over.
    KeeperRestarted = "keeper.restarted",
    /// The machine was booted anew since the ledger was last open.
    BootChanged = "boot.changed",
    /// A signal was not sent, for its target is not proven.
    SignalRefused = "signal.refused",
    /// Who asked for what was carried out.
    ApiCalled = "api.called",
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for EventKind {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<EventKind, UnknownWord> {
        EventKind::ALL.iter().copied().find(|kind| kind.as_str() == text).ok_or(UnknownWord)
    }
}

/// One fact, as it is listed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number: one more than that of the event before, in this and every earlier life of the daemon.
    pub seq: u64,
    /// When it was recorded (wall clock).
    pub at: Timestamp,
    /// The boot during which it was recorded.
    pub boot_id: BootId,
    /// The node that recorded it.
    pub node: NodeId,
    /// The instance it is about, if any.
    pub instance: Option<Name>,
    /// The life it is about, if any.
    pub incarnation: Option<Incarnation>,
    /// What happened.
    pub kind: EventKind,
    /// The particulars.
    pub data: Value,
}

/// A fact to be recorded; number, time, boot and node are the ledger's to add.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    /// The instance it is about, if any.
    pub instance: Option<Name>,
    /// The life it is about, if any.
    pub incarnation: Option<Incarnation>,
    /// What happened.
    pub kind: EventKind,
    /// The particulars.
    pub data: Value,
    /// Whether the fact can be true only once in a life: a second one is silently left out.
    pub once: bool,
}

impl NewEvent {
    /// A fact about the life `incarnation` of `instance` that can be true only once in it.
    pub fn once(kind: EventKind, instance: &Name, incarnation: &Incarnation, data: Value) -> NewEvent {
        NewEvent { instance: Some(instance.clone()), incarnation: Some(incarnation.clone()), kind, data, once: true }
    }

    /// A fact about the node, or one that may happen again.
    pub fn of_node(kind: EventKind, data: Value) -> NewEvent {
        NewEvent { instance: None, incarnation: None, kind, data, once: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_reads_back_and_serialises_as_its_word() {
        for kind in EventKind::ALL {
            assert_eq!(kind.as_str().parse::<EventKind>(), Ok(*kind));
            assert_eq!(serde_json::to_value(kind).expect("a word"), Value::from(kind.as_str()));
        }
    }
}
