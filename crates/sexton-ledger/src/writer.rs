//! The one thread that writes, several batches in one transaction where they come together.
//!
//! It sleeps while there is nothing to do. A batch that cannot be written is refused, or, if it is owed, kept in order
//! and tried again; while anything is owed, what may be refused is refused, for it must not overtake.
//!
//! ```text
//!   batches ──► one transaction ──ok──► all told
//!                    │ failed
//!                    ▼
//!               one by one ──► refusable: refused · owed: kept ◄──┐
//!                                              │ 50 ms … 1 s      │ failed
//!                                              └── in order ──────┘──ok──► told
//! ```

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use crate::batch::{Batch, CommitError, Committed, Urgency};
use crate::open::OWN;
use crate::rows::{self, Stamp};

/// Batches in one transaction. BOUND: what one of them waits for the others stays in the range of a disk's flush.
const GROUP: usize = 64;

/// Pause before what is owed is tried again, doubling.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(1);

/// Pages after which the WAL is copied back when there is nothing else to do (a page is 4 KiB).
const CHECKPOINT_PAGES: usize = 1_000;

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
    pub(crate) writable: AtomicBool,
    pub(crate) last_seq: AtomicU64,
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
            last_seq: AtomicU64::new(last_seq),
        }
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

    fn publish(&self, last_seq: u64) {
        if self.last_seq.swap(last_seq, Ordering::AcqRel) != last_seq {
            for subscriber in self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                subscriber(last_seq);
            }
        }
    }

    /// Waits for batches, or until `deadline`; the second is whether the ledger was closed.
    fn receive(&self, deadline: Option<Instant>) -> (Vec<Job>, bool) {
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

    fn is_idle(&self) -> bool {
        self.inbox().jobs.is_empty()
    }
}

/// What became of a group of batches.
enum Failure {
    /// This very content cannot be written.
    Content(String),
    /// The disk is full: a smaller batch may still fit.
    Full(String),
    /// Nothing can be written now.
    Nothing(String),
}

impl Failure {
    fn of(error: &rusqlite::Error) -> Failure {
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull | ErrorCode::OutOfMemory) => Failure::Full(text),
            None | Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch) => {
                Failure::Content(text)
            }
            Some(_) => Failure::Nothing(text),
        }
    }
}

/// The thread's own state.
pub(crate) struct Writer {
    conn: Connection,
    stamp: Stamp,
    shared: Arc<Shared>,
    owed: VecDeque<Job>,
    tried_at: Option<Instant>,
    pause: Duration,
    is_volatile: bool,
    pages: usize,
}

impl Writer {
    pub(crate) fn new(conn: Connection, stamp: Stamp, shared: Arc<Shared>) -> Writer {
        let owed = VecDeque::new();
        Writer { conn, stamp, shared, owed, tried_at: None, pause: RETRY_FIRST, is_volatile: false, pages: 0 }
    }

    /// Writes until the ledger is closed and everything that was sent is told.
    pub(crate) fn run(mut self) {
        loop {
            let deadline = self.tried_at.filter(|_| !self.owed.is_empty()).map(|at| at + self.pause);
            let (jobs, closed) = self.shared.receive(deadline);
            self.turn(jobs);
            if closed {
                break;
            }
            self.checkpoint_when_idle();
        }
        self.write_owed();
        for job in self.owed.drain(..) {
            (job.done)(Err(CommitError::Closed));
        }
    }

    fn turn(&mut self, jobs: Vec<Job>) {
        if !self.owed.is_empty() && self.tried_at.is_none_or(|at| at.elapsed() >= RETRY_FIRST) {
            self.write_owed();
        }
        if self.owed.is_empty() { self.write_group(jobs) } else { self.set_aside(jobs, "earlier records wait for it") }
    }

    /// Keeps what is owed and refuses the rest.
    fn set_aside(&mut self, jobs: impl IntoIterator<Item = Job>, why: &str) {
        for job in jobs {
            match job.urgency {
                Urgency::Owed => self.owed.push_back(job),
                Urgency::Refusable => (job.done)(Err(CommitError::Unwritable(why.to_owned()))),
            }
        }
    }

    fn write_group(&mut self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        match self.commit(&jobs) {
            Ok(committed) => self.tell(jobs, committed),
            Err(Failure::Nothing(why)) => self.suspend(jobs, &why),
            Err(Failure::Content(_) | Failure::Full(_)) => self.write_singly(jobs),
        }
    }

    /// Finds the batch at fault, so that the others do not suffer for it.
    fn write_singly(&mut self, jobs: Vec<Job>) {
        let mut jobs = jobs.into_iter();
        while let Some(job) = jobs.next() {
            let owed = job.urgency == Urgency::Owed;
            match self.commit(std::slice::from_ref(&job)) {
                Ok(committed) => self.tell(vec![job], committed),
                Err(Failure::Content(why)) => (job.done)(Err(CommitError::Rejected(why))),
                Err(Failure::Full(why)) if !owed => {
                    self.shared.writable.store(false, Ordering::Release);
                    (job.done)(Err(CommitError::Unwritable(why)));
                }
                Err(Failure::Full(why) | Failure::Nothing(why)) => {
                    self.suspend(std::iter::once(job).chain(jobs), &why);
                    return;
                }
            }
        }
        if !self.shared.writable.load(Ordering::Acquire) {
            self.suspend([], "");
        }
    }

