//! Looking at a ledger without changing a byte of it, and telling whether it may be opened.
//!
//! SQLite by itself writes when it opens a database in WAL mode: it makes `-wal` and `-shm`, or recovers them after
//! a kill. So whoever may still refuse looks first, in one of three ways:
//!
//! | on disk | look | why that is true and writes nothing |
//! |---|---|---|
//! | no commit in a `-wal`, and nobody there | `immutable=1` | all is in the database file; no lock, no other file |
//! | `-wal` and `-shm` | `mode=ro`, `readonly_shm=1` | beside a live process: its index; after a kill: an index in memory |
//! | `-wal` without `-shm` | exclusive locking | nobody else can be there, and then the index is kept in memory |
//!
//! RACE: POSIX locks belong to the process, and closing any descriptor of a file drops them all. So a database file
//! and its `-shm` are never opened here but through SQLite, which knows of this.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use sexton_plan::id::BootId;

use crate::entry::Entry;
use crate::migrate;
use crate::rows::{self, ReadError};
use crate::wal::{self, Wal};
use crate::whereabouts::Whereabouts;

/// The ledger's file in the state directory.
pub const FILE_NAME: &str = "sexton.db";

/// The files of a ledger in `state_dir`, the database first, and the copy of a log that was found without one.
pub fn files(state_dir: &Path) -> [PathBuf; 4] {
    let Files { db, wal, shm } = Files::in_dir(state_dir);
    [db, wal, shm, aside(state_dir)]
}

/// Where the log of a database that is gone is set aside.
pub(crate) fn aside(state_dir: &Path) -> PathBuf {
    state_dir.join(format!("{FILE_NAME}-wal.without-db"))
}

/// How long to wait for another process that holds a lock; a daemon answers 503 within 5 s.
pub(crate) const LOCK_WAIT: Duration = Duration::from_secs(2);

/// What one connection keeps of the file in memory, as SQLite takes it: KiB where negative. The system keeps the rest.
pub(crate) const CACHE_KIB: i64 = -512;

/// Looks at a ledger that changes meanwhile or is locked, before what was seen is believed; [`LOOK_PAUSE`] apart.
/// BOUND: with the wait for a lock in each they last as long as [`LOCK_WAIT`].
const LOOKS: u32 = 10;
const LOOK_LOCK_WAIT: Duration = Duration::from_millis(180);
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// Why a ledger was not opened. Nothing on the disk has changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A newer program made it.
    #[error("the ledger has version {found}, this program knows versions up to {known}")]
    Newer {
        /// The version it has.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// What the disk gives back is not what a ledger holds.
    #[error("the ledger is damaged: {0}")]
    Damaged(String),
    /// Another process held a lock on it all the time that was waited.
    #[error("the ledger is locked by another process")]
    Locked,
    /// Its file or directory may not be read or written by this user, or is on a read-only file system.
    #[error("the ledger may not be read or written")]
    NotPermitted(#[source] io::Error),
    /// It does not exist and could not be made.
    #[error("could not create the ledger")]
    CannotCreate(#[source] io::Error),
    /// Reading or writing did not succeed.
    #[error("could not open the ledger")]
    Io(#[source] io::Error),
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> OpenError {
        if rows::tells_damage(&error) {
            return OpenError::Damaged(error.to_string());
        }
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::Locked,
            Some(ErrorCode::PermissionDenied | ErrorCode::ReadOnly | ErrorCode::CannotOpen) => {
                OpenError::NotPermitted(io::Error::other(error))
            }
            Some(_) | None => OpenError::Io(io::Error::other(error)),
        }
    }
}

impl From<ReadError> for OpenError {
    fn from(error: ReadError) -> OpenError {
        match error {
            ReadError::Damaged(why) => OpenError::Damaged(why),
            ReadError::Sqlite(error) => OpenError::from(error),
        }
    }
}

impl OpenError {
    fn of_file(error: io::Error) -> OpenError {
        let is_forbidden = matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem);
        if is_forbidden { OpenError::NotPermitted(error) } else { OpenError::Io(error) }
    }
}

/// One opening or looking at a time in this process: SQLite shares a `-shm` opened read-only for a look with every
/// other connection of the process, and one that is to write could not.
static GATE: Mutex<()> = Mutex::new(());

/// Holds [`GATE`].
pub(crate) type Gate = MutexGuard<'static, ()>;

pub(crate) fn enter_gate() -> Gate {
    GATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the parts of a ledger are.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) db: PathBuf,
    pub(crate) wal: PathBuf,
    pub(crate) shm: PathBuf,
}

impl Files {
    pub(crate) fn in_dir(state_dir: &Path) -> Files {
        let part = |suffix: &str| state_dir.join(format!("{FILE_NAME}{suffix}"));
        Files { db: part(""), wal: part("-wal"), shm: part("-shm") }
    }

