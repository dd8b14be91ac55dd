//! A daemon that sees no cgroup2, for another file system lies over it in a mount namespace of its own: a stop ends what
//! descends from the main process, or the PID namespace; what escapes is told.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

#[path = "support/container.rs"]
mod container;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use container::Container;
use serde_json::{Value, json};
use sexton_core::handle::Handle;
use sexton_core::proc;
use sexton_plan::id::Pid;
use sexton_testkit::{Ground, SOON, crash_bin_dir, eventually, skip};
use support::{Dead, Node, SEXTON, ended_unwatched, is_terminal, launcher, script};

const SIGKILL: u8 = 9;

/// A program that hides cgroup2 and becomes `sexton`.
fn hidden() -> PathBuf {
    launcher("sexton-without-cgroup2", &hiding(SEXTON.as_ref()))
}

fn hiding(program: &Path) -> String {
    let hide = "mount -t tmpfs sexton-test /sys/fs/cgroup && exec \"$@\"";
    format!("exec unshare -m --propagation private sh -c '{hide}' sh '{}' \"$@\"", program.display())
}

/// A program that becomes `program`, and hides cgroup2 first where there is a file `flag`.
fn hidden_at_times(name: &str, program: &Path, flag: &Path) -> PathBuf {
    let line = format!("[ -e '{}' ] || exec '{}' \"$@\"\n{}", flag.display(), program.display(), hiding(program));
    launcher(name, &line)
}

/// The `sleep`s of one test, which all sleep for as long, and no other for so long.
struct Sleepers {
    seconds: String,
}

impl Sleepers {
    fn new(number: u32) -> Sleepers {
        Sleepers { seconds: format!("{}{number}", 100_000 + std::process::id()) }
    }

    fn sleep(&self) -> String {
        format!("sleep {}", self.seconds)
    }

    fn living(&self) -> Vec<Pid> {
        let sleeps = |pid: &Pid| proc::command_line(*pid).is_some_and(|line| line == self.sleep());
        proc::all().expect("listed").into_iter().filter(sleeps).collect()
    }

    fn wait_for(&self, count: usize) {
        eventually("they sleep", SOON, || {
            let living = self.living();
            if living.len() == count { Ok(()) } else { Err(format!("{living:?} instead of {count}")) }
        });
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        let here = proc::here().expect("here");
        for held in self.living().into_iter().filter_map(|pid| Handle::open(pid, &here).ok()) {
            // The number is held: asked again, it is one of ours or nobody.
            if self.living().contains(&held.identity().pid) {
                let _sent = held.signal(SIGKILL);
            }
        }
    }
}

fn create(node: &mut Node, body: &Value) -> Value {
    node.ask("POST", "/v1/instances", None, Some(body)).0.expect(201)
}

fn stop(node: &mut Node, name: &str) -> Value {
    node.ask("POST", &format!("/v1/instances/{name}/stop?wait=20s"), None, Some(&json!({}))).0.expect(200)
}

fn doctor_says(node: &mut Node, check: &str) -> Value {
    let report = node.get("/v1/doctor");
    let checks = report["checks"].as_array().expect("checks");
    checks.iter().find(|found| found["name"] == check).unwrap_or_else(|| panic!("{check}: {report}")).clone()
}

