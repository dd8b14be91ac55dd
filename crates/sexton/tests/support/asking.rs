//! What is asked of a node whose surroundings fail, and what its answer shows.

#![allow(dead_code, reason = "each test uses a part")]
#![allow(missing_docs, reason = "for the tests beside it")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use sexton_testkit::{Ground, SOON, eventually};

use super::support::{Node, script, spec, text};

pub fn create(node: &mut Node, body: &Value) -> Value {
    node.ask("POST", "/v1/instances", None, Some(body)).0.expect(201)
}

pub fn stop(node: &mut Node, name: &str, order: &Value) -> Value {
    node.ask("POST", &format!("/v1/instances/{name}/stop?wait=20s"), None, Some(order)).0.expect(200)
}

/// Everything below the daemon's directories and cgroup that a start could have made: a note of an order or an exit is of
/// what was there before.
pub fn things(ground: &Ground) -> BTreeSet<PathBuf> {
    let notes = ground.run_dir().join("orders");
    let mut found = BTreeSet::new();
    let mut dirs = vec![ground.state_dir().join("logs"), ground.run_dir(), ground.cgroup_dir()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path() != notes) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

/// A create is refused within the time of the contract, and nothing of it is there.
pub fn refuses_to_create(node: &mut Node, name: &str) {
    let before = things(&node.ground);
    let began = Instant::now();
    let (answer, _) = node.ask("POST", "/v1/instances", None, Some(&spec(name, &["/bin/sleep", "1000"])));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let refusal = answer.expect(503);
    assert_eq!(refusal["code"], "ledger_unwritable", "{refusal}");
    assert!(answer.header("retry-after").is_some(), "{:?}", answer.headers);
    assert_eq!(node.ask("GET", &format!("/v1/instances/{name}"), None, None).0.status, 404);
    let after = things(&node.ground);
    assert!(after.is_subset(&before), "{:?}", after.difference(&before).collect::<Vec<_>>());
}

/// Waits until something can be created again, without anybody's help.
pub fn creates_again(node: &mut Node, name: &str) {
    eventually("creates are taken again", SOON, || {
        let (answer, _) = node.ask("POST", "/v1/instances", None, Some(&spec(name, &["/bin/true"])));
        if answer.status == 201 { Ok(()) } else { Err(answer.text()) }
    });
}

/// Ends with `code` as soon as its gate is there.
pub fn gated(node: &Node, name: &str, code: u8) -> (Value, PathBuf) {
    let gate = node.ground.dir().join(format!("{name}.gate"));
    (script(name, &format!("until [ -e {} ]; do sleep 0.01; done; exit {code}", gate.display())), gate)
}

/// The kinds of all events about `name`, in their order.
pub fn told_of(node: &Node, name: &str) -> Vec<String> {
    let all = node.ground.client().list("/v1/events").expect("events");
    all.iter().filter(|event| event["instance"] == name).map(|event| text(event, "kind")).collect()
}
