//! The program on disk is replaced while the daemon runs, and HUP brings it in: nobody's work notices.
#![allow(clippy::indexing_slicing, reason = "an answer without the field fails the test")]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sexton_testkit::{Daemon, Ground, SOON, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_sexton");
const SIGHUP: i32 = 1;

/// The programs, copied to where a test may replace them.
struct Installed {
    dir: PathBuf,
}

impl Installed {
    fn new(name: &str) -> Installed {
        let dir = std::env::temp_dir().join(format!("sexton-upgrade-{}-{name}", std::process::id()));
        fs::create_dir(&dir).expect("a directory");
        let installed = Installed { dir };
        fs::copy(PROGRAM, installed.sexton()).expect("copied");
        let init = Path::new(PROGRAM).with_file_name("sexton-init");
        if init.exists() {
            fs::copy(init, installed.dir.join("sexton-init")).expect("copied");
        }
        installed
    }

    fn sexton(&self) -> PathBuf {
        self.dir.join("sexton")
    }

    /// Puts other bytes in the program's place, as a package manager does: by renaming over it.
    fn replace(&self, bytes: &[u8]) {
        let new = self.dir.join("sexton.new");
        fs::write(&new, bytes).expect("written");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("executable");
        fs::rename(&new, self.sexton()).expect("renamed");
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.dir);
    }
}

fn run(daemon: &Daemon, name: &str) -> Value {
    let body = json!({ "name": name, "argv": ["sh", "-c", "trap 'exit 5' TERM; while :; do sleep 1; done"] });
    daemon.client().post("/v1/instances", &body).expect("an answer").expect(201)
}

fn identity(daemon: &Daemon, name: &str) -> Value {
    let shown = daemon.client().get(&format!("/v1/instances/{name}")).expect("an answer").expect(200);
    assert_eq!(shown["state"], "running", "{shown}");
    shown["identity"].clone()
}

/// The `worker.restarted` events so far.
fn restarts(daemon: &Daemon) -> Vec<Value> {
    let events = daemon.client().list("/v1/events?after=0").expect("events");
    events.into_iter().filter(|event| event["kind"] == "worker.restarted").collect()
}

/// Asks until a worker other than `old` answers. Requests that wait may be hung up on meanwhile.
fn other_worker(daemon: &Daemon, old: i32) -> i32 {
    eventually("another worker answers", SOON, || match daemon.worker_pid() {
        Ok(pid) if pid != old => Ok(pid),
        Ok(_) => Err("the old one answers".to_owned()),
        Err(error) => Err(format!("{error:#}")),
    })
}

fn socket_inode(ground: &Ground) -> u64 {
    fs::metadata(ground.run_dir().join("sexton.sock")).expect("the socket").ino()
}

#[test]
fn hup_brings_in_the_program_on_disk_and_no_instance_notices() {
    let installed = Installed::new("good");
    let ground = Ground::new(installed.sexton()).expect("a ground");
    let mut daemon = ground.serve().expect("serves");
    let before = run(&daemon, "calm")["identity"].clone();
    let (worker, socket) = (daemon.worker_pid().expect("a worker"), socket_inode(&ground));

    installed.replace(&fs::read(PROGRAM).expect("read"));
    daemon.keeper().expect("the keeper").signal(SIGHUP).expect("sent");
    other_worker(&daemon, worker);
    daemon.wait_ready().expect("ready");

    assert_eq!(identity(&daemon, "calm"), before);
    assert_eq!(socket_inode(&ground), socket, "the socket file was touched");
    assert!(daemon.is_alive(), "the keeper stays");
    let told = eventually("the change of workers is told", SOON, || {
        let told = restarts(&daemon);
        if told.is_empty() { Err("not yet".to_owned()) } else { Ok(told) }
    });
    assert_eq!(told.len(), 1, "{told:?}");
    // REGRESSION: the old worker was killed as it ended, and the upgrade told as a crash.
    assert_eq!(told[0]["data"]["code"], 0, "{told:?}");
    assert_eq!(told[0]["data"]["signal"], Value::Null, "{told:?}");

    let ended = daemon.client().post("/v1/instances/calm/stop?wait=10s", &json!({})).expect("an answer").expect(200);
    assert_eq!(ended["exit"]["code"], 5, "{ended}");
}

#[test]
fn a_socket_file_that_is_gone_is_made_again_by_the_next_worker() {
    let ground = Ground::new(PROGRAM).expect("a ground");
    let mut daemon = ground.serve().expect("serves");
    let before = run(&daemon, "calm")["identity"].clone();
    let socket = ground.run_dir().join("sexton.sock");
    for _ in 0..2 {
        fs::remove_file(&socket).expect("removed");
        daemon.keeper().expect("the keeper").signal(SIGHUP).expect("sent");
        daemon.wait_ready().expect("ready");
        assert_eq!(identity(&daemon, "calm"), before);
    }
    // And the new one is kept.
    let made = socket_inode(&ground);
    daemon.replace_worker().expect("another worker");
    assert_eq!(socket_inode(&ground), made);
    daemon.client().post("/v1/instances/calm/stop?wait=10s", &json!({})).expect("an answer").expect(200);
}

#[test]
fn a_program_that_is_no_good_leaves_the_old_one_serving() {
    let installed = Installed::new("bad");
    let ground = Ground::new(installed.sexton()).expect("a ground");
    let mut daemon = ground.serve().expect("serves");
    let before = run(&daemon, "calm")["identity"].clone();
    let worker = daemon.worker_pid().expect("a worker");

    for (what, bytes) in [("no program", &b"garbage"[..]), ("one that fails", b"#!/bin/sh\nexit 1\n")] {
        installed.replace(bytes);
        let swaps = swaps_over(&daemon);
        daemon.keeper().expect("the keeper").signal(SIGHUP).expect("sent");
        eventually("the keeper gives the new one up", SOON, || {
            if swaps_over(&daemon) > swaps { Ok(()) } else { Err(daemon.log()) }
        });
        assert_eq!(daemon.worker_pid().expect("a worker"), worker, "{what}");
    }
    // Even a worker that dies now is followed by the old program.
    daemon.replace_worker().expect("another worker");
    assert_eq!(identity(&daemon, "calm"), before);
    daemon.client().post("/v1/instances/calm/stop?wait=10s", &json!({})).expect("an answer").expect(200);
}

#[test]
fn while_the_ledger_is_locked_the_old_worker_stays() {
    let ground = Ground::new(PROGRAM).expect("a ground");
    let daemon = ground.serve().expect("serves");
    let worker = daemon.worker_pid().expect("a worker");
    let locks = rusqlite::Connection::open(ground.state_dir().join("sexton.db")).expect("opened");
    locks.execute_batch("BEGIN IMMEDIATE").expect("locked");
    daemon.keeper().expect("the keeper").signal(SIGHUP).expect("sent");
    eventually("the keeper gives the new one up", SOON, || {
        if swaps_over(&daemon) > 0 { Ok(()) } else { Err(daemon.log()) }
    });
    // REGRESSION: it had gone, and its successors could not begin.
    assert_eq!(daemon.worker_pid().expect("a worker"), worker);
    locks.execute_batch("ROLLBACK").expect("unlocked");
    daemon.keeper().expect("the keeper").signal(SIGHUP).expect("sent");
    other_worker(&daemon, worker);
}

/// How many replacements the keeper's log tells the end of.
fn swaps_over(daemon: &Daemon) -> usize {
    daemon.log().lines().filter(|line| line.contains("reload: ")).count()
}
