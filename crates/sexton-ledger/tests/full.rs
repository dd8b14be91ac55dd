//! A disk that is full: what may be refused is, what is owed lands when there is room, and nothing is damaged.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code, outside of a test function")]

mod support;

use std::fs;
use std::io::Write as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use sexton_ledger::{Batch, CommitError, EventKind, Ledger, NewEvent, OpenOptions, Snapshot, Urgency, verify};
use sexton_plan::state::State;
use support::{OWED, TempDir, entry, name, open, options, put};

/// A small file system of its own; unmounted with the test.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None`, said loudly, where this user may not mount.
    fn new(kib: u32) -> Option<SmallDisk> {
        let dir = TempDir::new();
        let size = format!("size={kib}k");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "sexton-ledger-test"]).arg(dir.path()).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(SmallDisk(dir));
        }
        assert!(std::env::var_os("CI").is_none(), "mounting a tmpfs needs root");
        std::io::stderr().write_all(b"SKIPPED: mounting a tmpfs needs root\n").unwrap();
        None
    }

    fn fill(&self) {
        let mut filler = fs::File::create(self.0.file("filler")).unwrap();
        for size in [65_536, 4_096, 1] {
            while filler.write_all(&vec![b'x'; size]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.0.file("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg("-l").arg(self.0.path()).status().unwrap().success());
    }
}

fn fact(n: u32) -> NewEvent {
    NewEvent::of_node(EventKind::ApiCalled, serde_json::json!({"n": n, "fill": "x".repeat(500)}))
}

/// Commits facts until one is refused, and gives their number.
fn write_until_refused(ledger: &Ledger) -> u32 {
    for n in 0..10_000 {
        let batch = Batch { events: vec![fact(n)], ..Batch::default() };
        match ledger.commit_now(batch, Urgency::Refusable) {
            Ok(_) => {}
            Err(CommitError::Unwritable(_)) => return n,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the disk never became full");
}

#[test]
fn on_a_full_disk_what_is_owed_waits_and_then_lands_in_order() {
    let Some(disk) = SmallDisk::new(1_024) else { return };
    let (ledger, _) = open(disk.0.path());
    ledger.commit_now(put(&entry("vm-1", State::Running), EventKind::InstanceRunning), OWED).unwrap();
    disk.fill();
    let written = write_until_refused(&ledger);
    assert!(!ledger.writable());

    let (sender, receiver) = mpsc::channel();
    let mut stopping = entry("vm-1", State::Stopping);
    for n in 0..200 {
        stopping.reason = Some(format!("{n}{}", "x".repeat(5_000)));
        let batch = Batch { puts: vec![Arc::new(stopping.clone())], events: vec![fact(n)], ..Batch::default() };
        let sender = sender.clone();
        ledger.commit(batch, OWED, move |result| sender.send((n, result)).unwrap());
    }
    let refused = ledger.commit_now(Batch { events: vec![fact(0)], ..Batch::default() }, Urgency::Refusable);
    assert!(matches!(refused, Err(CommitError::Unwritable(_))), "{refused:?}");
    assert_eq!(receiver.recv_timeout(Duration::from_millis(1)).unwrap_err(), RecvTimeoutError::Timeout);
    let reader = ledger.reader();
    assert_eq!(reader.entry(&name("vm-1")).unwrap().unwrap().state, State::Running);
    assert_eq!(reader.events_after(0, 10_000).unwrap().len(), usize::try_from(written).unwrap() + 1);

    disk.free();
    let mut last = u64::from(written) + 1;
    for n in 0..200 {
        let (which, result) = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        last += 1;
        assert_eq!((which, result.unwrap().last_seq), (n, last), "in order, without a gap");
    }
    assert!(ledger.writable());
    ledger.commit_now(Batch { events: vec![fact(0)], ..Batch::default() }, Urgency::Refusable).unwrap();
    assert_eq!(reader.entry(&name("vm-1")).unwrap().unwrap().state, State::Stopping);
    drop((ledger, reader));
    let report = verify(disk.0.path(), None).unwrap();
    assert_eq!((report.problems, report.last_seq), (vec![], last + 1));
}

#[test]
fn a_ledger_becomes_writable_by_itself_although_nothing_is_owed() {
    let Some(disk) = SmallDisk::new(1_024) else { return };
    let (ledger, _) = open(disk.0.path());
    disk.fill();
    write_until_refused(&ledger);
    assert!(!ledger.writable());
    disk.free();
    while !ledger.writable() {
        std::thread::yield_now();
    }
    ledger.commit_now(Batch { events: vec![fact(0)], ..Batch::default() }, Urgency::Refusable).unwrap();
}

#[test]
fn one_batch_too_large_for_the_disk_does_not_take_the_others_along() {
    let Some(disk) = SmallDisk::new(1_024) else { return };
    let (ledger, _) = open(disk.0.path());
    let (sender, receiver) = mpsc::channel();
    for n in 0..20 {
        let size = if n == 7 { 4 << 20 } else { 10 };
        let mut row = entry(&format!("vm-{n}"), State::Running);
        row.snapshot = Some(Snapshot::new(&format!("\"{}\"", "x".repeat(size))).expect("JSON"));
        let sender = sender.clone();
        ledger.commit(put(&row, EventKind::InstanceRunning), Urgency::Refusable, move |r| sender.send((n, r)).unwrap());
    }
    drop(ledger);
    drop(sender);
    for (n, result) in receiver {
        assert_eq!(result.is_ok(), n != 7, "{n}: {result:?}");
    }
    assert_eq!(open(disk.0.path()).1.entries.len(), 19);
}

#[test]
fn a_tiny_disk_is_written_for_ever() {
    let Some(disk) = SmallDisk::new(320) else { return };
    let (ledger, _) = Ledger::open(disk.0.path(), OpenOptions { wal_reserve: 64 << 10, ..options(1) }).unwrap();
    for n in 0..2_000 {
        let mut row = entry(&format!("vm-{}", n % 10), State::Running);
        row.reason = Some(n.to_string());
        ledger.commit_now(Batch { puts: vec![Arc::new(row)], ..Batch::default() }, Urgency::Refusable).unwrap();
    }
    drop(ledger);
    assert_eq!(verify(disk.0.path(), None).unwrap().entries, 10);
}

#[test]
fn a_reserve_that_does_not_fit_takes_nothing() {
    let Some(disk) = SmallDisk::new(1_024) else { return };
    let (ledger, _) = Ledger::open(disk.0.path(), OpenOptions { wal_reserve: 8 << 20, ..options(1) }).unwrap();
    write_until_refused(&ledger);
    assert!(ledger.last_seq() > 800, "{} events in 1 MiB", ledger.last_seq());
}

#[test]
fn an_opening_that_finds_no_room_changes_nothing() {
    let Some(disk) = SmallDisk::new(1_024) else { return };
    drop(open(disk.0.path()));
    disk.fill();
    let before = disk.0.bytes();
    // REGRESSION: an empty log and three bytes of an index stayed.
    assert!(Ledger::open(disk.0.path(), options(1)).is_err());
    assert_eq!(disk.0.bytes().keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    assert!(disk.0.bytes() == before);
    disk.free();
    open(disk.0.path());
}

#[test]
fn what_was_laid_out_records_stops_when_nothing_is_left() {
    let Some(disk) = SmallDisk::new(2_048) else { return };
    let (ledger, _) = Ledger::open(disk.0.path(), OpenOptions { wal_reserve: 512 << 10, ..options(1) }).unwrap();
    let wal = disk.0.file("sexton.db-wal");
    let mut rows: Vec<_> = (0..50).map(|n| entry(&format!("vm-{n}"), State::Running)).collect();
    ledger.commit_now(Batch { puts: rows.iter().cloned().map(Arc::new).collect(), ..Batch::default() }, OWED).unwrap();
    while fs::metadata(&wal).unwrap().len() < 512 << 10 {
        std::thread::yield_now();
    }
    // Waits until the writer has done what it does by itself.
    ledger.commit_now(Batch::default(), OWED).unwrap();
    disk.fill();
    for row in &mut rows {
        for state in [State::Stopping, State::Exited] {
            row.state = state;
            let kind = if state == State::Exited { EventKind::InstanceExited } else { EventKind::InstanceStopping };
            ledger.commit_now(put(row, kind), Urgency::Refusable).unwrap();
        }
    }
    drop(ledger);
    disk.free();
    let states: Vec<_> = open(disk.0.path()).1.entries.into_iter().map(|entry| entry.state).collect();
    assert_eq!(states, vec![State::Exited; 50]);
}

#[test]
fn whatever_is_refused_the_numbers_of_events_have_no_gap() {
    let Some(disk) = SmallDisk::new(4_096) else { return };
    let (ledger, _) = open(disk.0.path());
    let mut random = support::numbers();
    let (sender, receiver) = mpsc::channel();
    let send = |n: u32, facts: u64, volatile: bool, urgency: Urgency| {
        let row = entry(&format!("vm-{}", n % 30), State::Running);
        let mut batch = Batch { volatile, ..put(&row, EventKind::InstanceRunning) };
        batch.events.extend((0..facts).map(|_| fact(n)));
        // Left out, for it is said already, and takes no number.
        batch.events.push(batch.events[0].clone());
        let (sender, count) = (sender.clone(), batch.events.len());
        let (told, is_refused) = mpsc::channel();
        ledger.commit(batch, urgency, move |result| {
            told.send(result.is_err()).ok();
            sender.send((urgency, count, result)).unwrap();
        });
        is_refused
    };
    for round in 0..12 {
        for n in 0..random(40) {
            let urgency = if random(3) == 0 { Urgency::Owed } else { Urgency::Refusable };
            drop(send(round + u32::try_from(n).unwrap(), random(4), random(2) == 0, urgency));
        }
        if round % 3 == 1 {
            disk.fill();
            while !send(round, 3, false, Urgency::Refusable).recv().unwrap() {}
        } else if round % 3 == 2 {
            disk.free();
        }
    }
    drop(ledger);
    drop(sender);
    let (mut expected, mut refused) = (0, 0);
    for (urgency, count, result) in receiver {
        match result {
            Ok(committed) => {
                let seqs: Vec<u64> = committed.seqs.iter().flatten().copied().collect();
                let wanted: Vec<u64> = (expected + 1..expected + u64::try_from(count).unwrap()).collect();
                assert_eq!((seqs, committed.seqs.len()), (wanted, count));
                expected = committed.last_seq;
            }
            Err(error) => {
                assert!(urgency == Urgency::Refusable && matches!(error, CommitError::Unwritable(_)), "{error}");
                refused += 1;
            }
        }
    }
    let report = verify(disk.0.path(), None).unwrap();
    assert_eq!((report.problems, report.events, report.last_seq), (vec![], expected, expected));
    assert!(refused >= 4, "only {refused} refused");
}

#[test]
fn what_is_not_where_it_was_opened_takes_nothing_until_it_is_back() {
    for moved in ["sexton.db", "sexton.db-wal"] {
        let dir = TempDir::new();
        let (ledger, _) = open(dir.path());
        let running = || put(&entry("vm-1", State::Running), EventKind::InstanceRunning);
        ledger.commit_now(running(), Urgency::Refusable).unwrap();
        fs::rename(dir.file(moved), dir.file("elsewhere")).unwrap();
        let refused = ledger.commit_now(running(), Urgency::Refusable);
        assert!(matches!(refused, Err(CommitError::Unwritable(_))), "{moved}: {refused:?}");
        assert!(!ledger.writable(), "{moved}");
        // Another file under its name is not the ledger either.
        fs::write(dir.file(moved), "").unwrap();
        let (sender, receiver) = mpsc::channel();
        let over = put(&entry("vm-1", State::Exited), EventKind::InstanceExited);
        ledger.commit(over, OWED, move |result| sender.send(result).unwrap());
        let refused = ledger.commit_now(running(), Urgency::Refusable);
        assert!(matches!(refused, Err(CommitError::Unwritable(_))), "{moved}: {refused:?}");
        fs::rename(dir.file("elsewhere"), dir.file(moved)).unwrap();
        receiver.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
        assert!(ledger.writable(), "{moved}");
        drop(ledger);
        assert_eq!(open(dir.path()).1.entries[0].state, State::Exited, "{moved}");
    }
}

#[test]
fn what_may_be_refused_never_overtakes_what_is_owed() {
    let dir = TempDir::new();
    let (ledger, _) = open(dir.path());
    fs::rename(dir.file("sexton.db"), dir.file("elsewhere")).unwrap();
    let (sender, receiver) = mpsc::channel();
    let over = put(&entry("owed", State::Exited), EventKind::InstanceExited);
    ledger.commit(over, OWED, move |result| sender.send(result).unwrap());
    let asked =
        || ledger.commit_now(put(&entry("asked", State::Running), EventKind::InstanceRunning), Urgency::Refusable);
    assert!(asked().is_err());
    fs::rename(dir.file("elsewhere"), dir.file("sexton.db")).unwrap();
    // Asked for without a pause, and owed with one.
    let first = std::iter::repeat_with(asked).find_map(Result::ok).unwrap();
    let owed = receiver.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    assert!(owed.last_seq < first.last_seq, "{owed:?} {first:?}");
}
