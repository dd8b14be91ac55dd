//! Faults from outside: processes that do not want to end, one that the kernel does not end, a keeper that is stopped, and
//! places that are not what they were.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

#[path = "support/asking.rs"]
mod asking;
mod support;
#[path = "support/unanswering.rs"]
mod unanswering;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use asking::{create, creates_again, gated, stop};
use serde_json::{Value, json};
use sexton_testkit::{SOON, eventually, pidfds_can_be_mounted, processes_in, refusing, skip};
use support::{Dead, Node, SEXTON, SIGCONT, SIGSTOP, ended_unwatched, file_appears, launcher, spec, text};
use unanswering::Unanswering;

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
fn a_start_that_is_stopped_before_its_program_ran_has_failed() {
    let mut node = Node::new(SEXTON, &[]);
    let freeze = node.ground.cgroup_dir().join("cgroup.freeze");
    // Who is born into a frozen cgroup does not come to its program; SIGKILL ends it there.
    fs::write(&freeze, "1").expect("frozen");
    let asked = {
        let (client, body) = (node.ground.client(), spec("early", &["/bin/sleep", "1000"]));
        std::thread::spawn(move || client.ask("POST", "/v1/instances", &[], Some(&body)).expect("an answer"))
    };
    eventually("it waits to run", SOON, || {
        let entry = node.ask("GET", "/v1/instances/early", None, None).0.json();
        if entry["state"] == "starting" && entry["identity"]["pid"].is_u64() { Ok(()) } else { Err(entry.to_string()) }
    });
    // REGRESSION: it had exited by SIGKILL, which was the end of a child that ran nothing.
    let over = stop(&mut node, "early", &json!({ "force": true }));
    assert_eq!((&over["state"], &over["exit"]), (&json!("failed"), &Value::Null), "{over}");
    assert!(text(&over, "reason").contains("before its program ran"), "{over}");
    assert_eq!(over["resources"], json!([]), "{over}");
    let refusal = asked.join().expect("answered").expect(409);
    assert_eq!(refusal["code"], "wrong_state", "{refusal}");
    fs::write(&freeze, "0").expect("thawed");
    let told = node.get("/v1/events?after=0&limit=1000")["items"].to_string();
    assert!(told.contains("instance.failed") && !told.contains("instance.exited"), "{told}");
    node.ask("POST", "/v1/instances/early/start?wait=10s", None, None).0.expect(200);
    stop(&mut node, "early", &json!({ "force": true }));
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
fn a_daemon_whose_worker_is_stopped_ends_when_it_is_told_to() {
    let mut node = Node::new(SEXTON, &[]);
    create(&mut node, &spec("stays", &["/bin/sleep", "1000"]));
    node.daemon().worker().expect("worker").signal(SIGSTOP).expect("stopped");
    let daemon = node.daemon.take().expect("it serves");
    // REGRESSION: nobody heard the first TERM.
    daemon.terminate(SOON).expect("ended");
    node.serve();
    assert_eq!(node.instance("stays")["state"], "running");
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
