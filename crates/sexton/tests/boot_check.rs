//! `sexton boot-check` as many short-lived commands use it at once, without a daemon: each instance of the boot before is
//! settled once, however many race, and whoever is killed in the middle; nothing is signalled.
//!
//! The boot id is another one because another file is mounted over it, for these commands alone.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

#[path = "support/container.rs"]
mod container;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use container::Container;
use serde_json::{Value, json};
use sexton_testkit::{Ground, SOON, eventually, processes_in};
use support::SEXTON;

const INSTANCES: usize = 24;
const COPIES: usize = 50;
/// Mounts its first argument over the boot id, and becomes the rest.
const IN_ANOTHER_BOOT: &str = "mount --bind \"$1\" /proc/sys/kernel/random/boot_id && shift && exec \"$@\"";

/// What a daemon leaves that was killed with its instances alive.
struct State {
    ground: Ground,
    boot_id: PathBuf,
}

impl State {
    fn new() -> State {
        let ground = Ground::new(SEXTON).expect("a ground");
        let boot_id = another_boot(&ground);
        let daemon = ground.serve().expect("the daemon starts");
        for number in 0..INSTANCES {
            let body = json!({ "name": format!("vm-{number}"), "argv": ["sleep", "1000"] });
            daemon.client().post("/v1/instances", &body).expect("an answer").expect(201);
        }
        daemon.client().put("/v1/instances/vm-3/snapshot", &json!({ "resume": 3 })).expect("an answer").expect(200);
        let over = json!({ "name": "over", "argv": ["true"] });
        daemon.client().post("/v1/instances", &over).expect("an answer").expect(201);
        daemon.client().get("/v1/instances/over?until=settled&wait=20s").expect("an answer").expect(200);
        daemon.kill9_both().expect("both killed");
        State { ground, boot_id }
    }

    /// A copy of the ledger, to be spoilt.
    fn copy(&self, round: usize) -> PathBuf {
        let dir = self.ground.dir().join(format!("round-{round}"));
        fs::create_dir(&dir).expect("made");
        for file in fs::read_dir(self.ground.state_dir()).expect("readable").map(|file| file.expect("a file").path()) {
            if file.is_file() {
                fs::copy(&file, dir.join(file.file_name().expect("a name"))).expect("copied");
            }
        }
        dir
    }

    fn boot_check(&self, state_dir: &Path) -> Child {
        boot_check(&self.boot_id, state_dir)
    }
}

/// A file that names another boot.
fn another_boot(ground: &Ground) -> PathBuf {
    let boot_id = ground.dir().join("boot_id");
    fs::write(&boot_id, "0f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff\n").expect("written");
    boot_id
}

