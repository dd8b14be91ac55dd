//! What the tests of network slots share.

#![allow(dead_code, reason = "each test uses a part")]
#![allow(missing_docs, reason = "for the tests beside it")]
#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]
#![allow(clippy::disallowed_types, reason = "a test starts programs as a user does")]

use std::fs;
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use sexton_testkit::{SOON, eventually};

use crate::network::host;
use crate::support::{Node, SEXTON, spec, text};

/// A node with these `[slots]`.
pub fn node(slots: &str) -> Node {
    Node::on(SEXTON, |ground| fs::write(ground.config(), format!("[slots]\n{slots}")).expect("configured"))
}

/// Every slot as `INDEX STATE INSTANCE`.
pub fn slots(node: &mut Node) -> Vec<String> {
    let word = |slot: &Value| format!("{} {} {}", slot["index"], text(slot, "state"), text(slot, "instance"));
    let list = node.get("/v1/slots");
    list["items"].as_array().expect("a list").iter().map(|slot| word(slot).trim_end().to_owned()).collect()
}

pub fn slots_become(node: &mut Node, wanted: &[&str]) {
    eventually(&format!("the slots are {wanted:?}"), SOON, || {
        let found = slots(node);
        if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

pub fn host_becomes(wanted: &str) {
    eventually("the network is as it was", SOON, || {
        let found = host();
        if found == wanted { Ok(()) } else { Err(format!("{found}\ninstead of\n{wanted}")) }
    });
}

pub fn with_slot(mut body: Value) -> Value {
    body["slot"] = json!(true);
    body
}

/// What sleeps in a slot.
pub fn sleeper(name: &str) -> Value {
    with_slot(spec(name, &["/bin/sleep", "1000"]))
}

pub fn create(node: &mut Node, body: &Value) -> Value {
    node.ask("POST", "/v1/instances", None, Some(body)).0.expect(201)
}

pub fn stop(node: &mut Node, name: &str) -> Value {
    let path = format!("/v1/instances/{name}/stop?wait=20s");
    node.ask("POST", &path, None, Some(&json!({ "force": true }))).0.expect(200)
}

pub fn reconcile(node: &mut Node) {
    node.ask("POST", "/v1/reconcile", None, None).0.expect(200);
}

/// Inode of the network namespace that a process is in.
pub fn namespace_of(instance: &Value) -> u64 {
    let pid = &instance["identity"]["pid"];
    fs::metadata(format!("/proc/{pid}/ns/net")).expect("it lives").ino()
}

pub fn entry_of(instance: &Value) -> std::path::PathBuf {
    Path::new("/run/netns").join(instance["slot"]["netns"].as_str().expect("it has a slot"))
}

/// Whether a process inside comes through to the host's end of its link, from its own address.
pub fn reaches_its_gateway(instance: &Value) -> bool {
    let (address, gateway) = (text(&instance["slot"], "address"), text(&instance["slot"], "gateway"));
    let Ok(listener) = TcpListener::bind((gateway.as_str(), 0)) else { return false };
    let port = listener.local_addr().expect("bound").port();
    let pid = &instance["identity"]["pid"];
    let mut child = Command::new("nsenter")
        .args(["-t", &pid.to_string(), "-n", "timeout", "2", "bash", "-c"])
        .arg(format!("exec 3<>/dev/tcp/{gateway}/{port}"))
        .stderr(Stdio::null())
        .spawn()
        .expect("nsenter runs");
    let came = child.wait().expect("it ends").success();
    came && listener.accept().is_ok_and(|(_, peer)| peer.ip() == address.parse::<IpAddr>().expect("an address"))
}

/// A process of this test's own inside a namespace.
pub struct Squatter(Child);

impl Squatter {
    pub fn in_slot(entry: &Path) -> Squatter {
        let child = Command::new("nsenter").arg(format!("--net={}", entry.display())).args(["sleep", "1000"]).spawn();
        let squatter = Squatter(child.expect("nsenter runs"));
        let wanted = fs::metadata(entry).expect("an entry").ino();
        eventually("it is inside", SOON, || {
            let found = fs::metadata(format!("/proc/{}/ns/net", squatter.0.id())).map(|about| about.ino());
            if found.as_ref().is_ok_and(|found| *found == wanted) { Ok(()) } else { Err(format!("{found:?}")) }
        });
        squatter
    }
}

impl Drop for Squatter {
    fn drop(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("ended");
    }
}
