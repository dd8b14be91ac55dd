//! What is refused changes nothing: a start that must not be, and every argument outside the contract.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]
#![allow(clippy::disallowed_types, reason = "a test starts programs as a user does")]

#[path = "support/owner.rs"]
mod owner;
mod support;
#[path = "support/unanswering.rs"]
mod unanswering;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use owner::Owner;
use serde_json::{Value, json};
use sexton_testkit::{Daemon, Ground, Held, SOON, eventually, mounts_below, pidfds_can_be_mounted, refusing, skip};
use support::{Node, SEXTON, SIGCONT, SIGSTOP, file_appears, launcher, spec};
use unanswering::Unanswering;

/// Mode, owner, time of change and bytes of everything below, by path.
type Files = BTreeMap<PathBuf, (u32, u32, i64, i64, Vec<u8>)>;

fn files(dirs: &[&Path]) -> Files {
    let mut found = Files::new();
    let mut paths: Vec<PathBuf> = dirs.iter().map(|dir| dir.to_path_buf()).collect();
    while let Some(path) = paths.pop() {
        let Ok(about) = fs::symlink_metadata(&path) else { continue };
        let mut bytes = Vec::new();
        if about.is_dir() {
            paths.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        } else if about.is_file() {
            // What holds the pins' namespace looks like a file, and has no bytes.
            bytes = fs::read(&path).unwrap_or_default();
        }
        found.insert(path, (about.mode(), about.uid(), about.mtime(), about.mtime_nsec(), bytes));
    }
    found
}

/// Everything that a start on this ground could change.
fn all(ground: &Ground) -> Files {
    let mut found = files(&[&ground.state_dir(), &ground.run_dir()]);
    // Of a cgroup, what is there; the kernel counts in its files by itself.
    let mut dirs = vec![ground.cgroup_dir()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        let below = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        dirs.extend(below.map(|entry| entry.path()));
        found.insert(dir, (0, 0, 0, 0, Vec::new()));
    }
    found
}

/// A start that must end with `code` before there is a worker, and must have changed nothing.
fn refuses(ground: &Ground, code: i32, more: &[&str], as_nobody: bool) {
    let told = changes_nothing(ground, code, more, as_nobody);
    assert!(told.starts_with("error: "), "{code}: {told}");
}

/// A start that must end with `code`, and must have changed nothing; what it told.
fn changes_nothing(ground: &Ground, code: i32, more: &[&str], as_nobody: bool) -> String {
    let before = all(ground);
    let mut command = ground.command(&[&["serve"], more].concat());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    if as_nobody {
        command.uid(65_534).gid(65_534);
    }
    let mut child = command.spawn().expect("the program starts");
    let ended = eventually("the start is refused", Duration::from_secs(10), || match child.try_wait() {
        Ok(Some(status)) => Ok(status),
        Ok(None) => Err("it runs".to_owned()),
        Err(error) => Err(error.to_string()),
    });
    let mut told = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().expect("stderr"), &mut told).expect("text");
    assert_eq!(ended.code(), Some(code), "{more:?}: {told}");
    let after = all(ground);
    let differs: Vec<&PathBuf> =
        before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path)).collect();
    assert!(differs.is_empty(), "{code}: {differs:?}: {told}");
    told
}

/// Stops every thread of a process. RACE: a thread that is in a system call stops when that is over, which can be
/// after it has written to the ledger.
fn stop_whole(held: &Held) {
    held.signal(SIGSTOP).expect("stopped");
    eventually("every thread stands still", SOON, || {
        let tasks = fs::read_dir(format!("/proc/{}/task", held.pid())).expect("its threads");
        for task in tasks.flatten() {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            if state != Some('T') {
                return Err(format!("{}: {state:?}", task.path().display()));
            }
        }
        Ok(())
    });
}

/// A ground on which a daemon has run and has ended, leaving one instance behind it in the ledger.
fn used(program: &str) -> Ground {
    let ground = Ground::new(program).expect("a ground");
    let daemon = ground.serve().expect("a daemon");
    daemon.client().post("/v1/instances", &spec("was", &["/bin/true"])).expect("an answer").expect(201);
    daemon.terminate(Duration::from_secs(20)).expect("ended");
    ground
}