    /// The size of the database file, or `None` where there is nothing or an empty file.
    pub(crate) fn db_size(&self) -> Result<Option<u64>, OpenError> {
        for part in [&self.db, &self.wal, &self.shm] {
            // Whoever opened a pipe would wait for somebody at its other end.
            if fs::metadata(part).is_ok_and(|found| !found.is_file()) {
                return Err(OpenError::Damaged(format!("`{}` is not a regular file", part.display())));
            }
        }
        match fs::metadata(&self.db) {
            // SQLite takes a file of one byte for an empty one; a page has 512 at least.
            Ok(found) if (1..512).contains(&found.len()) => Err(OpenError::Damaged("it is cut off".to_owned())),
            Ok(found) => Ok(Some(found.len()).filter(|size| *size > 0)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(OpenError::CannotCreate(error)),
            Err(error) => Err(OpenError::of_file(error)),
        }
    }

    /// What changes whenever somebody writes.
    fn trace(&self) -> [Option<(u64, Option<SystemTime>)>; 3] {
        [&self.db, &self.wal, &self.shm]
            .map(|path| fs::metadata(path).ok().map(|found| (found.len(), found.modified().ok())))
    }
}

/// What a look found.
pub(crate) enum Sight {
    /// No ledger yet: no file, an empty one, or a database without any table.
    Absent,
    /// A ledger of a known version, its schema and every row that is acted on checked.
    Sound(Box<Look>),
}

/// A connection that changes nothing.
pub(crate) struct Look {
    pub(crate) conn: Connection,
    seen: Seen,
    _gate: Gate,
}

impl Look {
    /// Closes it, and gives what it saw.
    pub(crate) fn close(self) -> Seen {
        self.seen
    }
}

/// What a look saw.
pub(crate) struct Seen {
    /// Every instance, by name.
    pub(crate) entries: Vec<Entry>,
    wal: Wal,
}

impl Seen {
    /// Whether nothing was committed since the look began; to be asked by whoever holds the lock for writing.
    ///
    /// A commit makes the log longer, and a log begun anew has other salts. Without a commit in it, nothing tells it from
    /// one that was copied back since.
    pub(crate) fn is_all(&self, files: &Files) -> bool {
        self.wal.end > 0 && fs::read(&files.wal).is_ok_and(|bytes| wal::read(&bytes) == self.wal)
    }
}

/// Looks at the ledger in `state_dir` and checks it; with `boot_id`, what was written during this boot is all there.
///
/// A look taken while another process writes may see half of it; so damage is believed when it is seen again, and
/// nothing moved meanwhile.
pub(crate) fn look(state_dir: &Path, boot_id: Option<&BootId>) -> Result<Sight, OpenError> {
    let files = Files::in_dir(state_dir);
    for looks_left in (0..LOOKS).rev() {
        let before = files.trace();
        let result = look_once(&files, boot_id);
        let is_believed = match &result {
            Ok(_) | Err(OpenError::Newer { .. } | OpenError::CannotCreate(_) | OpenError::Io(_)) => true,
            Err(OpenError::Damaged(_)) => looks_left < LOOKS - 2 && files.trace() == before,
            Err(OpenError::NotPermitted(_)) => files.trace() == before,
            Err(OpenError::Locked) => false,
        };
        if is_believed || looks_left == 0 {
            return result;
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    Err(OpenError::Locked)
}

/// Tells whether the ledger in `state_dir` may be opened during boot `boot_id`; a missing one may.
///
/// # Errors
/// [`OpenError`], and no byte on the disk has changed.
///
/// # Blocking
/// 2 s at most for another process's lock, otherwise as long as reading all rows takes.
pub fn check(state_dir: &Path, boot_id: &BootId) -> Result<(), OpenError> {
    look(state_dir, Some(boot_id)).map(|_| ())
}

fn look_once(files: &Files, boot_id: Option<&BootId>) -> Result<Sight, OpenError> {
    let gate = enter_gate();
    let Some(db_size) = files.db_size()? else { return Ok(Sight::Absent) };
    let wal = match fs::read(&files.wal) {
        Ok(bytes) => wal::read(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Wal::default(),
        Err(error) => return Err(OpenError::of_file(error)),
    };
    let conn = connect_read_only(files, &wal)?;
    let entries = examine(&conn)?;
    if !wal.completes(db_size) {
        return Err(OpenError::Damaged("it is cut off".to_owned()));
    }
    let Some(entries) = entries else { return Ok(Sight::Absent) };
    let same_boot = boot_id.is_some() && Whereabouts::read(&conn)?.boot_id.as_ref() == boot_id;
    if same_boot && wal.is_broken {
        return Err(OpenError::Damaged("its log breaks off before records that were written".to_owned()));
    }
    Ok(Sight::Sound(Box::new(Look { conn, seen: Seen { entries, wal }, _gate: gate })))
}

/// A connection to an existing database that changes nothing; see the table above.
fn connect_read_only(files: &Files, wal: &Wal) -> Result<Connection, OpenError> {
    let has_index = files.shm.exists() && files.wal.exists();
    // REGRESSION: a killed writer may leave a header alone, which SQLite reads over and over until it gives up.
    if wal.end == 0 && (wal.is_begun || !has_index) {
        return open_uri(&files.db, "mode=ro&immutable=1");
    }
    if !has_index {
        return connect_exclusively(files);
    }
    let conn = open_uri(&files.db, "mode=ro&readonly_shm=1")?;
    match migrate::version(&conn) {
        // Somebody is there, and has left no mark in the index that a mere onlooker could use: make one.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ReadOnly) => open_uri(&files.db, "mode=ro"),
        Ok(_) | Err(_) => Ok(conn),
    }
}

/// Removes the empty log and the index that a refused opening has made, unless somebody else has the ledger open by now.
pub(crate) fn take_back(files: &Files) {
    let _gate = enter_gate();
    let Ok(conn) = connect_exclusively(files) else { return };
    // Who has read has the lock, and keeps it until the connection is closed.
    if migrate::version(&conn).is_ok() && fs::metadata(&files.wal).is_ok_and(|found| found.len() == 0) {
        for part in [&files.shm, &files.wal] {
            let _gone = fs::remove_file(part);
        }
    }
}

/// With exclusive locking SQLite keeps its index of the WAL in memory, and without a checkpoint writes nothing at all.
fn connect_exclusively(files: &Files) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(&files.db, flags)?;
    conn.busy_timeout(LOOK_LOCK_WAIT)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    conn.pragma_update(None, "query_only", true)?;
    conn.query_row("PRAGMA locking_mode = EXCLUSIVE", (), |_| Ok(()))?;
    Ok(conn)
}

fn open_uri(path: &Path, parameters: &str) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let conn = Connection::open_with_flags(uri(path, parameters)?, flags)?;
    conn.busy_timeout(LOOK_LOCK_WAIT)?;
    Ok(conn)
}

/// `path` as SQLite reads it: everything but letters, digits and a few marks as `%XX`.
fn uri(path: &Path, parameters: &str) -> Result<String, OpenError> {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::path::absolute(path).map_err(OpenError::of_file)?;
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            write!(uri, "%{byte:02x}").map_err(|error| OpenError::Io(io::Error::other(error)))?;
        }
    }
    Ok(format!("{uri}?{parameters}"))
}

