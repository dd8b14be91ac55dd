//! Every exit code and every deadly signal, with worker and keeper dead before, during or after the exit: all are
//! right, and none is invented.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

mod support;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sexton_testkit::{SOON, eventually};
use support::{Dead, Node, SEXTON, ended_unwatched, launcher, script, text};

/// When they die, as seen from the exits.
#[derive(Clone, Copy, Debug)]
enum When {
    Before,
    During,
    After,
}

/// How a workload ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Code(u8),
    Signal(u8),
}

#[test]
fn with_nobody_dead_every_exit_is_right() {
    play(Dead::Nobody, &[When::Before]);
}

#[test]
fn with_the_worker_dead_every_exit_is_right() {
    play(Dead::Worker, &[When::Before, When::During, When::After]);
}

#[test]
fn with_the_keeper_dead_every_exit_is_right() {
    play(Dead::Keeper, &[When::Before, When::During, When::After]);
}

#[test]
fn with_worker_and_keeper_dead_every_exit_is_right() {
    play(Dead::Both, &[When::Before, When::During, When::After]);
}

#[test]
fn a_pass_takes_away_no_pin_that_alone_knows_an_exit() {
    let mut node = Node::new(SEXTON, &[]);
    let gate = Gate::new(node.ground.dir());
    let body = script("late", &format!("read _ < {}; exit 7", gate.path.display()));
    node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
    let (state_dir, elsewhere) = (node.ground.state_dir(), node.ground.dir().join("elsewhere"));
    std::fs::rename(&state_dir, &elsewhere).expect("moved");
    gate.let_go(1);
    assert_eq!(node.settled("late")["exit"]["code"], 7);
    // It is over, and holds nothing any more; only its record is missing.
    let plan = node.get("/v1/plan");
    assert_eq!(plan["actions"], json!([]), "{plan}");
    node.kill(Dead::Both, || std::fs::rename(&elsewhere, &state_dir).expect("moved back"));
    ended_unwatched(&node.settled("late"), "code", 7);
}

#[test]
fn an_end_that_nobody_saw_is_shown_as_soon_as_somebody_answers_whoever_was_left_behind() {
    let mut node = Node::new(SEXTON, &[]);
    for who in [Dead::Worker, Dead::Both] {
        let (alone, leaves) = (format!("alone-{who:?}").to_lowercase(), format!("leaves-{who:?}").to_lowercase());
        let gate = Gate::new(node.ground.dir());
        let wait = format!("read _ < {}", gate.path.display());
        let behind = "(trap '' TERM; echo deaf; setsid sleep 1000) &";
        let bodies = [(&alone, format!("{wait}; exit 3")), (&leaves, format!("{behind} {wait}; exit 3"))];
        let pids = bodies.map(|(name, body)| {
            let (answer, _) = node.ask("POST", "/v1/instances", None, Some(&script(name, &body)));
            answer.expect(201)["identity"]["pid"].as_i64().expect("a PID")
        });
        let logs = format!("/v1/instances/{leaves}/logs");
        eventually("it is deaf", SOON, || match node.ask("GET", &logs, None, None).0.text() {
            text if text == "deaf\n" => Ok(()),
            text => Err(text),
        });
        node.kill(who, || {
            gate.let_go(pids.len());
            all_end(&pids);
        });
        // At once, and not when what was left behind has had its grace.
        for (name, states) in [(&alone, &["exited"][..]), (&leaves, &["stopping"])] {
            let shown = node.instance(name);
            assert!(states.contains(&text(&shown, "state").as_str()), "{who:?}: {shown}");
            assert_eq!(shown["exit"]["code"], 3, "{who:?}: {shown}");
        }
        node.ask("POST", &format!("/v1/instances/{leaves}/stop"), None, Some(&json!({ "force": true }))).0.expect(202);
    }
    node.clear();
}

/// A program that becomes `sexton` in a time namespace of its own, in which the boot was at another time each time.
fn at_another_time() -> PathBuf {
    let line = format!("exec unshare -T --monotonic $$ --boottime $$ '{SEXTON}' \"$@\"");
    launcher("sexton-at-another-time", &line)
}

