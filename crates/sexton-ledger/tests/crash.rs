//! Killed with SIGKILL at any moment: what was acknowledged is there, and nothing is half there.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code, outside of a test function")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use jiff::Timestamp;
use sexton_ledger::{Batch, BootCheck, EventKind, Ledger, NewEvent, Urgency, boot_check, verify};
use sexton_plan::state::State;
use support::{OWED, TempDir, boot, entry, name, open, options, put};

/// Starts this test program anew to run the test `role` alone, which does something only for its parent.
fn spawn(role: &str, dir: &TempDir) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([role, "--exact", "--nocapture"])
        .env("SEXTON_CRASH_DIR", dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The directory given by the parent; `None` where this is an ordinary test run.
fn given_dir() -> Option<std::path::PathBuf> {
    std::env::var_os("SEXTON_CRASH_DIR").map(Into::into)
}

/// No test by itself: commits for ever, and says what is acknowledged.
#[test]
fn committer() {
    let Some(dir) = given_dir() else { return };
    let (ledger, contents) = Ledger::open(&dir, options(1)).unwrap();
    let begin = contents.last_seq;
    let said = Arc::new(Mutex::new(std::io::stdout()));
    for n in begin.. {
        let row = entry(&format!("vm-{}", n % 50), State::Running);
        let mut batch = put(&row, EventKind::InstanceRunning);
        batch.events.push(NewEvent::of_node(EventKind::NodeStatus, serde_json::json!(n)));
        batch.volatile = n % 3 == 0;
        let (said, incarnation) = (Arc::clone(&said), row.incarnation.clone());
        let wait = n % 4 == 3;
        let (sender, receiver) = std::sync::mpsc::channel();
        ledger.commit(batch, Urgency::Owed, move |result| {
            let seq = result.unwrap().last_seq;
            writeln!(said.lock().unwrap(), "ack {seq} {} {incarnation}", row.name).unwrap();
            sender.send(()).ok();
        });
        if wait {
            receiver.recv().unwrap();
        }
    }
}

#[test]
fn every_acknowledged_batch_survives_a_kill() {
    let dir = TempDir::new();
    let mut random = support::numbers();
    let mut acknowledged = 0;
    for round in 0..15 {
        let mut child = spawn("committer", &dir);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut last = None;
        let until = 1 + random(60);
        while let Some(Ok(line)) = lines.next() {
            let Some(ack) = line.split("ack ").nth(1) else { continue };
            last = Some(ack.to_owned());
            acknowledged += 1;
            if acknowledged % until == 0 {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had said before it was killed counts too.
        last =
            lines.map_while(Result::ok).filter_map(|line| line.split("ack ").nth(1).map(str::to_owned)).last().or(last);
        let last = last.unwrap();
        let mut words = last.split(' ');
        let (seq, row): (u64, _) = (words.next().unwrap().parse().unwrap(), name(words.next().unwrap()));
        let incarnation = words.next().unwrap();

        let report = verify(dir.path(), None).unwrap();
        assert!(report.problems.is_empty(), "round {round}: {report:?}");
        assert_eq!((report.first_seq, report.events), (Some(1), report.last_seq), "round {round}");
        assert!(report.last_seq >= seq, "round {round}: acknowledged {seq}, found {}", report.last_seq);
        assert_eq!(report.last_seq % 2, 0, "round {round}: a batch of two events is half there");
        let (_ledger, contents) = open(dir.path());
        let found = contents.entries.iter().find(|entry| entry.name == row).unwrap();
        assert!(found.incarnation.as_str() >= incarnation, "round {round}");
    }
}

const ROWS: u64 = 800;

/// No test by itself: checks the boot when told to.
#[test]
fn settler() {
    let Some(dir) = given_dir() else { return };
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    settle(&dir);
}

fn of_many_rows() -> TempDir {
    let dir = TempDir::new();
    let (ledger, _) = open(dir.path());
    let puts = (0..ROWS).map(|n| Arc::new(entry(&format!("vm-{n}"), State::Running))).collect();
    ledger.commit_now(Batch { puts, ..Batch::default() }, OWED).unwrap();
    dir
}

fn settle(dir: &std::path::Path) -> u64 {
    let boot_id = boot(2);
    boot_check(dir, BootCheck { boot_id: &boot_id, node: None, now: Timestamp::now }).unwrap().settled
}

#[test]
fn a_boot_check_killed_in_the_middle_has_done_all_or_nothing() {
    let mut random = support::numbers();
    let (mut before, mut after) = (0, 0);
    let begun = Instant::now();
    settle(of_many_rows().path());
    // The fault is to come at any moment of the check: a little later each time until it comes behind the end, and then
    // somewhere before that, however long the check takes on a host that has other things to do.
    let mut delay = begun.elapsed();
    for round in 0..20 {
        let dir = of_many_rows();
        let mut child = spawn("settler", &dir);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while !lines.next().unwrap().unwrap().contains("ready") {}
        let begun = Instant::now();
        drop(child.stdin.take());
        while begun.elapsed() < delay {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let events = verify(dir.path(), None).unwrap().events;
        assert!(events == 0 || events == ROWS + 1, "round {round}: {events} events");
        let settled = settle(dir.path());
        assert_eq!(settled, if events == 0 { ROWS } else { 0 }, "round {round}");
        if events == 0 {
            before += 1;
            delay = delay * 3 / 2;
        } else {
            after += 1;
            delay = delay * u32::try_from(10 + random(80)).unwrap() / 100;
        }
        let report = verify(dir.path(), None).unwrap();
        assert!(report.problems.is_empty() && report.events == ROWS + 1, "round {round}: {report:?}");
    }
    assert!(before > 0 && after > 0, "killed before the end {before} times, behind it {after} times");
}
