//! A drain: everything admitted is waited for, nothing comes after, and whoever dies in the middle, it goes on.

#![allow(missing_docs, reason = "tests")]
#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]
#![allow(clippy::disallowed_types, reason = "a test starts programs as a user does")]

#[path = "support/network.rs"]
mod network;
mod support;
#[path = "support/unanswering.rs"]
mod unanswering;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sexton_testkit::{Connection, Held, SOON, crash_bin_dir, eventually, processes_in};

use unanswering::Unanswering;

use support::{Dead, Node, SEXTON, ended_unwatched, is_settled, launcher, script, spec, text};

/// Starts that run against one drain.
const STARTS: usize = 200;
/// How many of them are under way at once, in turns: all, and fewer, of which more are refused.
const AT_ONCE: [usize; 3] = [STARTS, 64, 8];

fn order(node: &mut Node, path: &str, body: Value) -> (u16, Value) {
    let (answer, _) = node.ask("POST", path, None, Some(&body));
    (answer.status, answer.json())
}

fn drain(node: &mut Node) -> Value {
    let (status, shown) = order(node, "/v1/nodes/self", json!({ "status": "draining" }));
    assert!(matches!(status, 200 | 202), "{shown}");
    shown
}

/// Waits until the node shows that it is drained.
fn drained(node: &mut Node) -> Value {
    eventually("drained", SOON, || {
        let shown = node.get("/v1/node");
        if shown["drained"] == true { Ok(shown) } else { Err(shown.to_string()) }
    })
}

/// Events of one kind, oldest first.
fn events(node: &mut Node, kind: &str) -> Vec<Value> {
    let all = node.ground.client().list("/v1/events").expect("events");
    all.into_iter().filter(|event| event["kind"] == kind).collect()
}

/// A new daemon, in place of one that is drained.
fn serve_again(node: &mut Node) {
    node.daemon.take().expect("a daemon").terminate(SOON).expect("ended");
    node.serve();
}