fn boot_check(boot_id: &Path, state_dir: &Path) -> Child {
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", IN_ANOTHER_BOOT, "sh"]).arg(boot_id).arg(SEXTON);
    command.args(["boot-check", "-o", "json", "--config", "/dev/null", "--state-dir"]).arg(state_dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started")
}

/// How many instances a copy says that it settled.
fn settled(child: Child) -> usize {
    let output = child.wait_with_output().expect("ended");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    usize::try_from(answer["settled"].as_u64().expect("a count")).expect("fits")
}

/// Everything in the ledger, after it was verified.
fn dump(state_dir: &Path) -> Vec<Value> {
    let ledger = |verb: &str| {
        let told = Command::new(SEXTON)
            .args(["ledger", verb, "--config", "/dev/null", "--state-dir"])
            .arg(state_dir)
            .output()
            .expect("ended");
        assert!(told.status.success(), "{verb}: {}", String::from_utf8_lossy(&told.stderr));
        String::from_utf8(told.stdout).expect("text")
    };
    ledger("verify");
    ledger("dump").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Every instance is lost by the reboot, told once, with spec and snapshot kept; what was over is as it was.
fn assert_settled(state_dir: &Path) {
    let rows = dump(state_dir);
    let mut told: BTreeMap<String, usize> = BTreeMap::new();
    for event in rows.iter().map(|row| &row["event"]).filter(|event| event["kind"] == "instance.lost") {
        assert_eq!(event["data"]["reason"], "reboot", "{event}");
        *told.entry(event["instance"].to_string()).or_default() += 1;
    }
    assert!(told.len() == INSTANCES && told.values().all(|count| *count == 1), "{told:?}");
    assert_eq!(rows.iter().filter(|row| row["event"]["kind"] == "boot.changed").count(), 1);
    let entries: Vec<&Value> = rows.iter().map(|row| &row["entry"]).filter(|entry| entry.is_object()).collect();
    assert_eq!(entries.len(), INSTANCES + 1);
    for entry in entries {
        let is_over = entry["name"] == "over";
        assert_eq!(entry["state"], if is_over { "exited" } else { "lost" }, "{entry}");
        assert_eq!(entry["spec"]["argv"][0], if is_over { "true" } else { "sleep" });
        let snapshot = if entry["name"] == "vm-3" { json!({ "resume": 3 }) } else { Value::Null };
        assert_eq!(entry["snapshot"], snapshot, "{entry}");
    }
}

#[test]
fn fifty_at_once_settle_each_instance_once_and_signal_nobody() {
    let state = State::new();
    let living = || {
        let mut found = processes_in(&state.ground.cgroup_dir());
        found.sort_unstable();
        found
    };
    let before = living();
    assert_eq!(before.len(), INSTANCES);
    let dir = state.ground.state_dir();
    let copies: Vec<Child> = (0..COPIES).map(|_| state.boot_check(&dir)).collect();
    let counts: Vec<usize> = copies.into_iter().map(settled).collect();
    assert_eq!(counts.iter().sum::<usize>(), INSTANCES, "each row is counted by one: {counts:?}");
    assert_settled(&dir);
    let after = dump(&dir);
    assert_eq!(settled(state.boot_check(&dir)), 0, "a second time");
    assert_eq!(dump(&dir), after, "and nothing was written");
    assert_eq!(living(), before);
}

#[test]
fn whoever_is_killed_in_the_middle_the_next_one_finishes_and_tells_nothing_twice() {
    const ROUNDS: u32 = 24;
    let state = State::new();
    // As long as one takes alone, so that the kills fall everywhere in it.
    let began = Instant::now();
    settled(state.boot_check(&state.copy(0)));
    let alone = began.elapsed();
    for round in 1..=ROUNDS {
        let dir = state.copy(usize::try_from(round).expect("fits"));
        let delay = alone * round * 2 / ROUNDS;
        let copies: Vec<(Child, Instant)> = (0..3).map(|_| (state.boot_check(&dir), Instant::now())).collect();
        for (mut child, begun) in copies {
            // When it dies is what differs from round to round; nothing waits for this.
            std::thread::sleep(delay.saturating_sub(begun.elapsed()));
            child.kill().expect("killed, or over already");
            child.wait().expect("reaped");
        }
        settled(state.boot_check(&dir));
        assert_settled(&dir);
        fs::remove_dir_all(dir).expect("removed");
    }
}

#[test]
fn what_the_container_before_held_is_given_back_before_anybody_asks() {
    let ground = Ground::new(SEXTON).expect("a ground");
    let container = Container::serve(&ground);
    let vm = json!({ "name": "vm", "argv": ["sleep", "1000"] });
    ground.client().post("/v1/instances", &vm).expect("an answer").expect(201);
    ground.client().put("/v1/instances/vm/snapshot", &json!({ "resume": 1 })).expect("an answer").expect(200);
    drop(container);
    eventually("all that was in it is gone", SOON, || match processes_in(&ground.cgroup_dir()) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
    let _container = Container::serve(&ground);
    let lost = ground.client().get("/v1/instances/vm").expect("an answer").expect(200);
    assert_eq!((&lost["state"], &lost["reason"]), (&json!("lost"), &json!("container_restart")), "{lost}");
    let resumed = ground.client().post("/v1/instances/vm/start", &json!({})).expect("an answer").expect(200);
    assert_eq!((&resumed["state"], &resumed["snapshot"]), (&json!("running"), &json!({ "resume": 1 })), "{resumed}");
    ground.client().ask("DELETE", "/v1/instances/vm?force=true&wait=20s", &[], None).expect("asked").expect(200);
}

#[test]
fn beside_a_daemon_nothing_is_settled_whatever_boot_the_caller_names() {
    let ground = Ground::new(SEXTON).expect("a ground");
    let boot_id = another_boot(&ground);
    let daemon = ground.serve().expect("the daemon starts");
    let vm = json!({ "name": "vm", "argv": ["sleep", "1000"] });
    daemon.client().post("/v1/instances", &vm).expect("an answer").expect(201);
    let before = dump(&ground.state_dir());
    assert_eq!(settled(boot_check(&boot_id, &ground.state_dir())), 0);
    assert_eq!(dump(&ground.state_dir()), before, "and nothing was written");
    let shown = daemon.client().get("/v1/instances/vm").expect("an answer").expect(200);
    assert_eq!(shown["state"], "running", "{shown}");
    daemon.client().ask("DELETE", "/v1/instances/vm?force=true&wait=20s", &[], None).expect("asked").expect(200);
}

#[test]
fn what_lives_in_a_pid_namespace_that_cannot_be_seen_is_not_lost() {
    let ground = Ground::new(SEXTON).expect("a ground");
    let daemon = ground.serve().expect("the daemon starts");
    let vm = json!({ "name": "vm", "argv": ["sleep", "1000"], "restart": "always" });
    daemon.client().post("/v1/instances", &vm).expect("an answer").expect(201);
    daemon.terminate(SOON).expect("ended");
    let before = processes_in(&ground.cgroup_dir());
    let show = || ground.client().get("/v1/instances/vm").expect("an answer").expect(200);

    let container = Container::serve(&ground);
    ground.client().post("/v1/reconcile", &json!({})).expect("an answer").expect(200);
    let doubted = show();
    let why = "the process may live in a PID namespace that cannot be seen from here";
    assert_eq!((&doubted["state"], &doubted["reason"]), (&json!("unverified"), &json!(why)), "{doubted}");
    for (method, path) in [("POST", "/v1/instances/vm/stop"), ("DELETE", "/v1/instances/vm?force=true")] {
        ground.client().ask(method, path, &[], None).expect("asked").expect(409);
    }
    assert_eq!(processes_in(&ground.cgroup_dir()), before);
    drop(container);

    let daemon = ground.serve().expect("back on the host");
    assert_eq!(show()["state"], "running", "{}", show());
    daemon.client().ask("DELETE", "/v1/instances/vm?force=true&wait=20s", &[], None).expect("asked").expect(200);
    assert!(processes_in(&ground.cgroup_dir()).is_empty());
}

#[test]
fn what_ended_meanwhile_is_lost_in_another_pid_namespace_too() {
    let ground = Ground::new(SEXTON).expect("a ground");
    let daemon = ground.serve().expect("the daemon starts");
    let vm = json!({ "name": "vm", "argv": ["sleep", "1000"] });
    let made = daemon.client().post("/v1/instances", &vm).expect("an answer").expect(201);
    daemon.terminate(SOON).expect("ended");
    let _container = Container::serve(&ground);
    // As the end of the whole namespace would.
    let kill = ground.cgroup_at(made["cgroup"]["path"].as_str().expect("a path")).join("cgroup.kill");
    fs::write(kill, "1").expect("killed");
    eventually("it is lost", SOON, || {
        ground.client().post("/v1/reconcile", &json!({})).expect("an answer").expect(200);
        let lost = ground.client().get("/v1/instances/vm").expect("an answer").expect(200);
        let is_lost =
            lost["state"] == "lost" && lost["reason"] == "container_restart" && lost["resources"] == json!([]);
        if is_lost { Ok(()) } else { Err(lost.to_string()) }
    });
    ground.client().ask("DELETE", "/v1/instances/vm", &[], None).expect("asked").expect(200);
}
