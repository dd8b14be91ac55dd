//! The worker's side of its keeper: who holds our listeners, reaps what outlives us, and remembers its exits.
//!
//! What it is told goes through an outbox, so that nobody waits for a keeper that is stopped, or hangs on its disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sexton_keeper::link::{FromKeeper, KeeperLink, LinkError};
use sexton_keeper::wire::{self, ExitRecord, HeldProcess, StoreName, ToKeeper};
use sexton_plan::identity::Identity;
use sexton_plan::state::ExitStatus;
use sexton_sys::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Duration, Instant, sleep};

use super::readiness;

/// How long a record is waited for that the keeper may be about to tell: it reaps first, and speaks in the same turn.
const TELLS: Duration = Duration::from_secs(1);
/// The pause before the records are looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The pause before it is asked again whether the keeper has heard; one that works does within microseconds.
const HEARS_AGAIN: Duration = Duration::from_millis(1);

/// The connection, and the exits that the keeper recorded and nobody has claimed yet.
#[derive(Debug)]
pub struct Keeper {
    link: Option<Arc<AsyncFd<Link>>>,
    outbox: Arc<Outbox>,
    exits: Mutex<Exits>,
    /// What it is to hold anew, until this worker is ready: nobody waits for that.
    anew: Mutex<Option<BTreeSet<(u32, u64)>>>,
}

/// What the keeper has not taken yet, in its order. BOUND: what it is to hold, what it is to let go of, and the exits of
/// which it has told, each once: as many as its roster, its records and the node's instances.
#[derive(Debug, Default)]
struct Outbox {
    queue: Mutex<VecDeque<Unsent>>,
    /// Something was put in.
    filled: Notify,
    /// Nothing is left in it.
    emptied: Notify,
}

/// A message, and who waits until it is taken.
#[derive(Debug)]
struct Unsent {
    message: ToKeeper,
    _taken: oneshot::Sender<()>,
}

impl Outbox {
    fn queue(&self) -> MutexGuard<'_, VecDeque<Unsent>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, unsent: Unsent, link: &KeeperLink) {
        let mut queue = self.queue();
        match unsent.message {
            // What it has not heard of it need not let go of.
            ToKeeper::Release(held) => {
                let is_its_hold = |other: &Unsent| matches!(other.message, ToKeeper::Hold(other) if other == held);
                if let Some(at) = queue.iter().rposition(is_its_hold) {
                    queue.remove(at);
                    return;
                }
            }
            ToKeeper::Hello { .. }
            | ToKeeper::Prepared
            | ToKeeper::Ready
            | ToKeeper::Hold(_)
            | ToKeeper::Ack { .. }
            | ToKeeper::Store(_)
            | ToKeeper::Unstore(_)
            | ToKeeper::Sweep(_)
            | ToKeeper::Mode(_)
            | ToKeeper::Finished { .. } => {}
        }
        queue.push_back(unsent);
        // Most often it takes this at once.
        if queue.len() > 1 || !send_from(&mut queue, link) {
            self.filled.notify_one();
        }
    }

    /// Sends all as the keeper takes it, for ever.
    async fn empty(&self, link: &AsyncFd<Link>) {
        loop {
            if send_from(&mut self.queue(), &link.get_ref().0) {
                self.emptied.notify_waiters();
                self.filled.notified().await;
                continue;
            }
            match link.writable().await {
                Ok(mut ready) => ready.clear_ready(),
                Err(error) => return tracing::error!(%error, "keeper not reachable"),
            }
        }
    }
}

/// Sends what the keeper takes now; whether that is all.
fn send_from(queue: &mut VecDeque<Unsent>, link: &KeeperLink) -> bool {
    while let Some(next) = queue.front() {
        match link.send(&next.message) {
            Err(error) if error.errno == Errno::EAGAIN => return false,
            // One that has ended takes the worker with it, so what cannot be sent then does not matter.
            Err(error) => tracing::error!(%error, "keeper not reachable"),
            Ok(()) => {}
        }
        queue.pop_front();
    }
    true
}

