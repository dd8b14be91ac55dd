//! Adoptions that do not come about: the process stays, or is put back, where it was, and is nobody's.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

#[path = "support/failing.rs"]
mod failing;
mod support;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use failing::Failing;
use serde_json::{Value, json};
use sexton_core::handle::Handle;
use sexton_core::proc;
use sexton_plan::id::Pid;
use sexton_testkit::{Response, SOON, crash_bin_dir, eventually, skip};
use support::{Dead, Node, SEXTON, ended_unwatched, file_appears, leaderless, script, spec};

/// Where a v1 hierarchy limits the number of processes.
const V1_PIDS: &str = "/sys/fs/cgroup/pids";

/// A process of somebody else's, with two threads, whose main one leaves when it is told to.
struct Elsewhere {
    child: Child,
    pid: Pid,
    gate: PathBuf,
    left: PathBuf,
}

impl Elsewhere {
    fn start(dir: &Path) -> Elsewhere {
        let (gate, left) = (dir.join("gate"), dir.join("left"));
        let child =
            Command::new(leaderless(dir)).env("GATE", &gate).env("READY", &left).spawn().expect("it was compiled");
        let pid = Pid::new(i32::try_from(child.id()).expect("fits")).expect("a PID");
        let elsewhere = Elsewhere { child, pid, gate, left };
        eventually("two threads", SOON, || {
            let threads = elsewhere.threads();
            if threads.len() == 2 { Ok(()) } else { Err(format!("{threads:?}")) }
        });
        elsewhere
    }

    fn threads(&self) -> Vec<PathBuf> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).expect("it lives");
        tasks.map(|task| task.expect("a thread").path()).collect()
    }

    fn lose_main_thread(&self) {
        fs::write(&self.gate, "").expect("gate opened");
        file_appears(&self.left);
    }

    /// Where its other thread is, in every hierarchy.
    fn cgroups(&self) -> String {
        let other = self.threads().into_iter().find(|task| !task.ends_with(self.pid.to_string())).expect("it stays");
        fs::read_to_string(other.join("cgroup")).expect("readable")
    }

    fn adopt(&self, node: &mut Node, name: &str) -> Response {
        node.ask("POST", "/v1/adopt", None, Some(&self.wanted(name))).0
    }

    /// Some have their limits in a v1 hierarchy, where it is moved as well.
    fn wanted(&self, name: &str) -> Value {
        let ticks = proc::stat(self.pid).expect("it lives").start_ticks;
        json!({ "name": name, "pid": self.pid, "start_ticks": ticks, "limits": { "pids": 50 } })
    }

    fn tag(&self) -> Option<String> {
        Handle::open(self.pid, &proc::here().expect("here")).expect("it lives").tagged()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A cgroup of somebody else's, with `home` in it. Dropped, they are removed.
struct Cgroups(PathBuf);

impl Cgroups {
    fn make(node: &Node) -> Cgroups {
        Cgroups::below(&node.ground.cgroup_at("/"), node)
    }

    /// In the v1 hierarchy in which a number of processes is limited, where the host has that.
    fn make_v1(node: &Node) -> Option<Cgroups> {
        let root = Path::new(V1_PIDS);
        root.join("cgroup.procs").exists().then(|| Cgroups::below(root, node))
    }

    fn below(root: &Path, node: &Node) -> Cgroups {
        let cgroups = Cgroups(root.join(format!("{}-elsewhere", node.ground.cgroup())));
        fs::create_dir_all(cgroups.0.join("home")).expect("made");
        cgroups
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for dir in [self.0.join("threaded"), self.0.join("home"), self.0.clone()] {
            let _gone = fs::remove_dir(dir);
        }
    }
}

/// Where the cgroup of a line of `/proc/PID/cgroup` is.
fn directory(node: &Node, line: &str) -> PathBuf {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controller, path) = (fields.next().expect("controllers"), fields.next().expect("a path"));
    if controller.is_empty() {
        return node.ground.cgroup_at(path);
    }
    Path::new("/sys/fs/cgroup").join(controller.trim_start_matches("name=")).join(path.trim_start_matches('/'))
}

fn move_into(dir: &Path, pid: Pid) {
    fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
}