/// Replaces bytes of the ledger, as a newer version or a bad disk would.
fn edit_ledger(ground: &Ground, at: usize, bytes: &[u8]) {
    let path = ground.state_dir().join("sexton.db");
    let mut ledger = fs::read(&path).expect("the ledger");
    ledger[at..at + bytes.len()].copy_from_slice(bytes);
    fs::write(path, ledger).expect("written");
}

#[test]
fn a_start_is_refused_where_another_daemon_is() {
    let mut node = Node::new(SEXTON, &[]);
    // Held still, so that every change is the other one's.
    let held = [node.daemon().worker().expect("a worker"), node.daemon().keeper().expect("a keeper")];
    held.iter().for_each(stop_whole);
    refuses(&node.ground, 75, &[], false);
    // Another state directory, and the socket of the one that runs.
    let other = node.ground.dir().join("other");
    refuses(&node.ground, 73, &["--state-dir", &other.display().to_string()], false);
    assert!(!other.exists(), "what had to be made to look is gone");
    held.iter().for_each(|held| held.signal(SIGCONT).expect("continued"));
}

#[test]
fn a_start_is_refused_where_the_run_directory_is_held() {
    let ground = used(SEXTON);
    let run = fs::File::open(ground.run_dir()).expect("the run directory");
    // As another daemon has it that does not listen yet.
    run.try_lock().expect("held");
    refuses(&ground, 73, &[], false);
    drop(run);
    // One directory that is both is held once.
    let ground = Ground::new(SEXTON).expect("a ground");
    fs::create_dir(ground.state_dir()).expect("made");
    std::os::unix::fs::symlink(ground.state_dir(), ground.run_dir()).expect("the same directory");
    let daemon = ground.serve().expect("a daemon");
    let held = [daemon.worker().expect("a worker"), daemon.keeper().expect("a keeper")];
    held.iter().for_each(stop_whole);
    refuses(&ground, 75, &[], false);
    refuses(&ground, 73, &["--state-dir", &ground.dir().join("other").display().to_string()], false);
    held.iter().for_each(|held| held.signal(SIGCONT).expect("continued"));
    daemon.terminate(SOON).expect("ended");
}

/// REGRESSION: a start looked whether somebody answered at the socket, found nobody yet, and took the other's pins away
/// when it came to listen and was refused.
#[test]
fn of_starts_on_one_run_directory_one_lives_and_keeps_its_pins() {
    let has_pins = pidfds_can_be_mounted();
    for _ in 0..4 {
        let ground = Ground::new(SEXTON).expect("a ground");
        fs::create_dir(ground.run_dir()).expect("made");
        let below = |_| {
            let below = ground.below().expect("a ground");
            std::os::unix::fs::symlink(ground.run_dir(), below.run_dir()).expect("the same run directory");
            below
        };
        let grounds: Vec<Ground> = (0..4).map(below).collect();
        let mut daemons: Vec<Daemon> =
            grounds.iter().map(|ground| Daemon::launch(ground, &[]).expect("launched")).collect();
        eventually("one is left", SOON, || match daemons.iter_mut().map(|one| usize::from(one.is_alive())).sum() {
            1 => Ok(()),
            living => Err(format!("{living} live")),
        });
        for (daemon, ground) in daemons.iter_mut().zip(&grounds) {
            if daemon.is_alive() {
                daemon.wait_ready().expect("ready");
                continue;
            }
            assert_eq!(daemon.wait_end(SOON).code(), Some(73), "{}", daemon.log());
            assert!(!ground.state_dir().exists() && !ground.cgroup_dir().exists(), "what it had made is gone");
        }
        let pins = mounts_below(&ground.run_dir());
        assert!(!pins.is_empty() || !has_pins, "the pins of the one that lives");
        assert!(ground.run_dir().join("starts").exists());
    }
}