#[test]
fn a_tree_ends_with_all_that_is_found_to_descend_from_it() {
    let mut node = Node::new(hidden(), &[]);
    let sleepers = Sleepers::new(1);
    let sleep = sleepers.sleep();
    // A child, one in a session of its own, one that ignores TERM below another, a double fork that stayed in the
    // session, and one below a session of its own.
    let forks = format!(
        "{sleep} & setsid {sleep} & sh -c 'trap \"\" TERM; {sleep} & wait; wait' & ({sleep} &); \
         setsid sh -c '({sleep} &); wait; exec {sleep}' & wait"
    );
    let mut body = script("tree", &forks);
    body["grace"] = json!("300ms");
    let entry = create(&mut node, &body);
    assert_eq!((&entry["kill"], &entry["cgroup"]), (&json!("tree"), &Value::Null), "{entry}");
    sleepers.wait_for(6);
    let over = stop(&mut node, "tree");
    assert_eq!((&over["state"], &over["exit"]["signal"]), (&json!("exited"), &json!(15)), "{over}");
    assert_eq!(sleepers.living(), [], "{over}");
    // What a main process leaves behind that ends by itself.
    create(&mut node, &script("leaves", &format!("{sleep} & ({sleep} &); sleep 0.2; exit 3")));
    let over = node.settled("leaves");
    assert_eq!((&over["state"], &over["exit"]["code"]), (&json!("exited"), &json!(3)), "{over}");
    assert_eq!(sleepers.living(), [], "{over}");
    let told = doctor_says(&mut node, "orphans");
    assert_eq!(told["grade"], "ok", "{told}");
}

#[test]
fn a_tree_that_grows_without_end_ends() {
    let mut node = Node::new(hidden(), &[]);
    let sleepers = Sleepers::new(2);
    // It forks all the while, and what it forks forks and ends.
    let chain =
        format!("f() {{ {} & while :; do (:) & wait $!; (f2 &); done; }}; f2() {{ sleep 0.05; }}; f", sleepers.sleep());
    let mut body = script("grows", &chain);
    body["grace"] = json!("0s");
    create(&mut node, &body);
    sleepers.wait_for(1);
    let over = stop(&mut node, "grows");
    assert_eq!(over["state"], "exited", "{over}");
    assert_eq!(sleepers.living(), []);
}

#[test]
fn a_pid_namespace_ends_whole() {
    let mut node = Node::new(hidden(), &[]);
    let sleepers = Sleepers::new(3);
    let sleep = sleepers.sleep();
    let mut body = script("whole", &format!("(setsid {sleep} &) ; setsid sh -c '(setsid {sleep} &)' ; {sleep}"));
    body["pidns"] = json!(true);
    body["grace"] = json!("200ms");
    let entry = create(&mut node, &body);
    assert_eq!(entry["kill"], "pidns", "{entry}");
    sleepers.wait_for(3);
    let over = stop(&mut node, "whole");
    assert_eq!(over["state"], "exited", "{over}");
    assert_eq!(sleepers.living(), []);
}

#[test]
fn what_escapes_is_left_alone_and_told() {
    let mut node = Node::new(hidden(), &[]);
    let sleepers = Sleepers::new(4);
    let sleep = sleepers.sleep();
    create(&mut node, &script("daemonizes", &format!("(setsid {sleep} &) ; exec sleep 1000")));
    sleepers.wait_for(1);
    let warned = doctor_says(&mut node, "cgroup2");
    assert!(warned["grade"] == "warn" && warned["detail"].as_str().is_some_and(|told| told.contains("escapes")));
    assert_eq!(stop(&mut node, "daemonizes")["state"], "exited");
    let [escaped] = sleepers.living()[..] else { panic!("{:?}", sleepers.living()) };
    let told = doctor_says(&mut node, "orphans");
    assert_eq!(told["grade"], "warn", "{told}");
    assert!(told["detail"].as_str().is_some_and(|told| told.contains(&escaped.to_string())), "{told}");
}

#[test]
fn instances_are_known_again_whoever_died() {
    if !sexton_core::features::pidfs() {
        skip!("no pidfs (Linux 6.9): a weak identity needs its cgroup as second witness");
    }
    let mut node = Node::new(hidden(), &[]);
    let sleepers = Sleepers::new(5);
    let sleep = sleepers.sleep();
    let identity = create(&mut node, &script("known", &format!("setsid {sleep} & {sleep} & wait")))["identity"].clone();
    sleepers.wait_for(2);
    for who in [Dead::Worker, Dead::Keeper, Dead::Both] {
        node.kill(who, || {});
        let entry = node.instance("known");
        assert_eq!((&entry["state"], &entry["kill"]), (&json!("running"), &json!("tree")), "{who:?}: {entry}");
        assert_eq!(entry["identity"], identity, "{who:?}");
    }
    let over = stop(&mut node, "known");
    ended_unwatched(&over, "signal", 15);
    assert_eq!(sleepers.living(), [], "{over}");
}