/// A node whose worker dies at `point` of the adoption of `elsewhere` as `x`; `meanwhile` runs while there is none.
fn cut_off(node: &mut Node, order: &Path, elsewhere: &Elsewhere, point: &str, meanwhile: impl FnOnce(&Node)) {
    let (keeper, worker) = (node.daemon().keeper().expect("keeper"), node.daemon().worker().expect("worker"));
    keeper.signal(support::SIGSTOP).expect("stopped");
    fs::write(order, format!("{point} 1")).expect("ordered");
    let _hung_up = node.ground.client().post("/v1/adopt", &elsewhere.wanted("x"));
    assert!(worker.ends_within(SOON), "{point}: nobody came by");
    meanwhile(node);
    keeper.signal(support::SIGCONT).expect("continued");
    node.daemon().wait_ready().expect("another worker");
}

/// What is answered to who asks for `elsewhere` as `x`; `meanwhile` runs once the intent is recorded, and before anything
/// is made.
fn asks_while(node: &mut Node, elsewhere: &Elsewhere, meanwhile: impl FnOnce(&Node)) -> Response {
    let worker = node.daemon().worker_pid().expect("a worker");
    let slow = Failing::slowly_everywhere(worker, "fsetxattr", Duration::from_secs(2));
    let (client, wanted) = (node.ground.client(), elsewhere.wanted("x"));
    let asking = std::thread::spawn(move || client.post("/v1/adopt", &wanted).expect("an answer"));
    let log = node.ground.state_dir().join("sexton.db-wal");
    eventually("its intent is recorded", SOON, || {
        let log = fs::read(&log).map_err(|error| error.to_string())?;
        let intent: &[u8] = b"cgroup-origin";
        let is_there = log.windows(intent.len()).any(|window| window == intent);
        if is_there { Ok(()) } else { Err("not yet".to_owned()) }
    });
    meanwhile(node);
    let answer = asking.join().expect("answered");
    drop(slow);
    answer
}

/// What is left of `x` in the cgroups of `node`, of whatever hierarchy.
fn cgroups_of_x(node: &Node) -> Vec<OsString> {
    let dirs = [node.ground.cgroup_dir(), Path::new(V1_PIDS).join(node.ground.cgroup())];
    let names = dirs.iter().flat_map(fs::read_dir).flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().starts_with("x.")).collect()
}

fn with_crash_points(order: &str) -> Option<(Node, PathBuf)> {
    let bin = crash_bin_dir()?;
    let order = std::env::temp_dir().join(format!("sexton-adopt-crash-{order}-{}", std::process::id()));
    let node = Node::new(bin.join("sexton"), &[("SEXTON_CRASH_FILE", order.to_str().expect("text"))]);
    Some((node, order))
}

fn leaves_the_list(node: &mut Node) {
    eventually("its row is gone", SOON, || {
        let answer = node.ask("GET", "/v1/instances/x", None, None).0;
        if answer.status == 404 { Ok(()) } else { Err(answer.text()) }
    });
}

#[test]
fn a_process_without_its_main_thread_is_refused_before_anything_is_done() {
    let mut node = Node::new(SEXTON, &[]);
    let elsewhere = Elsewhere::start(node.ground.dir());
    elsewhere.lose_main_thread();
    let (home, before) = (elsewhere.cgroups(), node.get("/v1/events"));
    let refused = elsewhere.adopt(&mut node, "x");
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert!(refused.text().contains("its main thread has exited"), "{}", refused.text());
    assert_eq!((elsewhere.cgroups(), elsewhere.tag()), (home, None));
    assert_eq!(node.get("/v1/events"), before, "a refused call leaves no event");
    assert_eq!(node.instances(), [] as [Value; 0]);
}

#[test]
fn whose_place_cannot_be_read_is_not_taken() {
    if !sexton_testkit::skip::has_program("strace") {
        skip!(package "strace");
    }
    let mut node = Node::new(SEXTON, &[]);
    let cgroups = Cgroups::make(&node);
    let elsewhere = Elsewhere::start(node.ground.dir());
    move_into(&cgroups.0.join("home"), elsewhere.pid);
    let home = elsewhere.cgroups();
    let worker = i32::try_from(node.get("/v1/self")["worker_pid"].as_i64().expect("a PID")).expect("fits");
    let proc = PathBuf::from(format!("/proc/{}", elsewhere.pid));
    // REGRESSION: it was taken for one in nobody's custody, and its place for the root, where it would have been put back.
    let unread = [(proc.join("cgroup"), "1"), (proc.join("cgroup"), "2")];
    // Whose its locks are, and its cgroup.
    let unread = unread.into_iter().chain([(proc.join("fdinfo"), "1+"), (cgroups.0.join("home"), "1+")]);
    for (path, when) in unread {
        let failing = Failing::of(worker, "openat", &path, "ENOMEM", when);
        let refused = elsewhere.adopt(&mut node, "x");
        drop(failing);
        assert_eq!(refused.status, 409, "{path:?} {when}: {}", refused.text());
        assert!(refused.text().contains("cannot be read"), "{}", refused.text());
        assert_eq!((elsewhere.cgroups(), elsewhere.tag()), (home.clone(), None), "{path:?} {when}");
    }
    elsewhere.adopt(&mut node, "x").expect(201);
    node.clear();
}

