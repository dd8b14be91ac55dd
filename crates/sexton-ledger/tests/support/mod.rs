//! What the ledger's tests share.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code, outside of a test function")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sexton_ledger::entry::{Entry, Limits, Spec};
use sexton_ledger::slot::SlotRow;
use sexton_ledger::{Batch, Contents, EventKind, Ledger, NewEvent, OpenOptions, Snapshot, new_incarnation};
use sexton_plan::id::{BootId, Name, NodeId};
use sexton_plan::slot::{Holder, SlotState};
use sexton_plan::state::{Restart, State};

/// A directory that goes away with the test.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sexton-ledger-{}-{count}", std::process::id()));
        fs::create_dir(&path).unwrap();
        TempDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Every file's name and bytes.
    pub fn bytes(&self) -> BTreeMap<String, Vec<u8>> {
        let read = |entry: fs::DirEntry| {
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap_or_else(|_| b"no file".to_vec()))
        };
        fs::read_dir(&self.0).unwrap().map(|entry| read(entry.unwrap())).collect()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

pub fn boot(n: u8) -> BootId {
    format!("0f1d2c3b-4a59-6877-8695-a4b3c2d1e0{n:02x}").parse().unwrap()
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub fn node(text: &str) -> NodeId {
    text.parse().unwrap()
}

/// Options for boot `n` and a node called `here`.
pub fn options(n: u8) -> OpenOptions {
    OpenOptions { node: Some(node("here")), ..OpenOptions::new(boot(n)) }
}

pub fn open(dir: &Path) -> (Ledger, Contents) {
    Ledger::open(dir, options(1)).unwrap()
}

pub fn entry(text: &str, state: State) -> Entry {
    let spec = Spec {
        argv: vec!["/bin/sleep".to_owned(), "infinity".to_owned()],
        env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
        cwd: None,
        user: None,
        kind: "sandbox".parse().unwrap(),
        runtime: "command".to_owned(),
        labels: BTreeMap::new(),
        grace: Duration::from_secs(10),
        stop_signal: 15,
        slot: false,
        limits: Limits::default(),
        pidns: false,
        restart: Restart::Never,
    };
    let snapshot = Snapshot::new(&serde_json::json!({"cursor": text}).to_string()).expect("JSON");
    let created_at = "2025-01-01T00:00:00Z".parse().unwrap();
    let blank = Entry::new(name(text), new_incarnation(), spec, node("here"), created_at);
    Entry { state, snapshot: Some(snapshot), ..blank }
}

/// The row of slot `index` in `state`, held by a life where it is one's.
pub fn slot(index: u32, state: SlotState) -> SlotRow {
    let held = matches!(state, SlotState::Held | SlotState::Releasing | SlotState::Quarantined);
    let incarnation = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
    let holder = held.then(|| Holder { name: name("vm"), incarnation });
    let place = serde_json::json!({"netns": format!("sexton-{index}"), "address": "10.231.0.2"});
    SlotRow { index, state, holder, ns_ino: Some(4_026_532_000 + u64::from(index)), place }
}

/// The batch that records `entry` with the event `kind`.
pub fn put(entry: &Entry, kind: EventKind) -> Batch {
    let event = NewEvent::once(kind, &entry.name, &entry.incarnation, serde_json::json!({}));
    Batch { puts: vec![Arc::new(entry.clone())], events: vec![event], ..Batch::default() }
}

/// A ledger as a daemon killed with SIGKILL leaves it: rows in the database file, newer ones in the WAL alone.
pub fn killed(with_shm: bool) -> TempDir {
    let alive = TempDir::new();
    let (ledger, _) = open(alive.path());
    ledger.commit_now(put(&entry("checkpointed", State::Running), EventKind::InstanceRunning), OWED).unwrap();
    drop(ledger);
    let (ledger, _) = open(alive.path());
    ledger.commit_now(put(&entry("in-the-wal", State::Running), EventKind::InstanceRunning), OWED).unwrap();
    as_killed_now(&alive, with_shm)
}

/// What would be left of the ledger in `alive`, which is open, if its process were killed now.
pub fn as_killed_now(alive: &TempDir, with_shm: bool) -> TempDir {
    let dead = TempDir::new();
    for suffix in ["", "-wal", "-shm"].iter().filter(|suffix| with_shm || **suffix != "-shm") {
        let file = format!("sexton.db{suffix}");
        fs::copy(alive.file(&file), dead.file(&file)).unwrap();
    }
    dead
}

/// A ledger as a clean end leaves it.
pub fn closed() -> TempDir {
    let dir = TempDir::new();
    let (ledger, _) = open(dir.path());
    for n in 0..20 {
        ledger.commit_now(put(&entry(&format!("vm-{n}"), State::Running), EventKind::InstanceRunning), OWED).unwrap();
    }
    let slots = (0..4).map(|index| slot(index, SlotState::Ready)).collect();
    ledger.commit_now(Batch { slots, ..Batch::default() }, OWED).unwrap();
    drop(ledger);
    dir
}

pub const OWED: sexton_ledger::Urgency = sexton_ledger::Urgency::Owed;

/// Runs `sql` on the ledger in `dir`, as another program would, and leaves what it wrote in the WAL.
pub fn meddle(dir: &TempDir, sql: &str, in_wal: bool) {
    let conn = rusqlite::Connection::open(dir.file("sexton.db")).unwrap();
    conn.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, in_wal).unwrap();
    conn.execute_batch(sql).unwrap();
}

/// Numbers that look random and are the same in every run.
pub fn numbers() -> impl FnMut(u64) -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}