    /// Nothing can be written: what is owed waits, and if nothing is, an empty record of our own finds out when
    /// writing is possible again.
    fn suspend(&mut self, jobs: impl IntoIterator<Item = Job>, why: &str) {
        self.shared.writable.store(false, Ordering::Release);
        self.set_aside(jobs, why);
        if self.owed.is_empty() {
            let meta = vec![(format!("{OWN}probe"), Some((self.stamp.now)().to_string()))];
            let batch = Batch { meta, ..Batch::default() };
            self.owed.push_back(Job { batch, urgency: Urgency::Owed, done: Box::new(|_| ()) });
        }
        self.tried_at = Some(Instant::now());
        self.pause = RETRY_FIRST;
    }

    /// Tries to write what is owed, oldest first, as far as that goes.
    fn write_owed(&mut self) {
        while !self.owed.is_empty() {
            let rest = self.owed.split_off(self.owed.len().min(GROUP));
            let jobs: Vec<Job> = std::mem::replace(&mut self.owed, rest).into();
            match self.commit(&jobs) {
                Ok(committed) => self.tell(jobs, committed),
                Err(Failure::Content(why)) if jobs.len() == 1 => {
                    for job in jobs {
                        (job.done)(Err(CommitError::Rejected(why.clone())));
                    }
                }
                Err(Failure::Content(_) | Failure::Full(_)) if jobs.len() > 1 => {
                    if !self.write_first_owed(jobs) {
                        return;
                    }
                }
                Err(Failure::Content(_) | Failure::Full(_) | Failure::Nothing(_)) => {
                    self.put_back(jobs);
                    return;
                }
            }
        }
        self.shared.writable.store(true, Ordering::Release);
        self.pause = RETRY_FIRST;
    }

    /// Writes the first of `jobs` alone and puts the others back; false where not even that goes.
    fn write_first_owed(&mut self, mut jobs: Vec<Job>) -> bool {
        let rest = jobs.split_off(1);
        let result = self.commit(&jobs);
        match result {
            Ok(committed) => self.tell(jobs, committed),
            Err(Failure::Content(why)) => {
                for job in jobs {
                    (job.done)(Err(CommitError::Rejected(why.clone())));
                }
            }
            Err(Failure::Full(_) | Failure::Nothing(_)) => {
                jobs.extend(rest);
                self.put_back(jobs);
                return false;
            }
        }
        for job in rest.into_iter().rev() {
            self.owed.push_front(job);
        }
        true
    }

    fn put_back(&mut self, jobs: Vec<Job>) {
        for job in jobs.into_iter().rev() {
            self.owed.push_front(job);
        }
        self.tried_at = Some(Instant::now());
        self.pause = (self.pause * 2).min(RETRY_LONGEST);
    }

    fn tell(&mut self, jobs: Vec<Job>, committed: Vec<Committed>) {
        let last_seq = committed.last().map(|committed| committed.last_seq);
        for (job, committed) in jobs.into_iter().zip(committed) {
            (job.done)(Ok(committed));
        }
        if let Some(last_seq) = last_seq {
            self.shared.publish(last_seq);
        }
    }

    /// Writes `jobs` in one transaction, making room in the WAL where the disk is full.
    fn commit(&mut self, jobs: &[Job]) -> Result<Vec<Committed>, Failure> {
        let mut result = self.transact(jobs);
        // RESTART lets the WAL be written from its beginning and keeps its blocks; TRUNCATE gives them to the database
        // file, which may need them to take the copy.
        for mode in ["RESTART", "TRUNCATE"] {
            let is_full = result.as_ref().is_err_and(|e| e.sqlite_error_code() == Some(ErrorCode::DiskFull));
            if !is_full || self.checkpoint(mode).is_err() {
                break;
            }
            result = self.transact(jobs);
        }
        result.map_err(|error| Failure::of(&error))
    }

    fn transact(&mut self, jobs: &[Job]) -> rusqlite::Result<Vec<Committed>> {
        self.set_volatile(jobs.iter().all(|job| job.batch.volatile))?;
        self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
        let result = self.apply_all(jobs).and_then(|committed| {
            self.conn.prepare_cached("COMMIT")?.execute(())?;
            Ok(committed)
        });
        if result.is_err() && !self.conn.is_autocommit() {
            // Fails only where SQLite has rolled back already.
            self.conn.execute_batch("ROLLBACK").ok();
        }
        result
    }

    fn apply_all(&mut self, jobs: &[Job]) -> rusqlite::Result<Vec<Committed>> {
        // Not from memory: a boot check may have appended to the log meanwhile.
        let mut last_seq = rows::last_seq(&self.conn)?;
        let mut committed = Vec::with_capacity(jobs.len());
        for job in jobs {
            let seqs = rows::apply(&self.conn, &self.stamp, &job.batch, &mut last_seq)?;
            committed.push(Committed { last_seq, seqs });
            self.pages += 2 + 2 * (job.batch.puts.len() + job.batch.removes.len() + job.batch.events.len());
        }
        Ok(committed)
    }

    /// Whether a commit waits for the disk. A later one that does takes every earlier one with it.
    fn set_volatile(&mut self, is_volatile: bool) -> rusqlite::Result<()> {
        if is_volatile != self.is_volatile {
            self.conn.pragma_update(None, "synchronous", if is_volatile { "NORMAL" } else { "FULL" })?;
            self.is_volatile = is_volatile;
        }
        Ok(())
    }

    fn checkpoint(&mut self, mode: &str) -> rusqlite::Result<()> {
        self.pages = 0;
        self.conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), (), |_| Ok(()))
    }

    fn checkpoint_when_idle(&mut self) {
        if self.pages >= CHECKPOINT_PAGES && self.owed.is_empty() && self.shared.is_idle() {
            // Where it does not succeed now, it is tried after as many pages again, and by SQLite at its own limit.
            self.checkpoint("PASSIVE").ok();
        }
    }
}