#[test]
fn a_first_start_that_a_full_disk_refuses_leaves_nothing() {
    let ground = Ground::new(SEXTON).expect("a ground");
    let disk = ground.dir().join("disk");
    fs::create_dir(&disk).expect("made");
    let target = std::ffi::CString::new(disk.display().to_string()).expect("a path");
    // From one that has no room for the first page to one that has it for all but the last.
    for size in [4, 8, 16, 24, 32, 40, 48, 56, 64] {
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}k"), "sexton-test"]).arg(&disk);
        assert!(mount.status().expect("mount").success());
        // What is there stays, byte for byte.
        fs::write(disk.join("kept"), "").expect("written");
        for dir in [disk.join("state"), disk.clone()] {
            let told = changes_nothing(&ground, 73, &["--state-dir", &dir.display().to_string()], false);
            assert!(told.contains("error: could not open the ledger"), "{told}");
            let left: Vec<_> = fs::read_dir(&disk).expect("read").flatten().map(|entry| entry.file_name()).collect();
            assert_eq!(left, ["kept"], "{size} KiB");
        }
        sexton_sys::mount::unmount(&target).expect("unmounted");
    }
}

/// A worker serves before its first pass is over. Where it dies by then, and its successor is refused, what knows of
/// the instances that it has started stays.
#[test]
fn a_successor_that_is_refused_takes_nothing_back_that_the_first_worker_may_have_used() {
    const SIGKILL: i32 = 9;
    let ground = Ground::new(SEXTON).expect("a ground");
    let mut owner = Owner::new(ground.dir());
    fs::write(ground.config(), owner.config("1h", "report")).expect("written");
    owner.guest("a", Some("{}"));
    owner.fake("a");
    let Some(mut hole) = Unanswering::mount(&owner.dir.join("guests")) else { skip!("no /dev/fuse") };
    let mut daemon = Daemon::launch(&ground, &[]).expect("launched");
    hole.wait_asked(1);
    let started =
        daemon.client().post("/v1/instances", &spec("own", &["sleep", "1000"])).expect("an answer").expect(201);
    let ledger = ground.state_dir().join("sexton.db");
    let lock = rusqlite::Connection::open(&ledger).expect("opened");
    lock.execute_batch("BEGIN IMMEDIATE").expect("locked");
    let worker = daemon.worker().expect("a worker");
    worker.signal(SIGKILL).expect("sent");
    // Who waits for that file system dies once it has an answer.
    hole.release();
    worker.wait_end();
    assert_eq!(daemon.wait_end(SOON).code(), Some(75), "{}", daemon.log());
    drop(lock);
    // REGRESSION: the ledger was gone, and with it who knew whose process that is.
    assert!(ledger.exists(), "{:?}", all(&ground).keys());
    let daemon = ground.serve().expect("serves");
    let found = daemon.client().get("/v1/instances/own").expect("an answer").expect(200);
    assert_eq!((&found["state"], &found["identity"]), (&json!("running"), &started["identity"]), "{found}");
    let over = daemon.client().post("/v1/instances/own/stop?wait=20s", &json!({})).expect("an answer").expect(200);
    assert_eq!((&over["state"], &over["exit"]["signal"]), (&json!("exited"), &json!(15)), "{over}");
}

/// A child that a dead worker had not released yet has the worker's listener open until it ends, and its lock a little
/// less long; so the next start may find the lock free and the socket still answered.
#[test]
fn a_start_waits_for_the_listener_that_a_dead_daemon_leaves() {
    let ground = used(SEXTON);
    let socket = ground.run_dir().join("sexton.sock");
    let _left = fs::remove_file(&socket);
    let left = UnixListener::bind(&socket).expect("bound");
    left.set_nonblocking(true).expect("set");
    let mut daemon = Daemon::launch(&ground, &[]).expect("launched");
    // It has connected, and found somebody.
    let connected =
        eventually("the start looks who answers", SOON, || left.accept().map_err(|error| error.to_string()));
    drop((connected, left));
    daemon.wait_ready().expect("it starts");
}

#[test]
fn a_start_is_refused_where_its_places_cannot_be_made() {
    let ground = used(SEXTON);
    let file = ground.config().display().to_string();
    let below = format!("{file}/below");
    for place in [file.as_str(), &below] {
        refuses(&ground, 73, &["--state-dir", place], false);
        refuses(&ground, 73, &["--run-dir", place], false);
        refuses(&ground, 73, &["--socket", place], false);
    }
    // REGRESSION: what could not hold the socket was found by the worker alone, behind a state and a run directory.
    let place = |name: &str| ground.dir().join(name).display().to_string();
    for (socket, code) in [(place("nowhere/x.sock"), 73), (place(&"x".repeat(252)), 73)] {
        let fresh = ["--state-dir", &place("fresh"), "--run-dir", &place("fresh"), "--socket", &socket];
        refuses(&ground, code, &fresh, false);
    }
    refuses(&ground, 64, &["--drain-timeout", "5"], false);
    refuses(&ground, 64, &["--on-shutdown", "burn"], false);
    refuses(&ground, 64, &["--cgroup", "../up"], false);
    refuses(&ground, 64, &["--config", &format!("{file}.none")], false);
}

