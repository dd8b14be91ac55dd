//! The worker: everything that one daemon process opens, in order, and lets go of, in the reverse order.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sexton_core::domain::{DomainError, Subtree};
use sexton_core::gate::Gate;
use sexton_core::pin::{OpenPinsError, PinBoard};
use sexton_core::proc;
use sexton_ledger::{Batch, Ledger, OpenError, OpenOptions, Reader};
use sexton_plan::id::NodeId;
use sexton_sys::limit;
use tokio::sync::watch;

use super::adapter::Runtimes;
use super::answers::Answers;
use super::drain::{Drain, DrainRules, with_noted};
use super::driver::Driver;
use super::host::{Host, Paths};
use super::keeper::Keeper;
use super::limits::V1;
use super::logs::LogKeeper;
use super::namespaces::Namespaces;
use super::noted::Noted;
use super::reconcile::Reconciler;
use super::request::Node;
use super::slots::{Owner, Pool, Slots};
use super::watch::Watcher;
use super::watch::rule::Watch;
use crate::chain::chain;

/// Descriptors for which the kernel lays out room at once: a live instance takes one. BOUND: 8 bytes each.
const ROOM: u32 = 16_384;

/// Laid out for the ledger's log beforehand: a commit need not grow a file, and stops are recorded on a full disk.
const WAL_RESERVE: u64 = 1 << 20;

/// What the configuration says to the node itself.
#[derive(Clone, Debug)]
pub struct Options {
    /// Ledger and logs.
    pub state_dir: PathBuf,
    /// Whether the keeper is the first process of its PID namespace.
    pub is_first: bool,
    /// Socket, pins, marks.
    pub run_dir: PathBuf,
    /// The cgroup subtree, from the cgroup2 root.
    pub cgroup: String,
    /// This node's id, where the configuration names it.
    pub node: Option<NodeId>,
    /// Bytes kept of each stream of one incarnation.
    pub log_keep: u64,
    /// Ended lives whose logs are kept.
    pub log_incarnations: usize,
    /// The pause between two reconciles.
    pub reconcile_every: Duration,
    /// How declared runtimes are asked to end.
    pub runtimes: Runtimes,
    /// Somebody else's processes and metadata.
    pub watches: Vec<Watch>,
    /// The network slots.
    pub slots: Pool,
    /// What a drain does with instances.
    pub drain: DrainRules,
    /// Whether a shutdown drains, and how long it may.
    pub drain_at_shutdown: Option<Option<Duration>>,
}

