//! Rows for the tests beside the code.

use jiff::Timestamp;
use sexton_ledger::entry::{Entry, Restarts, Spec};
use sexton_plan::state::State;

/// How `argv` is to run.
pub fn spec(runtime: &str, argv: &[&str]) -> Spec {
    let body = serde_json::json!({
        "argv": argv, "env": {}, "cwd": null, "user": null, "kind": "sandbox", "runtime": runtime, "labels": {},
        "grace": "8s", "stop_signal": 15, "slot": false, "limits": {}, "pidns": false, "restart": "never",
    });
    serde_json::from_value(body).expect("a spec")
}

/// One that runs, of whose process nothing is recorded.
pub fn entry(name: &str) -> Entry {
    Entry {
        name: name.parse().expect("a name"),
        incarnation: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().expect("a ULID"),
        state: State::Running,
        reason: None,
        spec: spec("command", &["true"]),
        identity: None,
        handle: Vec::new(),
        cgroup: None,
        resources: Vec::new(),
        slot: None,
        exit: None,
        stuck: None,
        snapshot: None,
        node: "n1".parse().expect("a node"),
        created_at: Timestamp::UNIX_EPOCH,
        started_at: None,
        ended_at: None,
        adopted: false,
        stop: None,
        restarts: Restarts::default(),
    }
}