#[test]
fn an_adoption_that_the_ledger_refuses_on_the_way_is_given_up() {
    if !sexton_testkit::skip::has_program("strace") {
        skip!(package "strace");
    }
    let mut node = Node::new(SEXTON, &[]);
    let cgroups = [Some(Cgroups::make(&node)), Cgroups::make_v1(&node)];
    let elsewhere = Elsewhere::start(node.ground.dir());
    cgroups.iter().flatten().for_each(|cgroups| move_into(&cgroups.0.join("home"), elsewhere.pid));
    let home = elsewhere.cgroups();
    let (state_dir, away) = (node.ground.state_dir(), node.ground.dir().join("away"));
    // REGRESSION: it got 201, and the next worker took it out of custody again.
    asks_while(&mut node, &elsewhere, |_| fs::rename(&state_dir, &away).expect("moved")).expect(503);
    assert_eq!((elsewhere.cgroups(), elsewhere.tag(), cgroups_of_x(&node)), (home, None, vec![]));
    fs::rename(&away, &state_dir).expect("moved back");
    leaves_the_list(&mut node);
    let plan = node.get("/v1/plan");
    assert_eq!((&plan["actions"], &plan["left"]), (&json!([]), &json!([])), "nothing is left of it");
    drop(elsewhere);
}

/// The only child of process `pid`.
fn child_of(pid: &Value) -> Pid {
    eventually("its child", SOON, || {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it lives");
        children.trim().parse().ok().and_then(Pid::new).ok_or(children)
    })
}

#[test]
fn who_may_not_be_taken_is_refused_before_anything_is_done() {
    let mut node = Node::new(SEXTON, &[]);
    let made = node.ask("POST", "/v1/instances", None, Some(&script("other", "sleep 1000 & wait"))).0.expect(201);
    let mut ended = Command::new("true").spawn().expect("started");
    let zombie = Pid::new(i32::try_from(ended.id()).expect("fits")).expect("a PID");
    eventually("it has ended", SOON, || {
        if proc::stat(zombie).is_ok_and(|stat| stat.is_zombie()) { Ok(()) } else { Err("not yet".to_owned()) }
    });
    let worker = node.daemon().worker_pid().expect("a worker");
    let mut cases = vec![
        (child_of(&made["identity"]["pid"]), "is in custody already"),
        (zombie, "has ended"),
        (Pid::new(worker).expect("a PID"), "is the daemon's own"),
    ];
    // In a container there are none.
    let is_of_kernel = |pid: &Pid| proc::stat(*pid).is_ok_and(|stat| stat.is_kernel_thread());
    cases.extend(Pid::new(2).filter(is_of_kernel).map(|pid| (pid, "is a kernel thread")));
    let before = node.get("/v1/events");
    for (pid, why) in cases {
        let wanted = json!({ "name": "x", "pid": pid, "start_ticks": proc::stat(pid).expect("there").start_ticks });
        let refused = node.ask("POST", "/v1/adopt", None, Some(&wanted)).0;
        assert_eq!(refused.status, 409, "{why}: {}", refused.text());
        assert!(refused.text().contains(why), "{why}: {}", refused.text());
    }
    assert_eq!(node.get("/v1/events"), before, "a refused call leaves no event");
    ended.wait().expect("reaped");
    node.clear();
}