#[test]
fn a_start_is_refused_by_a_ledger_that_is_newer_or_damaged() {
    let ground = used(SEXTON);
    // `user_version` stands at byte 60 of an SQLite file, most significant byte first.
    edit_ledger(&ground, 60, &9_999_u32.to_be_bytes());
    refuses(&ground, 76, &[], false);
    edit_ledger(&ground, 0, b"no ledger at all");
    refuses(&ground, 78, &[], false);
    let ground = used(SEXTON);
    let path = ground.state_dir().join("sexton.db");
    let whole = fs::read(&path).expect("the ledger");
    fs::write(&path, &whole[..whole.len() / 2]).expect("cut");
    refuses(&ground, 78, &[], false);
    let row = whole.windows(9).position(|bytes| bytes == b"/bin/true").expect("a row");
    fs::write(&path, &whole).expect("restored");
    edit_ledger(&ground, row, b"/bin/evil");
    refuses(&ground, 78, &[], false);
    fs::write(&path, &whole).expect("restored");
    let daemon = ground.serve().expect("as it was, it serves");
    assert_eq!(daemon.client().get("/v1/instances/was").expect("an answer").expect(200)["state"], "exited");
}

#[test]
fn a_start_is_refused_where_custody_cannot_be_had() {
    // REGRESSION: a daemon that could hold or signal nobody began, and failed at every start of an instance.
    for refused in ["pidfd_open ENOSYS", "pidfd_send_signal EPERM", "waitid 0=3 EINVAL"] {
        let name = format!("sexton-refused-{}", refused.split(' ').next().expect("a call"));
        let program = launcher(&name, &format!("{} '{SEXTON}' \"$@\"", refusing(&[refused])));
        let ground = Ground::new(program).expect("a ground");
        refuses(&ground, 69, &[], false);
        let report = ground.command(&["doctor", "-o", "json"]).output().expect("a report");
        let report: Value = serde_json::from_slice(&report.stdout).expect("JSON");
        let processes = report["checks"].as_array().expect("checks").iter().find(|check| check["name"] == "processes");
        assert_eq!(processes.expect("told")["grade"], "fail", "{refused}: {report}");
    }
}

#[test]
fn a_start_is_refused_where_it_may_not() {
    let ground = used(SEXTON);
    fs::set_permissions(ground.state_dir(), fs::Permissions::from_mode(0o700)).expect("closed");
    refuses(&ground, 77, &[], true);
}

#[test]
fn a_start_is_refused_where_its_file_systems_are_read_only() {
    let ground = used(SEXTON);
    for dir in [ground.state_dir(), ground.run_dir()] {
        let mount = |args: &[&str]| {
            let status = std::process::Command::new("mount").args(args).arg(&dir).status();
            assert!(status.expect("mount").success(), "{args:?}");
        };
        mount(&["--bind", &dir.display().to_string()]);
        mount(&["-o", "remount,bind,ro"]);
        refuses(&ground, 73, &[], false);
        let target = std::ffi::CString::new(dir.display().to_string()).expect("a path");
        sexton_sys::mount::unmount(&target).expect("unmounted");
    }
}

/// What a refused request must leave as it was: rows, events and requests; cgroups; files.
fn state(node: &Node) -> (String, Vec<PathBuf>) {
    // RACE: the keeper writes it once it has heard that the worker is ready, which others hear too.
    file_appears(&node.ground.run_dir().join("keeper.status"));
    let dump = node.ground.command(&["ledger", "dump"]).output().expect("a dump");
    assert!(dump.status.success());
    let paths = all(&node.ground).into_keys().collect();
    (String::from_utf8(dump.stdout).expect("text"), paths)
}

