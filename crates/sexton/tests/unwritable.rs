//! The ledger takes no record, for its disk is full, slow or away: what is new is refused, what is old is ended, and
//! nothing that was answered is forgotten.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

#[path = "support/asking.rs"]
mod asking;
#[path = "support/container.rs"]
mod container;
#[path = "support/disk.rs"]
mod disk;
#[path = "support/failing.rs"]
mod failing;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use asking::{create, creates_again, gated, refuses_to_create, stop, told_of};
use container::Container;
use disk::{SmallDisk, exhaust};
use failing::Failing;
use serde_json::{Value, json};
use sexton_testkit::{Connection, SOON, eventually, refusing, skip};
use support::{Dead, Node, SEXTON, SIGCONT, SIGSTOP, ended_unwatched, launcher, script, spec, text};

/// What was noted beside the ledger is recorded in it.
fn no_note_is_left(node: &Node) {
    eventually("no note is left", SOON, || {
        let notes = fs::read_dir(node.ground.run_dir().join("orders")).map_or(0, Iterator::count);
        if notes == 0 { Ok(()) } else { Err(notes.to_string()) }
    });
}

/// Whoever is the parent of `pid` by now waits for it.
fn is_reaped(pid: i64) {
    eventually("somebody reaps it", SOON, || fs::read_to_string(format!("/proc/{pid}/stat")).map_or(Ok(()), Err));
}

/// A daemon that began with a new ledger looks at everything, and dies with its keeper; the old ledger, which is `elsewhere`,
/// is put back then.
fn beside_a_new_ledger(node: &mut Node, elsewhere: &Path) {
    assert_eq!(node.instances(), Vec::<Value>::new(), "a new ledger");
    let pass = node.ask("POST", "/v1/reconcile", None, None).0.expect(200)["generation"].as_u64();
    eventually("a pass is over", SOON, || {
        let last = node.get("/v1/self")["generation"].as_u64();
        if last >= pass { Ok(()) } else { Err(format!("{last:?} of {pass:?}")) }
    });
    let state_dir = node.ground.state_dir();
    node.kill(Dead::Both, || {
        fs::remove_dir_all(&state_dir).expect("removed");
        fs::rename(elsewhere, &state_dir).expect("moved back");
    });
}

#[test]
fn a_full_disk_refuses_what_is_new_and_ends_what_is_old() {
    let mut disk = None;
    let mut node = Node::on(SEXTON, |ground| disk = Some(SmallDisk::mount(ground)));
    let disk = disk.expect("a disk");
    create(&mut node, &spec("stopped", &["/bin/sleep", "1000"]));
    create(&mut node, &spec("stays", &["/bin/sleep", "1000"]));
    let (body, gate) = gated(&node, "ends", 7);
    create(&mut node, &body);
    disk.fill();
    let fillers = exhaust(&mut node);
    refuses_to_create(&mut node, "new");
    assert_eq!(node.instances().len(), 3 + fillers.len());
    let over = stop(&mut node, "stopped", &json!({}));
    assert_eq!((&over["state"], &over["exit"]["signal"]), (&json!("exited"), &json!(15)), "{over}");
    fs::write(gate, "").expect("gate opened");
    assert_eq!(node.settled("ends")["exit"]["code"], 7);
    refuses_to_create(&mut node, "new");
    disk.clear();
    creates_again(&mut node, "later");
    // What happened meanwhile is durable, for a daemon that knows nothing else.
    node.kill(Dead::Both, || {});
    let known = |node: &mut Node, name: &str| node.instance(name)["exit"].clone();
    assert_eq!(known(&mut node, "stopped")["signal"], 15);
    assert_eq!(known(&mut node, "ends")["code"], 7);
    assert_eq!(node.instance("stays")["state"], "running");
}

#[test]
fn a_ledger_that_was_away_for_a_while_loses_no_exit() {
    let mut node = Node::new(SEXTON, &[]);
    let (state_dir, elsewhere) = (node.ground.state_dir(), node.ground.dir().join("elsewhere"));
    let (body, gate) = gated(&node, "ends", 7);
    let pid = create(&mut node, &body)["identity"]["pid"].as_i64().expect("a PID");
    node.kill(Dead::Both, || {
        fs::write(gate, "").expect("gate opened");
        is_reaped(pid);
        fs::rename(&state_dir, &elsewhere).expect("moved");
    });
    beside_a_new_ledger(&mut node, &elsewhere);
    // REGRESSION: beside the new ledger its pin was nobody's, and taken down.
    ended_unwatched(&node.settled("ends"), "code", 7);
}