#[test]
fn the_keeper_forgets_what_is_durable_in_whatever_order_it_became_so() {
    let mut node = Node::new(SEXTON, &[]);
    let gates = [Gate::new(&below(&node, "first")), Gate::new(&below(&node, "second"))];
    let behind = "(trap '' TERM; echo deaf; setsid sleep 1000) &";
    for (name, gate, behind) in [("first", &gates[0], behind), ("second", &gates[1], "")] {
        let mut body = script(name, &format!("{behind} read _ < {}; exit 3", gate.path.display()));
        body["grace"] = json!("1m");
        node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
    }
    eventually("it is deaf", SOON, || match node.ask("GET", "/v1/instances/first/logs", None, None).0.text() {
        text if text == "deaf\n" => Ok(()),
        text => Err(text),
    });
    // From now on both are the keeper's children.
    node.kill(Dead::Worker, || {});
    gates[0].let_go(1);
    eventually("the exit of the first is known", SOON, || {
        let entry = node.instance("first");
        if entry["exit"]["code"] == 3 { Ok(()) } else { Err(entry.to_string()) }
    });
    gates[1].let_go(1);
    assert_eq!(node.settled("second")["exit"]["code"], 3);
    let order = json!({ "force": true });
    node.ask("POST", "/v1/instances/first/stop?wait=10s", None, Some(&order)).0.expect(200);
    // REGRESSION: it was told of the last one alone, and kept the others for ever.
    let records = node.ground.run_dir().join("exits");
    eventually("nothing is recorded but what is waited for", SOON, || {
        match std::fs::metadata(&records).map_or(0, |about| about.len()) {
            0..=16 => Ok(()),
            length => Err(format!("{length} bytes")),
        }
    });
}

/// A directory of that name.
fn below(node: &Node, name: &str) -> PathBuf {
    let dir = node.ground.dir().join(name);
    std::fs::create_dir(&dir).expect("made");
    dir
}

#[test]
fn time_namespaces_change_nothing() {
    // Who ended unseen is a zombie for as long as its new parent likes: that parent is this test, and reaps nobody.
    sexton_sys::process::become_subreaper().expect("a subreaper");
    let mut node = Node::new(at_another_time(), &[]);
    let gate = Gate::new(node.ground.dir());
    let mut create = |name: &str, body: &str| {
        let (answer, _) = node.ask("POST", "/v1/instances", None, Some(&script(name, body)));
        answer.expect(201)["identity"].clone()
    };
    let lives = create("lives", "exec sleep 1000");
    let ends = create("ends", &format!("read _ < {}; exit 9", gate.path.display()));
    node.kill(Dead::Both, || {
        gate.let_go(1);
        all_end(&[ends["pid"].as_i64().expect("a PID")]);
    });
    let shown = node.instance("ends");
    assert_eq!((text(&shown, "state"), &shown["exit"]["code"]), ("exited".to_owned(), &json!(9)), "{shown}");
    let shown = node.instance("lives");
    assert_eq!((text(&shown, "state"), &shown["identity"]), ("running".to_owned(), &lives), "{shown}");
    node.clear();
}

#[test]
fn how_a_zombie_ended_that_the_daemon_may_not_look_into_is_told_by_nobody_until_it_is_reaped() {
    // As above: it stays a zombie until this test, its new parent, reaps it.
    sexton_sys::process::become_subreaper().expect("a subreaper");
    // What a container has by default; another user's process may not be traced with it.
    let line = format!("exec setpriv --bounding-set -sys_ptrace '{SEXTON}' \"$@\"");
    let mut node = Node::new(launcher("sexton-without-ptrace", &line), &[]);
    let gate = Gate::new(node.ground.dir());
    std::os::unix::fs::chown(&gate.path, Some(65534), None).expect("root");
    let mut body = script("others", &format!("read _ < {}; exit 9", gate.path.display()));
    body["user"] = json!("65534");
    let pid = node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201)["identity"]["pid"].clone();
    let pid = pid.as_i64().expect("a PID");
    node.kill(Dead::Both, || {
        gate.let_go(1);
        all_end(&[pid]);
    });
    // REGRESSION: the kernel shows 0 to who may not know, and that was taken for its code.
    let shown = node.instance("others");
    assert_eq!(shown["exit"], Value::Null, "{shown}");
    sexton_sys::wait::reap(pid.try_into().expect("a PID")).expect("a child of this test").expect("over");
    ended_unwatched(&node.settled("others"), "code", 9);
}