#[test]
fn every_body_outside_the_contract_is_refused_by_name_and_changes_nothing() {
    let mut node = Node::new(SEXTON, &[]);
    node.ask("POST", "/v1/instances", None, Some(&spec("is", &["/bin/sleep", "1000"]))).0.expect(201);
    let before = state(&node);
    let long = "x".repeat(200_000);
    let create: [(&str, Value); 33] = [
        ("name", json!("../x")),
        ("name", json!("A")),
        ("name", json!("")),
        ("name", json!(".")),
        ("name", json!(5)),
        ("name", json!("a".repeat(64))),
        ("name", json!(null)),
        ("argv", json!([])),
        ("argv", json!([""])),
        ("argv", json!(["a\0b"])),
        ("argv", json!("true")),
        ("argv", json!([long])),
        ("env", json!({"": "x"})),
        ("env", json!({"A=B": "x"})),
        ("env", json!({"A": 1})),
        ("cwd", json!("tmp")),
        ("user", json!("a b")),
        ("user", json!("nobody-of-that-name")),
        ("kind", json!("Build")),
        ("runtime", json!("docker")),
        ("labels", json!({"a\n": "x"})),
        ("grace", json!(5)),
        ("grace", json!("-5s")),
        ("grace", json!("5")),
        ("stop_signal", json!("TREM")),
        ("stop_signal", json!(15)),
        ("slot", json!("yes")),
        ("pidns", json!(1)),
        ("limits", json!({"pids": 0})),
        ("limits", json!({"memory": "1GiB"})),
        ("limits", json!({"cpu": 1})),
        ("restart", json!("sometimes")),
        ("colour", json!("red")),
    ];
    for (field, value) in create {
        let mut body = spec("bad", &["/bin/true"]);
        body[field] = value;
        refused(&mut node, "POST", "/v1/instances", &body, Some(field));
    }
    for (path, body, field) in other_bodies() {
        refused(&mut node, "POST", path, &body, field);
    }
    for path in
        ["/v1/instances?limit=0", "/v1/instances?limit=1001", "/v1/instances?state=asleep", "/v1/events?after=-1"]
    {
        assert_eq!(node.ask("GET", path, None, None).0.status, 400, "{path}");
    }
    assert_eq!(node.instance("is")["state"], "running");
    let after = state(&node);
    assert_eq!(before.0, after.0);
    assert_eq!(before.1, after.1);
}

/// Bodies of everything but a creation.
fn other_bodies() -> [(&'static str, Value, Option<&'static str>); 20] {
    [
        ("/v1/instances/is/stop", json!({"force": 1}), Some("force")),
        ("/v1/instances/is/stop", json!({"grace": "soon"}), Some("grace")),
        ("/v1/instances/is/stop", json!({"now": true}), Some("now")),
        ("/v1/instances/is/stop?wait=5", json!({}), Some("wait")),
        ("/v1/instances/is/stop?tail=5", json!({}), Some("tail")),
        ("/v1/instances/is/signal", json!({}), Some("signal")),
        ("/v1/instances/is/signal", json!({"signal": "0"}), Some("signal")),
        ("/v1/instances/is/signal", json!({"signal": "65"}), Some("signal")),
        ("/v1/instances/is/signal", json!({"signal": 9}), Some("signal")),
        ("/v1/instances/is/signal", json!({"signal": "KILL", "all": true}), Some("all")),
        ("/v1/instances/..%2fis/stop", json!({}), None),
        ("/v1/adopt", json!({"name": "x", "pid": 0}), Some("pid")),
        ("/v1/adopt", json!({"name": "x", "pid": -1, "start_ticks": 5}), Some("pid")),
        ("/v1/adopt", json!({"name": "x", "pid": "5", "start_ticks": 5}), Some("pid")),
        ("/v1/adopt", json!({"name": "x", "start_ticks": 5}), Some("pid")),
        ("/v1/nodes/self", json!({"status": "asleep"}), Some("status")),
        ("/v1/nodes/self", json!({"status": "healthy", "forceStop": true}), Some("forceStop")),
        ("/v1/nodes/self", json!({"status": "draining", "timeout": 5}), Some("timeout")),
        ("/v1/apply", json!([]), None),
        ("/v1/apply", json!([0, [], []]), None),
    ]
}

