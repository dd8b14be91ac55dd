//! Rows for the tests beside the code.

use jiff::Timestamp;
use sexton_ledger::entry::{Entry, Spec};
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
    let life = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().expect("a ULID");
    let (name, node) = (name.parse().expect("a name"), "n1".parse().expect("a node"));
    Entry { state: State::Running, ..Entry::new(name, life, spec("command", &["true"]), node, Timestamp::UNIX_EPOCH) }
}