fn play(who: Dead, times: &[When]) {
    let mut node = Node::new(SEXTON, &[]);
    for when in times {
        all_exits(&mut node, who, *when);
        node.clear();
    }
}

/// Every code, and every signal that ends a process by default.
fn ends() -> Vec<End> {
    let codes = (0..=255).map(End::Code);
    let signals = (1..=64).filter(|signal| !matches!(signal, 17..=23 | 28 | 32 | 33)).map(End::Signal);
    codes.chain(signals).collect()
}

fn all_exits(node: &mut Node, who: Dead, when: When) {
    let gate = Gate::new(node.ground.dir());
    let ends = ends();
    let pids: Vec<i64> = ends.iter().map(|end| create(node, &gate, *end)).collect();
    match when {
        When::Before => node.kill(who, || {
            gate.let_go(ends.len());
            all_end(&pids);
        }),
        When::During => {
            gate.let_go(ends.len() / 2);
            node.kill(who, || gate.let_go(ends.len() - ends.len() / 2));
        }
        When::After => {
            gate.let_go(ends.len());
            all_end(&pids);
            node.kill(who, || {});
        }
    }
    for end in &ends {
        let over = node.settled(&name(*end));
        assert_eq!(over["state"], "exited", "{who:?} {when:?} {end:?}: {over}");
        let expected = match end {
            End::Code(code) => (json!(code), Value::Null),
            End::Signal(signal) => (Value::Null, json!(signal)),
        };
        let exit = &over["exit"];
        assert_eq!((&exit["code"], &exit["signal"]), (&expected.0, &expected.1), "{who:?} {when:?} {end:?}: {over}");
        let source = text(exit, "source");
        assert!(["wait", "keeper", "pidfd", "pin", "proc"].contains(&source.as_str()), "{over}");
    }
}

fn name(end: End) -> String {
    match end {
        End::Code(code) => format!("code-{code}"),
        End::Signal(signal) => format!("signal-{signal}"),
    }
}

/// Creates a workload that ends that way as soon as the gate lets it go; tells its PID.
fn create(node: &mut Node, gate: &Gate, end: End) -> i64 {
    let wait = format!("read _ < {}", gate.path.display());
    let body = match end {
        End::Code(code) => format!("{wait}; exit {code}"),
        End::Signal(signal) => format!("ulimit -c 0; {wait}; kill -{signal} $$; exit 99"),
    };
    let (answer, _) = node.ask("POST", "/v1/instances", None, Some(&script(&name(end), &body)));
    answer.expect(201)["identity"]["pid"].as_i64().expect("a PID")
}

/// Waits until none of them runs: each is a zombie, or gone.
fn all_end(pids: &[i64]) {
    let runs = |pid: &&i64| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    };
    eventually("the workloads end", SOON, || {
        let left: Vec<&i64> = pids.iter().filter(runs).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

/// Holds workloads back: each takes one line from it, whenever it comes to read.
struct Gate {
    path: PathBuf,
    open: File,
}

impl Gate {
    fn new(dir: &Path) -> Gate {
        let path = dir.join("gate");
        if !path.exists() {
            assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        }
        // Open at both ends, so that no reader waits for a writer and none finds the end.
        let open = OpenOptions::new().read(true).write(true).open(&path).expect("gate");
        Gate { path, open }
    }

    fn let_go(&self, count: usize) {
        (&self.open).write_all(&vec![b'\n'; count]).expect("gate opened");
    }
}
