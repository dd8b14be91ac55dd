//! The one way to a connection that may write.

use std::io;

use rusqlite::{Connection, OpenFlags};

use crate::look::{self, Files, LOCK_WAIT, OpenError};

/// After so many pages in the WAL SQLite itself checkpoints within a commit; the writer does so earlier, when idle.
const AUTO_CHECKPOINT_PAGES: u32 = 4_000;

/// The WAL is cut back to this after it has been longer.
pub(crate) const WAL_SIZE_LIMIT: u32 = 4 << 20;

/// Whether `conn` is what was asked for: where one of its three files could not be opened for writing at that moment, SQLite
/// goes on with it read-only, for as long as the connection lives.
fn may_write(conn: &Connection) -> Result<(), OpenError> {
    if conn.is_readonly("main")? {
        return Err(OpenError::NotPermitted(io::Error::other("it could be opened for reading alone")));
    }
    // Waits for another's lock, so that nobody need do so again who has got none.
    Ok(conn.execute_batch("BEGIN IMMEDIATE; ROLLBACK")?)
}

/// A connection that may write, to a file that exists.
pub(crate) fn connect(files: &Files) -> Result<Connection, OpenError> {
    let _gate = look::enter_gate();
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(&files.db, flags)?;
    conn.busy_timeout(LOCK_WAIT)?;
    let mode: String = conn.query_row("PRAGMA journal_mode = WAL", (), |row| row.get(0))?;
    if mode != "wal" {
        return Err(OpenError::Io(io::Error::other(format!("the file system allows journal mode `{mode}` only"))));
    }
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "wal_autocheckpoint", AUTO_CHECKPOINT_PAGES)?;
    conn.query_row(&format!("PRAGMA journal_size_limit = {WAL_SIZE_LIMIT}"), (), |_| Ok(()))?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    conn.pragma_update(None, "cache_size", look::CACHE_KIB)?;
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.set_prepared_statement_cache_capacity(32);
    may_write(&conn)?;
    Ok(conn)
}
