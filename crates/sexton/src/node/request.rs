//! What may be asked of the node: one message each, one answer each.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sexton_ledger::Snapshot;
use sexton_ledger::entry::{Entry, Spec};
use sexton_plan::gate::NodeStatus;
use sexton_plan::id::{Name, Word};
use sexton_plan::plan::Plan;
use sexton_plan::state::State;
use tokio::sync::{mpsc, oneshot, watch};

use super::deadline::Deadline;
use super::slots::SlotLeft;
use crate::refusal::Refusal;
use sexton_plan::id::Pid;

/// Requests that wait for the driver; a full queue makes callers wait, never the driver.
const QUEUE: usize = 1_024;

/// Who asks, for the log and the `api.called` event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// User id of the peer, where it came by the unix socket.
    pub uid: Option<u32>,
    /// What it presented itself with: `unix`, `token`, `tls:NAME`.
    pub by: String,
}

impl Caller {
    /// The node's own drain.
    pub fn drain() -> Caller {
        Caller { uid: None, by: "drain".to_owned() }
    }
}

/// A name and what to run under it, both inside the contract's rules.
#[derive(Clone, Debug)]
pub struct NewInstance {
    /// The name to take.
    pub name: Name,
    /// What to run.
    pub spec: Spec,
}

/// The caller's promise that two requests are one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The header's value.
    pub key: String,
    /// A hash of the whole body: the same key with another body is refused.
    pub fingerprint: u64,
}

/// How to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// SIGKILL at once.
    pub force: bool,
    /// The grace asked for, or the spec's own.
    pub grace: Option<Duration>,
}

/// Which instances to list; `None` for any.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only in this state.
    pub state: Option<State>,
    /// Only of this kind.
    pub kind: Option<Word>,
    /// Only with all of these labels; a label without value asks for its presence.
    pub labels: Vec<(String, Option<String>)>,
    /// Only names behind this one.
    pub after: Option<Name>,
    /// At most so many.
    pub limit: usize,
}

/// A page of instances in the order of their names.
#[derive(Clone, Debug)]
pub struct Page {
    /// The instances.
    pub items: Vec<Arc<Entry>>,
    /// Where the next page begins, or `None` on the last one.
    pub next: Option<Name>,
}

/// What a waiting caller waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// `exit` is known, or the life is over without one.
    ExitKnown,
    /// Terminal, and every resource given back.
    Settled,
    /// Gone from the list altogether, by a removal that was accepted.
    Removed,
    /// Running, or terminal again.
    Running,
}

/// One instance as a stream: the newest entry, `None` once removed.
pub type Watch = watch::Receiver<Option<Arc<Entry>>>;

type Reply<T> = oneshot::Sender<T>;
type Answer = Reply<Result<Arc<Entry>, Refusal>>;

/// One request to the driver.
#[derive(Debug)]
#[allow(missing_docs, reason = "each is documented at the method of `Node` that sends it")]
pub enum Request {
    Create { new: Box<NewInstance>, key: Option<IdempotencyKey>, caller: Caller, reply: Answer },
    Start { name: Name, caller: Caller, reply: Answer },
    Stop { name: Name, stop: Stop, caller: Caller, reply: Answer },
    Signal { name: Name, signal: u8, caller: Caller, reply: Answer },
    Remove { name: Name, force: bool, caller: Caller, reply: Answer },
    Snapshot { name: Name, value: Snapshot, caller: Caller, reply: Answer },
    One { name: Name, reply: Answer },
    List { filter: Filter, reply: Reply<Page> },
    Watch { name: Name, reply: Reply<Option<Watch>> },
    Facts { reply: Reply<Facts> },
    Reconcile { reply: Reply<u64> },
    Plan { reply: Reply<Plan> },
    Apply { plan: Plan, caller: Caller, reply: Reply<Result<(), Refusal>> },
    Adopt { new: Box<NewInstance>, wanted: Wanted, caller: Caller, reply: Answer },
    Drain { force: bool, timeout: Option<Duration>, caller: Caller, reply: Reply<()> },
    SetStatus { status: NodeStatus, caller: Caller, reply: Reply<Result<(), Refusal>> },
    Status { reply: Reply<watch::Receiver<NodeState>> },
}

/// What the node says of itself.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Its id.
    pub node: String,
    /// Its keeper's PID, as the keeper's welcome told it.
    pub keeper_pid: u32,
    /// Number of the last finished reconcile pass; 0 before the first.
    pub generation: u64,
    /// How long the present pass has been under way, where that is too long.
    pub pass_stalled: Option<Duration>,
    /// Whether it takes work, and how far a drain is.
    pub state: NodeState,
    /// Instances that a drain waits for: name, state, and since when.
    pub inflight: Vec<InFlight>,
    /// Network slots that keep a drain open, and are no instance's any more.
    pub slots: Vec<SlotLeft>,
    /// Cgroups that keep a drain open, and are no instance's.
    pub unclaimed: Vec<Unclaimed>,
    /// Operations inside the gate, the oldest first.
    pub operations: Vec<Operation>,
    /// Instances by state and kind.
    pub instances: Vec<(State, String, u64)>,
    /// Times the worker was replaced under this keeper.
    pub worker_restarts: u64,
}

