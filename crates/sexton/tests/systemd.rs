//! What systemd is told, heard at a socket of our own in its place; and our unit under a real one, in a container.

#![allow(missing_docs, reason = "tests")]
#![allow(clippy::disallowed_types, reason = "a test starts programs as a user does")]

mod support;

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sexton_testkit::{Ground, SOON, eventually, skip};

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
    assert!(!heard.iter().any(|line| line.starts_with("RELOADING")), "{heard:?}");
    let before = sexton_sys::time::monotonic().as_micros();
    node.daemon().keeper().expect("keeper").signal(1).expect("asked for another worker");
    hear(&socket, &mut heard, "RELOADING=1");
    hear(&socket, &mut heard, "READY=1");
    let at = |word: &str| heard.iter().rposition(|line| line == word);
    assert!(at("RELOADING=1") < at("READY=1"), "{heard:?}");
    let told = heard.iter().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")?.parse::<u128>().ok());
    assert!(told.is_some_and(|told| told >= before), "after the signal, at {before}: {heard:?}");
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

/// The container's cgroups: it makes some beside its own first process, and leaves them.
struct Hierarchies(Vec<PathBuf>);

impl Hierarchies {
    fn new(id: &str) -> Hierarchies {
        // On a hybrid host systemd has a hierarchy of its own.
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"].map(Path::new);
        let roots = roots.into_iter().filter(|root| root.join("cgroup.procs").exists());
        let places: Vec<PathBuf> = roots.map(|root| root.join(id)).collect();
        places.iter().for_each(|place| std::fs::create_dir(place).expect("made"));
        Hierarchies(places)
    }

    fn words(&self) -> String {
        self.0.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Hierarchies {
    fn drop(&mut self) {
        for place in &self.0 {
            let args = ["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"];
            let _gone = Command::new("find").arg(place).args(args).status();
        }
    }
}

/// What the script in the container tells, line by line.
const ANSWER: &str = "\
box
cgroup: 0::/system.slice/sexton.service/instances/box
begun: active success running lives
restart: active success running lives
reload: active success running lives
keeper: the same
killed: active success running lives
watchdog: active success running lives
detached: inactive success unknown lives
again: active success running lives
doctor: more time is asked for
drain: waited longer than TimeoutStopSec
drained: inactive success unknown gone
";

#[test]
fn under_a_real_systemd_instances_outlive_all_but_a_drain() {
    let is_there = Command::new("systemd-nspawn").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !is_there || !Path::new("/lib/systemd/systemd").exists() {
        skip!("needs systemd and systemd-nspawn");
    }
    let ground = Ground::new(SEXTON).expect("a ground");
    let place = |name: &str| ground.dir().join(name);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/systemd");
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/sexton.service");
    std::fs::create_dir(place("out")).expect("made");
    let ours = "[Service]\nExecStart=\nExecStart=/opt/sexton/sexton serve\nWatchdogSec=3s\n";
    std::fs::write(place("ours.conf"), ours).expect("written");
    let script =
        "[Unit]\nAfter=sexton.service\nRequires=dbus.service\n[Service]\nType=oneshot\nExecStart=/opt/guest/guest.sh\n";
    std::fs::write(place("guest.service"), script).expect("written");
    let bin = Path::new(SEXTON).parent().expect("a directory");
    let hierarchies = Hierarchies::new(ground.id());
    let mut container = Command::new("/bin/sh");
    let enter = "for place in $0; do echo $$ > $place/cgroup.procs; done; exec timeout --kill-after=5 120 \"$@\"";
    container.args(["-c", enter, &hierarchies.words(), "systemd-nspawn", "--quiet", "--directory=/", "--volatile=yes"]);
    container.args(["--private-network", "--register=no", "--keep-unit"]).arg(format!("--machine={}", ground.id()));
    for (from, to) in [
        (bin, "/opt/sexton"),
        (&fixtures, "/opt/guest"),
        (&unit, "/etc/systemd/system/sexton.service"),
        (&place("ours.conf"), "/etc/systemd/system/sexton.service.d/ours.conf"),
        (&place("guest.service"), "/etc/systemd/system/guest.service"),
    ] {
        container.arg(format!("--bind-ro={}:{to}", from.canonicalize().expect("there").display()));
    }
    container.arg(format!("--bind={}:/out", place("out").display())).arg("--boot");
    container.args(["systemd.firstboot=no", "systemd.unit=multi-user.target"]);
    container.args(["systemd.wants=sexton.service", "systemd.wants=guest.service"]);
    for other in ["networkd", "resolved", "logind"] {
        container.arg(format!("systemd.mask=systemd-{other}.service"));
    }
    let ended = container.stdin(Stdio::null()).output().expect("the container runs");
    let read = |name: &str| std::fs::read_to_string(place("out").join(name)).unwrap_or_default();
    let console = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert_eq!(read("answer"), ANSWER, "{}\n{}\n{}", read("errors"), read("journal"), console);
}
