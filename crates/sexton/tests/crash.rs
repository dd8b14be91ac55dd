//! The worker, the keeper, or both, end at every named point of the code, again and again; afterwards ledger and
//! kernel must agree, and no exit code may be missing, wrong or invented.
//!
//! `SEXTON_TEST_CRASH_ROUNDS` makes it longer: that many rounds at random points after those at every point.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

#[path = "support/network.rs"]
mod network;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sexton_core::pin::PinBoard;
use sexton_plan::id::Pid;
use sexton_testkit::{Connection, SOON, crash_bin_dir, eventually, processes_in, refusing, skip};
use support::{Dead, Node, file_appears, is_settled, is_terminal, launcher, script, spec, text};

/// How often a point must be passed in one scenario before each crash.
const PASSES: [u32; 3] = [1, 2, 4];

#[test]
fn wherever_the_worker_dies_the_ledger_is_right_afterwards() {
    crash_everywhere(Dead::Worker);
}

#[test]
fn wherever_worker_and_keeper_die_the_ledger_is_right_afterwards() {
    crash_everywhere(Dead::Both);
}

#[test]
fn wherever_the_keeper_dies_the_ledger_is_right_afterwards() {
    crash_everywhere(Dead::Keeper);
}

#[test]
fn wherever_the_worker_dies_network_slots_are_right_afterwards() {
    crash_at_slots(Dead::Worker);
}

#[test]
fn wherever_worker_and_keeper_die_network_slots_are_right_afterwards() {
    crash_at_slots(Dead::Both);
}

#[test]
fn wherever_the_keeper_dies_network_slots_are_right_afterwards() {
    crash_at_slots(Dead::Keeper);
}

#[test]
fn wherever_worker_and_keeper_die_a_start_by_clone_is_right_afterwards() {
    let Some(programs) = crash_bin_dir() else { skip!("`cargo xtask ci` builds the programs with crash points") };
    let line = format!(
        "{} '{}' \"$@\"",
        refusing(&["clone3 ENOSYS", "close_range ENOSYS"]),
        programs.join("sexton").display()
    );
    let program = launcher("sexton-crashing-without-clone3", &line);
    drop(crash_at(&program, Dead::Both, |point| point.starts_with("start.")));
}

#[test]
fn wherever_the_worker_dies_an_exit_that_nothing_pins_is_known_afterwards() {
    let Some(programs) = crash_bin_dir() else { skip!("`cargo xtask ci` builds the programs with crash points") };
    let line = format!("{} '{}' \"$@\"", refusing(&["open_tree EINVAL"]), programs.join("sexton").display());
    let program = launcher("sexton-crashing-without-pins", &line);
    drop(crash_at(&program, Dead::Worker, |point| ["end.", "settle."].iter().any(|of| point.starts_with(of))));
}

#[test]
fn what_never_ran_has_no_exit_though_its_mark_could_not_be_read() {
    let Some(programs) = crash_bin_dir() else { skip!("`cargo xtask ci` builds the programs with crash points") };
    let (mut node, mark, aside) = doubted_start(&programs, "start.identified", "mkdir");
    let doubted = node.instance("waits");
    assert_eq!((&doubted["state"], &doubted["exit"]), (&json!("unverified"), &Value::Null), "{doubted}");
    assert!(text(&doubted, "reason").contains("its mark could not be read"), "{doubted}");
    fs::remove_dir(&mark).expect("removed");
    fs::rename(&aside, &mark).expect("put back");
    node.ask("POST", "/v1/reconcile", None, None);
    let over = node.settled("waits");
    assert_eq!((&over["state"], &over["exit"]), (&json!("failed"), &Value::Null), "{over}");
}

#[test]
fn what_may_never_have_run_has_no_exit_where_its_mark_was_taken_away() {
    let Some(programs) = crash_bin_dir() else { skip!("`cargo xtask ci` builds the programs with crash points") };
    let (mut node, ..) = doubted_start(&programs, "start.identified", "true");
    // REGRESSION: it had exited with 127, which was the code of a child that was never released.
    let over = node.settled("waits");
    assert_eq!((&over["state"], &over["reason"]), (&json!("lost"), &json!("vanished")), "{over}");
    assert_eq!(over["exit"], Value::Null, "{over}");
}