#[test]
fn a_disk_that_is_full_when_worker_and_keeper_die_loses_no_exit() {
    let mut disk = None;
    let mut node = Node::on(SEXTON, |ground| disk = Some(SmallDisk::mount(ground)));
    let disk = disk.expect("a disk");
    let (seen, seen_gate) = gated(&node, "seen", 5);
    let (unseen, unseen_gate) = gated(&node, "unseen", 6);
    let stays = create(&mut node, &spec("stays", &["/bin/sleep", "1000"]));
    create(&mut node, &seen);
    let pid = create(&mut node, &unseen)["identity"]["pid"].as_i64().expect("a PID");
    disk.fill();
    exhaust(&mut node);
    refuses_to_create(&mut node, "new");
    fs::write(seen_gate, "").expect("gate opened");
    assert_eq!(node.settled("seen")["exit"]["code"], 5);
    node.kill(Dead::Both, || {
        fs::write(unseen_gate, "").expect("gate opened");
        eventually("the unseen one ends", SOON, || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let runs = stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']));
            if runs { Err(stat) } else { Ok(()) }
        });
    });
    for (name, code) in [("seen", 5), ("unseen", 6)] {
        ended_unwatched(&node.settled(name), "code", code);
    }
    assert_eq!(node.instance("stays")["identity"], stays["identity"]);
    disk.fill();
    exhaust(&mut node);
    refuses_to_create(&mut node, "new");
    disk.clear();
    creates_again(&mut node, "later");
    node.kill(Dead::Both, || {});
    for (name, code) in [("seen", 5), ("unseen", 6)] {
        ended_unwatched(&node.instance(name), "code", code);
    }
}

#[test]
fn a_ledger_that_was_moved_away_takes_nothing_new_until_it_is_back() {
    let mut node = Node::new(SEXTON, &[]);
    create(&mut node, &spec("stopped", &["/bin/sleep", "1000"]));
    let state_dir = node.ground.state_dir();
    let elsewhere = node.ground.dir().join("elsewhere");
    fs::rename(&state_dir, &elsewhere).expect("moved");
    refuses_to_create(&mut node, "new");
    assert_eq!(stop(&mut node, "stopped", &json!({}))["exit"]["signal"], 15);
    fs::rename(&elsewhere, &state_dir).expect("moved back");
    creates_again(&mut node, "later");
    // What happened meanwhile is durable, for a daemon that knows nothing else.
    node.kill(Dead::Both, || {});
    assert_eq!(node.instance("stopped")["exit"]["signal"], 15);
}

#[test]
fn a_create_that_the_ledger_refuses_on_the_way_can_be_asked_for_again_unless_its_program_ran() {
    let mut node = Node::new(SEXTON, &[]);
    let freeze = node.ground.cgroup_dir().join("cgroup.freeze");
    let (state_dir, elsewhere) = (node.ground.state_dir(), node.ground.dir().join("elsewhere"));
    let body = spec("ran", &["/bin/sleep", "1000"]);
    let asked = {
        // Who is born into a frozen cgroup does not come to its program.
        fs::write(&freeze, "1").expect("frozen");
        let (client, body) = (node.ground.client(), body.clone());
        let headers = [("idempotency-key", "once")];
        std::thread::spawn(move || client.ask("POST", "/v1/instances", &headers, Some(&body)).expect("an answer"))
    };
    eventually("it waits to run", SOON, || {
        let entry = node.ask("GET", "/v1/instances/ran", None, None).0.json();
        if entry["state"] == "starting" && entry["identity"]["pid"].is_u64() { Ok(()) } else { Err(entry.to_string()) }
    });
    fs::rename(&state_dir, &elsewhere).expect("moved");
    fs::write(&freeze, "0").expect("thawed");
    let refusal = asked.join().expect("answered").expect(503);
    assert_eq!(refusal["code"], "ledger_unwritable", "{refusal}");
    fs::rename(&elsewhere, &state_dir).expect("moved back");
    // REGRESSION: until the ledger had that answer it was as if there had been none, and the program ran again.
    assert_eq!(node.ask("POST", "/v1/instances", Some("once"), Some(&body)).0.expect(503), refusal);
    creates_again(&mut node, "later");
    // It ran, if only for a moment: nobody runs it a second time unasked.
    assert_eq!(node.instance("ran")["state"], "failed");
    assert_eq!(node.ask("POST", "/v1/instances", Some("once"), Some(&body)).0.expect(503), refusal);
    node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(409);
}

