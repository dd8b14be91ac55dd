//! Programs that users really run: a QEMU guest, a shell tree that does everything to get away, Node with children.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

#[path = "support/monitor.rs"]
mod monitor;
mod support;

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use monitor::Monitor;
use serde_json::{Value, json};
use sexton_testkit::{Held, SOON, eventually, processes_in, skip};
use support::{Dead, Node, SEXTON, file_appears, script, spec, text};

const QEMU: &str = "qemu-system-x86_64";

/// A guest whose CPUs have not been started: a real machine, at the price of its memory alone.
fn guest(node: &Node, name: &str) -> (Value, PathBuf) {
    let socket = node.ground.dir().join(format!("{name}.qmp"));
    let qmp = format!("unix:{},server=on,wait=off", socket.display());
    let argv = [QEMU, "-accel", "tcg", "-m", "64", "-S", "-nodefaults", "-display", "none", "-qmp", &qmp];
    (spec(name, &argv), socket)
}

fn has_qemu() -> bool {
    sexton_testkit::skip::has_program(QEMU)
}

#[test]
fn a_guest_outlives_the_daemon_and_its_monitor_answers_afterwards() {
    if !has_qemu() {
        skip!(package "qemu-system-x86");
    }
    let mut node = Node::new(SEXTON, &[]);
    let (body, socket) = guest(&node, "vm");
    let before = node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
    assert_eq!(Monitor::open(&socket).ask("query-status")["status"], "prelaunch");
    for who in [Dead::Worker, Dead::Keeper, Dead::Both] {
        node.kill(who, || {
            // Whoever is dead, the guest is not disturbed.
            assert_eq!(Monitor::open(&socket).ask("query-status")["status"], "prelaunch", "{who:?}");
        });
        let after = node.instance("vm");
        let same = ["identity", "incarnation", "cgroup", "started_at"];
        for key in same {
            assert_eq!(after[key], before[key], "{who:?}: {key}");
        }
        assert_eq!((&after["state"], &after["adopted"]), (&json!("running"), &json!(true)), "{who:?}");
        assert_eq!(Monitor::open(&socket).ask("query-status")["status"], "prelaunch", "{who:?}");
    }
    let path = "/v1/instances/vm/stop?wait=20s";
    let over = node.ask("POST", path, None, Some(&json!({}))).0.expect(200);
    // It takes SIGTERM for the power button, and ends with the code of a clean end.
    assert_eq!((&over["state"], &over["exit"]["code"]), (&json!("exited"), &json!(0)), "{over}");
    assert!(UnixStream::connect(&socket).is_err(), "nobody listens any more");
}

#[test]
fn a_guest_that_powers_off_while_worker_and_keeper_are_dead_has_its_exit_code() {
    if !has_qemu() {
        skip!(package "qemu-system-x86");
    }
    let mut node = Node::new(SEXTON, &[]);
    for (who, name) in [(Dead::Worker, "a"), (Dead::Keeper, "b"), (Dead::Both, "c")] {
        let (body, socket) = guest(&node, name);
        let entry = node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
        let mut monitor = Monitor::open(&socket);
        let held = in_its_cgroup(&node, &entry);
        node.kill(who, || {
            assert_eq!(monitor.ask("quit"), json!({}));
            held.iter().for_each(Held::wait_end);
        });
        let over = node.settled(name);
        assert_eq!((&over["state"], &over["exit"]["code"]), (&json!("exited"), &json!(0)), "{who:?}: {over}");
    }
}

#[test]
fn a_guest_is_ended_by_force_while_others_go_on() {
    if !has_qemu() {
        skip!(package "qemu-system-x86");
    }
    let mut node = Node::new(SEXTON, &[]);
    let (one, _) = guest(&node, "one");
    let (other, socket) = guest(&node, "other");
    for body in [&one, &other] {
        node.ask("POST", "/v1/instances", None, Some(body)).0.expect(201);
    }
    let stop = json!({ "force": true });
    let over = node.ask("POST", "/v1/instances/one/stop?wait=20s", None, Some(&stop)).0.expect(200);
    assert_eq!((&over["state"], &over["exit"]["signal"]), (&json!("exited"), &json!(9)), "{over}");
    assert_eq!(Monitor::open(&socket).ask("query-status")["status"], "prelaunch");
}

/// Holds on every process in an instance's cgroup, each proven to be there.
fn in_its_cgroup(node: &Node, entry: &Value) -> Vec<Held> {
    let dir = node.ground.cgroup_at(entry["cgroup"]["path"].as_str().expect("a cgroup"));
    let ino = std::fs::metadata(&dir).expect("its cgroup").ino();
    processes_in(&dir).into_iter().filter_map(|pid| Held::in_cgroup(ino, pid).ok()).collect()
}

/// Waits until that many processes are in an instance's cgroup.
fn tree_of(node: &Node, entry: &Value, count: usize) -> Vec<Held> {
    eventually("the tree has grown", SOON, || {
        let held = in_its_cgroup(node, entry);
        if held.len() >= count { Ok(held) } else { Err(format!("{} of {count}", held.len())) }
    })
}

