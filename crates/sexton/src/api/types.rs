//! What goes over the wire, one set of types for the REST API and the CLI.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sexton_ledger::Snapshot;
use sexton_ledger::duration;
use sexton_ledger::entry::{Cgroup, Entry, Exit, Limits, Place, Resource, Restarts, Spec, StuckProcess};
use sexton_ledger::event::Event;
use sexton_plan::identity::{Identity, Strength};
use sexton_plan::kill::KillBy;
use sexton_plan::state::{Restart, State};

use crate::node::slots::Shown;
use crate::signal_name;

/// One of the two streams of a life, as requests name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// One instance as it is shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named and described by the contract")]
pub struct InstanceView {
    pub name: String,
    pub incarnation: String,
    pub state: State,
    pub reason: Option<String>,
    pub kind: String,
    pub runtime: String,
    pub labels: BTreeMap<String, String>,
    pub spec: SpecView,
    pub identity: Option<IdentityView>,
    pub cgroup: Option<Cgroup>,
    /// By what it is ended as one: what that does not hold may escape a stop.
    #[serde(default)]
    pub kill: Option<KillBy>,
    pub resources: Vec<Resource>,
    #[serde(default)]
    pub slot: Option<Place>,
    pub exit: Option<Exit>,
    pub stuck: Option<Vec<StuckProcess>>,
    pub snapshot: Option<Snapshot>,
    pub node: String,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub adopted: bool,
    #[serde(default)]
    pub restarts: Restarts,
    /// Only where one live instance is asked for, and its runtime has a control socket.
    #[serde(default)]
    pub control: Option<ControlView>,
}

/// The control socket of an instance's runtime.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ControlView {
    /// Its path, as the instance sees it.
    pub socket: String,
    /// Who listens there: `instance`, `stranger` or `nobody`.
    pub peer: String,
}

/// What an instance runs, as it is shown and as it could be asked for again, but for what is redacted.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named and described by the contract")]
pub struct SpecView {
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub cwd: Option<String>,
    pub user: Option<String>,
    pub kind: String,
    pub runtime: String,
    pub labels: BTreeMap<String, String>,
    pub grace: String,
    pub stop_signal: String,
    pub slot: bool,
    pub limits: Limits,
    pub pidns: bool,
    pub restart: Restart,
}

/// Which process it is, and how good the evidence is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named and described by the contract")]
pub struct IdentityView {
    pub pid: i32,
    pub pidfs_ino: Option<u64>,
    pub start_ticks: Option<u64>,
    pub boot_id: String,
    pub pid_ns: u64,
    pub strength: Strength,
}

impl From<&Identity> for IdentityView {
    fn from(identity: &Identity) -> IdentityView {
        IdentityView {
            pid: identity.pid.as_raw(),
            pidfs_ino: identity.pidfs_ino,
            start_ticks: identity.start_ticks,
            boot_id: identity.boot_id.to_string(),
            pid_ns: identity.pid_ns,
            strength: identity.strength(),
        }
    }
}

impl From<&Spec> for SpecView {
    fn from(spec: &Spec) -> SpecView {
        SpecView {
            argv: spec.argv.clone(),
            env: spec.env.iter().map(|(key, value)| (key.clone(), super::redact::value(key, value))).collect(),
            cwd: spec.cwd.clone(),
            user: spec.user.clone(),
            kind: spec.kind.to_string(),
            runtime: spec.runtime.clone(),
            labels: spec.labels.clone(),
            grace: duration::format(spec.grace),
            stop_signal: signal_name::name(spec.stop_signal),
            slot: spec.slot,
            limits: spec.limits,
            pidns: spec.pidns,
            restart: spec.restart,
        }
    }
}

impl From<&Entry> for InstanceView {
    fn from(entry: &Entry) -> InstanceView {
        InstanceView {
            name: entry.name.to_string(),
            incarnation: entry.incarnation.to_string(),
            state: entry.state,
            reason: entry.reason.clone(),
            kind: entry.spec.kind.to_string(),
            runtime: entry.spec.runtime.clone(),
            labels: entry.spec.labels.clone(),
            spec: SpecView::from(&entry.spec),
            identity: entry.identity.as_ref().map(IdentityView::from),
            cgroup: entry.cgroup.clone(),
            kill: entry.kill_by(),
            resources: entry.resources.clone(),
            slot: entry.slot.clone(),
            exit: entry.exit,
            stuck: entry.stuck.clone(),
            snapshot: entry.snapshot.clone(),
            node: entry.node.to_string(),
            created_at: entry.created_at,
            started_at: entry.started_at,
            ended_at: entry.ended_at,
            adopted: entry.adopted,
            restarts: entry.restarts,
            control: None,
        }
    }
}

