//! The plan about the daemon's own: what bears its mark and is nobody's is shown before it goes, and nothing else goes.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sexton_testkit::{Daemon, Ground, SOON, eventually};
use support::SEXTON;

const STRAY: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

struct Node {
    daemon: Daemon,
    ground: Ground,
}

impl Node {
    /// A node with a live instance and one that is over, which passes only when it is asked to.
    fn new() -> Node {
        let ground = Ground::new(SEXTON).expect("a ground");
        fs::write(ground.config(), "[reconcile]\ninterval = \"1h\"\n").expect("written");
        // Beside a new ledger, logs may be all that is left of an older one: this is the second start.
        ground.serve().expect("the daemon starts").terminate(SOON).expect("ended");
        let node = Node { daemon: ground.serve().expect("the daemon starts"), ground };
        for (name, argv) in [("live", ["sleep", "1000"]), ("over", ["sh", "-c"])] {
            node.post("/v1/instances", &json!({ "name": name, "argv": argv }), 201);
        }
        eventually("it is over", SOON, || {
            let entry = node.get("/v1/instances/over");
            if entry["state"] == "exited" && entry["resources"] == json!([]) { Ok(()) } else { Err(entry.to_string()) }
        });
        eventually("rest", SOON, || match node.get("/v1/plan")["actions"].clone() {
            actions if actions == json!([]) => Ok(()),
            actions => Err(actions.to_string()),
        });
        node
    }

    fn get(&self, path: &str) -> Value {
        self.daemon.client().get(path).expect("an answer").expect(200)
    }

    fn post(&self, path: &str, body: &Value, status: u16) -> Value {
        self.daemon.client().post(path, body).expect("an answer").expect(status)
    }

    /// What a life leaves that was cut off, and what only looks so.
    fn litter(&self) {
        let stray = self.ground.cgroup_dir().join(format!("gone.{STRAY}"));
        fs::create_dir(stray).expect("made");
        fs::create_dir(self.ground.cgroup_dir().join("foreign")).expect("made");
        fs::write(self.ground.run_dir().join("starts").join(STRAY), "").expect("written");
        fs::create_dir(self.ground.state_dir().join("logs/gone")).expect("made");
        fs::write(self.ground.state_dir().join(format!("logs/gone/{STRAY}.stdout")), "told").expect("written");
        fs::create_dir(self.ground.state_dir().join("logs/foreign")).expect("made");
        for file in self.foreign() {
            fs::write(file, "").expect("written");
        }
    }

    /// What somebody else has laid among what is ours.
    fn foreign(&self) -> [PathBuf; 3] {
        let logs = self.ground.state_dir().join("logs");
        [logs.join("foreign/notes"), logs.join("notes"), self.ground.run_dir().join("starts/notes")]
    }

    /// Takes away what is foreign, all of which must be there.
    fn take_foreign(&self) {
        self.foreign().iter().for_each(|file| fs::remove_file(file).expect("it was let alone"));
        fs::remove_dir(self.ground.state_dir().join("logs/foreign")).expect("it was let alone");
        fs::remove_dir(self.ground.cgroup_dir().join("foreign")).expect("it was let alone");
    }

    /// Whether the cgroup, the mark and the logs of the stray are there.
    fn strays(&self) -> [bool; 3] {
        let is = |path: &Path| path.exists();
        [
            is(&self.ground.cgroup_dir().join(format!("gone.{STRAY}"))),
            is(&self.ground.run_dir().join("starts").join(STRAY)),
            is(&self.ground.state_dir().join("logs/gone")),
        ]
    }

    fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        for dir in
            [self.ground.cgroup_dir(), self.ground.run_dir().join("starts"), self.ground.state_dir().join("logs")]
        {
            found
                .extend(fs::read_dir(dir).expect("readable").map(|file| format!("{:?}", file.expect("a file").path())));
        }
        found.sort();
        found
    }

    fn last_seq(&self) -> Value {
        self.get("/v1/ledger")["last_seq"].clone()
    }
}

/// The kinds and keys of the releases in a plan.
fn releases(plan: &Value) -> Vec<(String, String)> {
    let actions = plan["actions"].as_array().expect("a list").iter();
    let text = |action: &Value, key: &str| action[key].as_str().expect("text").to_owned();
    actions
        .filter(|action| action["action"] == "release")
        .map(|action| (text(action, "kind"), text(action, "key")))
        .collect()
}

fn expected() -> Vec<(String, String)> {
    let pair = |kind: &str, key: &str| (kind.to_owned(), key.to_owned());
    vec![pair("mark", STRAY), pair("logs", "gone"), pair("cgroup", &format!("gone.{STRAY}"))]
}

#[test]
fn what_is_nobodys_is_planned_before_it_goes_and_goes_when_the_plan_is_applied() {
    let node = Node::new();
    let before = node.files();
    node.litter();
    let plan = node.get("/v1/plan");
    assert_eq!(releases(&plan), expected(), "{plan}");
    assert_eq!(plan["actions"].as_array().map(Vec::len), Some(3), "nothing of the living, and nothing foreign");
    assert_eq!(node.strays(), [true; 3], "a plan changes nothing");
    // Another cgroup of the same name is not the one that was planned for.
    let mut forged = plan.clone();
    forged["actions"][2]["ino"] = json!(1);
    node.post("/v1/apply", &forged, 409);
    assert_eq!(node.strays(), [true; 3], "refused whole");
    node.post("/v1/apply", &plan, 200);
    assert_eq!(node.strays(), [false; 3]);
    node.post("/v1/apply", &plan, 409);
    node.take_foreign();
    assert_eq!(node.files(), before);
    assert_eq!(node.get("/v1/instances/live")["state"], "running");
}

#[test]
fn a_pass_does_the_same_and_at_rest_nothing_changes_any_more() {
    let node = Node::new();
    let before = node.files();
    node.litter();
    node.post("/v1/reconcile", &json!({}), 200);
    assert_eq!(node.strays(), [false; 3]);
    node.take_foreign();
    let (files, seq) = (node.files(), node.last_seq());
    assert_eq!(files, before);
    for _ in 0..3 {
        node.post("/v1/reconcile", &json!({}), 200);
        assert_eq!(node.get("/v1/plan")["actions"], json!([]));
    }
    assert_eq!((node.files(), node.last_seq()), (files, seq), "no file, row or event");
}
