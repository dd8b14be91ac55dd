//! A daemon that is not root, in a cgroup that was handed to its user: it divides that, and needs no flag.

#![allow(missing_docs, reason = "tests")]
#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]
#![allow(clippy::disallowed_types, reason = "a test starts programs as a user does")]

mod support;

use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::json;
use sexton_testkit::{Client, Ground, Held, SOON, eventually, processes_in, skip};

use support::{SEXTON, is_settled, spec, text};

const NOBODY: u32 = 65_534;

/// A cgroup that belongs to nobody, as a user's manager hands one over; taken away in the end.
struct Given {
    dir: PathBuf,
}

impl Given {
    fn new(ground: &Ground) -> Given {
        let dir = ground.cgroup_dir();
        std::fs::create_dir(&dir).expect("made");
        for path in
            [dir.clone(), dir.join("cgroup.procs"), dir.join("cgroup.subtree_control"), dir.join("cgroup.threads")]
        {
            chown(&path, Some(NOBODY), Some(NOBODY)).expect("handed over");
        }
        Given { dir }
    }
}

/// Starts a daemon as nobody, in the cgroup `given`, by what it finds around itself alone.
fn serve_as_nobody(ground: &Ground, given: &Given) -> Child {
    let script = "echo $$ > \"$0/cgroup.procs\" && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).arg(&given.dir).arg(SEXTON).arg("serve").env_clear();
    for (key, place) in [("XDG_STATE_HOME", "xdg-state"), ("XDG_RUNTIME_DIR", "xdg-run")] {
        let dir = ground.dir().join(place);
        std::fs::create_dir_all(&dir).expect("made");
        chown(&dir, Some(NOBODY), Some(NOBODY)).expect("handed over");
        command.env(key, dir);
    }
    let log = std::fs::File::options().create(true).append(true).open(ground.dir().join("log")).expect("a log");
    command.env("PATH", "/usr/bin:/bin").stderr(log).stdout(Stdio::null()).stdin(Stdio::null());
    let child = command.spawn().expect("started");
    eventually("it is ready", SOON, || {
        let answer = client(ground).get("/readyz").map_err(|error| format!("{error:#}"))?;
        if answer.status == 200 { Ok(()) } else { Err(answer.status.to_string()) }
    });
    child
}

fn client(ground: &Ground) -> Client {
    Client::new(&ground.dir().join("xdg-run/sexton/sexton.sock"))
}

/// Ends the daemon with SIGTERM, or as a crash does.
fn end(mut child: Child, signal: i32) {
    let pid = i32::try_from(child.id()).expect("a PID");
    Held::child_of(std::process::id(), pid).expect("ours").signal(signal).expect("asked");
    eventually("it ends", SOON, || match child.try_wait() {
        Ok(Some(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn nobody_divides_the_cgroup_that_it_was_given_and_finds_its_instances_again() {
    if std::fs::metadata("/proc/self").map_or(NOBODY, |about| std::os::unix::fs::MetadataExt::uid(&about)) != 0 {
        skip!("only root hands a cgroup to somebody else");
    }
    let ground = Ground::new(SEXTON).expect("a ground");
    let given = Given::new(&ground);
    let daemon = serve_as_nobody(&ground, &given);
    let entry =
        client(&ground).post("/v1/instances", &spec("box", &["/bin/sleep", "1000"])).expect("asked").expect(201);
    let path = text(&entry["cgroup"], "path");
    assert!(path.starts_with(&format!("/{}/instances/", ground.id())), "{path}");
    assert_eq!(processes_in(&given.dir.join("instances")).len(), 1, "it lives there");
    // The next one is put where the first one was, and finds what that left.
    end(daemon, 9);
    let daemon = serve_as_nobody(&ground, &given);
    let again = client(&ground).get("/v1/instances/box").expect("asked").expect(200);
    assert_eq!((&again["state"], &again["identity"]), (&json!("running"), &entry["identity"]), "{again}");
    let stopped = client(&ground).post("/v1/instances/box/stop?wait=20s", &json!({ "force": true }));
    let stopped = stopped.expect("asked").expect(200);
    assert!(is_settled(&stopped) && stopped["exit"]["signal"] == 9, "{stopped}");
    assert!(!ground.cgroup_at(&path).exists(), "its cgroup is given back");
    // REGRESSION: a slot that nobody can make was to be taken down, which nobody can either, and no drain ended.
    let mut in_a_slot = spec("in-a-slot", &["/bin/sleep", "1000"]);
    in_a_slot["slot"] = json!(true);
    client(&ground).post("/v1/instances", &in_a_slot).expect("asked").expect(503);
    client(&ground).post("/v1/nodes/self?wait=20s", &json!({ "status": "draining" })).expect("asked").expect(200);
    end(daemon, 15);
    let left = std::fs::read_dir(&given.dir).expect("still there").flatten();
    let left: Vec<PathBuf> = left.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    assert!(left.is_empty(), "nothing of the daemon's own stays: {left:?}");
}
