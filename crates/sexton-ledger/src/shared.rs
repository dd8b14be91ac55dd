//! What the writer shares with everybody else: its inbox, and how it fares.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::batch::{Batch, CommitError, Committed, Urgency};
use crate::event::Event;
use crate::recent::Recent;

/// Batches in one transaction. BOUND: what one of them waits for the others stays in the range of a disk's flush.
pub(crate) const GROUP: usize = 64;

/// How long a disk may take over one step of the writer before the ledger counts as one that cannot be written.
const HANGS: Duration = Duration::from_secs(5);

/// What is called when a batch is durable or never will be.
pub(crate) type Done = Box<dyn FnOnce(Result<Committed, CommitError>) + Send>;

/// What is called with the newest event's number after it changed.
pub(crate) type Subscriber = Box<dyn Fn(u64) + Send>;

/// A batch on its way.
pub(crate) struct Job {
    pub(crate) batch: Batch,
    pub(crate) urgency: Urgency,
    pub(crate) done: Done,
}

/// What the writer shares with everybody else.
pub(crate) struct Shared {
    inbox: Mutex<Inbox>,
    wake: Condvar,
    subscribers: Mutex<Vec<Subscriber>>,
    /// Whether the last attempt to write succeeded.
    pub(crate) writable: AtomicBool,
    /// Since when the writer is at the step it is at; `None` while it has nothing to do.
    at_work: Mutex<Option<Instant>>,
    /// The newest event's number that was told.
    pub(crate) last_seq: AtomicU64,
    /// The first event's number that a power cut may take back.
    volatile_from: AtomicU64,
    pub(crate) recent: Recent,
}

#[derive(Default)]
struct Inbox {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Shared {
    pub(crate) fn new(last_seq: u64) -> Shared {
        Shared {
            inbox: Mutex::default(),
            wake: Condvar::new(),
            subscribers: Mutex::default(),
            writable: AtomicBool::new(true),
            at_work: Mutex::default(),
            last_seq: AtomicU64::new(last_seq),
            volatile_from: AtomicU64::new(u64::MAX),
            recent: Recent::default(),
        }
    }

    pub(crate) fn is_writable(&self) -> bool {
        let since = *self.at_work();
        self.writable.load(Ordering::Acquire) && since.is_none_or(|since| since.elapsed() < HANGS)
    }

    pub(crate) fn at_work(&self) -> MutexGuard<'_, Option<Instant>> {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn send(&self, job: Job) {
        let mut inbox = self.inbox();
        if inbox.closed {
            drop(inbox);
            (job.done)(Err(CommitError::Closed));
            return;
        }
        inbox.jobs.push_back(job);
        // The writer looks at the inbox before it sleeps, so only the first batch need wake it.
        let first = inbox.jobs.len() == 1;
        drop(inbox);
        if first {
            self.wake.notify_one();
        }
    }

    pub(crate) fn close(&self) {
        self.inbox().closed = true;
        self.wake.notify_one();
    }

    pub(crate) fn subscribe(&self, subscriber: Subscriber) {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).push(subscriber);
    }

    /// Numbers from `first` on are about to be given to events that a power cut may take back.
    pub(crate) fn hide_from(&self, first: u64) {
        self.volatile_from.fetch_min(first, Ordering::AcqRel);
    }

    /// Whether an event that was read may be told. Asked after it was read, for it is hidden before it is written.
    pub(crate) fn may_tell(&self, seq: u64) -> bool {
        seq < self.volatile_from.load(Ordering::Acquire)
    }

    /// All that was written is durable, the `newest` events among it: they may be read from now on.
    pub(crate) fn show(&self, newest: impl IntoIterator<Item = Event>) {
        self.recent.take_in(newest);
        self.volatile_from.store(u64::MAX, Ordering::Release);
    }

    /// Tells those who follow the log that it goes on to `last_seq`.
    pub(crate) fn publish(&self, last_seq: u64) {
        if self.last_seq.swap(last_seq, Ordering::AcqRel) != last_seq {
            for subscriber in self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                subscriber(last_seq);
            }
        }
    }

    /// Waits for batches, or until `deadline`; the second is whether the ledger was closed.
    pub(crate) fn receive(&self, deadline: Option<Instant>) -> (Vec<Job>, bool) {
        let mut inbox = self.inbox();
        loop {
            if !inbox.jobs.is_empty() || inbox.closed {
                let count = inbox.jobs.len().min(GROUP);
                let jobs = inbox.jobs.drain(..count).collect();
                return (jobs, inbox.closed && inbox.jobs.is_empty());
            }
            inbox = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return (Vec::new(), false),
                Some(left) => self.wake.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.wake.wait(inbox).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.inbox().jobs.is_empty()
    }
}
