//! The open ledger, as a daemon holds it.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use sexton_plan::id::Incarnation;
use ulid::{Generator, Ulid};

use crate::batch::{Batch, CommitError, Committed, Urgency};
use crate::look::{Files, OpenError};
use crate::open::{self, Contents, OpenOptions};
use crate::place::Place;
use crate::read::Reader;
use crate::shared::{Job, Shared};
use crate::whereabouts::OWN;
use crate::writer::{Reserve, Writer};

/// The open ledger. Dropping it writes what was sent, tries once more what is owed, and closes the database.
pub struct Ledger {
    shared: Arc<Shared>,
    reader: Reader,
    thread: Option<JoinHandle<()>>,
}

impl Ledger {
    /// Opens the ledger in `state_dir`, or makes it; settles what the previous boot left; reads everything.
    ///
    /// # Errors
    /// [`OpenError`]; then no byte on the disk has changed, save for a directory or an empty file that was made.
    ///
    /// # Blocking
    /// 2 s at most for another process's lock, otherwise as long as reading all rows takes.
    pub fn open(state_dir: &Path, options: OpenOptions) -> Result<(Ledger, Contents), OpenError> {
        let opened = open::open(state_dir, &options)?;
        let shared = Arc::new(Shared::new(opened.contents.last_seq));
        let reader = Reader::open(state_dir, Arc::clone(&shared))?;
        let files = Files::in_dir(state_dir);
        let place = Place::of(&files).map_err(OpenError::Io)?;
        let reserve = Reserve { wal: files.wal, bytes: options.wal_reserve, is_laid_out: options.wal_reserve == 0 };
        let writer = Writer::new((opened.conn, opened.stamp), Arc::clone(&shared), place, reserve);
        let thread = thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| OpenError::Io(io::Error::other(error)))?;
        Ok((Ledger { shared, reader, thread: Some(thread) }, opened.contents))
    }

    /// Sends `batch` to be written and calls `done`, on the writer's thread, when it is durable or never will be.
    ///
    /// Batches become durable in the order in which they were sent, save for those refused.
    pub fn commit(
        &self,
        batch: Batch,
        urgency: Urgency,
        done: impl FnOnce(Result<Committed, CommitError>) + Send + 'static,
    ) {
        match batch.meta.iter().find(|(key, _)| key.starts_with(OWN)) {
            Some((key, _)) => done(Err(CommitError::Rejected(format!("`{key}` is the ledger's own")))),
            None => self.shared.send(Job { batch, urgency, done: Box::new(done) }),
        }
    }

    /// As [`Ledger::commit`], and waits for the result.
    ///
    /// # Errors
    /// [`CommitError`].
    ///
    /// # Blocking
    /// Until the batch is durable; what is owed waits for as long as nothing can be written.
    pub fn commit_now(&self, batch: Batch, urgency: Urgency) -> Result<Committed, CommitError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.commit(batch, urgency, move |result| {
            // The receiver waits below.
            sender.send(result).ok();
        });
        receiver.recv().unwrap_or(Err(CommitError::Closed))
    }

    /// Calls `subscriber`, on the writer's thread, with the newest event's number whenever that has changed.
    pub fn subscribe(&self, subscriber: impl Fn(u64) + Send + 'static) {
        self.shared.subscribe(Box::new(subscriber));
    }

    /// The newest event's number that this process knows to be durable.
    pub fn last_seq(&self) -> u64 {
        self.shared.last_seq.load(Ordering::Acquire)
    }

    /// Whether the last attempt to write succeeded, and no other one hangs; becomes true by itself.
    pub fn writable(&self) -> bool {
        self.shared.is_writable()
    }

    /// A reader beside the writer; cheap.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(thread) = self.thread.take() {
            // A panic there has been told by the panic hook already.
            thread.join().ok();
        }
    }
}

/// A new life's id: a ULID greater than every one that this process made before.
pub fn new_incarnation() -> Incarnation {
    static GENERATOR: Mutex<Generator> = Mutex::new(Generator::new());
    let mut generator = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let ulid: Ulid = generator.generate().unwrap_or_else(|overflow| overflow.commit_overflow_increment());
    let text = ulid.to_string();
    // INVARIANT: what the `ulid` crate writes is a ULID in upper case.
    text.parse().unwrap_or_else(|_| unreachable!("`{text}` is a ULID"))
}
