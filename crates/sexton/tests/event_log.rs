//! Damage in the event log, which nobody acts on, is told by a daemon that serves all the same.
#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

use std::time::Duration;

use serde_json::{Value, json};
use sexton_testkit::{Daemon, Ground, Response, SOON, eventually};

/// The doctor's word on the event log, once it has been read.
fn found(daemon: &Daemon) -> Value {
    eventually("the event log has been read", SOON, || {
        let report = daemon.client().get("/v1/doctor").map_err(|error| format!("{error:#}"))?.expect(200);
        let checks = report["checks"].as_array().cloned().unwrap_or_default();
        let events = checks.into_iter().find(|check| check["name"] == "events").ok_or("no such check")?;
        if events["detail"] == "being checked" { Err(events.to_string()) } else { Ok(events) }
    })
}

/// A ground whose ledger has the events of two instances; its daemon has ended.
fn with_events() -> Ground {
    let ground = Ground::new(env!("CARGO_BIN_EXE_sexton")).expect("a ground");
    let daemon = ground.serve().expect("serves");
    for name in ["one", "two"] {
        let body = json!({ "name": name, "argv": ["true"] });
        daemon.client().post("/v1/instances", &body).expect("an answer").expect(201);
    }
    daemon.terminate(Duration::from_secs(10)).expect("ends");
    ground
}

#[test]
fn damage_in_the_event_log_is_told_and_stops_nobody() {
    let ground = with_events();

    let daemon = ground.serve().expect("serves");
    let sound = found(&daemon);
    assert_eq!(sound["grade"], "ok", "{sound}");
    daemon.terminate(Duration::from_secs(10)).expect("ends");

    let conn = rusqlite::Connection::open(ground.state_dir().join("sexton.db")).expect("opened");
    let changed = conn.execute("UPDATE event SET data = replace(data, 'create', 'delete') WHERE seq = 1", []);
    assert_eq!(changed.expect("written"), 1);
    drop(conn);

    let daemon = ground.serve().expect("an event decides nothing, so the daemon serves");
    let damaged = found(&daemon);
    assert_eq!(damaged["grade"], "fail", "{damaged}");
    let body = json!({ "name": "three", "argv": ["true"] });
    daemon.client().post("/v1/instances", &body).expect("an answer").expect(201);
}

#[test]
fn what_is_sound_of_a_damaged_event_log_is_given() {
    let ground = with_events();
    let conn = rusqlite::Connection::open(ground.state_dir().join("sexton.db")).expect("opened");
    assert_eq!(conn.execute("UPDATE event SET at = at + 1 WHERE seq = 3", []).expect("written"), 1);
    drop(conn);

    let daemon = ground.serve().expect("serves");
    let ask = |after: u64, headers: &[(&str, &str)]| {
        daemon.client().ask("GET", &format!("/v1/events?after={after}"), headers, None).expect("an answer")
    };
    let seqs = |page: &Value| -> Vec<u64> {
        page["items"].as_array().expect("items").iter().filter_map(|event| event["seq"].as_u64()).collect()
    };
    // REGRESSION: one damaged event made its whole page an error.
    let page = ask(0, &[]).expect(200);
    assert_eq!((seqs(&page), &page["next"]), (vec![1, 2], &json!(2)), "what comes before, and that there is more");
    let told = |answer: &Response| (answer.status, answer.text().contains("event 3 does not match its checksum"));
    assert_eq!(told(&ask(2, &[])), (500, true));
    assert_eq!(seqs(&ask(3, &[]).expect(200)).first(), Some(&4), "whoever steps over it knows");
    // REGRESSION: who followed the log was cut off there again and again, and never told why.
    assert_eq!(told(&ask(2, &[("accept", "text/event-stream")])), (500, true));
}
