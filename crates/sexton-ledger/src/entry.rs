//! What one row about an instance says; the REST API and the CLI show the same words.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sexton_plan::id::{Incarnation, Name, NodeId, Pid, Word};
use sexton_plan::identity::Identity;
use sexton_plan::kill::KillBy;
use sexton_plan::state::{ExitSource, ExitStatus, Restart, State};

use crate::Snapshot;

/// One instance as the ledger has it: its spec, and its newest incarnation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The instance's name, unique on its node.
    pub name: Name,
    /// Its newest life.
    pub incarnation: Incarnation,
    /// Where that life is.
    pub state: State,
    /// Why it is there, in one word or sentence, where there is something to say.
    pub reason: Option<String>,
    /// What to run, and how.
    pub spec: Spec,
    /// Which process runs `argv`, once there is one.
    pub identity: Option<Identity>,
    /// The kernel's file handle of that process (`name_to_handle_at` on a pidfd), as bytes; valid until it is reaped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handle: Vec<u8>,
    /// The cgroup made for this life.
    pub cgroup: Option<Cgroup>,
    /// Everything acquired for this life and not yet given back.
    pub resources: Vec<Resource>,
    /// Its place in the network, while it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<Place>,
    /// How the main process ended, as soon as it is known.
    pub exit: Option<Exit>,
    /// What the kernel would not end.
    pub stuck: Option<Vec<StuckProcess>>,
    /// What the owner keeps here to resume, any JSON value.
    pub snapshot: Option<Snapshot>,
    /// The node whose instance this is.
    pub node: NodeId,
    /// When the name was taken (wall clock).
    pub created_at: Timestamp,
    /// When this life's `execve` was seen to have succeeded.
    pub started_at: Option<Timestamp>,
    /// When this life became terminal.
    pub ended_at: Option<Timestamp>,
    /// Whether the process was started by something else and taken into custody.
    pub adopted: bool,
    /// A stop that was accepted and is not yet carried to its end.
    pub stop: Option<StopOrder>,
    /// The restart policy's memory.
    #[serde(default)]
    pub restarts: Restarts,
}

impl Entry {
    /// A life that is to start: nothing is known of it yet, and it holds nothing.
    pub fn new(name: Name, incarnation: Incarnation, spec: Spec, node: NodeId, created_at: Timestamp) -> Entry {
        Entry {
            name,
            incarnation,
            state: State::Starting,
            reason: None,
            spec,
            identity: None,
            handle: Vec::new(),
            cgroup: None,
            resources: Vec::new(),
            slot: None,
            exit: None,
            stuck: None,
            snapshot: None,
            node,
            created_at,
            started_at: None,
            ended_at: None,
            adopted: false,
            stop: None,
            restarts: Restarts::default(),
        }
    }

    /// By what this life is ended as one; `None` where it never had a process.
    pub fn kill_by(&self) -> Option<KillBy> {
        self.identity.as_ref().map(|_| KillBy::of(self.cgroup.is_some(), self.spec.pidns))
    }
}

/// What to run, and how; kept for every later `start`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Program and arguments; never empty, no NUL inside.
    pub argv: Vec<String>,
    /// The whole environment beyond `PATH`, `HOME` and `USER` defaults.
    pub env: BTreeMap<String, String>,
    /// Working directory, absolute; `/` where absent.
    pub cwd: Option<String>,
    /// `USER`, `UID` or `UID:GID`; the daemon's own where absent.
    pub user: Option<String>,
    /// What a drain does with it is decided by this word.
    pub kind: Word,
    /// The runtime adapter that knows how to ask it to stop.
    pub runtime: String,
    /// The owner's own words.
    pub labels: BTreeMap<String, String>,
    /// How long a stop waits after `stop_signal`.
    #[serde(with = "crate::duration")]
    pub grace: Duration,
    /// The polite signal, 1–64.
    pub stop_signal: u8,
    /// Whether it gets a network slot.
    pub slot: bool,
    /// Bounds, each absent for none.
    pub limits: Limits,
    /// Whether it runs in a PID namespace of its own.
    pub pidns: bool,
    /// What follows its end.
    pub restart: Restart,
}

/// Bounds on what one instance may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Tasks (processes and threads) at once.
    pub pids: Option<u64>,
    /// Memory, in bytes.
    pub memory: Option<u64>,
}

/// A cgroup, by path and by what proves the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// As in `/proc/PID/cgroup`: from the cgroup2 root, beginning with `/`.
    pub path: String,
    /// Inode of its directory: the cgroup's 64-bit id, never reused within a boot.
    pub ino: u64,
}

/// Where an instance with a network slot is in the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The slot's number.
    pub index: u32,
    /// The entry of its network namespace below `/run/netns`.
    pub netns: String,
    /// Its own address.
    pub address: Ipv4Addr,
    /// The host's end of its link, which is its way out.
    pub gateway: Ipv4Addr,
    /// Its persistent TAP device, where it has one.
    pub tap: Option<String>,
}

/// One thing acquired from the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// What kind of thing, such as `cgroup`, `pin`, `netns`.
    pub kind: String,
    /// Which one, unique within its kind.
    pub key: String,
    /// Where it is between wish and gone.
    pub state: ResourceState,
}

/// Where a resource is between wish and gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResourceState {
    /// Recorded, perhaps not yet acquired.
    Intent,
    /// Acquired.
    Held,
    /// Being given back.
    Releasing,
}

/// How a main process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code, or `None` where a signal ended it.
    pub code: Option<u8>,
    /// The signal that ended it, or `None`.
    pub signal: Option<u8>,
    /// Who told.
    pub source: ExitSource,
    /// When it was learned (wall clock).
    pub at: Timestamp,
}

impl Exit {
    /// The exit that `status` tells.
    pub fn new(status: ExitStatus, source: ExitSource, at: Timestamp) -> Exit {
        let (code, signal) = match status {
            ExitStatus::Code(code) => (Some(code), None),
            ExitStatus::Signal(signal) => (None, Some(signal)),
        };
        Exit { code, signal, source, at }
    }

    /// Whether a restart policy calls this a success.
    pub fn is_success(&self) -> bool {
        self.code == Some(0)
    }
}

/// A process that SIGKILL did not end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StuckProcess {
    /// Its number, for a human's eyes.
    pub pid: Pid,
    /// Its state letter (`proc_pid_stat(5)`), `D` for uninterruptible sleep.
    pub state: char,
    /// The kernel function it waits in, empty where the kernel does not say.
    pub wchan: String,
}

/// A stop that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopOrder {
    /// SIGKILL at once, no grace.
    pub force: bool,
    /// How long to wait after the polite signal.
    #[serde(with = "crate::duration")]
    pub grace: Duration,
    /// Whether the instance goes away altogether when it is terminal.
    pub remove: bool,
    /// The `reason` the instance ends with, such as `cancelled`.
    pub reason: Option<String>,
}

/// The restart policy's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarts {
    /// Restarts since the count last began anew.
    pub count: u32,
    /// When the next incarnation is due, while one is pending.
    pub next_at: Option<Timestamp>,
}