/// Both die while a start of `waits` is held at `point`, and the next daemon cannot read its mark, for something else is in
/// its place, made by `program`, or nothing: the node, that place, and where the mark is.
fn doubted_start(programs: &Path, point: &str, program: &str) -> (Node, PathBuf, PathBuf) {
    let orders = Orders::new();
    let env = [("SEXTON_CRASH_FILE", orders.file.to_str().expect("text"))];
    let mut node = Node::prepared(programs.join("sexton"), &env, |_| {});
    let (keeper, worker) = (node.daemon().keeper().expect("keeper"), node.daemon().worker().expect("worker"));
    orders.give(point, 1, 0, "hold");
    let mut line = Connection::open(&node.ground.run_dir().join("sexton.sock")).expect("connected");
    let body = spec("waits", &["/bin/sleep", "1000"]).to_string();
    line.send("POST", "/v1/instances", &[], Some(body.as_bytes())).expect("sent");
    eventually("it is held before the release", SOON, || {
        if orders.file.exists() { Err("not yet".to_owned()) } else { Ok(()) }
    });
    let marks = node.ground.run_dir().join("starts");
    let life = names(&marks).pop_first().expect("a mark");
    let (mark, aside) = (marks.join(&life), node.ground.dir().join("mark"));
    keeper.kill9().expect("killed");
    worker.kill9().expect("killed");
    node.daemon().wait_end(SOON);
    node.daemon = None;
    fs::rename(&mark, &aside).expect("put aside");
    assert!(Command::new(program).arg(&mark).status().expect("it runs").success());
    node.serve();
    (node, mark, aside)
}

#[test]
fn what_a_forced_drain_found_in_doubt_is_ended_once_it_is_proven() {
    let Some(programs) = crash_bin_dir() else { skip!("`cargo xtask ci` builds the programs with crash points") };
    let (mut node, mark, aside) = doubted_start(&programs, "start.running", "mkfifo");
    assert_eq!(node.instance("waits")["state"], "unverified");
    let drain = json!({ "status": "draining", "forceStop": true });
    node.ask("POST", "/v1/nodes/self", None, Some(&drain)).0.expect(202);
    eventually("it is told that no signal was sent", SOON, || {
        let events = node.ground.client().list("/v1/events").expect("events");
        if events.iter().any(|event| event["kind"] == "signal.refused") { Ok(()) } else { Err(format!("{events:?}")) }
    });
    fs::remove_file(&mark).expect("removed");
    fs::rename(&aside, &mark).expect("put back");
    node.ask("POST", "/v1/reconcile", None, None).0.expect(200);
    // REGRESSION: it was in custody again, and no drain ended that was not ordered again.
    eventually("drained", SOON, || {
        let shown = node.get("/v1/node");
        if shown["drained"] == true { Ok(()) } else { Err(shown.to_string()) }
    });
    assert_eq!(node.instance("waits")["exit"]["signal"], 9);
}

fn crash_at_slots(who: Dead) {
    let Some(programs) = crash_bin_dir() else { skip!("`cargo xtask ci` builds the programs with crash points") };
    network::alone(|| {
        let before = network::snapshot();
        let mut node = crash_at(&programs.join("sexton"), who, |point| point.starts_with("slot."));
        let drain = json!({ "status": "draining" });
        let drained = node.ask("POST", "/v1/nodes/self?wait=20s", None, Some(&drain)).0.expect(200);
        assert_eq!((&drained["drained"], network::snapshot()), (&json!(true), before), "nothing is left of any life");
    });
}

fn crash_everywhere(who: Dead) {
    let Some(programs) = crash_bin_dir() else { skip!("`cargo xtask ci` builds the programs with crash points") };
    // A drain ends everything else, so `drain.rs` carries out the orders at its points; and `sidecar.rs` has the files
    // of somebody else.
    drop(crash_at(&programs.join("sexton"), who, |point| {
        !["drain.", "slot.", "watch."].iter().any(|other| point.starts_with(other))
    }));
}

