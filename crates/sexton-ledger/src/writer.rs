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
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use crate::batch::{Batch, CommitError, Committed, Urgency};
use crate::event::Event;
use crate::place::Place;
use crate::rows::{self, Stamp};
use crate::shared::{GROUP, Job, Shared};
use crate::wal;
use crate::whereabouts::ROOM;

/// Pause before what is owed is tried again, doubling.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(1);

/// Pages after which the WAL is copied back when there is nothing else to do (a page is 4 KiB).
const CHECKPOINT_PAGES: usize = 1_000;
const CHECKPOINT_PAGES_SMALL: usize = 16;

/// How long an event that a power cut could take back waits for a record that waits for the disk, and takes it along. BOUND:
/// whoever follows the log hears of it so much later, and usually of what comes after it at once.
const UNTOLD_FOR: Duration = Duration::from_millis(50);

/// A page of zeros.
static PAGE: [u8; 4096] = [0; 4096];

/// Bytes laid out in one go. BOUND: a batch that comes meanwhile waits for less than a millisecond.
const LAID_OUT_AT_ONCE: u64 = 64 * 4096;

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
    place: Place,
    reserve: Reserve,
    owed: VecDeque<Job>,
    tried_at: Option<Instant>,
    pause: Duration,
    is_volatile: bool,
    /// Events that are committed and that a power cut may take back, and since when there are any.
    untold: Vec<Event>,
    untold_since: Option<Instant>,
    /// Whether a commit may stand in the WAL that was never told.
    is_log_doubtful: bool,
    pages: usize,
    checkpoint_pages: usize,
}

impl Writer {
    /// A writer that lays out `reserve` while nothing comes.
    pub(crate) fn new(opened: (Connection, Stamp), shared: Arc<Shared>, place: Place, reserve: Reserve) -> Writer {
        let (conn, stamp) = opened;
        Writer {
            conn,
            stamp,
            shared,
            place,
            reserve,
            owed: VecDeque::new(),
            tried_at: None,
            pause: RETRY_FIRST,
            is_volatile: false,
            untold: Vec::new(),
            untold_since: None,
            is_log_doubtful: false,
            pages: 0,
            checkpoint_pages: CHECKPOINT_PAGES,
        }
    }

    /// Writes until the ledger is closed and everything that was sent is told.
    pub(crate) fn run(mut self) {
        loop {
            let (jobs, closed) = self.shared.receive(self.deadline());
            self.begin_step();
            self.turn(jobs);
            if closed {
                break;
            }
            self.lay_out_some();
            self.checkpoint_when_due();
            *self.shared.at_work() = None;
        }
        self.write_owed();
        for job in self.owed.drain(..) {
            (job.done)(Err(CommitError::Closed));
        }
    }

    /// The disk has answered, and is asked again.
    fn begin_step(&self) {
        *self.shared.at_work() = Some(Instant::now());
    }

    /// When to do something though no batch comes.
    fn deadline(&self) -> Option<Instant> {
        if !self.reserve.is_laid_out {
            return Some(Instant::now());
        }
        if self.owed.is_empty() {
            self.untold_since.map(|since| since + UNTOLD_FOR)
        } else {
            self.tried_at.map(|at| at + self.pause)
        }
    }

    fn turn(&mut self, jobs: Vec<Job>) {
        if !self.owed.is_empty() && self.tried_at.is_none_or(|at| at.elapsed() >= RETRY_FIRST) {
            self.write_owed();
        }
        if self.owed.is_empty() {
            self.write_group(jobs)
        } else {
            self.set_aside(jobs, "earlier records wait for it")
        }
        if self.owed.is_empty() && self.untold_since.is_some_and(|since| since.elapsed() >= UNTOLD_FOR) {
            self.write_group(vec![self.probe()]);
        }
    }