/// A cgroup of ours that is not known to be empty, and is no instance's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unclaimed {
    /// Its path.
    pub cgroup: String,
    /// Who lives there, or what could not be read.
    pub error: String,
}

/// One operation inside the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What it is.
    pub kind: String,
    /// When it was admitted.
    pub since: Timestamp,
}

/// One instance that is not over, or has not given everything back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Its name.
    pub name: Name,
    /// Its state.
    pub state: State,
    /// Since when it is this life.
    pub since: Timestamp,
    /// What keeps it, where something does.
    pub error: Option<String>,
}

/// The way to the driver; cheap to clone.
#[derive(Clone, Debug)]
pub struct Node {
    requests: mpsc::Sender<Request>,
}

impl Node {
    /// A node handle, and the queue that the driver reads.
    pub fn channel() -> (Node, mpsc::Receiver<Request>) {
        let (requests, queue) = mpsc::channel(QUEUE);
        (Node { requests }, queue)
    }

    /// Sends a request and waits for its answer. CANCEL: an abandoned request is carried out all the same.
    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Refusal::ending())?;
        answer.await.map_err(|_| Refusal::ending())
    }

    /// Takes a name and runs its first incarnation; answers once `execve` has succeeded and that is durable.
    ///
    /// # Errors
    /// The name is in use, the node is draining or full, the ledger cannot be written, the program cannot be run.
    pub async fn create(
        &self,
        new: NewInstance,
        key: Option<IdempotencyKey>,
        caller: Caller,
    ) -> Result<Arc<Entry>, Refusal> {
        self.ask(|reply| Request::Create { new: Box::new(new), key, caller, reply }).await?
    }

    /// Runs a new incarnation of a terminal instance.
    ///
    /// # Errors
    /// Unknown, or not terminal, or as [`Node::create`].
    pub async fn start(&self, name: Name, caller: Caller) -> Result<Arc<Entry>, Refusal> {
        self.ask(|reply| Request::Start { name, caller, reply }).await?
    }

    /// Asks an instance to end; answers once that is durable. What is over already is success.
    ///
    /// # Errors
    /// Unknown, or `unverified`.
    pub async fn stop(&self, name: Name, stop: Stop, caller: Caller) -> Result<Arc<Entry>, Refusal> {
        self.ask(|reply| Request::Stop { name, stop, caller, reply }).await?
    }

    /// Sends one signal to the main process, through its verified pidfd.
    ///
    /// # Errors
    /// Unknown, over, or `unverified`.
    pub async fn signal(&self, name: Name, signal: u8, caller: Caller) -> Result<Arc<Entry>, Refusal> {
        self.ask(|reply| Request::Signal { name, signal, caller, reply }).await?
    }

    /// Takes an instance off the list; answers with its last state, when it is accepted.
    ///
    /// # Errors
    /// Unknown, or alive and not forced, or `unverified`.
    pub async fn remove(&self, name: Name, force: bool, caller: Caller) -> Result<Arc<Entry>, Refusal> {
        self.ask(|reply| Request::Remove { name, force, caller, reply }).await?
    }

    /// Keeps a JSON value with the instance.
    ///
    /// # Errors
    /// Unknown, or the ledger cannot be written.
    pub async fn snapshot(&self, name: Name, value: Snapshot, caller: Caller) -> Result<Arc<Entry>, Refusal> {
        self.ask(|reply| Request::Snapshot { name, value, caller, reply }).await?
    }

    /// One instance.
    ///
    /// # Errors
    /// Unknown.
    pub async fn one(&self, name: Name) -> Result<Arc<Entry>, Refusal> {
        self.ask(|reply| Request::One { name, reply }).await?
    }

    /// A page of instances.
    ///
    /// # Errors
    /// The daemon is ending.
    pub async fn list(&self, filter: Filter) -> Result<Page, Refusal> {
        self.ask(|reply| Request::List { filter, reply }).await
    }

    /// One instance as a stream, `None` where there is none of that name.
    ///
    /// # Errors
    /// The daemon is ending.
    pub async fn watch(&self, name: Name) -> Result<Option<Watch>, Refusal> {
        self.ask(|reply| Request::Watch { name, reply }).await
    }

    /// What the node says of itself.
    ///
    /// # Errors
    /// The daemon is ending.
    pub async fn facts(&self) -> Result<Facts, Refusal> {
        self.ask(|reply| Request::Facts { reply }).await
    }

    /// Runs a reconcile pass that begins after this request, and tells its number when it has ended.
    ///
    /// # Errors
    /// The daemon is ending.
    pub async fn reconcile(&self) -> Result<u64, Refusal> {
        self.ask(|reply| Request::Reconcile { reply }).await
    }

    /// What the next reconcile pass would do, and what it lets alone; changes nothing.
    ///
    /// # Errors
    /// The daemon is ending.
    pub async fn plan(&self) -> Result<Plan, Refusal> {
        self.ask(|reply| Request::Plan { reply }).await
    }

    /// Does exactly what `plan` says, and answers when it is done.
    ///
    /// # Errors
    /// An action of it is not in the present plan, and nothing is done; or the facts changed at the act itself.
    pub async fn apply(&self, plan: Plan, caller: Caller) -> Result<(), Refusal> {
        self.ask(|reply| Request::Apply { plan, caller, reply }).await?
    }

    /// Takes custody of a process that something else started.
    ///
    /// # Errors
    /// It is gone, another one than meant, or one that nobody may take; or as [`Node::create`].
    pub async fn adopt(&self, new: NewInstance, wanted: Wanted, caller: Caller) -> Result<Arc<Entry>, Refusal> {
        self.ask(|reply| Request::Adopt { new: Box::new(new), wanted, caller, reply }).await?
    }

    /// Closes the gate and drains; answers when the gate is closed and that is durable.
    ///
    /// # Errors
    /// The daemon is ending.
    pub async fn drain(&self, force: bool, timeout: Option<Duration>, caller: Caller) -> Result<(), Refusal> {
        self.ask(|reply| Request::Drain { force, timeout, caller, reply }).await
    }

    /// Makes the node `standby`, `healthy` or `unhealthy`; answers when that is durable.
    ///
    /// # Errors
    /// It drains, the ledger cannot be written, or the daemon is ending.
    pub async fn set_status(&self, status: NodeStatus, caller: Caller) -> Result<(), Refusal> {
        self.ask(|reply| Request::SetStatus { status, caller, reply }).await?
    }

    /// The node's status as a stream.
    ///
    /// # Errors
    /// The daemon is ending.
    pub async fn status(&self) -> Result<watch::Receiver<NodeState>, Refusal> {
        self.ask(|reply| Request::Status { reply }).await
    }

    /// Waits until `until` holds for `name`, or `limit` has passed; tells the newest entry (`None`: removed or
    /// unknown) and whether it holds.
    ///
    /// # Errors
    /// The daemon is ending.
    pub async fn wait(
        &self,
        name: Name,
        until: Until,
        limit: Option<Duration>,
    ) -> Result<(Option<Arc<Entry>>, bool), Refusal> {
        let Some(mut watch) = self.watch(name).await? else { return Ok((None, until == Until::Removed)) };
        let holds = |entry: &Option<Arc<Entry>>| entry.as_deref().is_none_or(|entry| until.holds(entry));
        let waiting = async {
            // A closed stream means that the driver is gone: what was shown last is all there is.
            let closed = watch.wait_for(holds).await.is_err();
            !closed || holds(&watch.borrow())
        };
        let held = match limit {
            None => waiting.await,
            Some(limit) => tokio::time::timeout(limit, waiting).await.unwrap_or(false),
        };
        let newest = watch.borrow().clone();
        Ok((newest, held))
    }
}

