//! What every life on this node shares: the ledger, the cgroup subtree, the pins, the keeper.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use sexton_core::domain::Subtree;
use sexton_core::gate::Gate;
use sexton_core::pin::{PinBoard, Pins};
use sexton_core::proc::Here;
use sexton_ledger::{Batch, CommitError, Committed, Ledger, ReadError, RequestRecord, Urgency};
use sexton_plan::id::{Incarnation, Name, NodeId};
use sexton_sys::limit;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::adapter::Runtimes;
use super::answers::Answers;
use super::event_log::EventLog;
use super::keeper::Keeper;
use super::limits::V1;
use super::namespaces::Namespaces;
use super::process;
use super::slots::Slots;
use super::unstarted::Unstarted;
use crate::lacking::{OpenNullError, open_null};
use crate::metrics::{Metric, Metrics};
use crate::refusal::{Kind, Refusal};

/// How long an owed record is waited for before it is asked whether the ledger can be written at all. If not, life goes
/// on without it; a disk that is slow is waited for, until it hangs.
const OWED_LOOK: Duration = Duration::from_millis(500);

/// Descriptors that one start holds at once, and some for whoever asks meanwhile.
const A_START_HOLDS: usize = 16;

/// Descriptors that no instance takes for good, for all of them are ended and asked after with these; of a low limit, a
/// quarter.
const KEPT_BACK: u64 = 1_600;

/// What every life on this node shares.
pub struct Host {
    /// This node.
    pub node: NodeId,
    /// This boot and PID namespace.
    pub here: Here,
    /// Other PID namespaces that have ended.
    pub namespaces: Namespaces,
    /// Where state lives.
    pub paths: Paths,
    /// The cgroups, where the host has cgroup2.
    pub subtree: Option<Subtree>,
    /// The path of the subtree, from the root of each hierarchy.
    pub cgroup: String,
    /// The v1 hierarchies that keep limits, where the host has such.
    pub v1: V1,
    /// The pins, where the kernel has them.
    pub pins: Option<PinBoard>,
    /// The ledger.
    pub ledger: Ledger,
    /// Answers to keyed requests that are on their way to the ledger.
    pub answers: Answers,
    /// The keeper.
    pub keeper: Keeper,
    /// Whether no worker ran before this one under that keeper.
    pub keeper_is_new: bool,
    /// Soft and hard `RLIMIT_NOFILE` as the daemon was started with: what workloads get.
    pub nofile: Option<[u64; 2]>,
    /// Ended lives of one instance whose logs are kept.
    pub log_incarnations: usize,
    /// Where the logs of every life that begins are made known, to be bounded.
    pub logs: mpsc::UnboundedSender<PathBuf>,
    /// Whether the ledger is new, so that what is on the host may be all that is left of an older one.
    pub fresh_ledger: bool,
    /// What is counted and measured.
    pub metrics: Arc<Metrics>,
    /// How declared runtimes are asked to end.
    pub runtimes: Runtimes,
    /// What is known of the event log, which is checked in the background.
    pub event_log: Arc<EventLog>,
    /// Whether new work is taken.
    pub gate: Gate,
    /// The network slots.
    pub slots: Slots,
}

/// Files and directories of this node.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Ledger and logs.
    pub state_dir: PathBuf,
    /// Socket, pins, marks.
    pub run_dir: PathBuf,
}

impl Paths {
    /// The directory of every instance's logs.
    pub fn all_logs(&self) -> PathBuf {
        self.state_dir.join("logs")
    }

    /// The directory of an instance's logs.
    pub fn logs(&self, name: &Name) -> PathBuf {
        self.all_logs().join(name.as_str())
    }

    /// One stream of one life.
    pub fn log(&self, name: &Name, incarnation: &Incarnation, stream: &str) -> PathBuf {
        self.logs(name).join(format!("{incarnation}.{stream}"))
    }

    /// The directory of the marks by which started children tell how far they came.
    pub fn marks(&self) -> PathBuf {
        self.run_dir.join("starts")
    }

    /// The directory of the orders that the ledger does not have yet.
    pub fn orders(&self) -> PathBuf {
        self.run_dir.join("orders")
    }

    /// The mark of one life.
    pub fn mark(&self, incarnation: &Incarnation) -> PathBuf {
        self.marks().join(incarnation.as_str())
    }
}

impl Host {
    /// Records `batch` durably, or refuses it whole.
    ///
    /// # Errors
    /// The ledger cannot be written now.
    pub async fn record(&self, batch: Batch) -> Result<Committed, Refusal> {
        let (told, news) = oneshot::channel();
        let (metrics, began) = (Arc::clone(&self.metrics), Instant::now());
        self.ledger.commit(batch, Urgency::Refusable, move |result| {
            if result.is_ok() {
                metrics.observe(Metric::CommitSeconds, began.elapsed());
            }
            let _heard = told.send(result);
        });
        match news.await {
            Ok(Ok(committed)) => Ok(committed),
            Ok(Err(error @ CommitError::Unwritable(_))) => Err(Refusal::new(Kind::LedgerUnwritable, error.to_string())),
            Ok(Err(error @ CommitError::Rejected(_))) => Err(Refusal::new(Kind::Internal, error.to_string())),
            Ok(Err(CommitError::Closed)) | Err(_) => Err(Refusal::ending()),
        }
    }

