//! Reading beside the writer, each page a snapshot of its own.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OpenFlags};
use sexton_plan::id::Name;

use crate::batch::RequestRecord;
use crate::entry::Entry;
use crate::event::Event;
use crate::look::{self, Files, LOCK_WAIT, OpenError};
use crate::rows::{self, ReadError};
use crate::shared::Shared;

/// A connection that reads, shared by its clones; they take turns.
#[derive(Clone)]
pub struct Reader {
    conn: Arc<Mutex<Connection>>,
    shared: Arc<Shared>,
}

impl Reader {
    /// Opens a reader of a ledger that this process has open.
    pub(crate) fn open(state_dir: &Path, shared: Arc<Shared>) -> Result<Reader, OpenError> {
        let _gate = look::enter_gate();
        // It may be the last to close, and then it is to copy the WAL back, which a read-only one cannot.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(Files::in_dir(state_dir).db, flags)?;
        conn.busy_timeout(LOCK_WAIT)?;
        conn.pragma_update(None, "query_only", true)?;
        conn.pragma_update(None, "cache_size", look::CACHE_KIB)?;
        // Opens `-shm` now: later the disk may be full.
        rows::last_seq(&conn)?;
        Ok(Reader { conn: Arc::new(Mutex::new(conn)), shared })
    }

    fn conn(&self) -> MutexGuard<'_, Connection> {
        self.conn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At most `limit` events after number `after`, oldest first. None that a power cut may take back, for another one would
    /// bear its number; and none from a damaged one on: what follows that is given after its number.
    ///
    /// # Errors
    /// [`ReadError`], also where the first of them is damaged.
    pub fn events_after(&self, after: u64, limit: usize) -> Result<Vec<Event>, ReadError> {
        let mut events = Vec::new();
        let mut failed = None;
        if limit > 0 {
            let walked = rows::walk_events(&self.conn(), after, |event| match event {
                Ok(event) => {
                    events.push(event);
                    events.len() < limit
                }
                Err(error) => {
                    failed = Some(error);
                    false
                }
            });
            failed = failed.or(walked.err());
        }
        events.truncate(events.partition_point(|event| self.shared.may_tell(event.seq)));
        match failed {
            Some(error) if events.is_empty() => Err(error),
            Some(_) | None => Ok(events),
        }
    }

    /// As [`Reader::events_after`], from memory: of the newest that this process has recorded; none where the next one
    /// is older, or somebody else's.
    pub fn recent_events(&self, after: u64, limit: usize) -> Vec<Arc<Event>> {
        self.shared.recent.after(after, limit)
    }

    /// The number of the oldest event that is kept, if there is one.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn first_seq(&self) -> Result<Option<u64>, ReadError> {
        Ok(rows::first_seq(&self.conn())?)
    }

    /// What is known about the request with this `Idempotency-Key`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn request(&self, key: &str) -> Result<Option<RequestRecord>, ReadError> {
        rows::read_request(&self.conn(), key)
    }

    /// The requests that were never answered.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn unanswered(&self) -> Result<Vec<RequestRecord>, ReadError> {
        rows::read_unanswered(&self.conn())
    }

    /// The row of `name`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn entry(&self, name: &Name) -> Result<Option<Entry>, ReadError> {
        rows::read_entry(&self.conn(), name)
    }

    /// Every row, by name.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn entries(&self) -> Result<Vec<Entry>, ReadError> {
        rows::read_entries(&self.conn())
    }
}