/// Whether this kernel keeps a tag on a process.
fn can_be_tagged() -> bool {
    let me = Pid::new(std::process::id().cast_signed()).expect("not init");
    let me = Handle::open(me, &proc::here().expect("here")).expect("a hold");
    let is_kept = me.tag("sexton-test");
    me.untag("sexton-test");
    is_kept
}

#[test]
fn who_is_in_custody_is_not_taken_a_second_time() {
    if !sexton_core::features::pidfs() {
        skip!("no pidfs (Linux 6.9): nothing but its cgroup tells whose a process is");
    }
    let mut node = Node::new(hidden(), &[]);
    let other = Node::new(hidden(), &[]);
    let pid = create(&mut node, &script("vm", "exec sleep 1000"))["identity"]["pid"].clone();
    let ticks = proc::stat(Pid::new(i32::try_from(pid.as_i64().expect("a number")).expect("fits")).expect("a PID"));
    let body = json!({ "name": "again", "pid": pid, "start_ticks": ticks.expect("it lives").start_ticks });
    // KERNEL(6.17): before, a pidfd takes no tag, and without a cgroup nothing tells another daemon.
    let tells_others = can_be_tagged();
    for node in [Some(&node), tells_others.then_some(&other)].into_iter().flatten() {
        let refused = node.ground.client().post("/v1/adopt", &body).expect("an answer").expect(409);
        assert!(refused["detail"].as_str().expect("why").contains("in custody already"), "{refused}");
    }
    stop(&mut node, "vm");
}

#[test]
fn what_a_container_held_ended_with_it() {
    let ground = Ground::new(hidden()).expect("a ground");
    let first = Container::serve(&ground);
    let body = json!({ "name": "vm", "argv": ["sleep", "1000"] });
    ground.client().post("/v1/instances", &body).expect("an answer").expect(201);
    drop(first);
    let _second = Container::serve(&ground);
    let lost = ground.client().get("/v1/instances/vm").expect("an answer").expect(200);
    assert_eq!((&lost["state"], &lost["reason"]), (&json!("lost"), &json!("container_restart")), "{lost}");
    ground.client().ask("DELETE", "/v1/instances/vm", &[], None).expect("asked").expect(200);
}

#[test]
fn what_lives_outside_of_a_container_may_live() {
    if !sexton_core::features::pidfs() {
        skip!("no pidfs (Linux 6.9): a weak identity needs its cgroup as second witness");
    }
    let ground = Ground::new(hidden()).expect("a ground");
    let sleepers = Sleepers::new(6);
    let body = json!({ "name": "vm", "argv": ["sleep", sleepers.seconds] });
    let daemon = ground.serve().expect("the daemon starts");
    daemon.client().post("/v1/instances", &body).expect("an answer").expect(201);
    daemon.terminate(SOON).expect("ended");
    let container = Container::serve(&ground);
    let doubted = ground.client().get("/v1/instances/vm").expect("an answer").expect(200);
    assert_eq!(doubted["state"], "unverified", "{doubted}");
    drop(container);
    let daemon = ground.serve().expect("back on the host");
    let again = daemon.client().get("/v1/instances/vm").expect("an answer").expect(200);
    assert_eq!(again["state"], "running", "{again}");
    daemon.client().ask("DELETE", "/v1/instances/vm?force=true&wait=20s", &[], None).expect("asked").expect(200);
    assert_eq!(sleepers.living(), []);
}

