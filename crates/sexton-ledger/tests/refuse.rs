//! What is not a sound ledger of a known version is refused, and not one byte of it changes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code, outside of a test function")]

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use sexton_ledger::{BootCheck, ExportError, Ledger, OpenError, backup, boot_check, check, dump, verify};
use support::{TempDir, boot, closed, killed, meddle, open, options};

/// Every way in, each by its name; `backup` writes to a directory of its own.
fn every_way(dir: &Path) -> Vec<(&'static str, Result<(), OpenError>)> {
    let elsewhere = TempDir::new();
    let boot_id = boot(2);
    let boots = BootCheck { boot_id: &boot_id, node: None, now: jiff::Timestamp::now };
    let of_export = |result| match result {
        Ok(()) => Ok(()),
        Err(ExportError::Open(error)) => Err(error),
        Err(error @ (ExportError::Absent | ExportError::Write(_) | ExportError::Exists)) => panic!("{error}"),
    };
    let report = match verify(dir, None) {
        Ok(report) => report.problems.first().map_or(Ok(()), |why| Err(OpenError::Damaged(why.clone()))),
        Err(error) => of_export(Err(error)),
    };
    vec![
        ("check", check(dir, &boot(1))),
        ("verify", report),
        ("dump", of_export(dump(dir, &mut Vec::new()))),
        ("backup", of_export(backup(dir, &elsewhere.file("copy.db")))),
        ("boot_check", boot_check(dir, boots).map(|_| ())),
        ("open", Ledger::open(dir, options(2)).map(|_| ())),
    ]
}

fn assert_refused(dir: &TempDir, what: &str, expected: fn(&OpenError) -> bool) {
    let before = dir.bytes();
    for (way, result) in every_way(dir.path()) {
        match result {
            Ok(()) => panic!("{what}: {way} accepted it"),
            Err(error) => assert!(expected(&error), "{what}: {way}: {error:?}"),
        }
        assert_unchanged(dir, &before, &format!("{what}: {way}"));
    }
}

fn assert_unchanged(dir: &TempDir, before: &std::collections::BTreeMap<String, Vec<u8>>, what: &str) {
    let after = dir.bytes();
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>(), "{what}: files");
    assert!(after == *before, "{what}: bytes have changed");
}

fn is_damaged(error: &OpenError) -> bool {
    matches!(error, OpenError::Damaged(why) if !why.is_empty())
}

fn is_newer(error: &OpenError) -> bool {
    matches!(error, OpenError::Newer { found: 99, known: 2 })
}

#[test]
fn a_newer_ledger_is_refused_wherever_its_version_is_written() {
    let newer = "PRAGMA user_version = 99; CREATE TABLE invention (x)";
    let dir = closed();
    meddle(&dir, newer, false);
    assert_refused(&dir, "in the file", is_newer);
    let dir = killed(true);
    meddle(&dir, newer, true);
    assert_refused(&dir, "in the WAL", is_newer);
    let dir = killed(true);
    meddle(&dir, newer, true);
    fs::remove_file(dir.file("sexton.db-shm")).unwrap();
    assert_refused(&dir, "in a WAL without its index", is_newer);
}

#[test]
fn what_is_no_ledger_is_refused() {
    let dir = TempDir::new();
    fs::write(dir.file("sexton.db"), "this is a letter to my grandmother, not a database ".repeat(100)).unwrap();
    assert_refused(&dir, "garbage", is_damaged);
    fs::write(dir.file("sexton.db"), "x").unwrap();
    assert_refused(&dir, "a byte", is_damaged);
    fs::remove_file(dir.file("sexton.db")).unwrap();
    fs::create_dir(dir.file("sexton.db")).unwrap();
    assert_refused(&dir, "a directory", is_damaged);
    fs::remove_dir(dir.file("sexton.db")).unwrap();
    meddle(&dir, "CREATE TABLE bookmarks (url TEXT)", false);
    assert_refused(&dir, "somebody else's database", is_damaged);
    meddle(&dir, "PRAGMA user_version = 2", false);
    assert_refused(&dir, "somebody else's database of the same version", is_damaged);
}

#[test]
fn what_is_no_file_in_the_place_of_a_part_is_refused_and_nobody_waits_for_it() {
    for part in ["sexton.db-wal", "sexton.db-shm"] {
        let dir = closed();
        fs::create_dir(dir.file(part)).unwrap();
        assert_refused(&dir, part, is_damaged);
        fs::remove_dir(dir.file(part)).unwrap();
        // REGRESSION: a pipe was waited for without end.
        let made = std::process::Command::new("mkfifo").arg(dir.file(part)).status().unwrap();
        assert!(made.success());
        assert!(is_damaged(&check(dir.path(), &boot(1)).unwrap_err()), "{part}");
    }
}