    /// A record of our own, which says nothing: it finds out whether writing is possible, and makes durable what came before.
    fn probe(&self) -> Job {
        let meta = vec![(format!("{ROOM}probe"), Some((self.stamp.now)().to_string()))];
        Job { batch: Batch { meta, ..Batch::default() }, urgency: Urgency::Owed, done: Box::new(|_| ()) }
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
            // The last one was refused: perhaps for its size alone.
            self.suspend([], "");
            self.write_owed();
        }
    }

    /// Nothing can be written: what is owed waits, and if nothing is, an empty record of our own finds out when
    /// writing is possible again.
    fn suspend(&mut self, jobs: impl IntoIterator<Item = Job>, why: &str) {
        self.shared.writable.store(false, Ordering::Release);
        self.set_aside(jobs, why);
        if self.owed.is_empty() {
            self.owed.push_back(self.probe());
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
        self.shared.writable.store(self.owed.is_empty(), Ordering::Release);
        let mut waiting = Vec::with_capacity(jobs.len());
        for (Job { batch, done, .. }, committed) in jobs.into_iter().zip(committed) {
            let numbered = committed.seqs.iter().zip(batch.events).filter_map(|(seq, event)| Some(((*seq)?, event)));
            self.untold.extend(numbered.map(|(seq, event)| self.stamp.listed((seq, committed.at), event)));
            waiting.push((done, committed));
        }
        if self.is_volatile {
            let now = (!self.untold.is_empty()).then(Instant::now);
            self.untold_since = self.untold_since.or(now);
        } else {
            self.untold_since = None;
            self.shared.show(self.untold.drain(..));
        }
        for (done, committed) in waiting {
            done(Ok(committed));
        }
        // Whoever waits goes first.
        if let Some(last_seq) = last_seq.filter(|_| !self.is_volatile) {
            self.shared.publish(last_seq);
        }
    }

    /// Writes `jobs` in one transaction, making room in the WAL where the disk is full.
    fn commit(&mut self, jobs: &[Job]) -> Result<Vec<Committed>, Failure> {
        self.begin_step();
        self.place.check().map_err(Failure::Nothing)?;
        if self.is_log_doubtful {
            // What stands behind the end of the WAL must not look like a commit that was lost: see `crate::wal`.
            self.checkpoint("TRUNCATE").map_err(|error| Failure::Nothing(error.to_string()))?;
            self.is_log_doubtful = false;
        }
        let mut result = self.transact(jobs);
        // RESTART lets the WAL be written from its beginning and keeps its blocks. Where that does not go, the database
        // file is to grow: it gets the blocks behind the WAL's end, and then all that it had.
        for mode in ["RESTART", "TRUNCATE"] {
            if !is_full(&result) {
                break;
            }
            if mode == "TRUNCATE" {
                self.give_back().ok();
            }
            if self.checkpoint(mode).is_ok() {
                result = self.transact(jobs);
            }
        }
        result.map_err(|error| {
            self.is_log_doubtful = error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure);
            Failure::of(&error)
        })
    }

    fn transact(&mut self, jobs: &[Job]) -> rusqlite::Result<Vec<Committed>> {
        self.set_volatile(jobs.iter().all(|job| job.batch.volatile))?;
        self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
        let result = self.apply_all(jobs).and_then(|committed| {
            let numbers = committed.iter().flat_map(|committed| &committed.seqs).flatten();
            if let Some(first) = numbers.min().filter(|_| self.is_volatile) {
                self.shared.hide_from(*first);
            }
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
            committed.push(rows::apply(&self.conn, &self.stamp, &job.batch, &mut last_seq)?);
            self.pages += 2 + 2 * (job.batch.puts.len() + job.batch.removes.len() + job.batch.events.len());
            self.pages += job.batch.slots.len() + job.batch.freed.len();
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
        self.begin_step();
        self.pages = 0;
        let is_hindered: bool = self.conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), (), |row| row.get(0))?;
        if is_hindered && mode != "PASSIVE" {
            let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
            return Err(rusqlite::Error::SqliteFailure(busy, None));
        }
        Ok(())
    }

    fn checkpoint_when_due(&mut self) {
        let is_due = self.pages >= self.checkpoint_pages && self.shared.is_idle();
        let is_overdue = self.pages >= 4 * self.checkpoint_pages;
        if (is_due || is_overdue) && self.owed.is_empty() {
            // Where it does not succeed now, it is tried after as many pages again, and by SQLite at its own limit.
            if self.checkpoint("PASSIVE").is_ok() {
                self.stock_up();
            }
        }
    }

    /// Sees to it that the database file has free pages inside: with them the WAL can be copied back, and so be
    /// written from its beginning, on a disk that is full. A failure is a full disk, and then this was too late.
    fn stock_up(&mut self) {
        let wanted = u32::try_from(self.reserve.bytes / 4 / 4096).unwrap_or(u32::MAX);
        let free = self.conn.query_row("PRAGMA freelist_count", (), |row| row.get::<_, u32>(0));
        if free.is_ok_and(|free| free <= wanted / 4) && wanted > 0 {
            // Only what was written and copied back once has its blocks; a text too large for its page is freed whole.
            let filler = "x".repeat(usize::try_from(wanted).unwrap_or(0).saturating_mul(PAGE.len()));
            let key = format!("{ROOM}filler");
            self.begin_step();
            let written = rows::put_meta(&self.conn, &key, Some(&filler)).and_then(|()| self.checkpoint("PASSIVE"));
            self.begin_step();
            rows::put_meta(&self.conn, &key, None).and(written).ok();
        }
    }
}

