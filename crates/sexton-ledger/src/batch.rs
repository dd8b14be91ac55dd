//! What is written to the ledger at once, and what comes of it.

use std::sync::Arc;

use jiff::Timestamp;
use sexton_plan::id::{Incarnation, Name};

use crate::entry::Entry;
use crate::event::NewEvent;
use crate::slot::SlotRow;

/// Changes that become durable together or not at all, applied in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Rows to insert, or to replace by name; shared with whoever shows them.
    pub puts: Vec<Arc<Entry>>,
    /// Rows to delete; one that is not there is no error.
    pub removes: Vec<Name>,
    /// Network slots to insert, or to replace by number.
    pub slots: Vec<SlotRow>,
    /// Numbers of network slots to delete; one that is not there is no error.
    pub freed: Vec<u32>,
    /// Facts to append to the event log.
    pub events: Vec<NewEvent>,
    /// What to answer when the same request comes again; replaces what was kept under its key.
    pub request: Option<RequestRecord>,
    /// The daemon's own small facts: `None` deletes the key. Keys beginning with `ledger.` are the ledger's own.
    pub meta: Vec<(String, Option<String>)>,
    /// Whether all this dies with the power anyway: then it is committed without waiting for the disk, and a power
    /// cut may take it back, together with every volatile batch after it. A killed process never does.
    pub volatile: bool,
}

/// What is known about a request that carried an `Idempotency-Key`; kept for [`KEPT_FOR`].
///
/// [`KEPT_FOR`]: crate::REQUESTS_KEPT_FOR
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRecord {
    /// The key, as the caller chose it.
    pub key: String,
    /// A hash of the request's body, to refuse the same key with another body.
    pub fingerprint: u64,
    /// The instance it created or started.
    pub name: Name,
    /// The life it made.
    pub incarnation: Incarnation,
    /// HTTP status and body of the answer, once there is one.
    pub answer: Option<(u16, String)>,
    /// When the request was first seen (wall clock).
    pub at: Timestamp,
}

/// What to do with a batch that cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Refuse it at once and whole: nothing has happened yet.
    Refusable,
    /// Keep it, in order, and write it as soon as that is possible: it has happened, or must.
    Owed,
}

/// A batch that is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The newest event's number after this batch, 0 where there has never been one.
    pub last_seq: u64,
    /// When its events were recorded (wall clock).
    pub at: Timestamp,
    /// For each event of the batch its number, or `None` for one left out because it had been recorded before.
    pub seqs: Vec<Option<u64>>,
}

/// Why a batch is not in the ledger, and never will be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The database cannot be written now: disk full, read-only, I/O error, or locked by another process.
    #[error("could not write the ledger: {0}")]
    Unwritable(String),
    /// The database can be written, but not this batch, now or later.
    #[error("could not record this in the ledger: {0}")]
    Rejected(String),
    /// The ledger was closed before the batch could be written.
    #[error("could not write the ledger: it is closed")]
    Closed,
}