#[test]
fn a_truncated_ledger_is_refused() {
    let size = fs::metadata(closed().file("sexton.db")).unwrap().len();
    for keep in [1, 99, 100, 4_096, 5_000, size - 4_096, size - 1] {
        let dir = closed();
        fs::OpenOptions::new().write(true).open(dir.file("sexton.db")).unwrap().set_len(keep).unwrap();
        assert_refused(&dir, &format!("{keep} of {size} bytes"), is_damaged);
    }
}

#[test]
fn tables_that_are_not_as_they_were_made_are_refused() {
    for sql in [
        "DROP TABLE request",
        "DROP INDEX event_once",
        "CREATE TABLE extra (x)",
        "CREATE TRIGGER t AFTER INSERT ON entry BEGIN DELETE FROM event; END",
        "ALTER TABLE entry ADD COLUMN mood TEXT",
    ] {
        for in_wal in [false, true] {
            let dir = closed();
            meddle(&dir, sql, in_wal);
            assert_refused(&dir, sql, is_damaged);
        }
    }
}

#[test]
fn a_row_that_does_not_match_its_checksum_is_refused() {
    for sql in [
        "UPDATE entry SET state = 'exited' WHERE name = 'vm-3'",
        "UPDATE entry SET body = replace(body, 'infinity', 'infinitx') WHERE name = 'vm-3'",
        "UPDATE entry SET name = 'vm-99' WHERE name = 'vm-3'",
        "UPDATE entry SET sum = sum + 1 WHERE name = 'vm-19'",
        "UPDATE entry SET body = 7 WHERE name = 'vm-3'",
        "UPDATE entry SET body = CAST(x'ff00fe' AS TEXT) WHERE name = 'vm-3'",
        "UPDATE meta SET value = 'elsewhere' WHERE key = 'ledger.node'",
        "UPDATE slot SET number = 8 WHERE number = 3",
        "UPDATE slot SET body = replace(body, 'ready', 'held') WHERE number = 3",
    ] {
        for in_wal in [false, true] {
            let dir = closed();
            meddle(&dir, sql, in_wal);
            assert_refused(&dir, sql, is_damaged);
        }
    }
}

#[test]
fn a_changed_event_is_found_by_verify_and_dump_while_the_daemon_starts() {
    let dir = closed();
    meddle(&dir, "UPDATE event SET data = '{\"a\":1}' WHERE seq = 7", false);
    let before = dir.bytes();
    let report = verify(dir.path(), None).unwrap();
    assert_eq!(report.problems, ["the ledger is damaged: event 7 does not match its checksum"]);
    assert_eq!((report.entries, report.events, report.last_seq), (20, 20, 20));
    assert!(dump(dir.path(), &mut Vec::new()).is_err());
    assert_unchanged(&dir, &before, "verify and dump");
    meddle(&dir, "DELETE FROM event WHERE seq = 3", false);
    assert_eq!(verify(dir.path(), None).unwrap().problems.len(), 2, "the gap too");
    let (ledger, _) = open(dir.path());
    let before: Vec<u64> = ledger.reader().events_after(3, 10).unwrap().iter().map(|event| event.seq).collect();
    assert_eq!(before, [4, 5, 6], "what comes before the damage is given");
    assert!(ledger.reader().events_after(6, 10).is_err(), "and nothing in its place");
    assert_eq!(ledger.reader().events_after(7, 10).unwrap().len(), 10);
}

#[test]
fn every_flipped_byte_is_refused_or_harmless() {
    let whole = closed();
    let original = fs::read(whole.file("sexton.db")).unwrap();
    let expected = open(whole.path()).1.entries;
    let mut refused = 0;
    // Primes walk through every page at changing offsets.
    for at in (0..original.len()).step_by(197) {
        let dir = TempDir::new();
        let mut bytes = original.clone();
        bytes[at] ^= 0x55;
        fs::write(dir.file("sexton.db"), &bytes).unwrap();
        let before = dir.bytes();
        match check(dir.path(), &boot(1)) {
            Ok(()) => assert_eq!(open(dir.path()).1.entries, expected, "byte {at}"),
            Err(OpenError::Damaged(_) | OpenError::Newer { .. }) => {
                refused += 1;
                assert_unchanged(&dir, &before, &format!("byte {at}"));
            }
            Err(error) => panic!("byte {at}: {error:?}"),
        }
    }
    assert!(refused > 50, "only {refused} refused");
}

#[test]
fn a_sound_look_at_a_killed_ledger_changes_nothing_either() {
    for with_shm in [true, false] {
        let dir = killed(with_shm);
        let before = dir.bytes();
        check(dir.path(), &boot(1)).unwrap();
        assert_eq!(verify(dir.path(), None).unwrap().entries, 2, "the row in the WAL is seen");
        let mut lines = Vec::new();
        dump(dir.path(), &mut lines).unwrap();
        assert_eq!(String::from_utf8(lines).unwrap().lines().count(), 1 + 2 + 2);
        assert_unchanged(&dir, &before, "a look");
        assert_eq!(open(dir.path()).1.entries.len(), 2);
    }
}

