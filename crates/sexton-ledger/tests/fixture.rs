//! Every released version of the ledger is opened for ever.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code, outside of a test function")]

mod support;

use std::path::Path;

use jiff::Timestamp;
use sexton_ledger::entry::{Cgroup, Entry, Exit, Place, Resource, ResourceState, StopOrder, StuckProcess};
use sexton_ledger::slot::SlotRow;
use sexton_ledger::{Batch, EventKind, Ledger, RequestRecord, dump, verify};
use sexton_plan::id::Pid;
use sexton_plan::identity::Identity;
use sexton_plan::slot::SlotState;
use sexton_plan::state::{ExitSource, ExitStatus, Restart, State};
use support::{OWED, TempDir, boot, entry, name, options, put, slot};

const AT: &str = "2025-01-01T00:00:00Z";

fn at() -> Timestamp {
    AT.parse().unwrap()
}

/// One row with every field in use, of each state; only the incarnation differs from making to making.
fn full(state: State) -> Entry {
    let mut row = entry(&format!("vm-{state}"), state);
    row.incarnation = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
    row.reason = Some("because".to_owned());
    let (pid, boot_id) = (Pid::new(410).unwrap(), boot(1));
    let (start_ticks, boottime_offset) = (Some(5), 0);
    row.identity =
        Some(Identity { pid, pidfs_ino: Some(88_123), start_ticks, boottime_offset, boot_id, pid_ns: 4_026_531_836 });
    row.handle = vec![1, 2, 3, 4, 5, 6, 7, 254];
    row.cgroup = Some(Cgroup { path: "/sexton/vm".to_owned(), ino: 77 });
    row.resources =
        vec![Resource { kind: "cgroup".to_owned(), key: "/sexton/vm".to_owned(), state: ResourceState::Releasing }];
    row.exit = Some(Exit::new(ExitStatus::Signal(9), ExitSource::Pin, at()));
    row.stuck = Some(vec![StuckProcess { pid, state: 'D', wchan: "io_schedule".to_owned() }]);
    row.started_at = Some(at());
    row.ended_at = Some(at());
    row.adopted = true;
    let grace = std::time::Duration::from_millis(1_500);
    row.stop = Some(StopOrder { force: true, grace, remove: true, reason: Some("cancelled".to_owned()) });
    row.spec.restart = Restart::OnFailure;
    row.restarts.count = 3;
    row.restarts.next_at = Some(at());
    row
}

fn request() -> RequestRecord {
    let answer = Some((201, "{\"name\":\"vm\"}".to_owned()));
    let incarnation = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
    // Kept for a day: for ever, in the eyes of a test.
    let at = "2200-01-01T00:00:00Z".parse().unwrap();
    RequestRecord { key: "key".to_owned(), fingerprint: u64::MAX - 1, name: name("vm"), incarnation, answer, at }
}

fn fixture(version: u32) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/ledger-v{version}.db"))
}

/// The version that this program writes.
const NEWEST: u32 = 2;

/// A slot of each state.
fn slots() -> Vec<SlotRow> {
    (0..).zip(SlotState::ALL).map(|(index, state)| slot(index, *state)).collect()
}

/// What an instance of version 2 may have beyond one of version 1.
fn full_with_slot(state: State) -> Entry {
    let (address, gateway) = ([10, 231, 0, 2].into(), [10, 231, 0, 1].into());
    let place = Place { index: 0, netns: "sexton-0".to_owned(), address, gateway, tap: Some("tap0".to_owned()) };
    Entry { slot: Some(place), ..full(state) }
}

/// Makes the fixture of a new version, when asked: `SEXTON_WRITE_FIXTURE=1 cargo test -p sexton-ledger --test fixture`.
#[test]
fn write_fixture() {
    if std::env::var_os("SEXTON_WRITE_FIXTURE").is_none() {
        return;
    }
    let dir = TempDir::new();
    let (ledger, _) = Ledger::open(dir.path(), options(1)).unwrap();
    for state in State::ALL {
        ledger.commit_now(put(&full_with_slot(*state), EventKind::InstanceStarting), OWED).unwrap();
    }
    let meta = vec![("node.status".to_owned(), Some("healthy".to_owned()))];
    ledger.commit_now(Batch { request: Some(request()), meta, slots: slots(), ..Batch::default() }, OWED).unwrap();
    drop(ledger);
    assert!(!fixture(NEWEST).exists(), "a released version's fixture never changes");
    std::fs::copy(dir.file("sexton.db"), fixture(NEWEST)).unwrap();
}

/// Opens a copy of the fixture of `version` and compares all that both versions have.
fn reads_as_it_was_written(version: u32, row: fn(State) -> Entry, slots: &[SlotRow]) {
    let dir = TempDir::new();
    std::fs::copy(fixture(version), dir.file("sexton.db")).unwrap();
    assert_eq!(verify(dir.path(), None).unwrap().problems, Vec::<String>::new());
    let mut lines = Vec::new();
    dump(dir.path(), &mut lines).unwrap();
    let told = String::from_utf8(lines).unwrap().lines().filter(|line| line.starts_with("{\"slot\"")).count();
    assert_eq!(told, slots.len());
    let (ledger, contents) = Ledger::open(dir.path(), options(1)).unwrap();
    let mut wanted: Vec<Entry> = State::ALL.iter().map(|state| row(*state)).collect();
    wanted.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(contents.entries, wanted);
    assert_eq!(contents.slots, slots);
    assert_eq!((contents.boot_id_before, contents.node.as_str()), (Some(boot(1)), "here"));
    assert_eq!(contents.meta["node.status"], "healthy");
    let reader = ledger.reader();
    assert_eq!(reader.request("key").unwrap(), Some(request()));
    // All eight rows share an incarnation, and a life starts once.
    let events = reader.events_after(0, 100).unwrap();
    assert_eq!((events.len(), events[0].kind, contents.last_seq), (1, EventKind::InstanceStarting, 1));
    // Whatever it was before, it is of the newest version now.
    ledger.commit_now(Batch { slots: vec![slot(9, SlotState::Ready)], ..Batch::default() }, OWED).unwrap();
    drop(ledger);
    assert_eq!(verify(dir.path(), None).unwrap().slots, 1 + u64::try_from(slots.len()).unwrap());
}

#[test]
fn version_1_is_read_as_it_was_written() {
    reads_as_it_was_written(1, full, &[]);
}

#[test]
fn version_2_is_read_as_it_was_written() {
    reads_as_it_was_written(2, full_with_slot, &slots());
}
