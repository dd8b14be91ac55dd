//! Opening for writing, which only what [`crate::look`] found sound lives to see.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, TransactionBehavior};
use sexton_plan::id::{BootId, NodeId};

use crate::boot::{self, Settled};
use crate::connect::{WAL_SIZE_LIMIT, connect};
use crate::entry::Entry;
use crate::look::{self, Files, LOCK_WAIT, OpenError, Seen, Sight};
use crate::migrate;
use crate::rows::{self, Stamp};
use crate::slot::SlotRow;
use crate::whereabouts::{NODE, OWN, Whereabouts};

/// Who opens the ledger, and when it is.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// This node, where the configuration names it; else the id in the ledger, or a new random one.
    pub node: Option<NodeId>,
    /// This boot, as the caller read it.
    pub boot_id: BootId,
    /// The wall clock.
    pub now: fn() -> Timestamp,
    /// Bytes to lay out for the WAL beforehand, and a quarter of them inside the database file; 0 for none. Then a
    /// commit need not grow a file, and stops can be recorded when the disk is full. Good: 1 MiB where there is room,
    /// else a small part of what is free.
    pub wal_reserve: u64,
}

impl OpenOptions {
    /// Options for `boot_id` with the system's clock, and nothing else.
    pub fn new(boot_id: BootId) -> OpenOptions {
        OpenOptions { node: None, boot_id, now: Timestamp::now, wal_reserve: 0 }
    }
}

/// What the ledger held when it was opened, after the previous boot was settled.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    /// Every instance, by name.
    pub entries: Vec<Entry>,
    /// Every network slot, by number.
    pub slots: Vec<SlotRow>,
    /// This node.
    pub node: NodeId,
    /// The boot during which the ledger was last open, if it ever was.
    pub boot_id_before: Option<BootId>,
    /// The newest event's number, 0 where there has never been one.
    pub last_seq: u64,
    /// Whether there was no ledger before: then whatever lives on the host is in no row.
    pub fresh: bool,
    /// What was settled because the machine was started anew.
    pub settled: Settled,
    /// The daemon's own small facts.
    pub meta: BTreeMap<String, String>,
}

/// An open database, the contents it had, and how to stamp what is written to it.
pub(crate) struct Opened {
    pub(crate) conn: Connection,
    pub(crate) contents: Contents,
    pub(crate) stamp: Stamp,
}

/// Opens or makes the ledger in `state_dir`.
pub(crate) fn open(state_dir: &Path, options: &OpenOptions) -> Result<Opened, OpenError> {
    let seen = match look::look(state_dir, Some(&options.boot_id))? {
        Sight::Absent => None,
        Sight::Sound(look) => Some(look.close()),
    };
    let files = Files::in_dir(state_dir);
    let was_closed = seen.is_some() && !files.wal.exists() && !files.shm.exists();
    if seen.is_none() {
        prepare_fresh(state_dir, &files)?;
    }
    // On a full disk it begins both files and cannot go on.
    let mut conn = connect(&files).inspect_err(|_| {
        if was_closed {
            look::take_back(&files)
        }
    })?;
    if options.wal_reserve > u64::from(WAL_SIZE_LIMIT) {
        conn.query_row(&format!("PRAGMA journal_size_limit = {}", options.wal_reserve), (), |_| Ok(()))?;
    }
    let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    migrate::migrate(&transaction)?;
    let (contents, stamp) = take_over(&transaction, &files, options, seen)?;
    rows::prune_requests(&transaction, (options.now)())?;
    transaction.commit()?;
    begin_log_anew(&conn)?;
    Ok(Opened { conn, contents, stamp })
}

/// Tells whether the ledger in `state_dir`, which another process has open, could be opened for writing beside it now.
///
/// # Errors
/// [`OpenError::Locked`] where somebody keeps the lock for longer than a daemon waits for it.
///
/// # Blocking
/// 2 s at most.
pub fn check_lock(state_dir: &Path) -> Result<(), OpenError> {
    let mut conn = connect(&Files::in_dir(state_dir))?;
    Ok(conn.transaction_with_behavior(TransactionBehavior::Immediate)?.rollback()?)
}

