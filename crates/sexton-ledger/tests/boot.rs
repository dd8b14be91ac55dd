//! Settling the previous boot: once, whoever races, and nothing but what could not have lived on.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code, outside of a test function")]

mod support;

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};

use jiff::Timestamp;
use sexton_ledger::entry::{Cgroup, Entry, Exit, Resource, ResourceState, StopOrder};
use sexton_ledger::{Batch, BootCheck, EventKind, Ledger, boot_check, verify};
use sexton_plan::id::BootId;
use sexton_plan::slot::SlotState;
use sexton_plan::state::{ExitSource, ExitStatus, Restart, State};
use support::{OWED, TempDir, as_killed_now, boot, entry, node, open, options, slot};

fn check_as(boot_id: &BootId) -> BootCheck<'_> {
    BootCheck { boot_id, node: None, now: Timestamp::now }
}

fn stop_order(remove: bool) -> StopOrder {
    StopOrder { force: false, grace: std::time::Duration::from_secs(1), remove, reason: Some("cancelled".to_owned()) }
}

/// A ledger of boot 1 with these rows, whose daemon was killed.
fn left_with(rows: &[Entry]) -> TempDir {
    let dir = TempDir::new();
    let (ledger, _) = Ledger::open(dir.path(), options(1)).unwrap();
    ledger.commit_now(Batch { puts: rows.iter().cloned().map(Arc::new).collect(), ..Batch::default() }, OWED).unwrap();
    as_killed_now(&dir, true)
}

/// One row of each state, and one of another node.
fn one_of_each() -> Vec<Entry> {
    let mut rows: Vec<Entry> = State::ALL.iter().map(|state| entry(state.as_str(), *state)).collect();
    let mut foreign = entry("foreign", State::Running);
    foreign.node = node("elsewhere");
    rows.push(foreign);
    rows
}

fn holding(mut row: Entry) -> Entry {
    let held = |kind: &str| Resource { kind: kind.to_owned(), key: "1".to_owned(), state: ResourceState::Held };
    row.resources = vec![held("cgroup"), held("pin")];
    row.cgroup = Some(Cgroup { path: "/sexton/x".to_owned(), ino: 9 });
    row
}

#[test]
fn slots_go_with_the_kernel_that_held_them() {
    for (boot_now, left) in [(boot(1), 5), (boot(2), 0)] {
        let dir = TempDir::new();
        let (ledger, _) = Ledger::open(dir.path(), options(1)).unwrap();
        let slots = (0..).zip(SlotState::ALL).map(|(index, state)| slot(index, *state)).collect();
        ledger.commit_now(Batch { slots, ..Batch::default() }, OWED).unwrap();
        drop(ledger);
        boot_check(dir.path(), check_as(&boot_now)).unwrap();
        assert_eq!(verify(dir.path(), None).unwrap().slots, left, "{boot_now}");
    }
}

#[test]
fn every_state_that_cannot_live_on_is_lost_once_and_the_rest_is_left_alone() {
    let rows = one_of_each();
    let dir = left_with(&rows);
    assert_eq!(boot_check(dir.path(), check_as(&boot(1))).unwrap().settled, 0, "the same boot");
    assert_eq!(boot_check(dir.path(), check_as(&boot(2))).unwrap().settled, 5);
    assert_eq!(boot_check(dir.path(), check_as(&boot(2))).unwrap().settled, 0, "a second time");

    let (ledger, contents) = Ledger::open(dir.path(), options(2)).unwrap();
    assert_eq!((contents.settled.settled, contents.boot_id_before), (0, Some(boot(2))));
    for before in &rows {
        let after = contents.entries.iter().find(|entry| entry.name == before.name).unwrap();
        if before.state.is_terminal() || before.node == node("elsewhere") {
            assert_eq!(after, before);
        } else {
            assert_eq!((after.state, after.reason.as_deref()), (State::Lost, Some("reboot")));
            assert_eq!((&after.spec, &after.snapshot, &after.exit), (&before.spec, &before.snapshot, &None));
            assert!(after.ended_at.is_some());
        }
    }
    let events = ledger.reader().events_after(0, 100).unwrap();
    assert_eq!(events[0].kind, EventKind::BootChanged);
    assert_eq!(events[0].data["settled"], 5);
    assert!(events[1..].iter().all(|event| event.kind == EventKind::InstanceLost && event.incarnation.is_some()));
    assert_eq!(events.len(), 6);
}

#[test]
fn another_node_settles_nothing_and_does_not_use_up_the_boot() {
    let dir = left_with(&[entry("vm", State::Running)]);
    let (now, other) = (boot(2), node("elsewhere"));
    let check = BootCheck { node: Some(&other), ..check_as(&now) };
    assert_eq!(boot_check(dir.path(), check).unwrap().settled, 0);
    assert_eq!(boot_check(dir.path(), check_as(&now)).unwrap().settled, 1, "its own node's boot is still to be told");
}

#[test]
fn what_it_held_went_with_the_boot() {
    let dir = left_with(&[holding(entry("vm", State::Running))]);
    assert_eq!(boot_check(dir.path(), check_as(&boot(1))).unwrap().settled, 0, "the same boot");
    assert_eq!(boot_check(dir.path(), check_as(&boot(2))).unwrap().settled, 1);
    let row = open_at(&dir, 2).remove(0);
    assert_eq!(row.reason.as_deref(), Some("reboot"));
    assert!(row.resources.is_empty() && row.cgroup.is_none());
}