#[test]
fn every_start_is_counted_by_the_drain_or_refused_and_none_runs_after_drained() {
    let rounds = std::env::var("SEXTON_TEST_DRAIN_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(40);
    let mut node = Node::new(SEXTON, &[]);
    let mut all = 0;
    for round in 0..rounds {
        // The drain is asked for after so many starts, another number each round, and so many are under way at once.
        let (before, at_once) = (round * 7_919 % (STARTS + 1), AT_ONCE[round % AT_ONCE.len()]);
        let socket = node.ground.run_dir().join("sexton.sock");
        let mut lines: Vec<_> = (0..STARTS).map(|_| Connection::open(&socket).expect("connected")).collect();
        let mut drain = Connection::open(&socket).expect("connected");
        let mut begun = 0;
        for at in 0..STARTS + at_once {
            if at == before {
                drain.send("POST", "/v1/nodes/self", &[], Some(br#"{"status":"draining"}"#)).expect("sent");
            }
            if let Some(line) = lines.get_mut(at) {
                let body = spec(&format!("s-{at}"), &["/bin/true"]).to_string();
                line.send("POST", "/v1/instances", &[], Some(body.as_bytes())).expect("sent");
            }
            if let Some(line) = at.checked_sub(at_once).and_then(|at| lines.get_mut(at)) {
                begun += usize::from(has_begun(line));
            }
        }
        let answer = drain.answer().expect("an answer");
        assert!(matches!(answer.status, 200 | 202), "{}", answer.text());
        drained(&mut node);
        let listed = node.instances();
        assert_eq!(listed.len(), begun, "round {round}: every start that was answered with 201, and no other");
        for entry in &listed {
            assert!(is_settled(entry), "round {round}: it is not over, and the node is drained: {entry}");
        }
        let living = processes_in(&node.ground.cgroup_dir());
        assert!(living.is_empty(), "round {round}: {living:?} live after drained");
        let late = node.ask("POST", "/v1/instances", None, Some(&spec("late", &["/bin/true"]))).0;
        assert_eq!((late.status, late.json()["code"].as_str()), (503, Some("node_draining")));
        assert!(late.header("retry-after").is_some());
        println!("round {round}: {begun} of {STARTS} admitted, drain after {before}, {at_once} at once");
        all += begun;
        remove_all(&mut lines, &listed);
        serve_again(&mut node);
    }
    // Otherwise no start was ever under way when the gate closed.
    assert!(all > 0 && all < rounds * STARTS, "{all} admitted in {rounds} rounds of {STARTS}");
}

/// Whether a start was begun. Whatever else it is, it is a refusal because of the drain.
fn has_begun(line: &mut Connection) -> bool {
    let answer = line.answer().expect("an answer");
    if answer.status != 201 {
        assert_eq!((answer.status, answer.json()["code"].as_str()), (503, Some("node_draining")), "{}", answer.text());
    }
    answer.status == 201
}

/// Takes everything off the list at once: one by one they would take longer than all that is tested.
fn remove_all(lines: &mut [Connection], listed: &[Value]) {
    for (line, entry) in lines.iter_mut().zip(listed) {
        line.send("DELETE", &format!("/v1/instances/{}", text(entry, "name")), &[], None).expect("sent");
    }
    for (line, _) in lines.iter_mut().zip(listed) {
        assert_eq!(line.answer().expect("an answer").status, 200);
    }
}

/// A clock of the day that is an hour behind as soon as the file `BEHIND` is there.
const CLOCK: &str = "
    #include <stdlib.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>
    int clock_gettime(clockid_t clock, struct timespec *now) {
        int failed = syscall(SYS_clock_gettime, clock, now);
        if (clock == CLOCK_REALTIME && access(getenv(\"BEHIND\"), F_OK) == 0) now->tv_sec -= 3600;
        return failed;
    }";

#[test]
fn a_clock_that_is_set_back_moves_no_deadline_for_the_next_worker() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (clock, behind) = (dir.join("clock.so"), dir.join(format!("behind-{}", std::process::id())));
    support::compile_as(&["-shared", "-fPIC"], CLOCK, &clock);
    let set = format!("export LD_PRELOAD='{}' BEHIND='{}'", clock.display(), behind.display());
    let mut node = Node::new(launcher("sexton-with-a-clock", &format!("{set}; exec '{SEXTON}' \"$@\"")), &[]);
    node.ask("POST", "/v1/instances", None, Some(&spec("stays", &["/bin/sleep", "1000"]))).0.expect(201);
    let (_, begun) = order(&mut node, "/v1/nodes/self", json!({ "status": "draining", "timeout": "5s" }));
    node.kill(Dead::Worker, || std::fs::write(&behind, "").expect("set back"));
    // The next worker answers before it has recorded whom it follows.
    let restarted = eventually("the restart is told", SOON, || {
        events(&mut node, "worker.restarted").pop().ok_or_else(|| "no event".to_owned())
    });
    assert!(text(&restarted, "at") < text(&events(&mut node, "node.status")[0], "at"), "{restarted}");
    assert_eq!(node.get("/v1/node")["deadline"], begun["deadline"]);
    // REGRESSION: for the next worker it was an hour away.
    drained(&mut node);
    assert_eq!(node.instance("stays")["exit"]["signal"], 9);
    std::fs::remove_file(&behind).expect("removed");
}

/// A node whose ledger is lost while `/bin/sleep` runs: what its instance was shown as, and a hold on its process.
fn node_with_a_process_of_a_lost_ledger() -> (Node, Value, Held) {
    let mut node = Node::new(SEXTON, &[]);
    let made = node.ask("POST", "/v1/instances", None, Some(&spec("known", &["/bin/sleep", "1000"]))).0.expect(201);
    let state_dir = node.ground.state_dir();
    node.kill(Dead::Both, || {
        for file in ["sexton.db", "sexton.db-wal", "sexton.db-shm"] {
            std::fs::remove_file(state_dir.join(file)).expect("removed");
        }
    });
    let number = |value: &Value| value.as_u64().expect("a number");
    let pid = i32::try_from(number(&made["identity"]["pid"])).expect("a PID");
    let orphan = Held::in_cgroup(number(&made["cgroup"]["ino"]), pid).expect("it lives");
    (node, made, orphan)
}

#[test]
fn a_process_of_which_a_lost_ledger_told_is_left_by_a_drain_and_named() {
    let (mut node, made, orphan) = node_with_a_process_of_a_lost_ledger();
    let pid = &made["identity"]["pid"];
    let (status, shown) =
        order(&mut node, "/v1/nodes/self?wait=2s", json!({ "status": "draining", "forceStop": true }));
    // REGRESSION: it was drained, and the process lived.
    assert_eq!((status, &shown["drained"]), (202, &json!(false)), "{shown}");
    let left = shown["left"].as_array().expect("a list").clone();
    assert_eq!(left.len(), 1, "{shown}");
    assert_eq!(left[0]["name"], made["cgroup"]["path"]);
    assert!(text(&left[0], "error").ends_with(&format!(" {pid}")), "{shown}");
    node.kill(Dead::Worker, || {});
    assert!(orphan.is_alive(), "nobody asked to end it");
    assert_eq!(node.get("/v1/node")["drained"], false, "not for the next worker either");
    orphan.kill9().expect("killed");
    drained(&mut node);
}

#[test]
fn a_drain_that_is_ordered_over_and_over_looks_for_what_is_left_no_more_often() {
    const ORDERS: u64 = 300;
    let (mut node, _made, orphan) = node_with_a_process_of_a_lost_ledger();
    for _ in 0..ORDERS {
        assert_eq!(order(&mut node, "/v1/nodes/self", json!({ "status": "draining" })).0, 202);
    }
    let before = reads(&mut node);
    assert_eq!(order(&mut node, "/v1/nodes/self?wait=3s", json!({ "status": "draining" })).0, 202);
    let during = reads(&mut node) - before;
    // REGRESSION: each order had begun looks of its own, each second, for as long as the process lived.
    assert!(during < ORDERS, "{during} reads in three seconds");
    orphan.kill9().expect("killed");
    drained(&mut node);
}

/// How often the worker has read anything (`proc_pid_io(5)`).
fn reads(node: &mut Node) -> u64 {
    let worker = node.daemon().worker_pid().expect("a worker");
    let io = std::fs::read_to_string(format!("/proc/{worker}/io")).expect("read");
    let count = io.lines().find_map(|line| line.strip_prefix("syscr: ")).expect("a count");
    count.parse().expect("a number")
}

#[test]
fn a_status_is_shown_kept_and_told_once_and_draining_is_not_left() {
    let mut node = Node::new(SEXTON, &[]);
    let set = |node: &mut Node, status: &str| order(node, "/v1/nodes/self", json!({ "status": status }));
    for word in ["standby", "standby", "unhealthy"] {
        let (status, shown) = set(&mut node, word);
        assert_eq!((status, shown["status"].as_str()), (200, Some(word)));
    }
    node.kill(Dead::Both, || {});
    assert_eq!(node.get("/v1/node")["status"], "unhealthy", "it is durable");
    // A word for whoever places work: the node itself takes it.
    node.ask("POST", "/v1/instances", None, Some(&spec("works", &["/bin/true"]))).0.expect(201);
    assert_eq!(set(&mut node, "asleep").0, 400);
    let (status, _) = order(&mut node, "/v1/nodes/self", json!({ "status": "healthy", "forceStop": true }));
    assert_eq!(status, 400);
    drain(&mut node);
    for word in ["unhealthy", "healthy", "standby"] {
        assert_eq!(set(&mut node, word).0, 409, "{word}");
    }
    drained(&mut node);
    assert_eq!(set(&mut node, "unhealthy").0, 409);
    node.kill(Dead::Worker, || {});
    assert_eq!(node.get("/v1/node")["status"], "draining", "a new worker alone does not end it");
    let told: Vec<String> =
        events(&mut node, "node.status").iter().map(|event| text(&event["data"], "status")).collect();
    assert_eq!(told, ["standby", "unhealthy", "draining"]);
    serve_again(&mut node);
    let shown = node.get("/v1/node");
    assert_eq!((shown["status"].as_str(), shown["drained"].as_bool()), (Some("healthy"), Some(false)));
    node.clear();
}

#[test]
fn a_log_that_is_handed_out_is_in_flight_and_ends_with_the_drain() {
    let mut node = Node::new(SEXTON, &[]);
    let gate = node.ground.dir().join("gate");
    let body = script("talks", &format!("echo first; until [ -e {} ]; do sleep 0.01; done; echo last", gate.display()));
    node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
    let mut reader = Connection::open(&node.ground.run_dir().join("sexton.sock")).expect("connected");
    let request = b"GET /v1/instances/talks/logs?follow=true HTTP/1.1\r\nhost: sexton\r\n\r\n";
    reader.send_raw(request).expect("sent");
    let shown = eventually("the log is in flight", SOON, || {
        let shown = node.get("/v1/node");
        if count(&shown, "log_export") == 1 { Ok(shown) } else { Err(shown.to_string()) }
    });
    assert_eq!((count(&shown, "instance"), &shown["inflight"]), (1, &json!(2)));
    let shown = drain(&mut node);
    let left: Vec<String> = shown["left"].as_array().expect("a list").iter().map(|one| text(one, "name")).collect();
    assert_eq!(left, ["talks", "log_export"]);
    std::fs::write(&gate, "").expect("written");
    // The whole of it arrives, and then the stream ends: nothing can follow.
    assert_eq!(reader.answer().expect("an answer").text(), "first\nlast\n");
    let shown = drained(&mut node);
    assert_eq!((&shown["inflight"], &shown["operations"], &shown["left"]), (&json!(0), &json!([]), &json!([])));
    let late = node.ask("GET", "/v1/instances/talks/logs?follow=true", None, None).0;
    assert_eq!(late.text(), "first\nlast\n", "a log can be read on a drained node, to its end");
    node.clear();
}

#[test]
fn a_forced_drain_hangs_up_on_a_reader_who_does_not_read() {
    let mut node = Node::new(SEXTON, &[]);
    let body = script("talks", "head -c 4000000 /dev/zero | tr '\\0' x; sleep 1000");
    node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
    let mut reader = Connection::open(&node.ground.run_dir().join("sexton.sock")).expect("connected");
    reader.send_raw(b"GET /v1/instances/talks/logs?follow=true HTTP/1.1\r\nhost: sexton\r\n\r\n").expect("sent");
    eventually("the log is in flight", SOON, || {
        let shown = node.get("/v1/node");
        if count(&shown, "log_export") == 1 { Ok(()) } else { Err(shown.to_string()) }
    });
    let body = json!({ "status": "draining", "forceStop": true });
    let (status, shown) = order(&mut node, "/v1/nodes/self?wait=20s", body);
    assert_eq!((status, shown["drained"].as_bool()), (200, Some(true)), "{shown}");
    node.clear();
}

#[test]
fn a_drain_waits_for_what_was_admitted_though_no_instance_is_left() {
    let mut node = Node::new(SEXTON, &[]);
    let body = script("talked", "head -c 8000000 /dev/zero | tr '\\0' x");
    node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
    assert_eq!(node.settled("talked")["exit"]["code"], 0);
    let mut reader = Connection::open(&node.ground.run_dir().join("sexton.sock")).expect("connected");
    reader.send_raw(b"GET /v1/instances/talked/logs HTTP/1.1\r\nhost: sexton\r\n\r\n").expect("sent");
    eventually("the log is in flight", SOON, || {
        let shown = node.get("/v1/node");
        if count(&shown, "log_export") == 1 { Ok(()) } else { Err(shown.to_string()) }
    });
    drain(&mut node);
    for _ in 0..100 {
        let shown = node.get("/v1/node");
        assert_eq!((&shown["drained"], count(&shown, "log_export")), (&json!(false), 1), "{shown}");
    }
    drop(reader);
    drained(&mut node);
}

#[test]
fn a_node_is_not_drained_before_that_is_durable() {
    let mut node = Node::new(SEXTON, &[]);
    let (state_dir, elsewhere) = (node.ground.state_dir(), node.ground.dir().join("elsewhere"));
    std::fs::rename(&state_dir, &elsewhere).expect("moved");
    drain(&mut node);
    for _ in 0..100 {
        let shown = node.get("/v1/node");
        assert_eq!((&shown["status"], &shown["drained"]), (&json!("draining"), &json!(false)), "{shown}");
    }
    std::fs::rename(&elsewhere, &state_dir).expect("moved back");
    drained(&mut node);
    node.kill(Dead::Worker, || {});
    assert_eq!(node.get("/v1/node")["drained"], true);
}

fn count(shown: &Value, kind: &str) -> u64 {
    let kinds = shown["operations"].as_array().expect("a list");
    kinds.iter().find(|one| one["kind"] == kind).and_then(|one| one["count"].as_u64()).unwrap_or(0)
}

#[test]
fn a_forced_drain_cancels_builds_too() {
    let mut node = Node::new(SEXTON, &[]);
    for kind in ["sandbox", "build"] {
        let mut body = script(kind, "sleep 1000");
        body["kind"] = kind.into();
        node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
    }
    let (status, _) = order(&mut node, "/v1/nodes/self?wait=20s", json!({ "status": "draining", "forceStop": true }));
    assert_eq!(status, 200);
    for (kind, reason) in [("sandbox", "drained"), ("build", "cancelled")] {
        assert_eq!(text(&node.settled(kind), "reason"), reason);
    }
}

#[test]
fn a_later_order_takes_nothing_back_of_an_earlier_one() {
    let mut node = Node::new(SEXTON, &[]);
    let Some(mut hole) = Unanswering::mount(&node.ground.dir().join("hole")) else {
        sexton_testkit::skip!("no /dev/fuse");
    };
    let mut body = spec("held", &["/bin/cat", &hole.file()]);
    body["kind"] = "build".into();
    node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
    hole.wait_asked(1);
    drain(&mut node);
    for later in [json!({ "force": true }), json!({})] {
        assert_eq!(order(&mut node, "/v1/instances/held/stop", later).0, 202);
    }
    let dump = node.ground.command(&["ledger", "dump"]).output().expect("a dump");
    let rows = String::from_utf8(dump.stdout).expect("text");
    let row = rows.lines().find(|row| row.contains("\"argv\"")).expect("its row");
    // It is what the next worker carries to its end.
    assert!(row.contains("\"force\":true") && row.contains("\"reason\":\"cancelled\""), "{row}");
    hole.release();
    assert_eq!(text(&node.settled("held"), "reason"), "cancelled");
}

#[test]
fn what_becomes_of_a_kind_is_configured_and_what_is_not_named_is_waited_for() {
    let mut node = Node::new(SEXTON, &[]);
    let config = node.ground.dir().join("kinds.toml");
    std::fs::write(&config, "[drain]\nkinds = { job = \"cancel\", sandbox = \"wait\" }\n").expect("written");
    serve_with_config(&mut node, &config);
    for kind in ["job", "sandbox", "build"] {
        let mut body = script(kind, "sleep 1000");
        body["kind"] = kind.into();
        node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
    }
    drain(&mut node);
    assert_eq!(text(&node.settled("job"), "reason"), "cancelled");
    for kind in ["sandbox", "build"] {
        assert_eq!(text(&node.instance(kind), "state"), "running", "{kind}");
    }
    assert_eq!(node.get("/v1/node")["drained"], false);
    node.clear();
    drained(&mut node);
}

fn serve_with_config(node: &mut Node, config: &std::path::Path) {
    node.daemon.take().expect("a daemon").terminate(SOON).expect("ended");
    let config = config.display().to_string();
    node.daemon = Some(node.ground.serve_with(&[("SEXTON_CONFIG", &config)]).expect("the daemon starts"));
}

#[test]
fn a_drain_goes_on_whoever_dies_at_whichever_step() {
    let Some(bin) = crash_bin_dir() else {
        sexton_testkit::skip!("the daemon with crash points is built by `cargo xtask ci`");
    };
    let scratch = std::env::temp_dir().join(format!("sexton-drain-crash-{}", std::process::id()));
    let order_file = scratch.display().to_string();
    network::alone(|| {
        let nothing = network::snapshot();
        let mut node = Node::new(bin.join("sexton"), &[("SEXTON_CRASH_FILE", &order_file)]);
        for point in ["drain.closed", "drain.recorded", "drain.forcing", "drain.empty", "drain.drained"] {
            for who in [Dead::Worker, Dead::Keeper, Dead::Both] {
                goes_on(&mut node, &scratch, (point, who), |node| {
                    let body = json!({ "status": "draining", "timeout": "300ms" });
                    node.ask("POST", "/v1/nodes/self", None, Some(&body));
                });
                assert_eq!(network::snapshot(), nothing, "{point} {who:?}");
            }
        }
        // Nobody has been told to end by then, and there is no deadline: the ledger alone knows that it is by force.
        goes_on(&mut node, &scratch, ("drain.recorded", Dead::Worker), |node| {
            let body = json!({ "status": "draining", "forceStop": true });
            assert!(
                node.ground.client().post("/v1/nodes/self", &body).is_err(),
                "nobody answers, and nobody asks again"
            );
        });
    });
    let _gone = std::fs::remove_file(&scratch);
}

/// Drains a node on which somebody dies at `point`; one of those who are on it has a network slot.
fn goes_on(node: &mut Node, order_file: &std::path::Path, (point, who): (&str, Dead), order: impl FnOnce(&mut Node)) {
    for (name, kind) in [("box", "sandbox"), ("make", "build")] {
        let mut body = script(name, "sleep 1000");
        (body["kind"], body["slot"]) = (kind.into(), (kind == "sandbox").into());
        node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
    }
    let act = if who == Dead::Keeper { "hold" } else { "kill" };
    std::fs::write(order_file, format!("{point} 1 {who:?} {act}")).expect("written");
    match who {
        Dead::Both => node.bind_keeper_to_worker(),
        Dead::Keeper => node.end_keeper_at(order_file.to_owned()),
        Dead::Nobody | Dead::Worker => {}
    }
    order(node);
    let (first, shown) = (node.get("/v1/node")["deadline"].clone(), node.get("/v1/node"));
    assert_eq!(shown["status"], "draining", "{point} {who:?}");
    let entry = node.settled("box");
    assert_eq!(text(&entry, "reason"), "drained", "{point} {who:?}: by force, at the deadline: {entry}");
    assert_eq!(text(&node.settled("make"), "reason"), "cancelled", "{point} {who:?}");
    let shown = eventually("drained", SOON, || {
        node.revive();
        let shown = node.get("/v1/node");
        // A new keeper after `drained` takes work again, which is where the drain led to.
        if shown["drained"] == true || shown["status"] == "healthy" { Ok(shown) } else { Err(shown.to_string()) }
    });
    assert!(!order_file.exists(), "{point} {who:?}: nobody came by");
    assert!(shown["status"] == "healthy" || shown["deadline"] == first, "{point} {who:?}: {first} {shown}");
    assert!(processes_in(&node.ground.cgroup_dir()).is_empty(), "{point} {who:?}");
    assert_eq!(
        events(node, "node.drained").len(),
        events(node, "node.status").iter().filter(|event| event["data"]["status"] == "draining").count(),
        "{point} {who:?}"
    );
    node.unbind();
    node.clear();
    if node.get("/v1/node")["status"] == "draining" {
        serve_again(node);
    }
}

/// Instances beside the one that does not end.
const OTHERS: usize = 99;

#[test]
fn a_forced_drain_ends_all_but_the_one_that_cannot_end_and_names_it() {
    let mut node = Node::new(SEXTON, &[]);
    let Some(mut hole) = Unanswering::mount(&node.ground.dir().join("hole")) else {
        sexton_testkit::skip!("no /dev/fuse");
    };
    node.ask("POST", "/v1/instances", None, Some(&spec("held", &["/bin/cat", &hole.file()]))).0.expect(201);
    hole.wait_asked(1);
    for at in 0..OTHERS {
        let body = spec(&format!("other-{at}"), &["/bin/sleep", "1000"]);
        node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
    }
    assert_eq!(node.get("/v1/node")["inflight"], json!(OTHERS + 1));
    let mut command = node.ground.command(&["drain", "--force", "--wait", "--timeout", "10s"]);
    let cli = std::thread::spawn(move || command.output().expect("the command runs"));
    let began = Instant::now();
    eventually("the others are over", SOON, || {
        let left = node.get("/v1/node")["inflight"].clone();
        if left == json!(1) { Ok(()) } else { Err(left.to_string()) }
    });
    println!("{OTHERS} others were over after {:?}", began.elapsed());
    assert_ne!(node.instance("held")["state"], "stuck", "they wait for nobody");
    let told = cli.join().expect("joined");
    let said = String::from_utf8_lossy(&told.stderr).into_owned();
    assert_eq!(told.status.code(), Some(5), "{said}");
    for part in ["held (", "in state D at", "request_wait_answer"] {
        assert!(said.contains(part), "`{part}`: {said}");
    }
    assert!(!said.contains("other-"), "{said}");
    let shown = node.get("/v1/node");
    let left: Vec<String> = shown["left"].as_array().expect("a list").iter().map(|one| text(one, "name")).collect();
    assert_eq!((left, &shown["drained"]), (vec!["held".to_owned()], &json!(false)));
    hole.release();
    let again = node.ground.command(&["drain", "--force", "--wait"]).output().expect("the command runs");
    assert_eq!(again.status.code(), Some(0), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(node.get("/v1/node")["drained"], true);
    for (name, kinds) in [("held", vec!["stopping", "stuck", "exited"]), ("other-0", vec!["stopping", "exited"])] {
        let all = node.ground.client().list("/v1/events").expect("events");
        let of_its_end = all.iter().filter(|event| event["instance"] == name).map(|event| {
            let by = event["data"]["by"].as_str().map(|by| format!(" by {by}"));
            text(event, "kind") + &by.unwrap_or_default()
        });
        let told: Vec<String> = of_its_end.skip(3).filter(|kind| !kind.starts_with("resource.")).collect();
        let wanted = kinds.iter().map(|kind| format!("instance.{kind}"));
        let wanted: Vec<String> = std::iter::once("api.called by drain".to_owned()).chain(wanted).collect();
        assert_eq!(told, wanted, "{name} is told once to end, however often the drain looks");
    }
    node.clear();
}

#[test]
fn as_many_end_at_once_as_the_node_holds_though_each_can_have_no_further_descriptor() {
    let mut node = Node::new(SEXTON, &[]);
    for at in 0..OTHERS {
        let body = spec(&format!("s-{at}"), &["/bin/sleep", "1000"]);
        node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
    }
    // REGRESSION: each held its cgroup open while it was ended, and none had another to read how that had gone.
    node.limit_descriptors(8);
    let (status, shown) =
        order(&mut node, "/v1/nodes/self?wait=20s", json!({ "status": "draining", "forceStop": true }));
    assert_eq!((status, &shown["drained"]), (200, &json!(true)), "{shown}");
    node.clear();
}

#[test]
fn a_shutdown_that_drains_ends_in_its_time_though_something_does_not_and_says_so() {
    let env = [("SEXTON_ON_SHUTDOWN", "drain"), ("SEXTON_DRAIN_TIMEOUT", "300ms")];
    let mut node = Node::new(SEXTON, &env);
    let Some(mut hole) = Unanswering::mount(&node.ground.dir().join("hole")) else {
        sexton_testkit::skip!("no /dev/fuse");
    };
    for (name, argv) in [("held", ["/bin/cat", hole.file().as_str()]), ("other", ["/bin/sleep", "1000"])] {
        node.ask("POST", "/v1/instances", None, Some(&spec(name, &argv))).0.expect(201);
    }
    hole.wait_asked(1);
    let began = Instant::now();
    node.daemon().keeper().expect("keeper").signal(15).expect("asked");
    let ended = node.daemon().wait_end(SOON);
    let took = began.elapsed();
    println!("a shutdown with something stuck took {took:?}");
    assert_eq!(ended.code(), Some(5), "it is not clean");
    // The deadline, what an end by SIGKILL may take, and the rest on a busy machine.
    assert!(took < Duration::from_millis(300 + 5_000 + 5_000), "{took:?}");
    node.daemon = None;
    node.serve();
    assert_eq!(text(&node.settled("other"), "reason"), "drained");
    let held = node.instance("held");
    assert!(["stuck", "stopping"].contains(&text(&held, "state").as_str()), "it is found again: {held}");
    hole.release();
    let over = node.settled("held");
    ended_unwatched(&over, "signal", 9);
    assert!(over["state"] == "lost" || over["reason"] == "drained", "{over}");
    drained(&mut node);
    node.clear();
}