    /// Records what has happened already. It becomes durable in its order; when the ledger cannot be written, life
    /// goes on after a short wait, and the record follows: what is given then tells when, or
    /// that it never will.
    pub async fn owe(&self, batch: Batch) -> Option<oneshot::Receiver<()>> {
        let mut durable = self.owe_unwaited(batch);
        while self.ledger.writable() {
            match tokio::time::timeout(OWED_LOOK, &mut durable).await {
                Ok(Ok(())) => return None,
                // Never: a channel that nobody sends on.
                Ok(Err(_)) => return Some(oneshot::channel().1),
                Err(_) => {}
            }
        }
        Some(durable)
    }

    /// Waits, as [`Host::owe`] does, until what was owed before is durable.
    pub async fn recorded(&self) {
        // Empty, it writes nothing, and comes after what is written.
        let _late = self.owe(Batch::default()).await;
    }

    /// As [`Host::owe`], without waiting for the disk at all: it is told when that is durable.
    pub fn owe_unwaited(&self, batch: Batch) -> oneshot::Receiver<()> {
        let (told, durable) = oneshot::channel();
        let (metrics, began, events) = (Arc::clone(&self.metrics), Instant::now(), batch.events.len());
        let (answers, answered) = (self.answers.clone(), batch.request.as_ref().map(|request| request.key.clone()));
        batch.request.iter().for_each(|request| self.answers.owed(request.clone()));
        self.ledger.commit(batch, Urgency::Owed, move |result| match result {
            Ok(_) => {
                metrics.observe(Metric::CommitSeconds, began.elapsed());
                answered.iter().for_each(|key| answers.durable(key));
                let _heard = told.send(());
            }
            Err(error) => {
                tracing::error!(%error, "a record was not written");
                (0..events).for_each(|_| metrics.add(Metric::EventsDropped, &[], 1.0));
            }
        });
        durable
    }

    /// The request with this key, with its answer if that was given.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn request(&self, key: &str) -> Result<Option<RequestRecord>, ReadError> {
        // RACE: an answer that is not owed any more is in the ledger; so this first.
        match self.answers.of(key) {
            Some(owed) => Ok(Some(owed)),
            None => self.ledger.reader().request(key),
        }
    }

    /// Runs `work` among the pins, and tells its answer; `None` where there are no pins. The work is on its way before
    /// this is waited for.
    pub fn with_pins<T, W>(&self, work: W) -> impl Future<Output = Option<T>> + use<T, W>
    where
        T: Send + 'static,
        W: FnOnce(&Pins) -> T + Send + 'static,
    {
        let (told, news) = oneshot::channel();
        if let Some(pins) = &self.pins {
            pins.submit(move |pins| {
                let _heard = told.send(work(pins));
            });
        }
        async move { news.await.ok() }
    }

    /// Has the logs of a life bounded from now on.
    pub fn bound_logs(&self, name: &Name, incarnation: &Incarnation) {
        for stream in ["stdout", "stderr"] {
            // Without a log keeper the daemon is ending.
            let _sent = self.logs.send(self.paths.log(name, incarnation, stream));
        }
    }

    /// Takes down what lasts of the daemon's own, where it keeps nothing.
    ///
    /// # Errors
    /// Each thing that is left, and why.
    pub fn dismantle(&self) -> Result<(), String> {
        if !self.ledger.writable() {
            // What is still owed to it is known to the pins alone.
            return Ok(());
        }
        let pins =
            self.pins.as_ref().and_then(|pins| PinBoard::remove(pins).err()).map(|error| crate::chain::chain(&error));
        let subtree = self.subtree.as_ref().and_then(|subtree| subtree.remove().err());
        let subtree = subtree.map(|error| crate::chain::chain(&error));
        super::limits::remove_v1(&self.cgroup);
        for dir in [self.paths.marks(), self.paths.orders()] {
            let _gone = fs::remove_dir(dir);
        }
        let left: Vec<String> = pins.into_iter().chain(subtree).collect();
        if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
    }

    /// Refuses a start for which there are no descriptors to spare, or no stdin, before anything of it is recorded. It
    /// takes them to know.
    ///
    /// # Errors
    /// The node is full, or the host has no null device.
    pub fn has_descriptors(&self) -> Result<(), Refusal> {
        let limit = limit::open_files().map_or(u64::MAX, |[soft, _]| soft);
        let held = process::watched();
        if limit.saturating_sub(held) <= KEPT_BACK.min(limit / 4) {
            let why = format!(
                "{held} processes are held, and what else the limit of {limit} open files allows is kept for ending them"
            );
            return Err(Refusal::new(Kind::NodeFull, why));
        }
        let take = || -> Result<Vec<fs::File>, OpenNullError> {
            let first = open_null()?;
            Ok((1..A_START_HOLDS).map(|_| first.try_clone()).collect::<io::Result<_>>()?)
        };
        let refused = |error: OpenNullError| {
            let why = Unstarted::failed(&error);
            Refusal::new(why.kind, format!("what a start needs cannot be had: {}", why.reason))
        };
        take().map(drop).map_err(refused)
    }

    /// Removes the mark of a life, if there is one.
    pub fn remove_mark(&self, incarnation: &Incarnation) {
        // What is left here is removed by the next start's recovery.
        let _gone = fs::remove_file(self.paths.mark(incarnation));
    }
}

/// A host, shared.
pub type SharedHost = Arc<Host>;

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("node", &self.node).field("paths", &self.paths).finish_non_exhaustive()
    }
}