#[test]
fn what_was_ordered_while_the_ledger_takes_nothing_is_carried_out_after_a_crash() {
    for dead in [Dead::Worker, Dead::Both] {
        let mut node = Node::new(SEXTON, &[]);
        let (state_dir, elsewhere) = (node.ground.state_dir(), node.ground.dir().join("elsewhere"));
        for name in ["slow", "always", "gone"] {
            let mut body = script(name, "trap '' TERM; while :; do sleep 0.1; done");
            (body["restart"], body["grace"]) = (json!("always"), json!("1h"));
            create(&mut node, &body);
        }
        create(&mut node, &spec("over", &["/bin/true"]));
        assert_eq!(node.settled("over")["exit"]["code"], 0);
        fs::rename(&state_dir, &elsewhere).expect("moved");
        let order = |node: &mut Node, path: &str, body: Value| {
            node.ask("POST", &format!("/v1/instances/{path}"), None, Some(&body)).0
        };
        order(&mut node, "slow/stop", json!({})).expect(202);
        order(&mut node, "always/stop?wait=20s", json!({ "force": true })).expect(200);
        node.ask("DELETE", "/v1/instances/gone?force=true", None, None).0.expect(202);
        assert!(node.ask("DELETE", "/v1/instances/over", None, None).0.status < 300);
        node.kill(dead, || fs::rename(&elsewhere, &state_dir).expect("moved back"));
        // REGRESSION: all of them ran, or were listed, again.
        assert_eq!(node.instance("slow")["state"], "stopping");
        let over = node.settled("always");
        assert_eq!((&over["state"], &over["restarts"]["next_at"]), (&json!("exited"), &Value::Null), "{over}");
        for name in ["slow", "gone"] {
            assert_eq!(told_of(&node, name).iter().filter(|kind| *kind == "instance.stopping").count(), 1);
            order(&mut node, &format!("{name}/stop?wait=20s"), json!({ "force": true }));
        }
        let over = node.settled("slow");
        match dead {
            Dead::Both => ended_unwatched(&over, "signal", 9),
            Dead::Worker | Dead::Keeper | Dead::Nobody => assert_eq!(over["exit"]["signal"], 9, "{over}"),
        }
        for name in ["gone", "over"] {
            eventually("it is off the list", SOON, || {
                match node.ask("GET", &format!("/v1/instances/{name}"), None, None).0.status {
                    404 => Ok(()),
                    other => Err(other.to_string()),
                }
            });
        }
        no_note_is_left(&node);
        node.clear();
    }
}

#[test]
fn a_drain_that_is_ordered_while_the_ledger_takes_nothing_goes_on_after_a_crash() {
    for dead in [Dead::Worker, Dead::Both] {
        let mut node = Node::new(SEXTON, &[]);
        let (state_dir, elsewhere) = (node.ground.state_dir(), node.ground.dir().join("elsewhere"));
        create(&mut node, &spec("stays", &["/bin/sleep", "1000"]));
        fs::rename(&state_dir, &elsewhere).expect("moved");
        let drain = |node: &mut Node, path: &str, body: Value| {
            let (answer, _) = node.ask("POST", path, None, Some(&body));
            (answer.status, answer.json())
        };
        for timeout in ["3h", "2h"] {
            let body = json!({ "status": "draining", "timeout": timeout });
            assert_eq!(drain(&mut node, "/v1/nodes/self", body).0, 202);
        }
        let ordered = node.get("/v1/node");
        assert_eq!(ordered["status"], "draining");
        node.kill(dead, || fs::rename(&elsewhere, &state_dir).expect("moved back"));
        // REGRESSION: it took work again.
        let after = node.get("/v1/node");
        assert_eq!((&after["status"], &after["deadline"]), (&json!("draining"), &ordered["deadline"]), "{after}");
        let refused = node.ask("POST", "/v1/instances", None, Some(&spec("new", &["/bin/true"]))).0.expect(503);
        assert_eq!(refused["code"], "node_draining");
        let events = node.ground.client().list("/v1/events").expect("events");
        let told = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
        assert_eq!((told("node.status"), told("api.called")), (1, 3), "{events:?}");
        no_note_is_left(&node);
        // What is recorded is not ordered anew by the next one.
        node.kill(dead, || {});
        assert_eq!(node.get("/v1/node")["deadline"], ordered["deadline"]);
        let body = json!({ "status": "draining", "forceStop": true });
        let (status, drained) = drain(&mut node, "/v1/nodes/self?wait=20s", body);
        assert_eq!((status, &drained["drained"]), (200, &json!(true)), "{drained}");
        node.clear();
    }
}

