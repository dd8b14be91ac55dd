//! What is lacking for a moment, a descriptor or memory, is not what the host has none of, and not the fault of whoever asks.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

#[path = "support/asking.rs"]
mod asking;
#[path = "support/failing.rs"]
mod failing;
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use asking::{create, gated};
use failing::Failing;
use serde_json::json;
use sexton_testkit::skip::has_program;
use sexton_testkit::{Daemon, Response, SOON, eventually, pidfds_can_be_mounted, skip};
use support::{Node, SEXTON, launcher, spec, text};

/// A node of which the daemons that begin while `failing` is there lack what that says.
struct Beginner {
    node: Node,
    failing: PathBuf,
}

impl Beginner {
    fn new(name: &str) -> Beginner {
        let failing = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let traced = format!(
            "[ -e \"$FAILING\" ] || exec '{SEXTON}' \"$@\"\n\
             exec strace -D -f -o /dev/null $(cat \"$FAILING\") '{SEXTON}' \"$@\""
        );
        let env = [("FAILING", failing.to_str().expect("text"))];
        let node = Node::prepared(launcher(&format!("sexton-{name}"), &traced), &env, |_| {});
        Beginner { node, failing }
    }

    /// Worker and keeper die, and after `meanwhile` the next daemon begins. Of its calls about one of `paths` those with the
    /// number `when` fail, in each thread. Tells with which code it refused to begin, if it did; then there is another one.
    fn begin(
        &mut self,
        meanwhile: impl FnOnce(),
        (call, error): (&str, &str),
        paths: &[PathBuf],
        when: u32,
    ) -> Option<i32> {
        self.node.daemon.take().expect("a daemon runs").kill9_both().expect("both killed");
        meanwhile();
        let about: Vec<String> = paths.iter().map(|path| format!("-P {}", path.display())).collect();
        let inject = format!("{} -e trace={call} -e inject={call}:error={error}:when={when}", about.join(" "));
        fs::write(&self.failing, inject).expect("written");
        let env = [("FAILING", self.failing.to_str().expect("text"))];
        let mut daemon = Daemon::launch(&self.node.ground, &env).expect("launched");
        let ready = daemon.wait_ready();
        fs::remove_file(&self.failing).expect("removed");
        let refused = ready.is_err().then(|| daemon.wait_end(SOON).code().expect("a code"));
        match refused {
            Some(_) => self.node.serve(),
            None => self.node.daemon = Some(daemon),
        }
        refused
    }
}

/// Whether these tests can make a call fail.
fn can_fail() -> bool {
    has_program("strace")
}

#[test]
fn an_exit_that_a_pin_knows_is_not_lost_for_want_of_a_descriptor() {
    if !can_fail() {
        skip!(package "strace");
    }
    if !pidfds_can_be_mounted() {
        skip!("no pidfd can be mounted");
    }
    let mut beginner = Beginner::new("lacks-pins");
    let board = beginner.node.ground.run_dir().join("pins");
    for name in ["board", "pin"] {
        let (body, gate) = gated(&beginner.node, name, 7);
        let made = create(&mut beginner.node, &body);
        let process = PathBuf::from(format!("/proc/{}", made["identity"]["pid"]));
        let pin = PathBuf::from(format!("/{}", text(&made, "incarnation")));
        let it_ends = || {
            fs::write(gate, "").expect("gate opened");
            eventually("it is reaped", SOON, || if process.exists() { Err("not yet".to_owned()) } else { Ok(()) });
        };
        let path = if name == "pin" { pin } else { board.clone() };
        let refused = beginner.begin(it_ends, ("openat", "EMFILE"), &[path], 1);
        // REGRESSION: it was lost, and its pin taken away; and a daemon did without any pin for as long as it lived.
        let over = beginner.node.settled(name);
        assert_eq!((&over["state"], &over["exit"]["code"]), (&json!("exited"), &json!(7)), "{over}");
        assert_eq!(refused, (name == "board").then_some(69), "{name}");
    }
}

#[test]
fn a_ledger_that_is_opened_without_a_descriptor_to_spare_takes_records() {
    if !can_fail() {
        skip!(package "strace");
    }
    let mut beginner = Beginner::new("lacks-ledger");
    let state_dir = beginner.node.ground.state_dir();
    let files = ["sexton.db", "sexton.db-wal", "sexton.db-shm"].map(|file| state_dir.join(file));
    let mut refused = 0;
    for when in 1..=12 {
        refused += u32::from(beginner.begin(|| {}, ("openat", "EMFILE"), &files, when).is_some());
        // REGRESSION: SQLite had opened it for reading alone, and the daemon refused every create until it was restarted.
        create(&mut beginner.node, &spec(&format!("one-{when}"), &["/bin/true"]));
    }
    assert!(refused > 3, "{refused}");
}

#[test]
fn a_start_for_which_something_is_lacking_for_a_moment_is_to_be_asked_for_again() {
    if !can_fail() {
        skip!(package "strace");
    }
    let mut node = Node::new(SEXTON, &[]);
    let worker = node.daemon().worker_pid().expect("a worker");
    let mut body = spec("one", &["/bin/true"]);
    body["user"] = json!("root");
    body["limits"] = json!({ "pids": 100 });
    let places: [(&str, &str); 2] = [("/etc/passwd", "openat"), ("/etc/group", "openat")];
    for (path, call) in places {
        let failing = Failing::of(worker, call, Path::new(path), "EMFILE", "1");
        let (answer, _) = node.ask("POST", "/v1/instances", None, Some(&body));
        drop(failing);
        // REGRESSION: 400, as if what was asked for could not be run.
        asked_again(&mut node, &answer);
    }
    if Path::new("/sys/fs/cgroup/pids/cgroup.procs").exists() {
        // The directory of the logs, the cgroup, and that of the limit.
        for when in ["1", "2", "3"] {
            let failing = Failing::everywhere(worker, "mkdir", "ENOMEM", when);
            let (answer, _) = node.ask("POST", "/v1/instances", None, Some(&body));
            drop(failing);
            asked_again(&mut node, &answer);
        }
    }
    create(&mut node, &body);
}

/// It was refused, to be asked for again, and nothing of it is there.
fn asked_again(node: &mut Node, answer: &Response) {
    let refusal = answer.expect(503);
    assert_eq!(refusal["code"], "node_full", "{refusal}");
    assert!(answer.header("retry-after").is_some());
    assert!(node.instances().is_empty());
}