/// Exits that are not durable yet.
#[derive(Debug, Default)]
struct Exits {
    /// Those that the keeper has recorded, by number.
    open: BTreeMap<u64, ExitRecord>,
    /// Whose end is shown and not durable yet.
    owed: BTreeSet<(u32, u64)>,
}

#[derive(Debug)]
struct Link(KeeperLink);

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.0.raw()
    }
}

/// What the keeper is told of a process, by which it and its exit are known again.
///
/// A start tick is enough here, and would not be for a signal: the keeper compares it only with that of a child of its
/// own which has the number of one that it holds.
pub fn held(identity: &Identity) -> HeldProcess {
    let ticks = identity.start_ticks.map_or(0, |ticks| ticks | HeldProcess::TICKS);
    HeldProcess { pid: identity.pid.as_raw().cast_unsigned(), ino: identity.pidfs_ino.unwrap_or(ticks) }
}

/// Whether a recorded exit is proven to be of exactly this process.
pub fn is_of(record: &ExitRecord, identity: &Identity) -> bool {
    let held = held(identity);
    held.ino != 0 && (record.pid, record.ino) == (held.pid, held.ino)
}

impl Keeper {
    /// A worker without a keeper, as tests run it.
    pub fn none() -> Keeper {
        Keeper { link: None, outbox: Arc::default(), exits: Mutex::default(), anew: Mutex::new(Some(BTreeSet::new())) }
    }

    /// The keeper behind `link`.
    ///
    /// # Errors
    /// The descriptor cannot be watched.
    pub fn new(link: KeeperLink) -> io::Result<Keeper> {
        let link = Arc::new(readiness::watch(Link(link), Interest::READABLE | Interest::WRITABLE)?);
        let outbox = Arc::<Outbox>::default();
        let (sends, to) = (Arc::clone(&outbox), Arc::clone(&link));
        tokio::spawn(async move { sends.empty(&to).await });
        Ok(Keeper { link: Some(link), outbox, exits: Mutex::default(), anew: Mutex::new(Some(BTreeSet::new())) })
    }

    /// Puts `message` on its way, behind all that was put before.
    pub fn tell(&self, message: ToKeeper) {
        drop(self.send(message));
    }

    /// As [`Keeper::tell`]; what is given waits until the keeper has taken it, or need not any more.
    pub fn send(&self, message: ToKeeper) -> impl Future<Output = ()> + use<> {
        let (_taken, news) = oneshot::channel();
        if let (ToKeeper::Release(held), Some(anew)) = (&message, self.anew().as_mut()) {
            anew.remove(&(held.pid, held.ino));
        }
        if let Some(link) = &self.link {
            self.outbox.put(Unsent { message, _taken }, &link.get_ref().0);
        }
        async move {
            // It is dropped with the message.
            let _taken = news.await;
        }
    }

    /// Has it hold what the worker before this one held, but may have died before it listened.
    pub fn hold_anew(&self, held: HeldProcess) {
        let is_early = self.anew().as_mut().map(|anew| anew.insert((held.pid, held.ino))).is_some();
        // The lock is not held any more: telling takes it too.
        if !is_early {
            self.tell(ToKeeper::Hold(held));
        }
    }

    /// Tells it what has waited until this worker was ready.
    pub fn tell_anew(&self) {
        let anew = self.anew().take();
        anew.into_iter().flatten().for_each(|(pid, ino)| self.tell(ToKeeper::Hold(HeldProcess { pid, ino })));
    }

    fn anew(&self) -> MutexGuard<'_, Option<BTreeSet<(u32, u64)>>> {
        self.anew.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the keeper has taken all.
    pub async fn flush(&self) {
        while !self.outbox.queue().is_empty() {
            self.outbox.emptied.notified().await;
        }
    }