/// Checks version, schema, and every row that is acted on, and gives the instances; `None` for a database in which nothing
/// was made yet.
fn examine(conn: &Connection) -> Result<Option<Vec<Entry>>, OpenError> {
    let found = migrate::version(conn)?;
    if found > migrate::KNOWN {
        return Err(OpenError::Newer { found, known: migrate::KNOWN });
    }
    let schema = migrate::schema(conn)?;
    if found == 0 && schema.is_empty() {
        return Ok(None);
    }
    if found < 1 {
        return Err(OpenError::Damaged("it is a database of something else".to_owned()));
    }
    compare_schema(found, &schema)?;
    let (entries, checked) = rows::read_entries_beside(conn, || {
        let tables = ["meta", "entry", "slot"];
        let mut tables = tables.iter().filter(|table| schema.iter().any(|(name, _)| name == *table));
        tables.try_for_each(|table| check_table(conn, table))
    })?;
    checked?;
    rows::read_meta(conn)?;
    rows::read_slots(conn)?;
    Ok(Some(entries))
}

fn compare_schema(version: i64, found: &[migrate::Object]) -> Result<(), OpenError> {
    let wanted = migrate::schema_of(version)?;
    if let Some((name, _)) = wanted.iter().find(|object| !found.contains(object)) {
        return Err(OpenError::Damaged(format!("`{name}` is missing or not as it was made")));
    }
    if let Some((name, _)) = found.iter().find(|object| !wanted.contains(object)) {
        return Err(OpenError::Damaged(format!("`{}` is not part of a ledger", name.escape_default())));
    }
    Ok(())
}

/// Checks the pages of one table and of its indexes.
fn check_table(conn: &Connection, table: &str) -> Result<(), OpenError> {
    let first: String = conn.query_row(&format!("PRAGMA integrity_check('{table}')"), (), |row| row.get(0))?;
    if first == "ok" { Ok(()) } else { Err(OpenError::Damaged(format!("table `{table}`: {first}"))) }
}
