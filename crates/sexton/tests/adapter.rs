//! Runtimes that are asked to end in their own words, or by the steps that they declare; strangers that are not spoken
//! to. QEMU is the real one; Firecracker and Cloud Hypervisor are stand-ins that take the same requests.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

mod support;

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sexton_testkit::skip::{has_program, missing_package};
use sexton_testkit::{Daemon, Ground, SOON, eventually};
use support::SEXTON;

/// A stand-in for a runtime with HTTP on its socket.
const STAND_IN: &str = include_str!("support/stand_in.py");

struct Node {
    daemon: Daemon,
    ground: Ground,
}

impl Node {
    fn new(config: &str) -> Node {
        let ground = Ground::new(SEXTON).expect("a ground");
        fs::write(ground.config(), config).expect("written");
        Node { daemon: ground.serve().expect("the daemon starts"), ground }
    }

    fn create(&self, runtime: &str, argv: &[&str], grace: Option<&str>) -> Value {
        let cwd = self.ground.dir().display().to_string();
        let body = json!({ "name": "vm", "runtime": runtime, "argv": argv, "cwd": cwd, "grace": grace });
        self.daemon.client().post("/v1/instances", &body).expect("an answer").expect(201)
    }

    fn shown(&self) -> Value {
        self.daemon.client().get("/v1/instances/vm").expect("an answer").expect(200)
    }

    /// Waits until `peer` is at the control socket.
    fn answers(&self, peer: &str) {
        eventually("the control socket", SOON, || {
            let control = self.shown()["control"].clone();
            if control["peer"] == peer { Ok(()) } else { Err(control.to_string()) }
        });
    }

    /// Stops it; tells its last row, and how long that took.
    fn stop(&self) -> (Value, Duration) {
        let began = Instant::now();
        let entry = self.daemon.client().post("/v1/instances/vm/stop?wait=20s", &json!({})).expect("an answer");
        (entry.expect(200), began.elapsed())
    }

    fn log(&self, stream: &str) -> String {
        let log = self.daemon.client().get(&format!("/v1/instances/vm/logs?stream={stream}"));
        log.expect("an answer").text()
    }

    /// Runs the stand-in, which ends on a request that holds `last`.
    fn stand_in(&self, runtime: &str, flag: &str, last: &str, grace: &str) {
        fs::write(self.ground.dir().join("stand-in.py"), STAND_IN).expect("written");
        // A relative path, and one that is longer than an address of a unix socket may be.
        let long = "x".repeat(90);
        fs::create_dir(self.ground.dir().join(&long)).expect("made");
        let socket = format!("{}/{long}/api.sock", self.ground.dir().display());
        let short = "api.sock";
        let socket = if flag == "--api-sock" { short } else { &socket };
        // Python itself cannot bind a path that long: it is where the stand-in is, by another name.
        let program = format!("import os; os.chdir('{long}'); exec(open('../stand-in.py').read())");
        let program = if flag == "--api-sock" { "exec(open('stand-in.py').read())".to_owned() } else { program };
        self.create(runtime, &["python3", "-c", &program, "--", short, "notes", last, flag, socket], Some(grace));
        self.answers("instance");
    }
}

#[test]
fn a_guest_is_asked_to_power_down_and_then_to_quit() {
    if !has_program("qemu-system-x86_64") {
        return missing_package("qemu-system-x86");
    }
    let node = Node::new("");
    // A guest that does not run cannot power down.
    let qmp = "unix:q.sock,server=on,wait=off";
    let machine = ["-accel", "tcg", "-S", "-nodefaults", "-display", "none", "-qmp", qmp];
    node.create("qemu", &[&["qemu-system-x86_64"], &machine[..]].concat(), Some("8s"));
    node.answers("instance");
    let (entry, took) = node.stop();
    assert_eq!((&entry["exit"]["code"], &entry["exit"]["source"]), (&json!(0), &json!("wait")), "{entry}");
    assert!(took >= Duration::from_secs(4) && took < Duration::from_secs(8), "{took:?}");
    let told = node.log("stderr");
    assert!(!told.contains("signal"), "QEMU tells of a signal that ends it: {told}");
}