#[test]
fn a_cgroup_that_cannot_be_looked_at_is_not_given_back() {
    if !sexton_core::features::pidfs() {
        skip!("no pidfs (Linux 6.9): a weak identity needs its cgroup as second witness");
    }
    let flag = std::env::temp_dir().join(format!("sexton-test-hides-{}", std::process::id()));
    let mut node = Node::new(hidden_at_times("sexton-at-times-without-cgroup2", SEXTON.as_ref(), &flag), &[]);
    let sleepers = Sleepers::new(7);
    let sleep = sleepers.sleep();
    create(&mut node, &script("left", &format!("(setsid {sleep} &); exec {sleep}")));
    sleepers.wait_for(2);
    node.kill(Dead::Both, || fs::write(&flag, "").expect("written"));
    node.ask("POST", "/v1/instances/left/stop?wait=1s", None, Some(&json!({}))).0.expect(202);
    let over = eventually("its main process is over", SOON, || {
        let now = node.instance("left");
        if is_terminal(&now) { Ok(now) } else { Err(now.to_string()) }
    });
    // REGRESSION: it held nothing any more, while what had left the tree lived on in its cgroup.
    let held = &over["resources"][0];
    assert_eq!((&held["kind"], &held["state"]), (&json!("cgroup"), &json!("releasing")), "{over}");
    assert_eq!(sleepers.living().len(), 1, "{over}");
    let refused = node.ask("POST", "/v1/instances/left/start", None, None).0.expect(409);
    assert!(refused["detail"].as_str().is_some_and(|why| why.contains("not given back everything")), "{refused}");
    node.ask("DELETE", "/v1/instances/left?wait=1s", None, None).0.expect(202);
    assert!(is_terminal(&node.instance("left")), "listed as long as it holds something");
    node.kill(Dead::Both, || fs::remove_file(&flag).expect("removed"));
    eventually("it is given back, and gone", SOON, || {
        match node.ask("GET", "/v1/instances/left", None, None).0.status {
            404 => Ok(()),
            other => Err(other.to_string()),
        }
    });
    assert_eq!(sleepers.living(), []);
}

#[test]
fn an_adoption_that_was_cut_off_is_not_forgotten_while_its_cgroup_cannot_be_looked_at() {
    let Some(bin) = crash_bin_dir() else { skip!("the daemon with crash points is built by `cargo xtask ci`") };
    let at = |what: &str| std::env::temp_dir().join(format!("sexton-test-{what}-{}", std::process::id()));
    let (flag, order) = (at("hides-adoption"), at("adoption"));
    let program = hidden_at_times("sexton-crashes-without-cgroup2", &bin.join("sexton"), &flag);
    let mut node = Node::new(program, &[("SEXTON_CRASH_FILE", order.to_str().expect("text"))]);
    let mut elsewhere = Command::new("sleep").arg("1000").spawn().expect("started");
    let pid = Pid::new(i32::try_from(elsewhere.id()).expect("fits")).expect("a PID");
    let (home, ticks) = (proc::cgroup_path(pid).expect("its cgroup"), proc::stat(pid).expect("it lives").start_ticks);
    node.bind_keeper_to_worker();
    fs::write(&flag, "").expect("written");
    fs::write(&order, "adopt.moved 1").expect("ordered");
    let _hung_up = node.ground.client().post("/v1/adopt", &json!({ "name": "cut", "pid": pid, "start_ticks": ticks }));
    // REGRESSION: its row was gone, while the process stayed in a cgroup that nobody knew of any more.
    let kept = node.instance("cut");
    assert_eq!(kept["state"], "unverified", "{kept}");
    assert!(kept["reason"].as_str().is_some_and(|why| why.contains("there is no cgroup2 here")), "{kept}");
    node.kill(Dead::Both, || fs::remove_file(&flag).expect("removed"));
    eventually("it is put back, and gone from the list", SOON, || {
        match node.ask("GET", "/v1/instances/cut", None, None).0.status {
            404 => Ok(()),
            other => Err(other.to_string()),
        }
    });
    assert_eq!(proc::cgroup_path(pid).expect("its cgroup"), home);
    elsewhere.kill().expect("killed");
    elsewhere.wait().expect("reaped");
}