#[test]
fn who_is_adopted_stays_in_custody_and_its_exit_is_known_whoever_dies() {
    let mut node = Node::new(SEXTON, &[]);
    let mut elsewhere = Elsewhere::start(node.ground.dir());
    let taken = elsewhere.adopt(&mut node, "x").expect(201);
    let held = taken["resources"].as_array().expect("resources");
    assert!(!held.is_empty() && held.iter().all(|held| held["state"] == "held"), "{taken}");
    assert!(taken["started_at"].is_string(), "{taken}");
    let own = elsewhere.cgroups();
    let is_limited = own.lines().any(|line| line.contains(":pids:") && line.contains("/x."));
    assert!(is_limited || !Path::new(V1_PIDS).join("cgroup.procs").exists(), "{own}");
    node.kill(Dead::Both, || {});
    let again = node.instance("x");
    assert_eq!((&again["state"], &again["identity"]), (&json!("running"), &taken["identity"]), "{again}");
    assert_eq!(elsewhere.cgroups(), own);
    node.kill(Dead::Both, || {
        elsewhere.child.kill().expect("killed");
        elsewhere.child.wait().expect("reaped");
    });
    ended_unwatched(&node.settled("x"), "signal", 9);
}

#[test]
fn who_is_taken_by_somebody_else_meanwhile_is_left_to_them() {
    if !sexton_testkit::skip::has_program("strace") {
        skip!(package "strace");
    }
    let mut node = Node::new(SEXTON, &[]);
    let made = node.ask("POST", "/v1/instances", None, Some(&spec("other", &["sleep", "1000"]))).0.expect(201);
    let theirs = made["cgroup"]["path"].as_str().expect("a path").to_owned();
    let elsewhere = Elsewhere::start(node.ground.dir());
    // KERNEL(6.17): before, a process takes no tag, and is known by its cgroup alone.
    let into = |node: &Node| move_into(&node.ground.cgroup_at(&theirs), elsewhere.pid);
    let refused = asks_while(&mut node, &elsewhere, into);
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert!(refused.text().contains("another daemon has taken it meanwhile"), "{}", refused.text());
    assert!(elsewhere.cgroups().contains(&theirs), "{}", elsewhere.cgroups());
    node.clear();
    let mut node = Node::new(SEXTON, &[]);
    let elsewhere = Elsewhere::start(node.ground.dir());
    let (home, handle) = (elsewhere.cgroups(), Handle::open(elsewhere.pid, &proc::here().expect("here")));
    let handle = handle.expect("it lives");
    let mut is_tagged = false;
    let answer = asks_while(&mut node, &elsewhere, |_| is_tagged = handle.tag("another"));
    assert_eq!(answer.status, if is_tagged { 409 } else { 201 }, "{}", answer.text());
    if is_tagged {
        assert!(answer.text().contains("another daemon has taken it meanwhile"), "{}", answer.text());
        assert_eq!((elsewhere.cgroups(), elsewhere.tag().as_deref()), (home, Some("another")));
    }
    node.clear();
}

#[test]
fn who_loses_its_main_thread_while_it_is_adopted_is_put_back() {
    if !sexton_testkit::skip::has_program("strace") {
        skip!(package "strace");
    }
    let mut node = Node::new(SEXTON, &[]);
    let elsewhere = Elsewhere::start(node.ground.dir());
    let home = elsewhere.cgroups();
    let refused = asks_while(&mut node, &elsewhere, |_| elsewhere.lose_main_thread());
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert!(refused.text().contains("its main thread is not in its cgroup"), "{}", refused.text());
    assert_eq!((elsewhere.cgroups(), elsewhere.tag(), cgroups_of_x(&node)), (home, None, vec![]));
}

#[test]
fn who_ends_while_it_is_adopted_is_let_go() {
    if !sexton_testkit::skip::has_program("strace") {
        skip!(package "strace");
    }
    let mut node = Node::new(SEXTON, &[]);
    let elsewhere = Elsewhere::start(node.ground.dir());
    let handle = Handle::open(elsewhere.pid, &proc::here().expect("here")).expect("it lives");
    // Its parent leaves it the zombie that it is: the kernel moves one without a word.
    let refused = asks_while(&mut node, &elsewhere, |_| assert!(handle.signal(9).expect("killed")));
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert!(refused.text().contains("it ended"), "{}", refused.text());
    leaves_the_list(&mut node);
    assert_eq!(cgroups_of_x(&node), [] as [OsString; 0]);
}