#[test]
fn firecracker_is_asked_for_ctrl_alt_del() {
    let node = Node::new("");
    node.stand_in("firecracker", "--api-sock", "SendCtrlAltDel", "20s");
    let (entry, took) = node.stop();
    assert_eq!(entry["exit"]["code"], 7, "{entry}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    let notes = fs::read_to_string(node.ground.dir().join("notes")).expect("noted");
    assert_eq!(notes, "PUT /actions HTTP/1.1 {\"action_type\":\"SendCtrlAltDel\"}\n");
}

#[test]
fn cloud_hypervisor_is_asked_to_shut_down_its_guest_and_then_itself() {
    let node = Node::new("");
    node.stand_in("cloud-hypervisor", "--api-socket", "vmm.shutdown", "20s");
    let (entry, took) = node.stop();
    assert_eq!(entry["exit"]["code"], 7, "{entry}");
    assert!(took < Duration::from_secs(10), "a guest that is off is not waited for: {took:?}");
    let long = node.ground.dir().join("x".repeat(90));
    let notes = fs::read_to_string(long.join("notes")).expect("noted");
    assert_eq!(notes, "PUT /api/v1/vm.shutdown HTTP/1.1 \nPUT /api/v1/vmm.shutdown HTTP/1.1 \n");
}

#[test]
fn a_runtime_that_never_answers_is_ended_when_its_grace_is_over() {
    let node = Node::new("");
    node.stand_in("cloud-hypervisor", "--api-socket", "never", "2s");
    let (entry, took) = node.stop();
    assert_eq!(entry["exit"]["signal"], 9, "it ignores SIGTERM: {entry}");
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(8), "{took:?}");
}

#[test]
fn a_stranger_at_the_socket_is_not_spoken_to() {
    let node = Node::new("");
    let socket = node.ground.dir().join("q.sock");
    let listener = UnixListener::bind(&socket).expect("bound");
    let qmp = format!("unix:{}", socket.display());
    // An instance that names a socket which this test listens at.
    node.create("qemu", &["sh", "-c", "exec sleep 1000", "-qmp", &qmp], Some("20s"));
    node.answers("stranger");
    let (entry, took) = node.stop();
    assert_eq!(entry["exit"]["signal"], 15, "{entry}");
    assert!(took < Duration::from_secs(10), "the signal came at once: {took:?}");
    drop(node);
    listener.set_nonblocking(true).expect("set");
    let mut met = 0;
    while let Ok((mut peer, _)) = listener.accept() {
        let mut heard = Vec::new();
        peer.read_to_end(&mut heard).expect("read");
        assert!(heard.is_empty(), "{heard:?}");
        met += 1;
    }
    assert!(met > 0, "it connected, to see who is there");
}

#[test]
fn a_declared_runtime_is_asked_by_its_own_steps() {
    let config = "[[runtime]]\nname = \"shim\"\nexecutables = [\"/bin/sh\"]\nstop = [\n  \
                  { signal = \"USR1\", wait = \"500ms\" }, { signal = \"USR2\", wait = \"700ms\" }, { signal = \"KILL\" },\n]\n";
    let node = Node::new(config);
    let script = "trap 'echo one' USR1; trap 'echo two' USR2; trap 'echo term' TERM; echo up; \
                  while :; do sleep 0.05; done";
    let made = node.create("shim", &["sh", "-c", script], None);
    assert_eq!(made["spec"]["grace"], "1s200ms", "as long as its steps take together");
    eventually("it is up", SOON, || if node.log("stdout") == "up\n" { Ok(()) } else { Err("not yet".to_owned()) });
    let (entry, took) = node.stop();
    assert_eq!(entry["exit"]["signal"], 9, "{entry}");
    assert_eq!(node.log("stdout"), "up\none\ntwo\n");
    assert!(took >= Duration::from_millis(1_200) && took < Duration::from_secs(6), "{took:?}");
    let body = json!({ "name": "other", "argv": ["true"], "runtime": "sham" });
    let refused = node.daemon.client().post("/v1/instances", &body).expect("an answer").expect(400);
    assert!(
        refused["detail"].as_str().is_some_and(|told| told.contains("runtime") && told.contains("shim")),
        "{refused}"
    );
    assert!(!Path::new(&node.ground.dir().join("state/logs/other")).exists());
}
