//! Faults from outside: a full disk, places that cannot be written, processes that do not want to end, and one that
//! the kernel does not end.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/failing.rs"]
mod failing;
mod support;
#[path = "support/unanswering.rs"]
mod unanswering;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use disk::{SmallDisk, exhaust};
use failing::Failing;
use serde_json::{Value, json};
use sexton_testkit::{Connection, Ground, SOON, eventually, pidfds_can_be_mounted, processes_in, refusing, skip};
use support::{Dead, Node, SEXTON, SIGCONT, SIGSTOP, ended_unwatched, file_appears, launcher, script, spec, text};
use unanswering::Unanswering;

fn create(node: &mut Node, body: &Value) -> Value {
    node.ask("POST", "/v1/instances", None, Some(body)).0.expect(201)
}

fn stop(node: &mut Node, name: &str, order: &Value) -> Value {
    node.ask("POST", &format!("/v1/instances/{name}/stop?wait=20s"), None, Some(order)).0.expect(200)
}

/// Everything below the daemon's directories and cgroup that a start could have made.
fn things(ground: &Ground) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![ground.state_dir().join("logs"), ground.run_dir(), ground.cgroup_dir()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

/// A create is refused within the time of the contract, and nothing of it is there.
fn refuses_to_create(node: &mut Node, name: &str) {
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
fn creates_again(node: &mut Node, name: &str) {
    eventually("creates are taken again", SOON, || {
        let (answer, _) = node.ask("POST", "/v1/instances", None, Some(&spec(name, &["/bin/true"])));
        if answer.status == 201 { Ok(()) } else { Err(answer.text()) }
    });
}

/// Ends with `code` as soon as its gate is there.
fn gated(node: &Node, name: &str, code: u8) -> (Value, PathBuf) {
    let gate = node.ground.dir().join(format!("{name}.gate"));
    (script(name, &format!("until [ -e {} ]; do sleep 0.01; done; exit {code}", gate.display())), gate)
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
fn whatever_a_workload_does_it_ends_when_it_is_stopped() {
    let mut node = Node::new(SEXTON, &[]);
    let leaderless = support::leaderless(node.ground.dir());
    let cgroup = "C=$(dirname $(dirname $(dirname $R)))/$(sed -n 's/^0:://p' /proc/self/cgroup)";
    let nested = format!(
        "{cgroup}; mkdir -p $C/a/b $C/t; echo threaded > $C/t/cgroup.type; sleep 1000 & echo $! > $C/a/b/cgroup.procs; \
         sleep 1000 & echo $! > $C/a/cgroup.procs; echo 1 > $C/a/b/cgroup.freeze; touch $READY; wait"
    );
    // Those that `cgroup.kill` leaves out: the main thread has ended, and is in another cgroup than what lists it.
    let hidden = format!("export GATE=$READY.gate; sh -c \"trap '' TERM; exec {leaderless}\" &");
    let threaded = format!(
        "{cgroup}; mkdir $C/t; echo threaded > $C/t/cgroup.type; {hidden} echo $! > $C/t/cgroup.threads; \
         touch $GATE; wait"
    );
    let moved = format!(
        "{cgroup}; mkdir $C/x $C/y; SEEN=$READY; READY=$READY.left; {hidden} echo $! > $C/x/cgroup.procs; touch $GATE; \
         until [ -e $READY ]; do sleep 0.01; done; echo $! > $C/y/cgroup.procs; rmdir $C/x && touch $SEEN; wait"
    );
    let cases: [(&str, Vec<&str>); 9] = [
        ("ignores", vec!["/bin/sh", "-c", "trap '' TERM HUP INT QUIT; touch $READY; while :; do sleep 1; done"]),
        ("stopped", vec!["/bin/sh", "-c", "trap '' TERM; touch $READY; kill -STOP $$; while :; do sleep 1; done"]),
        ("leaderless", vec![&leaderless]),
        (
            "bomb",
            vec![
                "/bin/bash",
                "-c",
                "touch $READY; trap '' TERM; f() { f 2>/dev/null | f 2>/dev/null & }; f; while :; do f 2>/dev/null; done",
            ],
        ),
        ("nested", vec!["/bin/sh", "-c", &nested]),
        ("threaded", vec!["/bin/sh", "-c", &threaded]),
        ("moved", vec!["/bin/sh", "-c", &moved]),
        ("frozen", vec!["/bin/sh", "-c", "touch $READY; while :; do sleep 1; done"]),
        (
            "traced",
            vec!["/bin/sh", "-c", "touch $READY; exec strace -f -o /dev/null sh -c 'while :; do sleep 1; done'"],
        ),
    ];
    for (name, argv) in &cases {
        let ready = node.ground.dir().join(format!("{name}.ready"));
        let mut body = spec(name, argv);
        body["grace"] = json!("200ms");
        body["env"] = json!({ "READY": ready, "R": node.ground.cgroup_dir().join("x/y"), "PATH": "/usr/bin:/bin" });
        if *name == "bomb" {
            body["limits"] = json!({ "pids": 150 });
        }
        let entry = create(&mut node, &body);
        file_appears(&ready);
        let dir = node.ground.cgroup_at(&text(&entry["cgroup"], "path"));
        if *name == "frozen" {
            fs::write(dir.join("cgroup.freeze"), "1").expect("frozen");
        }
        let began = Instant::now();
        let over = stop(&mut node, name, &json!({}));
        assert_eq!((&over["state"], &over["resources"]), (&json!("exited"), &json!([])), "{name}: {over}");
        assert!(began.elapsed() < Duration::from_secs(5), "{name}: {:?}", began.elapsed());
        assert!(!dir.exists() && processes_in(&dir).is_empty(), "{name}");
        assert!(over["exit"]["code"].is_u64() || over["exit"]["signal"].is_u64(), "{name}: {over}");
    }
}

#[test]
fn who_is_left_in_a_threaded_cgroup_is_asked_too() {
    let mut node = Node::new(SEXTON, &[]);
    let ready = node.ground.dir().join("ready");
    let left = "trap 'touch $READY.asked; exit' TERM; touch $READY; while :; do sleep 0.02; done";
    let main = format!(
        "C=$R/$(sed -n 's/^0:://p' /proc/self/cgroup); mkdir $C/t; echo threaded > $C/t/cgroup.type; \
         sh -c \"{left}\" & echo $! > $C/t/cgroup.threads; wait"
    );
    let mut body = spec("threaded", &["/bin/sh", "-c", &main]);
    body["grace"] = json!("1m");
    body["env"] = json!({ "READY": ready, "R": node.ground.cgroup_at("/"), "PATH": "/usr/bin:/bin" });
    create(&mut node, &body);
    file_appears(&ready);
    let over = stop(&mut node, "threaded", &json!({}));
    assert_eq!(over["state"], "exited", "{over}");
    assert!(ready.with_extension("asked").exists(), "{over}");
}

/// Whether SIGKILL waits for a process to come back from the kernel.
fn is_killed(pid: &Value) -> Result<(), String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let mut pending = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")));
    let is_killed = |set: &str| u64::from_str_radix(set.trim(), 16).expect("a set") & 1 << 8 != 0;
    if pending.any(is_killed) { Ok(()) } else { Err(status.clone()) }
}

#[test]
fn what_the_kernel_does_not_end_is_stuck_and_nobody_waits_for_it() {
    let mut node = Node::new(SEXTON, &[]);
    let Some(mut hole) = Unanswering::mount(&node.ground.dir().join("hole")) else { skip!("no /dev/fuse") };
    let entry = create(&mut node, &spec("stuck", &["/bin/cat", &hole.file()]));
    hole.wait_asked(1);
    for name in ["a", "b", "c"] {
        create(&mut node, &spec(name, &["/bin/sleep", "1000"]));
    }
    let path = "/v1/instances/stuck/stop";
    let (answer, _) = node.ask("POST", path, None, Some(&json!({ "force": true })));
    answer.expect(202);
    eventually("SIGKILL is delivered", SOON, || is_killed(&entry["identity"]["pid"]));
    let began = Instant::now();
    // While it is waited for, nobody else waits.
    stop(&mut node, "a", &json!({}));
    create(&mut node, &spec("d", &["/bin/true"]));
    assert_ne!(node.instance("stuck")["state"], "stuck", "they were done before it was given up");
    let told = eventually("it is called stuck", SOON, || {
        let entry = node.instance("stuck");
        if entry["state"] == "stuck" { Ok(entry) } else { Err(entry.to_string()) }
    });
    assert!(began.elapsed() < Duration::from_millis(5_500), "{:?}", began.elapsed());
    let one = &told["stuck"][0];
    assert_eq!((&one["pid"], &one["state"]), (&entry["identity"]["pid"], &json!("D")), "{told}");
    assert!(one["wchan"].as_str().is_some_and(|wchan| wchan.contains("request_wait_answer")), "{told}");
    // Its name and its cgroup stay withheld, whoever dies.
    let again = node.ask("POST", "/v1/instances", None, Some(&spec("stuck", &["/bin/true"]))).0;
    again.expect(409);
    node.kill(Dead::Both, || {});
    stop(&mut node, "b", &json!({}));
    let still = node.instance("stuck");
    assert!(["stuck", "stopping"].contains(&text(&still, "state").as_str()), "{still}");
    assert_eq!(still["identity"], entry["identity"], "{still}");
    hole.release();
    let over = node.settled("stuck");
    ended_unwatched(&over, "signal", 9);
    assert_eq!(over["stuck"], Value::Null, "{over}");
}

#[test]
fn a_start_that_hangs_in_execve_hears_a_stop() {
    let mut node = Node::new(SEXTON, &[]);
    let Some(mut hole) = Unanswering::mount(&node.ground.dir().join("hole")) else { skip!("no /dev/fuse") };
    let (client, body) = (node.ground.client(), spec("hangs", &[&hole.file()]));
    let caller = std::thread::spawn(move || client.post("/v1/instances", &body).expect("an answer"));
    hole.wait_asked(1);
    assert_eq!(node.instance("hangs")["state"], "starting");
    node.ask("POST", "/v1/instances/hangs/stop", None, Some(&json!({ "force": true }))).0.expect(202);
    // Whoever waited for the start is told, though its process cannot be ended yet.
    let answer = caller.join().expect("answered");
    assert!(answer.status >= 400, "{}", answer.text());
    eventually("it is called stuck", SOON, || {
        let entry = node.instance("hangs");
        if entry["state"] == "stuck" { Ok(()) } else { Err(entry.to_string()) }
    });
    hole.release();
    let over = node.settled("hangs");
    assert!(["exited", "failed"].contains(&text(&over, "state").as_str()), "{over}");
    assert_ne!(over["exit"]["code"], 0, "{over}");
}

#[test]
fn what_is_taken_from_the_daemon_is_nobodys_bad_request_and_ends_no_restarts() {
    let mut node = Node::new(SEXTON, &[]);
    let mut again = script("again", "sleep 0.1; exit 3");
    again["restart"] = json!("always");
    create(&mut node, &again);
    fs::remove_dir_all(node.ground.run_dir().join("starts")).expect("removed");
    create(&mut node, &spec("made", &["/bin/true"]));
    let (logs, aside) = (node.ground.state_dir().join("logs"), node.ground.state_dir().join("aside"));
    fs::rename(&logs, &aside).expect("moved");
    fs::write(&logs, "").expect("written");
    let body = spec("one", &["/bin/true"]);
    let first = node.ask("POST", "/v1/instances", Some("key"), Some(&body)).0.expect(500);
    assert_eq!(first["code"], "internal", "{first}");
    assert_eq!(node.ask("POST", "/v1/instances", Some("key"), Some(&body)).0.expect(500), first);
    restarts_go_on(&mut node, || {
        fs::remove_file(&logs).expect("removed");
        fs::rename(&aside, &logs).expect("moved back");
    });
    node.ask("POST", "/v1/instances/one/start?wait=10s", None, None).0.expect(200);
}

#[test]
fn a_keyed_start_that_a_stop_overtakes_has_one_answer_for_ever() {
    let mut node = Node::new(SEXTON, &[]);
    let Some(mut hole) = Unanswering::mount(&node.ground.dir().join("hole")) else { skip!("no /dev/fuse") };
    let body = spec("hangs", &[&hole.file()]);
    let ask = || {
        let (client, body) = (node.ground.client(), body.clone());
        let headers = [("idempotency-key", "once")];
        std::thread::spawn(move || client.ask("POST", "/v1/instances", &headers, Some(&body)).expect("an answer"))
    };
    let (first, second) = (ask(), ask());
    hole.wait_asked(1);
    node.ask("POST", "/v1/instances/hangs/stop", None, Some(&json!({ "force": true }))).0.expect(202);
    let refusal = first.join().expect("answered").expect(409);
    assert_eq!(refusal["code"], "wrong_state", "{refusal}");
    assert_eq!(second.join().expect("answered").expect(409), refusal, "asked while the first was under way");
    let again = |node: &mut Node, when: &str| {
        let answer = node.ask("POST", "/v1/instances", Some("once"), Some(&body)).0.expect(409);
        assert_eq!(answer, refusal, "{when}");
    };
    again(&mut node, "while it stops");
    node.kill(Dead::Worker, || {});
    again(&mut node, "after the worker has died");
    hole.release();
    node.settled("hangs");
    again(&mut node, "when it is over");
    node.ask("DELETE", "/v1/instances/hangs?wait=10s", None, None).0.expect(200);
    again(&mut node, "when it is gone");
    assert!(node.instances().is_empty());
}

#[test]
fn a_start_without_descriptors_is_refused_and_leaves_nothing() {
    let mut node = Node::new(SEXTON, &[]);
    create(&mut node, &spec("over", &["/bin/true"]));
    node.settled("over");
    let events = node.get("/v1/events?after=0&limit=1000");
    // Enough to be asked, not enough to start anything.
    node.limit_descriptors(8);
    for (path, body) in [("/v1/instances", Some(spec("one", &["/bin/true"]))), ("/v1/instances/over/start", None)] {
        let refused = node.ask("POST", path, None, body.as_ref()).0;
        assert_eq!(refused.expect(503)["code"], "node_full", "{path}");
        assert!(refused.header("retry-after").is_some());
    }
    node.ask("GET", "/v1/instances/one", None, None).0.expect(404);
    assert_eq!(node.instance("over")["state"], "exited");
    assert_eq!(node.get("/v1/events?after=0&limit=1000"), events, "what was refused is no event");
    node.limit_descriptors(4_096);
    create(&mut node, &spec("one", &["/bin/true"]));
}

#[test]
fn a_quarter_of_a_low_limit_of_descriptors_is_kept_from_instances() {
    let mut node = Node::new(SEXTON, &[]);
    let worker = node.daemon().worker_pid().expect("a worker").to_string();
    let set = Command::new("prlimit").args(["--pid", &worker, "--nofile=160:"]).status();
    assert!(set.expect("prlimit").success());
    let full = (0..160).find_map(|at| {
        let (answer, _) =
            node.ask("POST", "/v1/instances", None, Some(&spec(&format!("s-{at}"), &["/bin/sleep", "1000"])));
        (answer.status != 201).then(|| (at, answer.expect(503)))
    });
    let (held, refusal) = full.expect("it was full once");
    assert_eq!((held, &refusal["code"]), (160 - 160 / 4, &json!("node_full")), "{refusal}");
    node.limit_descriptors(4_096);
    create(&mut node, &spec("later", &["/bin/true"]));
    node.clear();
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
fn a_limit_on_the_size_of_files_ends_no_worker() {
    let mut node = Node::new(SEXTON, &[]);
    create(&mut node, &spec("stays", &["/bin/sleep", "1000"]));
    let worker = node.daemon().worker_pid().expect("a worker");
    let limit = |size: &str| {
        let set = Command::new("prlimit").args(["--pid", &worker.to_string(), &format!("--fsize={size}:")]).status();
        assert!(set.expect("prlimit").success());
    };
    limit("1");
    refuses_to_create(&mut node, "new");
    assert_eq!(stop(&mut node, "stays", &json!({}))["exit"]["signal"], 15);
    limit("unlimited");
    creates_again(&mut node, "later");
    assert_eq!(node.daemon().worker_pid().expect("a worker"), worker);
}

#[test]
fn a_log_that_has_come_to_the_limit_on_the_size_of_files_keeps_no_worker_from_its_work() {
    const LIMIT: u64 = 4 << 20;
    let limited = launcher("sexton-limited", &format!("exec prlimit --fsize={LIMIT} -- '{SEXTON}' \"$@\""));
    // REGRESSION: each worker was killed by its first line, for ever.
    let mut node = Node::on(limited, |ground| {
        let log = std::fs::File::create(ground.dir().join("daemon.log")).expect("a log");
        log.set_len(LIMIT).expect("as long as it may be");
    });
    create(&mut node, &script("runs", "sleep 1000"));
    node.kill(Dead::Worker, || {});
    assert_eq!(node.instance("runs")["state"], "running");
}

#[test]
fn a_host_without_room_for_another_thread_ends_no_worker() {
    let pids = PathBuf::from("/sys/fs/cgroup/pids");
    if !pids.join("cgroup.procs").exists() {
        skip!("no v1 hierarchy of `pids`");
    }
    let mut node = Node::new(SEXTON, &[]);
    create(&mut node, &spec("bomb", &["/bin/sleep", "1000"]));
    let worker = node.daemon().worker_pid().expect("a worker");
    let full = pids.join(node.ground.id()).join("full");
    fs::create_dir_all(&full).expect("a cgroup");
    fs::write(full.join("pids.max"), "1").expect("limited");
    fs::write(full.join("cgroup.procs"), worker.to_string()).expect("moved");
    // Nothing tells that tokio would have ended its idle threads, as it does after 10 s if it is not told otherwise.
    std::thread::sleep(Duration::from_secs(11));
    // REGRESSION: the first that was asked which needs a thread was the end of the worker, and of all that followed it.
    node.ask("POST", "/v1/reconcile", None, None).0.expect(200);
    assert_eq!(node.get("/v1/events?after=0")["items"][0]["seq"], 1);
    assert_eq!(stop(&mut node, "bomb", &json!({}))["exit"]["signal"], 15);
    assert_eq!(node.daemon().worker_pid().expect("a worker"), worker);
    fs::write(pids.join("cgroup.procs"), worker.to_string()).expect("moved back");
}

#[test]
fn a_start_that_the_host_has_no_room_for_is_no_bad_request_and_ends_no_restarts() {
    let mut node = Node::new(SEXTON, &[]);
    let most = node.ground.cgroup_dir().join("cgroup.max.descendants");
    let mut again = script("again", "sleep 0.1; exit 3");
    again["restart"] = json!("always");
    create(&mut node, &again);
    fs::write(&most, "0").expect("limited");
    let body = spec("one", &["/bin/true"]);
    let refused = node.ask("POST", "/v1/instances", Some("key"), Some(&body)).0;
    assert!(refused.header("retry-after").is_some());
    let first = refused.expect(503);
    assert_eq!(first["code"], "node_full", "{first}");
    assert_eq!(node.ask("POST", "/v1/instances", Some("key"), Some(&body)).0.expect(503)["code"], "node_full");
    restarts_go_on(&mut node, || fs::write(&most, "max").expect("unlimited"));
    node.ask("POST", "/v1/instances", Some("key"), Some(&body)).0.expect(201);
}

/// The kinds of all events about `name`, in their order.
fn told_of(node: &Node, name: &str) -> Vec<String> {
    let all = node.ground.client().list("/v1/events").expect("events");
    all.iter().filter(|event| event["instance"] == name).map(|event| text(event, "kind")).collect()
}

#[test]
fn a_create_that_the_host_has_no_room_for_can_be_asked_for_again() {
    let mut disk = None;
    let mut node = Node::on(SEXTON, |ground| disk = Some(SmallDisk::mount(ground)));
    let disk = disk.expect("a disk");
    create(&mut node, &spec("old", &["/bin/true"]));
    node.settled("old");
    disk.use_up_inodes();
    let before = things(&node.ground);
    let (body, keyed) = (spec("new", &["/bin/sleep", "1000"]), spec("keyed", &["/bin/sleep", "1000"]));
    for (name, key, body) in [("new", None, &body), ("keyed", Some("key"), &keyed), ("keyed", Some("key"), &keyed)] {
        let refused = node.ask("POST", "/v1/instances", key, Some(body)).0;
        assert!(refused.header("retry-after").is_some(), "{}", refused.text());
        assert_eq!(refused.expect(503)["code"], "node_full", "{}", refused.text());
        // REGRESSION: it was listed as `failed`, and whoever asked again as told was refused, for the name was in use.
        node.ask("GET", &format!("/v1/instances/{name}"), None, None).0.expect(404);
        assert_eq!(things(&node.ground), before);
    }
    let mut told = told_of(&node, "new");
    told.retain(|kind| kind != "resource.released");
    assert_eq!(told, ["api.called", "instance.starting", "instance.failed", "instance.removed"]);
    // What has been there before stays.
    node.ask("POST", "/v1/instances/old/start", None, None).0.expect(503);
    assert_eq!(node.instance("old")["state"], "failed");
    disk.give_back_inodes();
    create(&mut node, &body);
    let first = node.ask("POST", "/v1/instances", Some("key"), Some(&keyed)).0.expect(201);
    let again = node.ask("POST", "/v1/instances", Some("key"), Some(&keyed)).0.expect(201);
    assert_eq!(again["identity"], first["identity"], "one process");
    let other = node.ask("POST", "/v1/instances", Some("key"), Some(&body)).0.expect(409);
    assert_eq!(other["code"], "idempotency_key_reused", "{other}");
    node.ask("POST", "/v1/instances/old/start", None, None).0.expect(200);
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
        assert_eq!(node.settled("slow")["exit"]["signal"], 9);
        for name in ["gone", "over"] {
            eventually("it is off the list", SOON, || {
                match node.ask("GET", &format!("/v1/instances/{name}"), None, None).0.status {
                    404 => Ok(()),
                    other => Err(other.to_string()),
                }
            });
        }
        eventually("no note is left", SOON, || {
            let notes = fs::read_dir(node.ground.run_dir().join("orders")).map_or(0, Iterator::count);
            if notes == 0 { Ok(()) } else { Err(notes.to_string()) }
        });
        node.clear();
    }
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

#[test]
fn a_pipe_in_the_place_of_a_file_keeps_no_daemon_waiting() {
    // REGRESSION: worker or keeper waited for ever for somebody who writes to it.
    for name in ["exits", "pins"] {
        let mut node = Node::on(SEXTON, |ground| {
            fs::create_dir(ground.run_dir()).expect("made");
            assert!(Command::new("mkfifo").arg(ground.run_dir().join(name)).status().expect("mkfifo").success());
        });
        let (body, gate) = gated(&node, "ends", 7);
        create(&mut node, &body);
        node.kill(Dead::Worker, || fs::write(gate, "").expect("gate opened"));
        assert_eq!(node.settled("ends")["exit"]["code"], 7, "{name}");
    }
}

#[test]
fn what_was_seen_to_run_ends_though_no_mark_can_be_read() {
    let mut node = Node::new(SEXTON, &[]);
    create(&mut node, &spec("runs", &["/bin/sleep", "1000"]));
    let marks = node.ground.run_dir().join("starts");
    eventually("its mark is gone", SOON, || fs::remove_dir(&marks).map_err(|error| error.to_string()));
    fs::write(&marks, "").expect("written");
    // REGRESSION: it was `stopping` for as long as a file was there.
    assert_eq!(stop(&mut node, "runs", &json!({}))["exit"]["signal"], 15);
    node.ask("POST", "/v1/instances", None, Some(&spec("new", &["/bin/true"]))).0.expect(500);
    node.ask("DELETE", "/v1/instances/new?wait=10s", None, None).0.expect(200);
    fs::remove_file(&marks).expect("removed");
    creates_again(&mut node, "later");
}

/// `again`, which ends with 3 and is always restarted, fails until what is lacking has been made good by `mend`, and goes
/// on then.
fn restarts_go_on(node: &mut Node, mend: impl FnOnce()) {
    eventually("a restart fails", SOON, || {
        let again = node.instance("again");
        if again["state"] == "failed" { Ok(()) } else { Err(again.to_string()) }
    });
    let failed = node.instance("again")["incarnation"].clone();
    mend();
    eventually("it is restarted", SOON, || {
        let again = node.instance("again");
        if again["incarnation"] != failed && again["exit"]["code"] == 3 { Ok(()) } else { Err(again.to_string()) }
    });
}

#[test]
fn a_user_with_too_many_processes_is_a_lack_too_though_execve_finds_it() {
    let mut node = Node::new(SEXTON, &[]);
    // Somebody who has no other process on this host.
    let of_user = |name: &str, text: &str, restart: &str| {
        let mut body = script(name, text);
        (body["user"], body["restart"]) = (json!("3141592"), json!(restart));
        body
    };
    create(&mut node, &of_user("holds", "exec sleep 1000", "never"));
    create(&mut node, &of_user("again", "exit 3", "always"));
    let worker = node.daemon().worker_pid().expect("a worker").to_string();
    let limit = |most: &str| {
        let set = Command::new("prlimit").args(["--pid", &worker, &format!("--nproc={most}:")]).status();
        assert!(set.expect("prlimit").success());
    };
    limit("0");
    eventually("a restart is refused", SOON, || {
        let again = node.instance("again");
        if again["state"] == "failed" { Ok(()) } else { Err(again.to_string()) }
    });
    // REGRESSION: it was the fault of what was asked, 400, and the end of its restarts.
    let refused = node.ask("POST", "/v1/instances", None, Some(&of_user("one", "exit 0", "never"))).0.expect(503);
    assert_eq!(refused["code"], "node_full", "{refused}");
    limit("1000");
    eventually("it is restarted", SOON, || {
        let again = node.instance("again");
        if again["state"] == "exited" && again["exit"]["code"] == 3 { Ok(()) } else { Err(again.to_string()) }
    });
}

/// Creates short lives until one is refused, or there have been more than any socket holds.
fn crowd(node: &mut Node) -> (usize, sexton_testkit::Response) {
    let mut count = 0;
    loop {
        let answer = node.ask("POST", "/v1/instances", None, Some(&spec(&format!("short-{count}"), &["/bin/true"]))).0;
        if answer.status != 201 || count == 600 {
            return (count, answer);
        }
        count += 1;
    }
}

#[test]
fn a_keeper_that_is_stopped_keeps_nobody_waiting() {
    if !pidfds_can_be_mounted() {
        skip!("no pidfd can be mounted: without a pin a start waits for the keeper");
    }
    let mut node = Node::new(SEXTON, &[]);
    create(&mut node, &spec("long", &["/bin/sleep", "1000"]));
    let keeper = node.daemon().keeper().expect("a keeper");
    keeper.signal(SIGSTOP).expect("stopped");
    // REGRESSION: after some 140 of them its socket was full, and every create, end and removal waited for it.
    let (count, last) = crowd(&mut node);
    assert_eq!((count, last.status), (600, 201), "{}", last.text());
    let (late, gate) = gated(&node, "late", 7);
    create(&mut node, &late);
    assert_eq!(stop(&mut node, "long", &json!({}))["exit"]["signal"], 15);
    node.ask("DELETE", "/v1/instances/long?wait=10s", None, None).0.expect(200);
    keeper.signal(SIGCONT).expect("continued");
    node.kill(Dead::Worker, || fs::write(gate, "").expect("gate opened"));
    assert_eq!(node.settled("late")["exit"]["code"], 7);
}

#[test]
fn a_keeper_that_is_stopped_is_told_by_healthz() {
    let mut node = Node::new(SEXTON, &[]);
    let keeper = node.daemon().keeper().expect("a keeper");
    let status = |node: &Node| node.ground.client().get("/healthz").expect("an answer");
    assert_eq!(status(&node).status, 200);
    keeper.signal(SIGSTOP).expect("stopped");
    // REGRESSION: nothing told that nobody reaped.
    let told = status(&node);
    assert!(told.status == 503 && told.text().contains("keeper"), "{} {}", told.status, told.text());
    keeper.signal(SIGCONT).expect("continued");
    assert_eq!(status(&node).status, 200);
}

/// A node on which nobody reaps but who holds the process.
fn without_sweep() -> Node {
    Node::on(SEXTON, |ground| fs::write(ground.config(), "[sweep]\nenabled = false\n").expect("configured"))
}

fn is_reaped(pid: &Value) {
    eventually("it is reaped", SOON, || {
        if PathBuf::from(format!("/proc/{pid}")).exists() { Err(format!("{pid} is there")) } else { Ok(()) }
    });
}

#[test]
fn what_a_stopped_keeper_has_not_heard_of_is_reaped_by_it_all_the_same() {
    if !pidfds_can_be_mounted() {
        skip!("no pidfd can be mounted: without a pin a start waits for the keeper");
    }
    let mut node = without_sweep();
    node.daemon().keeper().expect("a keeper").signal(SIGSTOP).expect("stopped");
    crowd(&mut node);
    let (body, gate) = gated(&node, "unheard", 7);
    let pid = create(&mut node, &body)["identity"]["pid"].clone();
    node.kill(Dead::Worker, || {});
    fs::write(gate, "").expect("gate opened");
    assert_eq!(node.settled("unheard")["exit"]["code"], 7);
    // REGRESSION: who was started in the meantime was nobody's, and a zombie for as long as the keeper lived.
    is_reaped(&pid);
}

#[test]
fn what_the_keeper_cannot_record_is_reaped_once_the_ledger_has_it() {
    let mut node = without_sweep();
    let (body, gate) = gated(&node, "ends", 7);
    let pid = create(&mut node, &body)["identity"]["pid"].clone();
    // From now on it is the keeper's child.
    node.kill(Dead::Worker, || {});
    fs::create_dir(node.ground.run_dir().join("exits.new")).expect("in the way of its file");
    fs::write(gate, "").expect("gate opened");
    assert_eq!(node.settled("ends")["exit"]["code"], 7);
    // REGRESSION: it was let go, and a zombie for as long as the keeper lived.
    is_reaped(&pid);
}

#[test]
fn what_a_stopped_keeper_alone_would_know_the_end_of_is_not_started() {
    // Without pins.
    let program = launcher("sexton-without-pins", &format!("{} '{SEXTON}' \"$@\"", refusing(&["mount EPERM"])));
    let mut node = Node::new(program, &[]);
    let keeper = node.daemon().keeper().expect("a keeper");
    keeper.signal(SIGSTOP).expect("stopped");
    let began = Instant::now();
    let (count, refused) = crowd(&mut node);
    assert_eq!(refused.expect(503)["code"], "not_ready", "{}", refused.text());
    assert!(refused.header("retry-after").is_some() && count > 0 && began.elapsed() < SOON, "{count}");
    node.ask("GET", &format!("/v1/instances/short-{count}"), None, None).0.expect(404);
    keeper.signal(SIGCONT).expect("continued");
    let (late, gate) = gated(&node, "late", 7);
    create(&mut node, &late);
    node.kill(Dead::Worker, || fs::write(gate, "").expect("gate opened"));
    assert_eq!(node.settled("late")["exit"]["code"], 7);
}

#[test]
fn a_start_that_can_make_no_mark_is_answered_though_none_can_be_read() {
    let mut node = Node::new(SEXTON, &[]);
    let marks = node.ground.run_dir().join("starts");
    fs::remove_dir(&marks).expect("empty");
    fs::write(&marks, "").expect("in its place");
    // REGRESSION: its rollback asked for the mark, too, and waited until that could be read.
    let (refused, _) = node.ask("POST", "/v1/instances", None, Some(&spec("marked", &["/bin/true"])));
    assert_eq!(refused.status, 500, "{}", refused.text());
    fs::remove_file(&marks).expect("removed");
    create(&mut node, &spec("later", &["/bin/true"]));
}