/// Plays every scenario, with crashes at the points of which `concerns` is true; the node, with nothing on it.
fn crash_at(program: &Path, who: Dead, concerns: fn(&str) -> bool) -> Node {
    // What ends beside a dead keeper is a zombie for as long as its new parent likes: that parent is this test.
    sexton_sys::process::become_subreaper().expect("a subreaper");
    let orders = Orders::new();
    let env = [("SEXTON_CRASH_FILE", orders.file.to_str().expect("text"))];
    let has_slots = concerns("slot.made");
    let config = if has_slots { "[slots]\ncount = 1\n" } else { "" };
    let mut node = Node::prepared(program, &env, |ground| {
        fs::write(ground.config(), config).expect("configured");
    });
    let ready = has_slots.then(network::host);
    let checks = node.get("/v1/doctor")["checks"].clone();
    let mut checks = checks.as_array().expect("a list").iter();
    let has_pins = checks.any(|check| check["name"] == "pins" && check["grade"] == "ok");
    let mut crashed = BTreeMap::<String, u32>::new();
    for (round, (point, nth)) in rounds(concerns).into_iter().enumerate() {
        let (point, ready) = (point.clone(), ready.as_deref());
        let mut round = Round { number: round, point, node: &mut node, orders: &orders, ready, has_pins };
        if round.run(who, nth) {
            *crashed.entry(round.point).or_default() += 1;
        }
    }
    let missed: Vec<String> =
        points().into_iter().filter(|point| !crashed.contains_key(point) && concerns(point)).collect();
    assert!(missed.is_empty(), "no scenario comes to {missed:?}; crashes: {crashed:?}");
    node
}

/// Every point in the sources, so that none is forgotten here.
fn points() -> BTreeSet<String> {
    let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut points = BTreeSet::new();
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).expect("sources").map(|entry| entry.expect("a file").path()) {
            if path.is_dir() {
                dirs.push(path);
            } else {
                points.extend(points_in(&fs::read_to_string(path).expect("text")));
            }
        }
    }
    assert!(points.len() > 15, "{points:?}");
    points
}

fn points_in(text: &str) -> Vec<String> {
    let uses = text.split("crash_point!(\"").skip(1);
    uses.filter_map(|rest| rest.split_once('"')).map(|(name, _)| name.to_owned()).collect()
}

/// Every point for some numbers of passes, and then as many more as are asked for.
fn rounds(concerns: fn(&str) -> bool) -> Vec<(String, u32)> {
    let points: Vec<String> = points().into_iter().filter(|point| concerns(point)).collect();
    let mut rounds: Vec<(String, u32)> =
        points.iter().flat_map(|point| PASSES.map(|nth| (point.clone(), nth))).collect();
    let more = std::env::var("SEXTON_TEST_CRASH_ROUNDS").ok().and_then(|more| more.parse().ok()).unwrap_or(0);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..more {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let pick = usize::try_from(random >> 40).expect("fits");
        rounds.push((points[pick % points.len()].clone(), u32::try_from(pick / points.len() % 6).expect("fits") + 1));
    }
    rounds
}

/// The file by which a crash is ordered.
struct Orders {
    file: PathBuf,
}

impl Orders {
    fn new() -> Orders {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        Orders { file: std::env::temp_dir().join(format!("sexton-test-order-{}-{next}", std::process::id())) }
    }

    /// `act`: `kill` ends the worker there, `hold` keeps it there.
    fn give(&self, point: &str, nth: u32, round: usize, act: &str) {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{point} {nth} {round} {act}")).expect("order written");
        fs::rename(new, &self.file).expect("order given");
    }

    /// Takes an order back; whether it had been carried out.
    fn take_back(&self) -> bool {
        fs::remove_file(&self.file).is_err()
    }
}

impl Drop for Orders {
    fn drop(&mut self) {
        self.take_back();
    }
}

/// The names of what is in a directory, if there is one.
fn names(dir: &Path) -> BTreeSet<String> {
    let Ok(files) = fs::read_dir(dir) else { return BTreeSet::new() };
    files.map(|file| file.expect("a file").file_name().to_string_lossy().into_owned()).collect()
}