impl InstanceView {
    /// Whether it is terminal and holds nothing that is still being given back.
    pub fn is_settled(&self) -> bool {
        self.state.is_terminal() && self.resources.is_empty()
    }
}

/// A page of a list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct List<T> {
    /// Whole objects, in order.
    pub items: Vec<T>,
    /// What `after` takes for the next page, null on the last one.
    pub next: Option<Value>,
}

/// A page of instances.
pub type Instances = List<InstanceView>;

/// A page of events.
pub type Events = List<Event>;

/// `POST /v1/instances` as the CLI sends it.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "named and described by the contract")]
pub struct NewInstanceBody {
    pub name: String,
    pub argv: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    pub slot: bool,
    pub limits: Limits,
    pub pidns: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<String>,
}

/// `POST …/stop` as the CLI sends it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StopBody {
    /// SIGKILL at once.
    pub force: bool,
    /// Another grace than the spec's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace: Option<String>,
}

/// `GET /v1/self`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named and described by the contract")]
pub struct SelfView {
    pub worker_pid: u32,
    pub keeper_pid: u32,
    pub fds: u64,
    pub threads: u64,
    pub rss_bytes: u64,
    pub ledger_path: String,
    pub generation: u64,
}

/// `GET /v1/node`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named and described by the contract")]
pub struct NodeView {
    pub id: String,
    pub status: String,
    pub drained: bool,
    pub deadline: Option<Timestamp>,
    /// Instances that are not over and operations inside the gate, together.
    pub inflight: usize,
    /// The same by kind.
    pub operations: Vec<OperationsView>,
    pub left: Vec<Left>,
}

/// Instances that are not over, as `instance`, or operations of one kind inside the gate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OperationsView {
    /// What.
    pub kind: String,
    /// How many.
    pub count: usize,
    /// Since when the oldest is.
    pub since: Timestamp,
}

/// What a drain still waits for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Left {
    /// The instance, or the kind of an operation.
    pub name: String,
    /// What keeps it, where something does.
    pub error: Option<String>,
}

/// One of `GET /v1/slots`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SlotView {
    /// Its number, from 0.
    pub index: u32,
    /// What instances that hold it show as the resource's key.
    pub name: String,
    /// Its entry below `/run/netns`.
    pub netns: String,
    /// The host's end of its link.
    pub link: String,
    /// The address inside.
    pub address: std::net::Ipv4Addr,
    /// The host's address on the link.
    pub gateway: std::net::Ipv4Addr,
    /// The TAP device inside, where slots have one.
    pub tap: Option<String>,
    /// `making`, `ready`, `held`, `releasing`, `quarantined`, or `skipped` where something foreign has its place.
    pub state: String,
    /// The instance that holds it.
    pub instance: Option<String>,
    /// The node it is on.
    pub node: String,
}

impl SlotView {
    /// A slot of `node` as it is shown.
    pub fn new(slot: Shown, node: &str) -> SlotView {
        let Shown { place, link, state, instance } = slot;
        SlotView {
            index: place.index,
            name: place.netns.clone(),
            netns: place.netns,
            link,
            address: place.address,
            gateway: place.gateway,
            tap: place.tap,
            state: state.to_owned(),
            instance: instance.map(|name| name.to_string()),
            node: node.to_owned(),
        }
    }
}

/// `GET /v1/version`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VersionView {
    /// Of this program.
    pub version: String,
    /// Of the contract: the `v1` of the paths.
    pub api: String,
}

/// `GET /v1/ledger`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LedgerView {
    /// The database.
    pub path: String,
    /// Bytes of it and of its write-ahead log.
    pub bytes: u64,
    /// The oldest event that is kept.
    pub first_seq: Option<u64>,
    /// The newest event, 0 where there has never been one.
    pub last_seq: u64,
}

/// An error of the API (RFC 9457).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// A stable word.
    pub code: String,
    /// What it means.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong here, and what is allowed.
    pub detail: String,
}
