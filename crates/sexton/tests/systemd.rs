//! What systemd is told, heard at a socket of our own in its place.

#![allow(missing_docs, reason = "tests")]

mod support;

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use sexton_testkit::{SOON, eventually};

use support::{Node, SEXTON, script};

/// Hears until `wanted` was said; tells how often, and everything else that was said.
fn hear(socket: &UnixDatagram, heard: &mut Vec<String>, wanted: &str) -> usize {
    let count = |heard: &[String]| heard.iter().filter(|line| line.starts_with(wanted)).count();
    let before = count(heard);
    eventually(&format!("systemd is told {wanted}"), SOON, || {
        let mut buffer = [0; 4_096];
        while let Ok(length) = socket.recv(&mut buffer) {
            heard.extend(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).lines().map(str::to_owned));
        }
        if count(heard) > before { Ok(count(heard)) } else { Err(format!("{heard:?}")) }
    })
}

#[test]
fn systemd_hears_of_readiness_life_drain_and_end() {
    let mut node = Node::new(SEXTON, &[]);
    let path = node.ground.dir().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bound");
    socket.set_nonblocking(true).expect("set");
    node.daemon.take().expect("a daemon").terminate(SOON).expect("ended");
    let env = [
        ("NOTIFY_SOCKET", path.display().to_string()),
        ("WATCHDOG_USEC", "200000".to_owned()),
        ("SEXTON_ON_SHUTDOWN", "drain".to_owned()),
    ];
    let env: Vec<(&str, &str)> = env.iter().map(|(key, value)| (*key, value.as_str())).collect();
    node.daemon = Some(node.ground.serve_with(&env).expect("served"));
    let mut heard = Vec::new();
    hear(&socket, &mut heard, "READY=1");
    hear(&socket, &mut heard, "WATCHDOG=1");
    hear(&socket, &mut heard, "WATCHDOG=1");
    assert!(!heard.iter().any(|line| line.starts_with("STOPPING")), "{heard:?}");
    let env_file = node.ground.dir().join("env");
    let body = script("box", &format!("env > {}; sleep 1000", env_file.display()));
    node.ask("POST", "/v1/instances", None, Some(&body)).0.expect(201);
    // The shutdown drains, and the instance is waited for.
    node.daemon().keeper().expect("keeper").signal(15).expect("asked");
    hear(&socket, &mut heard, "STOPPING=1");
    hear(&socket, &mut heard, "EXTEND_TIMEOUT_USEC=15000000");
    assert!(heard.iter().any(|line| line == "STATUS=draining, 1 instances left"), "{heard:?}");
    let shown = std::fs::read_to_string(&env_file).unwrap_or_default();
    assert!(!shown.contains("NOTIFY_SOCKET"), "a workload cannot speak for the daemon: {shown}");
    let stop = serde_json::json!({ "force": true });
    node.ask("POST", "/v1/instances/box/stop", None, Some(&stop)).0.expect(202);
    assert!(node.daemon().wait_end(SOON).success());
    hear(&socket, &mut heard, "STATUS=ending");
    // Whoever looks for the daemon afterwards has a whole one.
    node.daemon = None;
    node.serve();
    node.clear();
}

#[test]
fn a_worker_that_does_not_answer_gives_no_sign_of_life() {
    let mut node = Node::new(SEXTON, &[]);
    let path = node.ground.dir().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bound");
    socket.set_nonblocking(true).expect("set");
    node.daemon.take().expect("a daemon").terminate(SOON).expect("ended");
    let notify = path.display().to_string();
    let env = [("NOTIFY_SOCKET", notify.as_str()), ("WATCHDOG_USEC", "100000")];
    node.daemon = Some(node.ground.serve_with(&env).expect("served"));
    let mut heard = Vec::new();
    hear(&socket, &mut heard, "WATCHDOG=1");
    let worker = node.daemon().worker().expect("worker");
    worker.signal(support::SIGSTOP).expect("stopped");
    let quiet = || {
        let mut buffer = [0; 4_096];
        let mut said = 0;
        while socket.recv(&mut buffer).is_ok() {
            said += 1;
        }
        said
    };
    // What was on its way is heard, and then nothing for five times the pause.
    eventually("it falls silent", SOON, || if quiet() == 0 { Ok(()) } else { Err("it speaks".to_owned()) });
    assert!(!worker.ends_within(Duration::from_millis(250)), "it is only stopped");
    assert_eq!(quiet(), 0);
    worker.signal(support::SIGCONT).expect("continued");
    hear(&socket, &mut heard, "WATCHDOG=1");
    node.clear();
}