#[test]
fn a_log_without_a_commit_is_looked_at_as_none() {
    for with_shm in [true, false] {
        for keep in [0, 1, 31, 32, 33, 4_000] {
            let dir = killed(with_shm);
            fs::OpenOptions::new().write(true).open(dir.file("sexton.db-wal")).unwrap().set_len(keep).unwrap();
            let before = dir.bytes();
            assert_eq!(verify(dir.path(), None).unwrap().entries, 1, "{keep} bytes");
            assert_unchanged(&dir, &before, "a look");
            assert_eq!(open(dir.path()).1.entries.len(), 1, "{keep} bytes");
        }
    }
}

#[test]
fn a_log_that_breaks_off_during_this_boot_is_refused_and_after_a_power_cut_is_not() {
    let alive = TempDir::new();
    let (ledger, _) = open(alive.path());
    let row = |n| support::entry(&format!("vm-{n}"), sexton_plan::state::State::Running);
    for n in 0..5 {
        let batch = support::put(&row(n), sexton_ledger::EventKind::InstanceRunning);
        ledger.commit_now(batch, support::OWED).unwrap();
    }
    for with_shm in [true, false] {
        let dir = support::as_killed_now(&alive, with_shm);
        let mut wal = fs::read(dir.file("sexton.db-wal")).unwrap();
        wal[5_000] ^= 1;
        fs::write(dir.file("sexton.db-wal"), wal).unwrap();
        let before = dir.bytes();
        assert!(matches!(check(dir.path(), &boot(1)), Err(OpenError::Damaged(_))));
        assert!(matches!(Ledger::open(dir.path(), options(1)), Err(OpenError::Damaged(_))));
        let problems = |n| verify(dir.path(), Some(&boot(n))).unwrap().problems.len();
        assert_eq!((problems(1), problems(2)), (1, 0), "what a start refuses is no sound ledger");
        assert_unchanged(&dir, &before, "a broken log");
        assert!(Ledger::open(dir.path(), options(2)).unwrap().1.entries.len() < 5, "what was not flushed is gone");
    }
}

#[test]
fn a_missing_or_empty_ledger_is_fresh_and_looking_does_not_make_it() {
    let dir = TempDir::new();
    for prepare in [|_: &Path| (), |db: &Path| fs::write(db, "").unwrap()] {
        prepare(&dir.file("sexton.db"));
        let before = dir.bytes();
        check(dir.path(), &boot(1)).unwrap();
        let boot_id = boot(1);
        let boots = BootCheck { boot_id: &boot_id, node: None, now: jiff::Timestamp::now };
        assert_eq!(boot_check(dir.path(), boots).unwrap().settled, 0);
        assert!(matches!(verify(dir.path(), None), Err(ExportError::Absent)));
        assert_unchanged(&dir, &before, "absent");
        assert!(open(dir.path()).1.fresh);
        fs::remove_file(dir.file("sexton.db")).unwrap();
    }
    check(&dir.file("no/such/directory"), &boot(1)).unwrap();
}

#[test]
fn the_wal_of_a_ledger_that_is_gone_is_set_aside() {
    let dir = killed(true);
    let wal = fs::read(dir.file("sexton.db-wal")).unwrap();
    fs::write(dir.file("sexton.db"), "").unwrap();
    let (ledger, contents) = open(dir.path());
    assert!(contents.fresh && contents.entries.is_empty());
    drop(ledger);
    assert_eq!(fs::read(dir.file("sexton.db-wal.without-db")).unwrap(), wal);
}

#[test]
fn another_process_s_lock_is_waited_for_two_seconds_and_then_told() {
    let dir = killed(true);
    let holder = rusqlite::Connection::open(dir.file("sexton.db")).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE; DELETE FROM event").unwrap();
    let before = dir.bytes();
    check(dir.path(), &boot(1)).unwrap();
    let begun = Instant::now();
    let result = Ledger::open(dir.path(), options(1)).map(|_| ());
    assert!(matches!(result, Err(OpenError::Locked)), "{result:?}");
    assert!(begun.elapsed() < Duration::from_secs(4), "it was waited for once");
    assert_unchanged(&dir, &before, "locked");
    holder.execute_batch("ROLLBACK").unwrap();
    assert_eq!(open(dir.path()).1.entries.len(), 2);
}

#[test]
fn a_ledger_held_exclusively_is_told_as_locked() {
    let dir = closed();
    let holder = rusqlite::Connection::open(dir.file("sexton.db")).unwrap();
    holder.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; DELETE FROM event; COMMIT").unwrap();
    let result = Ledger::open(dir.path(), options(1)).map(|_| ());
    assert!(matches!(result, Err(OpenError::Locked)), "{result:?}");
}

#[test]
fn a_state_directory_that_cannot_be_made_is_told() {
    let dir = TempDir::new();
    fs::write(dir.file("file"), "").unwrap();
    let result = Ledger::open(&dir.file("file/state"), options(1)).map(|_| ());
    assert!(matches!(result, Err(OpenError::CannotCreate(_))), "{result:?}");
}