/// Copies the log back, so that this boot's begins where nothing of an earlier one is left: from here on the database
/// file names this boot, and [`crate::wal`] can tell a log that ends from one that breaks off.
fn begin_log_anew(conn: &Connection) -> Result<(), OpenError> {
    // Somebody else may be reading or writing now; then the log was begun anew when they came.
    conn.busy_timeout(Duration::ZERO)?;
    let result = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()));
    conn.busy_timeout(LOCK_WAIT)?;
    match result {
        // A full disk or another's lock hinders nobody yet: the writer will tell.
        Ok(()) | Err(rusqlite::Error::SqliteFailure(..)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Settles what has ended, writes down who is here now, and reads everything that was not `seen` as it still is, in the
/// open transaction.
fn take_over(
    conn: &Connection,
    files: &Files,
    options: &OpenOptions,
    seen: Option<Seen>,
) -> Result<(Contents, Stamp), OpenError> {
    let fresh = seen.is_none();
    let before = Whereabouts::read(conn)?;
    let node = match (&options.node, &before.node) {
        (Some(node), _) | (None, Some(node)) => node.clone(),
        (None, None) => new_node_id(),
    };
    if before.node.as_ref() != Some(&node) {
        rename_node(conn, before.node.as_ref(), &node)?;
    }
    let stamp = Stamp { boot_id: options.boot_id.clone(), node: node.clone(), now: options.now };
    let settled = boot::settle(conn, &stamp, &before)?;
    let mut meta = rows::read_meta(conn)?;
    meta.retain(|key, _| !key.starts_with(OWN));
    let entries = match seen {
        Some(seen) if conn.total_changes() == 0 && seen.is_all(files) => seen.entries,
        Some(_) | None => rows::read_entries(conn)?,
    };
    let contents = Contents {
        entries,
        slots: rows::read_slots(conn)?,
        node,
        boot_id_before: before.boot_id,
        last_seq: rows::last_seq(conn)?,
        fresh,
        settled,
        meta,
    };
    Ok((contents, stamp))
}

/// The instances of a node stay its own under another name.
fn rename_node(conn: &Connection, before: Option<&NodeId>, node: &NodeId) -> Result<(), OpenError> {
    if before.is_some() {
        for mut entry in rows::read_entries(conn)? {
            if Some(&entry.node) == before {
                entry.node = node.clone();
                rows::put_entry(conn, &entry)?;
            }
        }
    }
    rows::put_meta(conn, NODE, Some(node.as_str()))?;
    Ok(())
}

fn new_node_id() -> NodeId {
    let id = format!("node-{}", ulid::Ulid::generate().to_string().to_ascii_lowercase());
    // INVARIANT: digits and small letters are a name.
    id.parse().unwrap_or_else(|_| unreachable!("`{id}` is a name"))
}

/// Makes directory and file, readable by their owner alone, and sets aside the WAL of a database that is gone.
fn prepare_fresh(state_dir: &Path, files: &Files) -> Result<(), OpenError> {
    let _gate = look::enter_gate();
    DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(OpenError::CannotCreate)?;
    let has_wal = fs::metadata(&files.wal).is_ok_and(|found| found.len() > 0);
    if has_wal && files.db_size()?.is_none() {
        // SQLite deletes it, but somebody may want to know what was in it. Not renamed, for another process may be
        // making a new ledger right now, and this be its WAL.
        fs::copy(&files.wal, look::aside(state_dir)).map_err(OpenError::CannotCreate)?;
    }
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&files.db) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(OpenError::CannotCreate(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, Ledger, Urgency};

    fn seen(state_dir: &Path, boot_id: &BootId) -> Seen {
        match look::look(state_dir, Some(boot_id)).unwrap() {
            Sight::Sound(look) => look.close(),
            Sight::Absent => unreachable!("it is there"),
        }
    }

    #[test]
    fn what_was_seen_is_all_until_somebody_commits() {
        let dir = std::env::temp_dir().join(format!("sexton-seen-{}", std::process::id()));
        let boot_id: BootId = "0f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff".parse().unwrap();
        let (ledger, _) = Ledger::open(&dir, OpenOptions::new(boot_id.clone())).unwrap();
        let files = Files::in_dir(&dir);
        let commit = |value: &str| {
            let meta = vec![("key".to_owned(), Some(value.to_owned()))];
            ledger.commit_now(Batch { meta, ..Batch::default() }, Urgency::Refusable).unwrap();
        };
        assert!(!seen(&dir, &boot_id).is_all(&files), "a log without a commit tells nothing");
        commit("a");
        let first = seen(&dir, &boot_id);
        assert!(first.is_all(&files) && first.is_all(&files));
        commit("b");
        assert!(!first.is_all(&files));
        let second = seen(&dir, &boot_id);
        drop(ledger);
        assert!(!second.is_all(&files), "the log was copied back and is gone");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_somebody_else_has_open_is_not_taken_back() {
        let dir = std::env::temp_dir().join(format!("sexton-open-{}", std::process::id()));
        let boot_id: BootId = "0f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff".parse().unwrap();
        let (ledger, _) = Ledger::open(&dir, OpenOptions::new(boot_id)).unwrap();
        let files = Files::in_dir(&dir);
        assert_eq!(fs::metadata(&files.wal).unwrap().len(), 0, "as a refused opening leaves it");
        look::take_back(&files);
        assert!(files.wal.exists() && files.shm.exists());
        drop(ledger);
        fs::remove_dir_all(&dir).unwrap();
    }
}