#[test]
fn what_was_ordered_of_one_that_is_in_doubt_after_a_crash_is_carried_out_once_it_is_proven() {
    let mut node = Node::new(SEXTON, &[]);
    let (state_dir, elsewhere) = (node.ground.state_dir(), node.ground.dir().join("elsewhere"));
    for name in ["stopped", "removed"] {
        let mut body = script(name, "trap '' TERM; while :; do sleep 0.1; done");
        (body["restart"], body["grace"]) = (json!("always"), json!("1h"));
        create(&mut node, &body);
    }
    fs::rename(&state_dir, &elsewhere).expect("moved");
    node.ask("POST", "/v1/instances/stopped/stop", None, Some(&json!({}))).0.expect(202);
    node.ask("DELETE", "/v1/instances/removed?force=true", None, None).0.expect(202);
    node.daemon.take().expect("it serves").kill9_both().expect("killed");
    fs::rename(&elsewhere, &state_dir).expect("moved back");
    // From in there the processes cannot be seen.
    let container = Container::serve(&node.ground);
    for name in ["stopped", "removed"] {
        let doubted = node.ground.client().get(&format!("/v1/instances/{name}")).expect("an answer").expect(200);
        assert_eq!(doubted["state"], "unverified", "{doubted}");
        // What was ordered is owed, and it is told why it is not done.
        assert_eq!(told_of(&node, name).iter().filter(|kind| *kind == "signal.refused").count(), 1);
    }
    drop(container);
    node.serve();
    // REGRESSION: the orders were refused in there, and forgotten.
    for name in ["stopped", "removed"] {
        assert_eq!(node.instance(name)["state"], "stopping");
        // Not waited for: the one may be off the list before it is seen to have ended.
        let order = json!({ "force": true });
        let ordered = node.ask("POST", &format!("/v1/instances/{name}/stop"), None, Some(&order)).0;
        assert!(matches!(ordered.status, 200 | 202), "{}", ordered.text());
    }
    ended_unwatched(&node.settled("stopped"), "signal", 9);
    assert_eq!(told_of(&node, "stopped").iter().filter(|kind| *kind == "instance.stopping").count(), 1);
    eventually("it is off the list", SOON, || match node.ask("GET", "/v1/instances/removed", None, None).0.status {
        404 => Ok(()),
        other => Err(other.to_string()),
    });
}

#[test]
fn a_key_is_not_answered_with_what_another_request_made() {
    let mut node = Node::new(SEXTON, &[]);
    let (state_dir, elsewhere) = (node.ground.state_dir(), node.ground.dir().join("elsewhere"));
    fs::rename(&state_dir, &elsewhere).expect("moved");
    let body = spec("wanted", &["/bin/sleep", "1000"]);
    node.ask("POST", "/v1/instances", Some("once"), Some(&body)).0.expect(503);
    fs::rename(&elsewhere, &state_dir).expect("moved back");
    creates_again(&mut node, "wanted");
    // REGRESSION: it got 201 with the other's instance; and had that failed, it was started for this one.
    let refused = node.ask("POST", "/v1/instances", Some("once"), Some(&body)).0.expect(409);
    assert_eq!(refused["code"], "name_in_use", "{refused}");
    node.ask("DELETE", "/v1/instances/wanted?force=true&wait=10s", None, None).0.expect(200);
    node.ask("POST", "/v1/instances", Some("once"), Some(&body)).0.expect(201);
}