/// Why the worker could not begin.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The ledger could not be opened.
    #[error("could not open the ledger")]
    Ledger(#[from] OpenError),
    /// `/proc` tells nothing.
    #[error("could not read `/proc`")]
    Proc(#[source] io::Error),
    /// A directory could not be made.
    #[error("could not make `{}`", .path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cgroup subtree could not be made.
    #[error("could not make the cgroup subtree")]
    Cgroup(#[source] DomainError),
    /// There was no room to open the pins.
    #[error("could not open the pins")]
    Pins(#[source] OpenPinsError),
    /// It cannot be told where limits are kept.
    #[error("could not look for the cgroups of v1")]
    V1(#[source] io::Error),
}

/// A node that has found all its instances again.
#[allow(missing_debug_implementations, reason = "a handful of connections, of which nothing can be shown")]
pub struct Begun {
    /// To be run.
    pub driver: Driver,
    /// The way to the driver.
    pub node: Node,
    /// What all lives share.
    pub host: Arc<Host>,
    /// Bounds logs, once it runs; until then what is to be bounded waits in its queue.
    pub log_keeper: LogKeeper,
    /// Reads events beside the writer.
    pub reader: Reader,
    /// The newest event's number.
    pub last_seq: watch::Receiver<u64>,
    /// The daemon's own small facts, as the one before left them.
    pub facts_before: BTreeMap<String, String>,
}

/// Opens everything, and finds every recorded instance again. `new_keeper`: no worker ran before under this keeper.
///
/// # Errors
/// Something that the node cannot be without.
pub async fn begin(options: &Options, keeper: Keeper, new_keeper: bool) -> Result<Begun, BeginError> {
    let here = proc::here().map_err(BeginError::Proc)?;
    // Before the first thread.
    let nofile = raise_open_files();
    let paths = Paths { state_dir: options.state_dir.clone(), run_dir: options.run_dir.clone() };
    for dir in [&paths.state_dir, &paths.run_dir, &paths.marks(), &paths.all_logs()] {
        make_dir(dir)?;
    }
    let subtree = find_subtree(&options.cgroup)?;
    let v1 = V1::make(&options.cgroup).map_err(BeginError::V1)?;
    let open =
        OpenOptions { node: options.node.clone(), wal_reserve: WAL_RESERVE, ..OpenOptions::new(here.boot_id.clone()) };
    let (ledger, contents) = Ledger::open(&paths.state_dir, open)?;
    let (seq, last_seq) = watch::channel(contents.last_seq);
    ledger.subscribe(move |newest| {
        seq.send_replace(newest);
    });
    let reader = ledger.reader();
    let (log_keeper, logs) = LogKeeper::new(options.log_keep);
    let (slots, asked_of_slots) = Slots::channel();
    let host = Arc::new(Host {
        node: contents.node,
        namespaces: Namespaces::resume(&contents.meta, contents.boot_id_before.as_ref(), &here),
        here,
        cgroup: options.cgroup.clone(),
        v1,
        pins: open_pins(&paths)?,
        paths,
        subtree,
        ledger,
        answers: Answers::default(),
        keeper,
        keeper_is_new: new_keeper,
        nofile,
        log_incarnations: options.log_incarnations,
        logs,
        fresh_ledger: contents.fresh,
        metrics: Arc::default(),
        runtimes: options.runtimes.clone(),
        event_log: Arc::default(),
        gate: Gate::default(),
        slots,
    });
    let (key, ended) = host.namespaces.meta(&host.here, options.is_first);
    if contents.meta.get(&key) != ended.as_ref() {
        host.owe_unwaited(Batch { meta: vec![(key, ended)], ..Batch::default() });
    }
    let noted = Noted::read(&host.paths);
    let drain = Drain::resume(&with_noted(&contents.meta, &noted), options.drain.clone(), new_keeper);
    let pool = Pool { is_closed: drain.0.state().is_draining(), ..options.slots.clone() };
    let owner = Owner::new(Arc::clone(&host), asked_of_slots, pool, contents.slots, &contents.entries);
    tokio::spawn(owner.resume(&contents.meta).run());
    let (watcher, watching) = Watcher::new(Arc::clone(&host), options.watches.clone(), &contents.meta);
    tokio::spawn(watcher.run());
    let reconciler = (Reconciler::new(Arc::clone(&host), watching), options.reconcile_every);
    let (mut driver, node) = Driver::new(Arc::clone(&host), drain, reconciler, options.drain_at_shutdown);
    driver.recover(contents.entries, &contents.meta, noted).await;
    Ok(Begun { driver, node, host, log_keeper, reader, last_seq, facts_before: contents.meta })
}

fn make_dir(path: &PathBuf) -> Result<(), BeginError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| BeginError::Directory { path: path.clone(), source })
}

/// The cgroup subtree, made; `None` where the host has no cgroup2, and killing is then done by pidfd alone.
fn find_subtree(path: &str) -> Result<Option<Subtree>, BeginError> {
    let subtree = match Subtree::find(path) {
        Ok(subtree) => subtree,
        Err(DomainError::NoCgroup2) => {
            tracing::warn!("no cgroup2: instances are killed by pidfd, and strays may escape");
            return Ok(None);
        }
        Err(error) => return Err(BeginError::Cgroup(error)),
    };
    subtree.make().map_err(BeginError::Cgroup)?;
    Ok(Some(subtree))
}

/// The pins; `None` where the host has no such thing.
fn open_pins(paths: &Paths) -> Result<Option<PinBoard>, BeginError> {
    match PinBoard::open(&paths.run_dir) {
        Ok(board) => Ok(Some(board)),
        // The next worker may have room; without them, what they know of exits is lost.
        Err(error) if error.passes() => Err(BeginError::Pins(error)),
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(error, "no pins: an exit is lost where worker and keeper are dead when it happens");
            Ok(None)
        }
    }
}

/// Raises the soft limit of open files to the hard one, a descriptor an instance, and lays out room for many; tells what
/// the limits were.
fn raise_open_files() -> Option<[u64; 2]> {
    let before = limit::open_files().ok()?;
    let [_, hard] = before;
    if let Err(error) = limit::set_open_files([hard, hard]) {
        tracing::warn!(%error, "limit of open files not raised");
    }
    let room = ROOM.min(u32::try_from(hard).unwrap_or(u32::MAX));
    if let Ok(Err(error)) = fs::File::open("/dev/null").map(|any| limit::make_room(any.as_raw_fd(), room)) {
        tracing::debug!(%error, "room for descriptors is laid out as it is needed");
    }
    Some(before)
}