impl Until {
    /// Whether it holds for `entry`, which is still listed.
    pub fn holds(self, entry: &Entry) -> bool {
        match self {
            Until::ExitKnown => entry.exit.is_some() || entry.state.is_terminal(),
            Until::Settled => entry.state.is_terminal() && entry.resources.is_empty(),
            Until::Removed => false,
            Until::Running => entry.state == State::Running || entry.state.is_terminal(),
        }
    }
}

/// Which process, by number and by what proves the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its number, in the daemon's PID namespace.
    pub pid: Pid,
    /// What proves it.
    pub proof: Proof,
}

/// What proves that a number names the process that the caller means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The inode of its pidfd.
    PidfsIno(u64),
    /// Its start tick, field 22 of `/proc/PID/stat`.
    StartTicks(u64),
}

/// Whether the node takes work, and how far a drain is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// What it is for those who place work; the gate is closed while it drains, and open otherwise.
    pub status: NodeStatus,
    /// Whatever still lives is killed.
    pub forced: bool,
    /// The daemon ends when it is drained.
    pub ends: bool,
    /// No process, no resource and no open operation is left, durably.
    pub drained: bool,
    /// When a graceful drain turns into a forced one.
    pub deadline: Option<Deadline>,
}

impl NodeState {
    /// Whether the gate is closed.
    pub fn is_draining(&self) -> bool {
        self.status == NodeStatus::Draining
    }
}