#[test]
fn those_who_ask_again_at_once_are_answered_by_one_start() {
    let mut node = Node::new(SEXTON, &[]);
    let freeze = node.ground.cgroup_dir().join("cgroup.freeze");
    let body = spec("one", &["/no/such/program"]).to_string();
    let socket = node.ground.run_dir().join("sexton.sock");
    let line = || Connection::open(&socket).expect("connected");
    let ask = |line: &mut Connection| {
        line.send("POST", "/v1/instances", &[("idempotency-key", "once")], Some(body.as_bytes())).expect("sent");
    };
    // Who is born into a frozen cgroup does not come to its program: this one is cut off before.
    fs::write(&freeze, "1").expect("frozen");
    ask(&mut line());
    eventually("it waits to run", SOON, || {
        let entry = node.ask("GET", "/v1/instances/one", None, None).0.json();
        if entry["state"] == "starting" && entry["identity"]["pid"].is_u64() { Ok(()) } else { Err(entry.to_string()) }
    });
    node.kill(Dead::Worker, || {});
    assert_eq!(node.settled("one")["state"], "failed");
    let mut lines: Vec<Connection> = (0..16).map(|_| line()).collect();
    for line in &mut lines {
        line.ask("GET", "/livez", &[], None).expect("an answer");
    }
    let worker = node.daemon().worker().expect("a worker");
    worker.signal(SIGSTOP).expect("stopped");
    lines.iter_mut().for_each(ask);
    worker.signal(SIGCONT).expect("continued");
    eventually("it waits to run again", SOON, || {
        let entry = node.instance("one");
        if entry["state"] == "starting" && entry["identity"]["pid"].is_u64() { Ok(()) } else { Err(entry.to_string()) }
    });
    fs::write(&freeze, "0").expect("thawed");
    // REGRESSION: all but the first got 201 while its program was still to be begun.
    for line in &mut lines {
        assert_eq!(line.answer().expect("an answer").expect(400)["code"], "exec_failed");
    }
}

#[test]
fn who_asks_again_while_a_start_is_undone_is_answered_as_the_first() {
    if !sexton_testkit::skip::has_program("strace") {
        skip!(package "strace");
    }
    let mut node = Node::new(SEXTON, &[]);
    let freeze = node.ground.cgroup_dir().join("cgroup.freeze");
    let (state_dir, elsewhere) = (node.ground.state_dir(), node.ground.dir().join("elsewhere"));
    let body = spec("undone", &["/bin/sleep", "1000"]);
    let ask = || {
        let (client, body) = (node.ground.client(), body.clone());
        let headers = [("idempotency-key", "once")];
        std::thread::spawn(move || client.ask("POST", "/v1/instances", &headers, Some(&body)).expect("an answer"))
    };
    fs::write(&freeze, "1").expect("frozen");
    let first = ask();
    let client = node.ground.client();
    let entry = eventually("it waits to run", SOON, || {
        let entry = client.get("/v1/instances/undone").map_err(|error| error.to_string())?.json();
        let is_made = entry["state"] == "starting" && entry["identity"]["pid"].is_u64();
        if is_made { Ok(entry) } else { Err(entry.to_string()) }
    });
    let worker =
        i32::try_from(client.get("/v1/self").expect("an answer").json()["worker_pid"].as_i64().expect("a PID"));
    // The ledger refuses what is to be said of it, and its cgroup cannot be opened: to undo it takes a while.
    fs::rename(&state_dir, &elsewhere).expect("moved");
    let cgroup = node.ground.cgroup_at(&text(&entry["cgroup"], "path"));
    let failing = Failing::of(worker.expect("fits"), "statx", &cgroup, "EIO", "1+");
    fs::write(&freeze, "0").expect("thawed");
    eventually("it is being undone", SOON, || {
        let log = fs::read_to_string(node.ground.dir().join("daemon.log")).unwrap_or_default();
        if log.contains("domain not opened") { Ok(()) } else { Err(log) }
    });
    client.post("/v1/instances/undone/stop", &json!({})).expect("an answer").expect(202);
    let second = ask();
    // Behind it, and answered by the same life.
    client.get("/v1/instances/undone").expect("an answer").expect(200);
    client.post("/v1/instances/undone/stop", &json!({})).expect("an answer").expect(202);
    drop(failing);
    let refusal = first.join().expect("answered").expect(503);
    fs::rename(&elsewhere, &state_dir).expect("moved back");
    // REGRESSION: it got 201.
    assert_eq!(second.join().expect("answered").expect(503), refusal);
    creates_again(&mut node, "later");
}