fn refused(node: &mut Node, method: &str, path: &str, body: &Value, field: Option<&str>) {
    let (answer, _) = node.ask(method, path, None, Some(body));
    let shown = body.to_string();
    assert_eq!(answer.status, 400, "{path} {:.100}: {}", shown, answer.text());
    let detail = answer.json()["detail"].as_str().unwrap_or_default().to_owned();
    let names = field.is_none_or(|field| {
        let inner = body[field].as_object().into_iter().flat_map(|inner| inner.keys());
        detail.contains(field) || inner.into_iter().any(|key| detail.contains(key.as_str()))
    });
    assert!(names && !detail.is_empty(), "{path} {:.100}: {detail}", shown);
}

#[test]
fn every_flag_outside_the_contract_is_2_and_changes_nothing() {
    let node = Node::new(SEXTON, &[]);
    let before = state(&node);
    for args in [
        &["run", "A", "--", "true"][..],
        &["run", "a", "--kind", "Build", "--", "true"],
        &["run", "a", "--runtime", "docker", "--", "true"],
        &["run", "a", "--env", "novalue", "--", "true"],
        &["run", "a", "--env", "=x", "--", "true"],
        &["run", "a", "--cwd", "tmp", "--", "true"],
        &["run", "a", "--user", "a b", "--", "true"],
        &["run", "a", "--label", "a\n=x", "--", "true"],
        &["run", "a", "--grace", "5", "--", "true"],
        &["run", "a", "--stop-signal", "term", "--", "true"],
        &["run", "a", "--pids-max", "0", "--", "true"],
        &["run", "a", "--memory-max", "much", "--", "true"],
        &["run", "a", "--restart", "sometimes", "--", "true"],
        &["run", "a", "--", ""],
        &["run", "a"],
        &["stop", "a", "--grace", "-1s"],
        &["stop", "a", "--wait", "5"],
        &["wait", "a", "--timeout", "5"],
        &["signal", "a", "0"],
        &["adopt", "a", "--pid", "0"],
        &["adopt", "a", "--pid", "x"],
        &["events", "--after", "-1"],
        &["logs", "a", "--tail", "x"],
        &["drain", "--timeout", "5"],
        &["ps", "--kind", "Build"],
        &["ps", "--label", "a\n"],
    ] {
        let output = node.ground.command(args).stdin(Stdio::null()).output().expect("the program starts");
        let told = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {told}");
        assert!(told.starts_with("error: ") && output.stdout.is_empty(), "{args:?}: {told}");
    }
    let after = state(&node);
    assert_eq!(before, after);
}

/// The program without `sexton-init` beside it, as which it is the keeper itself.
fn without_init() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("without-init");
    fs::create_dir_all(&dir).expect("a directory");
    let program = dir.join("sexton");
    let _older = fs::remove_file(&program);
    fs::hard_link(SEXTON, &program).expect("linked");
    program
}

#[test]
fn what_the_caller_left_open_does_not_reach_the_daemon() {
    for program in [PathBuf::from(SEXTON), without_init()] {
        let ground = Ground::new(program).expect("a ground");
        let left = fs::File::open(ground.config()).expect("opened");
        // Kept over the `execve` of the daemon, as a careless caller does.
        sexton_sys::file::set_close_on_exec(std::os::fd::AsRawFd::as_raw_fd(&left), false).expect("kept");
        let daemon = ground.serve().expect("a daemon");
        for pid in [daemon.keeper_pid().cast_signed(), daemon.worker_pid().expect("a worker")] {
            let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").flatten();
            let targets: Vec<PathBuf> = open.filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
            assert!(!targets.contains(&ground.config()), "{pid}: {targets:?}");
            // What holds them lasts as long as the last of the two.
            for held in [ground.state_dir(), ground.run_dir()] {
                assert!(targets.contains(&held), "{pid}: {targets:?}");
            }
        }
    }
}

#[test]
fn what_the_caller_lets_others_do_is_not_what_the_daemon_lets_them() {
    let careless = launcher("sexton-careless-of-others", &format!("umask 0; exec '{SEXTON}' \"$@\""));
    let ground = Ground::new(careless).expect("a ground");
    let daemon = ground.serve().expect("a daemon");
    for pid in [daemon.keeper_pid().cast_signed(), daemon.worker_pid().expect("a worker")] {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("readable");
        assert!(status.contains("\nUmask:\t0022\n"), "{status}");
    }
}