/// One scenario with one crash in it.
struct Round<'a> {
    number: usize,
    point: String,
    node: &'a mut Node,
    orders: &'a Orders,
    /// The host's network as it was with a full pool, where slots are what the round is about.
    ready: Option<&'a str>,
    /// Whether the daemon pins exit codes.
    has_pins: bool,
}

impl Round<'_> {
    /// Plays the scenario; whether the crash happened.
    fn run(&mut self, who: Dead, nth: u32) -> bool {
        self.orders.give(&self.point, nth, self.number, if who == Dead::Keeper { "hold" } else { "kill" });
        match who {
            Dead::Both => self.node.bind_keeper_to_worker(),
            Dead::Keeper => self.node.end_keeper_at(self.orders.file.clone()),
            Dead::Nobody | Dead::Worker => {}
        }
        let sleeper = self.sleeper();
        self.short();
        self.refused();
        self.stubborn();
        self.leaves_behind();
        self.again();
        self.restarting();
        if self.ready.is_some() {
            self.networked();
        }
        self.adopted();
        self.removed();
        // Nobody would end a worker that is held from here on, so the order is taken back while its keeper is bound to it.
        let is_held = who == Dead::Keeper;
        let mut crashed = if is_held { self.orders.take_back() } else { !self.orders.file.exists() };
        self.node.unbind();
        if is_held && !crashed {
            self.orders.give(&self.point, nth, self.number, "kill");
        }
        self.ends_unseen(who);
        crashed |= self.orders.take_back();
        self.node.unbind();
        self.sleeper_is_untouched(sleeper.as_ref());
        self.oracle();
        self.node.clear();
        self.oracle();
        crashed
    }

    fn name(&self, what: &str) -> String {
        format!("r{}-{what}", self.number)
    }

    /// A file that a workload writes to, one line a life.
    fn lives(&self, what: &str) -> PathBuf {
        self.node.ground.dir().join(self.name(what))
    }

    fn count_lives(&self, what: &str) -> usize {
        fs::read_to_string(self.lives(what)).unwrap_or_default().lines().count()
    }

    /// Creates under a key, so that a repeated question has one answer and one process. Tells whether it ran.
    fn create(&mut self, body: &Value) -> bool {
        let key = format!("key-{}", text(body, "name"));
        let (answer, again) = self.node.ask("POST", "/v1/instances", Some(&key), Some(body));
        // A start that was cut off before its program ran has failed, and says so under its key.
        assert!(answer.status == 201 || again, "{}: {}", self.point, answer.text());
        answer.status == 201
    }

    fn stop(&mut self, what: &str) -> Value {
        let path = format!("/v1/instances/{}/stop?wait=20s", self.name(what));
        self.node.ask("POST", &path, None, Some(&json!({}))).0.expect(200)
    }

    fn sleeper(&mut self) -> Option<Value> {
        let name = self.name("sleeper");
        self.create(&spec(&name, &["/bin/sleep", "1000"])).then(|| self.node.instance(&name)["identity"].clone())
    }

    fn sleeper_is_untouched(&mut self, identity: Option<&Value>) {
        let entry = self.node.instance(&self.name("sleeper"));
        match identity {
            Some(identity) => {
                assert_eq!((&entry["state"], &entry["identity"]), (&json!("running"), identity), "{entry}")
            }
            None => assert_eq!(entry["state"], "failed", "{entry}"),
        }
    }

    /// Ends by itself with a code: known, however often the daemon died, and its program ran once.
    fn short(&mut self) {
        let name = self.name("short");
        let ran = self.create(&script(&name, &format!("echo x >> {}; exit 7", self.lives("short").display())));
        let over = self.node.settled(&name);
        self.ended(&over, ran, json!(7), Value::Null);
        assert_eq!(self.count_lives("short"), usize::from(ran), "{over}");
    }

    /// Its exit is what it should be, or it never ran.
    fn ended(&self, over: &Value, ran: bool, code: Value, signal: Value) {
        if ran {
            let exit = &over["exit"];
            assert_eq!((&over["state"], &exit["code"], &exit["signal"]), (&json!("exited"), &code, &signal), "{over}");
        } else {
            assert_eq!((&over["state"], &over["exit"]), (&json!("failed"), &Value::Null), "{over}");
        }
    }

    /// A program that does not exist.
    fn refused(&mut self) {
        let name = self.name("refused");
        let key = format!("key-{name}");
        let body = spec(&name, &["/no/such/program"]);
        let (answer, _) = self.node.ask("POST", "/v1/instances", Some(&key), Some(&body));
        assert!(answer.status >= 400, "{}", answer.text());
        let over = self.node.settled(&name);
        if over["state"] != Value::Null {
            self.ended(&over, false, Value::Null, Value::Null);
        }
    }

    /// A tree of two sessions that ignores the polite signal.
    fn stubborn(&mut self) {
        let name = self.name("stubborn");
        let ready = self.lives("stubborn");
        let inner = format!("trap \"\" TERM; echo x >> {}; while :; do sleep 1; done", ready.display());
        let outer = format!("trap '' TERM; (setsid sh -c '{inner}' &); while :; do sleep 1; done");
        let mut body = script(&name, &outer);
        body["grace"] = json!("50ms");
        let ran = self.create(&body);
        if ran {
            file_appears(&ready);
        }
        let over = self.stop("stubborn");
        self.ended(&over, ran, Value::Null, json!(9));
    }

    /// Ends by itself while a child that ignores the polite signal lives on: its exit is shown before that is ended.
    fn leaves_behind(&mut self) {
        let name = self.name("leaves");
        let ready = self.lives("leaves");
        let child = format!("(trap '' TERM; echo x >> {}; while :; do sleep 1; done)", ready.display());
        let main = format!("{child} & until [ -e {} ]; do sleep 0.01; done; exit 4", ready.display());
        let mut body = script(&name, &main);
        body["grace"] = json!("50ms");
        let ran = self.create(&body);
        let over = self.node.settled(&name);
        self.ended(&over, ran, json!(4), Value::Null);
    }

    /// Stopped politely, started anew, and stopped by force.
    fn again(&mut self) {
        let name = self.name("again");
        let ran = self.create(&spec(&name, &["/bin/sleep", "1000"]));
        let over = self.stop("again");
        self.ended(&over, ran, Value::Null, json!(15));
        let path = format!("/v1/instances/{name}/start");
        let (answer, again) = self.node.ask("POST", &path, None, Some(&json!({})));
        assert!(answer.status == 200 || again, "{}: {}", self.point, answer.text());
        let path = format!("/v1/instances/{name}/stop?wait=20s");
        let over = self.node.ask("POST", &path, None, Some(&json!({ "force": true }))).0.expect(200);
        assert!(is_settled(&over), "{over}");
        // Cut off, the second start may have failed, or been rolled back before anybody heard of it.
        let was_killed = over["exit"]["signal"] == 9;
        assert!(was_killed || again, "{over}");
    }

    /// Fails and is restarted, until it is stopped for good.
    fn restarting(&mut self) {
        let name = self.name("restarting");
        let lives = self.lives("restarting");
        let mut body = script(&name, &format!("echo x >> {}; exit 3", lives.display()));
        body["restart"] = json!("on-failure");
        if self.create(&body) {
            eventually("a second life", SOON, || {
                self.node.revive();
                let lives = self.count_lives("restarting");
                if lives >= 2 { Ok(()) } else { Err(format!("{lives} lives; {}", self.point)) }
            });
        }
        let over = self.stop("restarting");
        assert!(is_settled(&over), "{over}");
        let lives = self.count_lives("restarting");
        let later = self.node.instance(&name);
        assert_eq!((&later["state"], &later["incarnation"]), (&over["state"], &over["incarnation"]), "{later}");
        assert_eq!(self.count_lives("restarting"), lives, "restarted after a stop");
    }

    /// Has a network slot, and gives it back.
    fn networked(&mut self) {
        let mut body = spec(&self.name("networked"), &["/bin/sleep", "1000"]);
        body["slot"] = json!(true);
        let ran = self.create(&body);
        let over = self.stop("networked");
        self.ended(&over, ran, Value::Null, json!(15));
    }

    /// Runs already, and is taken into custody; cut off, that is undone, and can be asked for anew.
    fn adopted(&mut self) {
        let name = self.name("adopted");
        let mut elsewhere = Command::new("/bin/sleep").arg("1000").spawn().expect("sleep");
        let pid = Pid::new(i32::try_from(elsewhere.id()).expect("fits")).expect("a PID");
        let ticks = sexton_core::proc::stat(pid).expect("it lives").start_ticks;
        let body = json!({ "name": name, "pid": pid, "start_ticks": ticks });
        eventually("it is in custody", SOON, || {
            let (answer, again) = self.node.ask("POST", "/v1/adopt", None, Some(&body));
            // Refused it may be only for what an earlier question has done or is undoing.
            assert!(answer.status == 201 || again || answer.status == 409, "{}: {}", self.point, answer.text());
            let entry = self.node.ask("GET", &format!("/v1/instances/{name}"), None, None).0.json();
            let is_it = entry["state"] == "running" && entry["identity"]["pid"] == json!(pid);
            if is_it { Ok(()) } else { Err(format!("{}: {} {entry}", self.point, answer.text())) }
        });
        let over = self.stop("adopted");
        self.ended(&over, true, Value::Null, json!(15));
        let _status = elsewhere.wait().expect("reaped");
    }

    /// Taken off the list while everything else goes on.
    fn removed(&mut self) {
        let name = self.name("short");
        let (answer, again) = self.node.ask("DELETE", &format!("/v1/instances/{name}?wait=20s"), None, None);
        assert!(answer.status == 200 || (again && answer.status == 404), "{}", answer.text());
        assert_eq!(self.node.ask("GET", &format!("/v1/instances/{name}"), None, None).0.status, 404);
    }

    /// Ends while nobody is there to see it.
    fn ends_unseen(&mut self, who: Dead) {
        let name = self.name("unseen");
        let gate = self.lives("gate");
        let body = script(&name, &format!("until [ -e {} ]; do sleep 0.01; done; exit 9", gate.display()));
        let ran = self.create(&body);
        let pid = self.node.instance(&name)["identity"]["pid"].as_i64();
        self.node.kill(who, || {
            fs::write(&gate, "").expect("gate opened");
            eventually("the unseen one ends", SOON, || {
                let state = pid.filter(|_| ran).and_then(process_state);
                if state.is_none_or(|state| state == 'Z') { Ok(()) } else { Err(format!("{pid:?} {state:?}")) }
            });
            if let Some(pid) = pid.filter(|_| ran && who != Dead::Worker) {
                // With its keeper dead, it is this test's child.
                let reaped = sexton_sys::wait::reap(u32::try_from(pid).expect("a PID"));
                assert!(matches!(reaped, Ok(Some(_))), "{pid}: {reaped:?}");
            }
        });
        let over = self.node.settled(&name);
        self.ended(&over, ran, json!(9), Value::Null);
    }

    /// Ledger and kernel agree: nothing is there that no row claims, and nothing claimed is missing.
    fn oracle(&mut self) {
        let entries = self.at_rest();
        let mut claimed = BTreeSet::new();
        for entry in &entries {
            if is_terminal(entry) {
                assert!(is_settled(entry), "{entry}");
                continue;
            }
            assert_eq!(entry["state"], "running", "{}: {entry}", self.point);
            let dir = self.node.ground.cgroup_at(entry["cgroup"]["path"].as_str().expect("a cgroup"));
            let pids: Vec<i64> = processes_in(&dir).into_iter().map(i64::from).collect();
            assert_eq!(Some(pids), entry["identity"]["pid"].as_i64().map(|pid| vec![pid]), "{entry}");
            claimed.insert(dir);
        }
        let root = self.node.ground.cgroup_dir();
        assert_eq!(
            directories(&root).into_iter().filter(|dir| claims_instances(dir)).collect::<BTreeSet<_>>(),
            claimed
        );
        self.files_agree(&entries);
        if self.ready.is_none() {
            // In a mount namespace of a test's own there may be no pins.
            self.pins_agree(&entries);
        }
        self.events_agree();
        if let Some(ready) = self.ready {
            self.slots_agree(ready);
        }
    }

    /// Nobody has a slot, so the one that is kept ready is there, whole, and nothing else of the kind.
    fn slots_agree(&mut self, ready: &str) {
        let point = self.point.clone();
        eventually("the pool is as it was", SOON, || {
            let slots = self.node.get("/v1/slots")["items"].clone();
            let is_full = slots.as_array().is_some_and(|all| all.len() == 1);
            if is_full && slots[0]["state"] == "ready" { Ok(()) } else { Err(format!("{point}: {slots}")) }
        });
        assert_eq!(network::host(), ready, "{point}");
    }

    /// The list, once nothing is on its way any more.
    fn at_rest(&mut self) -> Vec<Value> {
        let point = self.point.clone();
        eventually("everything is at rest", SOON, || {
            let entries = self.node.instances();
            let restless: Vec<&Value> =
                entries.iter().filter(|entry| !is_settled(entry) && entry["state"] != "running").collect();
            if restless.is_empty() { Ok(entries.clone()) } else { Err(format!("{point}: {restless:?}")) }
        })
    }

    fn files_agree(&mut self, entries: &[Value]) {
        let ground = &self.node.ground;
        let listed: BTreeSet<String> = entries.iter().map(|entry| text(entry, "name")).collect();
        let logs = names(&ground.state_dir().join("logs"));
        assert!(logs.is_subset(&listed), "{}: logs of nobody: {logs:?} {listed:?}", self.point);
        // The mark of a start that nobody saw through lasts as long as the life.
        let alive = entries.iter().filter(|entry| entry["state"] == "running");
        let alive: BTreeSet<String> = alive.map(|entry| text(entry, "incarnation")).collect();
        eventually("marks are those of the living", SOON, || {
            let marks = names(&ground.run_dir().join("starts"));
            if marks.is_subset(&alive) { Ok(()) } else { Err(format!("{}: {marks:?} {alive:?}", self.point)) }
        });
    }

    fn pins_agree(&mut self, entries: &[Value]) {
        let alive = entries.iter().filter(|entry| entry["state"] == "running");
        let claimed: BTreeSet<String> = alive.map(|entry| text(entry, "incarnation")).collect();
        if claimed.is_empty() || !self.has_pins {
            return;
        }
        let pins = PinBoard::open(&self.node.ground.run_dir()).expect("pins");
        // A pin goes after the row says that its process is over.
        eventually("the pins are those of the living", SOON, || {
            let kept = pins.run(|pins| pins.keys()).expect("an answer").expect("keys");
            let kept: BTreeSet<String> = kept.into_iter().collect();
            if kept == claimed { Ok(()) } else { Err(format!("{}: {kept:?} {claimed:?}", self.point)) }
        });
    }

    /// No gap, and no fact told twice.
    fn events_agree(&mut self) {
        let after = self.number.saturating_sub(1) * 40;
        let client = self.node.ground.client();
        let events = client.list_after("/v1/events", json!(after)).expect("events");
        let mut told = BTreeSet::new();
        for (index, event) in events.iter().enumerate() {
            let expected = u64::try_from(after + index + 1).expect("fits");
            assert_eq!(event["seq"].as_u64(), Some(expected), "{}: {event}", self.point);
            let kind = text(event, "kind");
            let once = ["instance.starting", "instance.running", "instance.exited", "instance.failed", "instance.lost"];
            if once.contains(&kind.as_str()) {
                assert!(told.insert((text(event, "incarnation"), kind)), "{}: told twice: {event}", self.point);
            }
            assert_ne!(event["kind"], "instance.lost", "{}: {event}", self.point);
        }
    }
}

/// Whether a cgroup is one of the instances' and not of the daemon's own that last.
fn claims_instances(dir: &Path) -> bool {
    fs::read_to_string(dir.join("cgroup.procs")).is_ok()
}

fn directories(dir: &Path) -> BTreeSet<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeSet::new() };
    entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// The letter in `/proc/PID/stat`.
fn process_state(pid: i64) -> Option<char> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(") ")?.1.chars().next()
}