#[test]
fn a_worker_that_dies_before_the_intent_leaves_the_process_free() {
    let Some((mut node, order)) = with_crash_points("begun") else {
        skip!("the daemon with crash points is built by `cargo xtask ci`")
    };
    let elsewhere = Elsewhere::start(node.ground.dir());
    cut_off(&mut node, &order, &elsewhere, "adopt.begun", |_| {});
    assert_eq!(node.ask("GET", "/v1/instances/x", None, None).0.status, 404);
    elsewhere.adopt(&mut node, "y").expect(201);
    node.clear();
}

#[test]
fn a_process_that_lost_its_main_thread_on_the_way_is_put_back() {
    let Some((mut node, order)) = with_crash_points("back") else {
        skip!("the daemon with crash points is built by `cargo xtask ci`")
    };
    let elsewhere = Elsewhere::start(node.ground.dir());
    let home = elsewhere.cgroups();
    cut_off(&mut node, &order, &elsewhere, "adopt.moved", |node| {
        // As if the main thread had exited right before the move: it stays where it was, and the other one is moved.
        let moved = elsewhere.cgroups();
        let ways = home.lines().zip(moved.lines()).filter(|(from, to)| from != to);
        let ways: Vec<_> = ways.map(|(from, to)| (directory(node, from), directory(node, to))).collect();
        assert!(!ways.is_empty(), "it was not moved: {moved}");
        ways.iter().for_each(|(from, _)| move_into(from, elsewhere.pid));
        elsewhere.lose_main_thread();
        ways.iter().for_each(|(_, to)| move_into(to, elsewhere.pid));
        assert_eq!(elsewhere.cgroups(), moved);
    });
    leaves_the_list(&mut node);
    assert_eq!((elsewhere.cgroups(), elsewhere.tag()), (home, None));
    assert_eq!(cgroups_of_x(&node), [] as [OsString; 0]);
}

#[test]
fn a_process_whose_place_is_gone_is_put_back_at_the_root() {
    let Some((mut node, order)) = with_crash_points("root") else {
        skip!("the daemon with crash points is built by `cargo xtask ci`")
    };
    let elsewhere = Elsewhere::start(node.ground.dir());
    let cgroups = [Some(Cgroups::make(&node)), Cgroups::make_v1(&node)];
    cgroups.iter().flatten().for_each(|cgroups| move_into(&cgroups.0.join("home"), elsewhere.pid));
    cut_off(&mut node, &order, &elsewhere, "adopt.moved", |_| {
        cgroups.iter().flatten().for_each(|cgroups| fs::remove_dir(cgroups.0.join("home")).expect("removed"));
    });
    leaves_the_list(&mut node);
    let now = elsewhere.cgroups();
    let is_at_root = |line: &&str| (line.starts_with("0::") || line.contains(":pids:")) && line.ends_with(":/");
    assert_eq!(now.lines().filter(is_at_root).count(), cgroups.iter().flatten().count(), "{now}");
    assert_eq!(cgroups_of_x(&node), [] as [OsString; 0]);
}

#[test]
fn a_process_that_cannot_be_put_back_is_not_lost_sight_of() {
    let Some((mut node, order)) = with_crash_points("kept") else {
        skip!("the daemon with crash points is built by `cargo xtask ci`")
    };
    let cgroups = Cgroups::make(&node);
    let elsewhere = Elsewhere::start(node.ground.dir());
    let (home, threaded) = (cgroups.0.join("home"), cgroups.0.join("threaded"));
    move_into(&home, elsewhere.pid);
    cut_off(&mut node, &order, &elsewhere, "adopt.moved", |_| {
        // Beside a threaded cgroup one that is not takes nobody in.
        fs::create_dir(&threaded).expect("made");
        fs::write(threaded.join("cgroup.type"), "threaded").expect("threaded");
    });
    let kept = eventually("the row says so", SOON, || {
        let entry = node.instance("x");
        if entry["state"] == "unverified" { Ok(entry) } else { Err(entry.to_string()) }
    });
    assert!(kept["reason"].as_str().is_some_and(|why| why.contains("could not be moved back")), "{kept}");
    let plan = node.get("/v1/plan");
    assert_eq!((&plan["actions"], &plan["left"][0]["reason"]), (&json!([]), &kept["reason"]), "{plan}");
    fs::remove_dir(&threaded).expect("removed");
    node.ask("POST", "/v1/reconcile", None, None).0.expect(200);
    leaves_the_list(&mut node);
    assert_eq!(fs::read_to_string(home.join("cgroup.procs")).expect("listed").trim(), elsewhere.pid.to_string());
}