#[test]
fn an_exit_that_the_ledger_does_not_have_yet_is_kept_where_nothing_is_pinned() {
    let program = launcher("sexton-owing-without-pins", &format!("{} '{SEXTON}' \"$@\"", refusing(&["mount EPERM"])));
    let mut node = Node::new(program, &[]);
    let (adopted, adopted_gate) = gated(&node, "adopted", 5);
    let pid = create(&mut node, &adopted)["identity"]["pid"].clone();
    node.kill(Dead::Worker, || {});
    let (removed, removed_gate) = gated(&node, "removed", 6);
    create(&mut node, &removed);
    let (state_dir, elsewhere) = (node.ground.state_dir(), node.ground.dir().join("elsewhere"));
    fs::rename(&state_dir, &elsewhere).expect("moved");
    refuses_to_create(&mut node, "new");
    // The keeper tells of the one when that is shown already; the other leaves the list before it is recorded.
    let keeper = node.daemon().keeper().expect("a keeper");
    keeper.signal(SIGSTOP).expect("stopped");
    for (gate, name) in [(adopted_gate, "adopted"), (removed_gate, "removed")] {
        fs::write(gate, "").expect("gate opened");
        assert!(node.settled(name)["exit"]["code"].is_u64());
    }
    keeper.signal(SIGCONT).expect("continued");
    eventually("the keeper has recorded and reaped it", SOON, || {
        if PathBuf::from(format!("/proc/{pid}")).exists() { Err(format!("{pid} is there")) } else { Ok(()) }
    });
    node.ask("DELETE", "/v1/instances/removed?wait=10s", None, None).0.expect(200);
    // What the keeper has told is heard before the pass, which reaps whom nobody knows.
    node.ask("POST", "/v1/reconcile", None, None).0.expect(200);
    node.kill(Dead::Worker, || fs::rename(&elsewhere, &state_dir).expect("moved back"));
    eventually("it is off the list", SOON, || match node.ask("GET", "/v1/instances/removed", None, None).0.status {
        404 => Ok(()),
        other => Err(other.to_string()),
    });
    // REGRESSION: the keeper's record was taken for nobody's, and so was the zombie; both were lost.
    let over = node.settled("adopted");
    assert_eq!((&over["state"], &over["exit"]["code"]), (&json!("exited"), &json!(5)), "{over}");
    let events = node.ground.client().list("/v1/events").expect("events");
    let ended: Vec<&Value> = events.iter().filter(|event| event["kind"] == "instance.exited").collect();
    let of_removed = ended.iter().find(|event| event["instance"] == "removed");
    assert_eq!(of_removed.map(|event| &event["data"]["exit"]["code"]), Some(&json!(6)), "{ended:?}");
}

/// Moves the ledger away and lets `ends` end with 5, behind `gate`; tells where the ledger is, and what was told of the exit.
fn ends_with_the_ledger_away(node: &mut Node, gate: &Path) -> (PathBuf, Value) {
    let elsewhere = node.ground.dir().join("elsewhere");
    fs::rename(node.ground.state_dir(), &elsewhere).expect("moved");
    refuses_to_create(node, "new");
    fs::write(gate, "").expect("gate opened");
    let told = node.settled("ends")["exit"].clone();
    assert_eq!(told["code"], 5, "{told}");
    (elsewhere, told)
}

#[test]
fn an_exit_that_was_told_is_not_lost_with_worker_and_keeper_where_nothing_is_pinned() {
    let program = launcher("sexton-telling-without-pins", &format!("{} '{SEXTON}' \"$@\"", refusing(&["mount EPERM"])));
    for is_killed in [true, false] {
        let mut node = Node::new(&program, &[]);
        let (body, gate) = gated(&node, "ends", 5);
        let pid = create(&mut node, &body)["identity"]["pid"].as_i64().expect("a PID");
        let (elsewhere, told) = ends_with_the_ledger_away(&mut node, &gate);
        let state_dir = node.ground.state_dir();
        let meanwhile = || {
            is_reaped(pid);
            fs::rename(&elsewhere, &state_dir).expect("moved back");
        };
        if is_killed {
            node.kill(Dead::Both, meanwhile);
        } else {
            node.daemon.take().expect("a daemon").terminate(SOON).expect("ended");
            meanwhile();
            node.serve();
        }
        // REGRESSION: it was `lost`.
        let over = node.settled("ends");
        assert_eq!((&over["state"], &over["exit"]), (&json!("exited"), &told), "{over}");
        assert_eq!(told_of(&node, "ends").iter().filter(|kind| *kind == "instance.exited").count(), 1);
        no_note_is_left(&node);
        node.clear();
    }
}