#[test]
fn a_shell_tree_with_double_forks_and_new_sessions_ends_whole() {
    let mut node = Node::new(SEXTON, &[]);
    // Branches: a child; one of another session; one forked twice; one that ignores what can be ignored; one behind
    // a pipe; one that has changed its name to the daemon's own.
    let tree = "sleep 1001 & \
        setsid sleep 1002 & \
        (setsid sh -c 'sleep 1003 & exec sleep 1004' &) ; \
        (setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep 1005; done' &) ; \
        (sleep 1006 | cat &) ; \
        (exec -a sexton sleep 1007 &) ; \
        wait";
    for (name, who) in [("calm", Dead::Nobody), ("worker", Dead::Worker), ("both", Dead::Both)] {
        let mut body = spec(name, &["/bin/bash", "-c", tree]);
        body["grace"] = json!("100ms");
        let entry = node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
        let held = tree_of(&node, &entry, 10);
        node.kill(who, || {});
        let path = format!("/v1/instances/{name}/stop?wait=20s");
        let over = node.ask("POST", &path, None, Some(&json!({}))).0.expect(200);
        assert_eq!((&over["state"], &over["resources"]), (&json!("exited"), &json!([])), "{over}");
        let living: Vec<i32> = held.iter().filter(|held| held.is_alive()).map(Held::pid).collect();
        assert!(living.is_empty(), "{name}: {living:?}");
        assert!(!node.ground.cgroup_at(&text(&over["cgroup"], "path")).exists());
    }
}

#[test]
fn a_tree_whose_root_ends_first_keeps_the_roots_code() {
    let mut node = Node::new(SEXTON, &[]);
    let ready = node.ground.dir().join("ready");
    let main = format!(
        "(setsid sh -c 'trap \"\" TERM; echo x > {0}; while :; do sleep 1; done' &); until [ -e {0} ]; do sleep 0.01; done; exit 6",
        ready.display()
    );
    let mut body = script("root", &main);
    body["grace"] = json!("2s");
    node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
    file_appears(&ready);
    // Its code is told while what it left behind still has its grace.
    let told = eventually("the code is told", SOON, || {
        let entry = node.instance("root");
        if entry["exit"].is_object() { Ok(entry) } else { Err(entry.to_string()) }
    });
    assert_eq!((&told["state"], &told["exit"]["code"]), (&json!("stopping"), &json!(6)), "{told}");
    let over = node.settled("root");
    assert_eq!((&over["state"], &over["exit"]["code"]), (&json!("exited"), &json!(6)), "{over}");
}

/// A server with a worker thread, a child that answers over a pipe, and one that has left its group.
const SERVER: &str = "
const { spawn, fork } = require('child_process');
const { Worker } = require('worker_threads');
const fs = require('fs');
new Worker('setInterval(() => {}, 1000)', { eval: true });
spawn('sleep', ['1000']);
spawn('sleep', ['1001'], { detached: true, stdio: 'ignore' }).unref();
process.on('SIGTERM', () => { console.log('asked to end'); process.exit(43); });
fs.writeFileSync(process.env.READY, '');
setInterval(() => { if (fs.existsSync(process.env.READY + '.leave')) process.exit(44); }, 10);
";

#[test]
fn node_ends_with_its_own_code_and_its_children_with_it() {
    if !sexton_testkit::skip::has_program("node") {
        skip!(package "nodejs");
    }
    let mut node = Node::new(SEXTON, &[]);
    for (name, who, code) in [("asked", Dead::Nobody, 43), ("adopted", Dead::Both, 43), ("leaves", Dead::Both, 44)] {
        let ready = node.ground.dir().join(name);
        let mut body = spec(name, &["/usr/bin/env", "node", "-e", SERVER]);
        body["env"] = json!({ "READY": ready, "PATH": std::env::var("PATH").expect("PATH") });
        let entry = node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
        file_appears(&ready);
        let held = tree_of(&node, &entry, 3);
        node.kill(who, || {
            if code == 44 {
                std::fs::write(ready.with_extension("leave"), "").expect("told to leave");
                // The server, first in its own cgroup, ends by itself while nobody sees it.
                let main = held.iter().find(|held| Some(i64::from(held.pid())) == entry["identity"]["pid"].as_i64());
                main.expect("its main process").wait_end();
            }
        });
        let path = format!("/v1/instances/{name}/stop?wait=20s");
        let over = node.ask("POST", &path, None, Some(&json!({}))).0.expect(200);
        assert_eq!((&over["state"], &over["exit"]["code"]), (&json!("exited"), &json!(code)), "{over}");
        let left: Vec<i32> = held.iter().filter(|held| !held.ends_within(Duration::ZERO)).map(Held::pid).collect();
        assert!(left.is_empty(), "{name}: {left:?}");
        let log = node.ask("GET", &format!("/v1/instances/{name}/logs"), None, None).0;
        assert_eq!(log.text(), if code == 43 { "asked to end\n" } else { "" });
    }
}
