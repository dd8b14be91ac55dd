//! A daemon that watches the guests of an owner.

#![allow(dead_code, reason = "each test uses a part")]
#![allow(missing_docs, reason = "for the tests beside it")]

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use sexton_plan::id::Pid;
use sexton_testkit::{Daemon, Ground};

use crate::owner::Owner;
use crate::support::SEXTON;

#[derive(Debug)]
pub struct Node {
    pub daemon: Daemon,
    pub owner: Owner,
    pub ground: Ground,
}

impl Node {
    /// One that ends orphans older than `grace`.
    pub fn new(grace: &str) -> Node {
        Node::configured(|owner| owner.config(grace, "terminate"))
    }

    pub fn configured(config: impl FnOnce(&Owner) -> String) -> Node {
        Node::of_program(SEXTON, &[], config)
    }

    pub fn of_program(
        program: impl Into<PathBuf>,
        env: &[(&str, &str)],
        config: impl FnOnce(&Owner) -> String,
    ) -> Node {
        let ground = Ground::new(program).expect("a ground");
        let owner = Owner::new(ground.dir());
        fs::write(ground.config(), config(&owner)).expect("written");
        Node { daemon: ground.serve_with(env).expect("the daemon starts"), owner, ground }
    }

    pub fn get(&self, path: &str) -> Value {
        self.daemon.client().get(path).expect("an answer").expect(200)
    }

    pub fn status(&self, path: &str) -> u16 {
        self.daemon.client().get(path).expect("an answer").status
    }

    pub fn post(&self, path: &str, body: &Value, status: u16) -> Value {
        self.daemon.client().post(path, body).expect("an answer").expect(status)
    }

    pub fn reconcile(&self) {
        self.post("/v1/reconcile", &json!({}), 200);
    }

    /// Processes that events of that kind tell of.
    pub fn told(&self, kind: &str) -> Vec<i32> {
        let events = self.daemon.client().list_after("/v1/events", json!(0)).expect("events");
        let of_kind = events.iter().filter(|event| event["kind"] == kind);
        of_kind.map(|event| i32::try_from(event["data"]["pid"].as_i64().expect("a PID")).expect("fits")).collect()
    }

    /// Why the plan lets a process alone.
    pub fn left(&self, pid: Pid) -> Option<String> {
        let plan = self.get("/v1/plan");
        let left = plan["left"].as_array().expect("a list").iter().find(|left| left["pid"] == pid.as_raw());
        left.map(|left| left["reason"].to_string())
    }

    pub fn is_being_ended(&self, pid: Pid) -> bool {
        !self.owner.lives(pid) || self.left(pid).is_some_and(|why| why.contains("being ended"))
    }
}