fn is_full<T>(result: &rusqlite::Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.sqlite_error_code() == Some(ErrorCode::DiskFull))
}

/// Room to be laid out for the WAL, and a quarter of it inside the database file.
pub(crate) struct Reserve {
    pub(crate) wal: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) is_laid_out: bool,
}

impl Reserve {
    /// Appends some zeros; true when the file is as long as it shall be.
    fn append_some(&self) -> io::Result<bool> {
        let mut file = File::options().append(true).open(&self.wal)?;
        let length = file.metadata()?.len();
        let end = self.bytes.min(length.saturating_add(LAID_OUT_AT_ONCE));
        // Page by page: one large write makes large folios, in which each small one costs more later (ext4, Linux 6.18).
        let result = (length..end).step_by(PAGE.len()).try_for_each(|_| file.write_all(&PAGE));
        if result.is_err() {
            file.set_len(length)?;
        }
        result?;
        file.sync_data()?;
        Ok(end == self.bytes || length >= self.bytes)
    }
}

impl Writer {
    /// Fills the WAL behind its end with zeros, which SQLite overwrites: then a commit changes bytes of the file but
    /// not its size, and flushing it need not write the file system's journal.
    fn lay_out_some(&mut self) {
        if self.reserve.is_laid_out {
            return;
        }
        // RACE: whoever writes the WAL, in whatever process, holds this lock, so its end stays where it is.
        let result = match self.conn.execute_batch("BEGIN IMMEDIATE") {
            Ok(()) => self.reserve.append_some(),
            Err(error) => Err(io::Error::other(error)),
        };
        if !self.conn.is_autocommit() {
            self.conn.execute_batch("ROLLBACK").ok();
        }
        match result {
            Ok(false) => {}
            Ok(true) => {
                self.reserve.is_laid_out = true;
                self.stock_up();
            }
            Err(_) => {
                // The disk is small or full: what was taken of it is given back, and the WAL kept short, for once it
                // has taken the last block it cannot be copied back any more.
                self.reserve.is_laid_out = true;
                self.reserve.bytes = 0;
                self.checkpoint_pages = CHECKPOINT_PAGES_SMALL;
                self.give_back().ok();
                self.checkpoint("TRUNCATE").ok();
            }
        }
    }

    /// Cuts off what is behind the WAL's last commit.
    fn give_back(&mut self) -> io::Result<()> {
        self.conn.execute_batch("BEGIN IMMEDIATE").map_err(io::Error::other)?;
        // RACE: under this lock nobody writes the WAL, and nobody reads what is not committed.
        let result = File::options().read(true).write(true).open(&self.reserve.wal).and_then(|mut file| {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            let end = wal::read(&bytes).end;
            if end > 0 { file.set_len(u64::try_from(end).unwrap_or(u64::MAX)) } else { Ok(()) }
        });
        self.conn.execute_batch("ROLLBACK").map_err(io::Error::other)?;
        result
    }
}