#[test]
fn what_was_told_and_ordered_beside_a_ledger_that_is_away_outlives_a_new_one() {
    let program = launcher("sexton-noting-without-pins", &format!("{} '{SEXTON}' \"$@\"", refusing(&["mount EPERM"])));
    let mut node = Node::new(program, &[]);
    let (body, gate) = gated(&node, "ends", 5);
    let pid = create(&mut node, &body)["identity"]["pid"].as_i64().expect("a PID");
    create(&mut node, &spec("removed", &["/bin/sleep", "1000"]));
    let (elsewhere, told) = ends_with_the_ledger_away(&mut node, &gate);
    node.ask("DELETE", "/v1/instances/removed?force=true&wait=10s", None, None).0.expect(200);
    node.kill(Dead::Both, || is_reaped(pid));
    beside_a_new_ledger(&mut node, &elsewhere);
    // REGRESSION: the new ledger's worker removed the notes, and the one was `lost` and the other there again.
    let over = node.settled("ends");
    assert_eq!((&over["state"], &over["exit"]), (&json!("exited"), &told), "{over}");
    assert_eq!(node.ask("GET", "/v1/instances/removed", None, None).0.status, 404);
    no_note_is_left(&node);
}

#[test]
fn an_exit_of_which_the_pin_failed_is_kept_until_the_ledger_has_it() {
    if !sexton_testkit::skip::has_program("strace") {
        skip!(package "strace");
    }
    let mut node = Node::new(SEXTON, &[]);
    let worker = node.daemon().worker_pid().expect("a worker");
    let failing = Failing::everywhere(worker, "open_tree", "ENOSPC", "1+");
    let (body, gate) = gated(&node, "unpinned", 7);
    create(&mut node, &body);
    drop(failing);
    let (state_dir, elsewhere) = (node.ground.state_dir(), node.ground.dir().join("elsewhere"));
    fs::rename(&state_dir, &elsewhere).expect("moved");
    refuses_to_create(&mut node, "new");
    fs::write(gate, "").expect("gate opened");
    assert_eq!(node.settled("unpinned")["exit"]["code"], 7);
    node.kill(Dead::Worker, || fs::rename(&elsewhere, &state_dir).expect("moved back"));
    // REGRESSION: it was reaped as if there were a pin, for there were pins.
    let over = node.settled("unpinned");
    assert_eq!((&over["state"], &over["exit"]["code"]), (&json!("exited"), &json!(7)), "{over}");
}

#[test]
fn what_was_answered_is_recorded_however_slow_the_disk_is() {
    if !sexton_testkit::skip::has_program("strace") {
        skip!(package "strace");
    }
    let mut node = Node::new(SEXTON, &[]);
    create(&mut node, &spec("slow", &["/bin/sleep", "1000"]));
    create(&mut node, &spec("hanging", &["/bin/sleep", "1000"]));
    let (worker, log) = (node.daemon().worker_pid().expect("a worker"), node.ground.state_dir().join("sexton.db-wal"));
    let disk = Failing::slowly(worker, "fdatasync", &log, Duration::from_secs(1));
    assert_eq!(stop(&mut node, "slow", &json!({}))["exit"]["signal"], 15);
    // REGRESSION: after half a second it was answered as where the ledger cannot be written, and a crash took it back.
    assert_eq!(told_of(&node, "slow").last().map(String::as_str), Some("instance.exited"));
    drop(disk);
    // One that does not answer at all keeps no stop from its end.
    let disk = Failing::slowly(worker, "fdatasync", &log, Duration::from_secs(1_000));
    assert_eq!(stop(&mut node, "hanging", &json!({}))["exit"]["signal"], 15);
    assert_eq!(told_of(&node, "hanging").last().map(String::as_str), Some("instance.running"));
    drop(disk);
    eventually("the record follows", SOON, || match told_of(&node, "hanging").pop() {
        Some(last) if last == "instance.exited" => Ok(()),
        last => Err(format!("{last:?}")),
    });
}
