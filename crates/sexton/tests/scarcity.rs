//! The host, or a limit, has no room for what is asked: that is told as it is, leaves nothing, and ends neither a worker nor
//! a restart policy.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

#[path = "support/asking.rs"]
mod asking;
#[path = "support/disk.rs"]
mod disk;
mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use asking::{create, creates_again, refuses_to_create, stop, things, told_of};
use disk::SmallDisk;
use serde_json::json;
use sexton_testkit::{SOON, eventually, skip};
use support::{Dead, Node, SEXTON, launcher, script, spec};

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