    /// Waits until the keeper has heard all, and something at least: one that is stopped, or hangs on its disk, never does.
    /// Where the kernel does not tell, one that takes what it is sent passes for one that hears.
    pub async fn hears(&self) {
        let Some(link) = &self.link else { return };
        let has_heard = || self.outbox.queue().is_empty() && link.get_ref().0.is_heard().unwrap_or(true);
        // Where something is under way already, that is enough, however often this is asked.
        if has_heard() {
            self.tell(ToKeeper::Hello { version: wire::VERSION });
        }
        while !has_heard() {
            sleep(HEARS_AGAIN).await;
        }
    }

    /// Has the keeper hold a copy of a listener, for the workers to come.
    pub fn store(&self, name: StoreName, fd: RawFd) {
        let Some(link) = &self.link else { return };
        // Among the first messages of a worker, so that there is room for it.
        if let Err(error) = link.get_ref().0.store(name, fd) {
            tracing::error!(%error, "keeper does not hold our listener");
        }
    }

    /// The next message.
    ///
    /// # Errors
    /// `Closed` once the keeper has ended, and where there never was one this waits for ever.
    pub async fn receive(&self) -> Result<FromKeeper, LinkError> {
        let Some(link) = &self.link else { return std::future::pending().await };
        loop {
            let mut ready = link.readable().await.map_err(|_| LinkError::Closed)?;
            match link.get_ref().0.receive() {
                Err(LinkError::Empty) => ready.clear_ready(),
                other => return other,
            }
        }
    }

    /// Remembers an exit until somebody claims it.
    pub fn remember(&self, record: ExitRecord) {
        self.lock().open.insert(record.seq, record);
    }

    /// The recorded exit of exactly this process, which stays remembered until it is forgotten.
    pub fn exit_of(&self, identity: &Identity) -> Option<(u64, ExitStatus)> {
        let exits = self.lock();
        let record = exits.open.values().find(|record| is_of(record, identity))?;
        Some((record.seq, ExitStatus::from_wait_word(record.status)?))
    }

    /// As [`Keeper::exit_of`], and waits a moment for it: whom this worker finds gone, the keeper may have reaped just
    /// now, or while this worker began, and its word is still under way.
    pub async fn told_exit_of(&self, identity: &Identity) -> Option<ExitStatus> {
        let since = Instant::now();
        loop {
            match self.exit_of(identity) {
                Some((_, status)) => return Some(status),
                None if since.elapsed() < TELLS => sleep(LOOK_AGAIN).await,
                None => return None,
            }
        }
    }

    /// Notes that the end of a process is not durable yet: until it is, a record of it is not nobody's, and neither is
    /// its zombie.
    pub fn end_is_owed(&self, identity: &Identity) {
        let HeldProcess { pid, ino } = held(identity);
        self.lock().owed.insert((pid, ino));
    }

    /// Notes that the end of a process is durable.
    pub fn end_is_durable(&self, identity: &Identity) {
        let HeldProcess { pid, ino } = held(identity);
        self.lock().owed.remove(&(pid, ino));
    }

    /// Whether a record is of a process whose end is not durable yet.
    pub fn is_owed(&self, record: &ExitRecord) -> bool {
        self.lock().owed.contains(&(record.pid, record.ino))
    }

    /// The numbers of those whose ends are not durable yet.
    pub fn owed_pids(&self) -> BTreeSet<u32> {
        self.lock().owed.iter().map(|(pid, _)| *pid).collect()
    }

    /// Forgets one exit: it is durable in the ledger, or nobody's. The keeper, which waits for each, is told.
    pub fn settled(&self, seq: u64) {
        self.lock().open.remove(&seq);
        self.tell(ToKeeper::Ack { seq });
    }

    /// The exits that are remembered.
    pub fn exits(&self) -> Vec<ExitRecord> {
        self.lock().open.values().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Exits> {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