#[test]
fn beside_a_daemon_nothing_is_settled_whatever_boot_the_caller_names() {
    let dir = left_with(&one_of_each());
    let daemon = std::fs::File::open(dir.path()).unwrap();
    daemon.lock().unwrap();
    let events = || verify(dir.path(), None).unwrap().events;
    let before = events();
    assert_eq!(boot_check(dir.path(), check_as(&boot(2))).unwrap().settled, 0);
    assert_eq!(events(), before, "nor is the boot used up");
    daemon.unlock().unwrap();
    assert_eq!(boot_check(dir.path(), check_as(&boot(2))).unwrap().settled, 5);
}

fn open_at(dir: &TempDir, n: u8) -> Vec<Entry> {
    Ledger::open(dir.path(), options(n)).unwrap().1.entries
}

#[test]
fn an_exit_that_was_known_stays_known() {
    let mut row = entry("vm", State::Stopping);
    row.exit = Some(Exit::new(ExitStatus::Code(3), ExitSource::Wait, Timestamp::now()));
    row.stop = Some(stop_order(false));
    let dir = left_with(&[row.clone()]);
    assert_eq!(boot_check(dir.path(), check_as(&boot(2))).unwrap().settled, 1);
    let after = open_at(&dir, 2).remove(0);
    assert_eq!((after.state, after.reason.as_deref(), after.exit), (State::Exited, Some("cancelled"), row.exit));
    assert_eq!(after.stop, None, "the stop is carried to its end");
}

#[test]
fn only_always_restarts_what_was_lost_and_nothing_restarts_what_was_stopped() {
    let rows: Vec<Entry> = [
        ("always", Restart::Always, None),
        ("on-failure", Restart::OnFailure, None),
        ("never", Restart::Never, None),
        ("stopped", Restart::Always, Some(stop_order(false))),
        ("removed", Restart::Always, Some(stop_order(true))),
    ]
    .into_iter()
    .map(|(name, restart, stop)| {
        let mut row = entry(name, State::Stopping);
        row.spec.restart = restart;
        row.stop = stop;
        row
    })
    .collect();
    let dir = left_with(&rows);
    let entries = open_at(&dir, 2);
    let restarted = entries.iter().filter(|entry| entry.restarts.next_at.is_some());
    assert_eq!(restarted.map(|entry| entry.name.as_str()).collect::<Vec<_>>(), ["always"]);
    let ordered = entries.iter().filter(|entry| entry.stop.is_some());
    assert_eq!(
        ordered.map(|entry| entry.name.as_str()).collect::<Vec<_>>(),
        ["removed"],
        "left for the daemon to remove"
    );
}

#[test]
fn the_daemon_settles_when_it_opens() {
    let dir = left_with(&one_of_each());
    let (ledger, contents) = Ledger::open(dir.path(), options(2)).unwrap();
    assert_eq!((contents.settled.settled, contents.boot_id_before, contents.last_seq), (5, Some(boot(1)), 6));
    assert_eq!(boot_check(dir.path(), check_as(&boot(2))).unwrap().settled, 0, "beside the daemon");
    drop(ledger);
    assert!(verify(dir.path(), None).unwrap().problems.is_empty());
}

#[test]
fn fifty_threads_settle_each_row_once() {
    let dir = left_with(&one_of_each());
    let barrier = Barrier::new(50);
    let total: u64 = std::thread::scope(|scope| {
        let race = || {
            barrier.wait();
            boot_check(dir.path(), check_as(&boot(2))).unwrap().settled
        };
        let threads: Vec<_> = (0..50).map(|_| scope.spawn(race)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(total, 5);
    assert_eq!(verify(dir.path(), None).unwrap().events, 6);
}

/// Starts this test program anew to run [`racer`] alone.
fn spawn_racer(dir: &TempDir) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["racer", "--exact", "--nocapture"])
        .env("SEXTON_RACE_DIR", dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// No test by itself: what the racing processes run.
#[test]
fn racer() {
    let Some(dir) = std::env::var_os("SEXTON_RACE_DIR") else { return };
    // Ends when the parent closes the pipe: all racers leave together.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    let settled = boot_check(dir.as_ref(), check_as(&boot(2))).unwrap().settled;
    println!("settled={settled};");
}

#[test]
fn fifty_processes_settle_each_row_once() {
    let dir = left_with(&one_of_each());
    let mut racers: Vec<Child> = (0..50).map(|_| spawn_racer(&dir)).collect();
    racers.iter_mut().for_each(|racer| drop(racer.stdin.take()));
    let mut total = 0;
    for racer in racers {
        let output = racer.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}");
        let settled = said.split("settled=").nth(1).and_then(|rest| rest.split(';').next()).unwrap();
        total += settled.parse::<u64>().unwrap();
    }
    assert_eq!(total, 5);
    assert_eq!(verify(dir.path(), None).unwrap().events, 6);
    let (_, contents) = Ledger::open(dir.path(), options(2)).unwrap();
    assert_eq!(contents.entries.iter().filter(|entry| entry.state == State::Lost).count(), 6, "one had been before");
}

#[test]
fn many_that_make_the_same_ledger_at_once_all_find_it_made() {
    let dir = TempDir::new();
    let barrier = Barrier::new(20);
    std::thread::scope(|scope| {
        for n in 0..20 {
            let (dir, barrier) = (&dir, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let (ledger, _) = open(dir.path());
                let row = entry(&format!("vm-{n}"), State::Running);
                ledger.commit_now(support::put(&row, EventKind::InstanceRunning), OWED).unwrap();
            });
        }
    });
    let report = verify(dir.path(), None).unwrap();
    assert_eq!((report.entries, report.events, report.problems.len()), (20, 20, 0));
}

#[test]
fn a_fresh_ledger_settles_nothing_and_learns_its_boot() {
    let dir = TempDir::new();
    let (ledger, contents) = open(dir.path());
    assert_eq!((contents.settled.settled, contents.last_seq), (0, 0));
    drop(ledger);
    assert_eq!(open(dir.path()).1.boot_id_before, Some(boot(1)));
}
