//! Guests of somebody else who has died: real QEMU, found again by a daemon that was killed, among processes that look
//! the same and are not; and what the one that nobody knows is asked before it is ended.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

#[path = "support/monitor.rs"]
mod monitor;
#[path = "support/owner.rs"]
mod owner;
mod support;
#[path = "support/watching.rs"]
mod watching;

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use monitor::Monitor;
use owner::{Owner, SHAPES, age, executes};
use serde_json::json;
use sexton_plan::id::Pid;
use sexton_testkit::{SOON, eventually};
use watching::Node;

const QEMU: &str = "qemu-system-x86_64";

/// A process that can be told from a guest by nothing but its executable file, and shows every signal that it was sent:
/// all are blocked, so that they stay pending.
const IMPOSTOR: &str = "
    #include <signal.h>
    #include <sys/prctl.h>
    #include <unistd.h>
    int main(void) {
        sigset_t all;
        sigfillset(&all);
        sigprocmask(SIG_BLOCK, &all, 0);
        prctl(PR_SET_NAME, \"qemu-system-x86\");
        for (;;) pause();
    }";

/// A machine without parts: a monitor that answers, at the price of a few megabytes.
fn machine(id: &str, dir: &Path) -> Vec<String> {
    let qmp = format!("unix:{}/q.sock,server=on,wait=off", dir.display());
    let words =
        [QEMU, "-accel", "tcg", "-machine", "none", "-nodefaults", "-display", "none", "-name", id, "-qmp", &qmp];
    words.map(str::to_owned).into()
}

fn shown(pid: i32, file: &str) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/{file}")).expect("readable")
}

/// Signals that wait to be taken by a process.
fn pending(pid: i32) -> Vec<String> {
    let status = String::from_utf8(shown(pid, "status")).expect("text");
    let masks = status.lines().filter(|line| line.starts_with("SigPnd") || line.starts_with("ShdPnd"));
    let is_set = |line: &&str| line.split_whitespace().nth(1).is_none_or(|mask| mask.contains(|bit| bit != '0'));
    masks.filter(is_set).map(str::to_owned).collect()
}

/// Everything that looks like a guest and is none.
struct LookAlikes {
    /// The name, arguments and environment of a guest, and another program.
    impostors: Vec<Pid>,
    /// The very program with the same arguments, and a parent that lives.
    children: Vec<Child>,
    /// The very program with the same id, below another tree.
    elsewhere: Vec<Pid>,
    /// The very program with the same arguments, as an instance.
    instances: Vec<String>,
}

impl LookAlikes {
    /// Fourteen, two, two and two. They come before the guests, which take their sockets from them.
    fn start(node: &mut Node, ids: &[String]) -> LookAlikes {
        let program = node.owner.dir.join("bin/impostor");
        support::compile(IMPOSTOR, &program);
        let words = |node: &Node, id: &str| machine(id, &node.owner.guest_dir(id));
        let mut found =
            LookAlikes { impostors: Vec::new(), children: Vec::new(), elsewhere: Vec::new(), instances: Vec::new() };
        for id in ids.iter().chain(ids).take(14) {
            let words = words(node, id)[1..].join(" ");
            let pid = node.owner.orphan(&format!("exec -a {QEMU} {} {words}", program.display()));
            executes(pid, "impostor");
            found.impostors.push(pid);
        }
        for id in ids.iter().rev().take(2) {
            let mut child = Command::new(QEMU);
            child.args(&words(node, id)[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            found.children.push(child.spawn().expect("qemu"));
            listens(&node.owner.guest_dir(id));
        }
        for id in ids.iter().rev().take(2) {
            let dir = node.ground.dir().join("elsewhere").join(id);
            fs::create_dir_all(&dir).expect("made");
            found.elsewhere.push(node.owner.orphan(&format!("exec {}", machine(id, &dir).join(" "))));
            listens(&dir);
        }
        for id in ids.iter().rev().take(2) {
            let body = json!({ "name": id, "argv": words(node, id) });
            node.post("/v1/instances", &body, 201);
            listens(&node.owner.guest_dir(id));
            found.instances.push(id.clone());
        }
        found
    }

    /// None of them was signalled, and all live.
    fn assert_untouched(&mut self, node: &Node) {
        for pid in &self.impostors {
            assert!(node.owner.lives(*pid), "impostor {pid}");
            assert_eq!(pending(pid.as_raw()), [""; 0], "impostor {pid}");
        }
        for child in &mut self.children {
            assert!(child.try_wait().expect("a child").is_none(), "child {}", child.id());
        }
        for pid in &self.elsewhere {
            assert!(node.owner.lives(*pid), "elsewhere {pid}");
        }
        for name in &self.instances {
            assert_eq!(node.get(&format!("/v1/instances/{name}"))["state"], "running", "{name}");
        }
        assert_eq!(self.impostors.len() + self.children.len() + self.elsewhere.len() + self.instances.len(), 20);
    }
}

impl Drop for LookAlikes {
    fn drop(&mut self) {
        for child in &mut self.children {
            child.kill().expect("killed");
            child.wait().expect("reaped");
        }
    }
}

/// Waits until a guest has its monitor in `dir`, and leaves the path free for the next one.
fn listens(dir: &Path) {
    drop(Monitor::open(&dir.join("q.sock")));
    fs::remove_file(dir.join("q.sock")).expect("removed");
}

/// A guest that is nobody's child.
fn boot(owner: &mut Owner, id: &str) -> Pid {
    let line = format!("exec {}", machine(id, &owner.guest_dir(id)).join(" "));
    owner.orphan(&line)
}

fn looks_alike(guest: Pid, impostor: Pid) {
    for file in ["cmdline", "comm", "environ"] {
        let told = |pid: Pid| shown(pid.as_raw(), file);
        assert_eq!(told(guest), told(impostor), "{file} of {guest} and {impostor}");
    }
}

#[test]
fn ten_guests_are_found_again_and_the_eleventh_is_ended_after_its_grace_among_twenty_look_alikes() {
    if !sexton_testkit::skip::has_program(QEMU) {
        sexton_testkit::skip!(package "qemu-system-x86");
    }
    let grace = Duration::from_secs(8);
    let mut node = Node::new("8s");
    let ids: Vec<String> = (0..11).map(|number| format!("vm-{number}")).collect();
    let shape = |number: usize| SHAPES[number % SHAPES.len()];
    for (number, id) in ids.iter().enumerate() {
        node.owner.guest(id, (number < 10).then_some(shape(number).0));
    }
    let mut look_alikes = LookAlikes::start(&mut node, &ids);
    // Everybody but the guests is there while the daemon is not.
    let Node { daemon, mut owner, ground } = node;
    daemon.kill9_both().expect("both killed");
    let sockets: Vec<PathBuf> = ids.iter().map(|id| owner.guest_dir(id).join("q.sock")).collect();
    let mut guests: Vec<Pid> = ids.iter().take(10).map(|id| boot(&mut owner, id)).collect();
    let mut monitors: Vec<Monitor> = sockets.iter().take(10).map(|socket| Monitor::open(socket)).collect();
    // What it knows of two of them became another's number: a stranger's, and that of an impostor.
    let stranger = owner.orphan("exec sleep 1000");
    for (at, stale) in [(3, stranger), (8, look_alikes.impostors[8])] {
        owner.write(&ids[at], shape(at).1.replace('@', &stale.to_string()));
    }
    let daemon = ground.serve().expect("another daemon");
    let mut node = Node { daemon, owner, ground };
    for (at, pid) in guests.iter().enumerate() {
        let file = node.owner.file(&ids[at]);
        assert_eq!(node.owner.read(&ids[at]), shape(at).1.replace('@', &pid.to_string()), "{}", ids[at]);
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o7777, 0o640, "{}", ids[at]);
    }
    // Its grace begins when all is ready to look. A monitor talks to one at a time: its own is left to the daemon.
    let eleventh = boot(&mut node.owner, &ids[10]);
    drop(Monitor::open(&sockets[10]));
    guests.push(eleventh);
    for (guest, impostor) in guests.iter().zip(&look_alikes.impostors) {
        looks_alike(*guest, *impostor);
    }
    let mut looks = 0;
    loop {
        let before = age(eleventh).expect("alive");
        // A plan waits for nobody, so it shows the moment.
        let is_planned = node.get("/v1/plan")["actions"] != json!([]);
        assert!(!is_planned || age(eleventh) > Some(grace), "planned too early: {before:?}");
        node.reconcile();
        looks += 1;
        let is_ended = node.is_being_ended(eleventh);
        let after = age(eleventh).unwrap_or(before);
        assert!(!is_ended || (after > grace && looks > 1), "one look too early: {after:?}, look {looks}");
        if is_ended {
            break;
        }
        assert!(before <= grace + Duration::from_millis(20) || looks < 2, "one look too late: {before:?}");
    }
    assert!(looks > 2, "it was looked at while it was too young");
    let why = |what: String| format!("{what}: {:?}\n{}", node.left(eleventh), node.daemon.log());
    eventually("the eleventh ends", SOON, || if node.owner.lives(eleventh) { Err(why(String::new())) } else { Ok(()) });
    eventually("that is told", SOON, || {
        let told = node.told("orphan.terminated");
        if told == [eleventh.as_raw()] { Ok(()) } else { Err(why(format!("{told:?}"))) }
    });
    let mut adopted = node.told("orphan.adopted");
    let mut expected: Vec<i32> = guests.iter().take(10).map(|pid| pid.as_raw()).collect();
    adopted.sort_unstable();
    expected.sort_unstable();
    assert_eq!(adopted, expected, "once each");
    for (at, monitor) in monitors.iter_mut().enumerate() {
        assert!(monitor.ask("query-status").is_object(), "{}", ids[at]);
    }
    // QEMU says so when it is ended by a signal; the eleventh was asked to quit, and nobody else was asked anything.
    assert!(!node.owner.said().contains("signal"), "{}", node.owner.said());
    assert!(node.owner.lives(stranger));
    look_alikes.assert_untouched(&node);
    assert_eq!(node.get("/v1/plan")["actions"], json!([]));
}

/// A stand-in for a runtime with HTTP on its socket.
const STAND_IN: &str = include_str!("support/stand_in.py");

#[test]
fn orphans_of_built_in_runtimes_are_asked_in_their_own_words() {
    let mut node = Node::new("1ms");
    let dir = node.owner.dir.clone();
    fs::write(dir.join("stand-in.py"), STAND_IN).expect("written");
    let cases = [
        ("firecracker", "--api-sock", "SendCtrlAltDel", "PUT /actions HTTP/1.1 {\"action_type\":\"SendCtrlAltDel\"}\n"),
        (
            "cloud-hypervisor",
            "--api-socket",
            "vmm.shutdown",
            "PUT /api/v1/vm.shutdown HTTP/1.1 \nPUT /api/v1/vmm.shutdown HTTP/1.1 \n",
        ),
    ];
    let mut orphans = Vec::new();
    for (runtime, flag, last, _) in cases {
        node.owner.guest(runtime, None);
        node.owner.program("/usr/bin/python3", runtime);
        let (dir, socket) = (dir.display(), node.owner.guest_dir(runtime).join("api.sock"));
        let socket = socket.display();
        let line =
            format!("exec {dir}/bin/{runtime} {dir}/stand-in.py {socket} {dir}/{runtime} {last} {flag} {socket}");
        let orphan = node.owner.orphan(&line);
        executes(orphan, runtime);
        orphans.push(orphan);
        support::file_appears(&node.owner.guest_dir(runtime).join("api.sock"));
    }
    node.reconcile();
    node.reconcile();
    for ((runtime, _, _, notes), pid) in cases.iter().zip(orphans) {
        eventually(runtime, SOON, || if node.owner.lives(pid) { Err(node.owner.said()) } else { Ok(()) });
        assert_eq!(fs::read_to_string(dir.join(runtime)).expect("noted"), *notes, "{runtime}");
    }
}

#[test]
fn a_stranger_at_the_socket_of_an_orphan_is_not_spoken_to() {
    let mut node = Node::new("1ms");
    node.owner.guest("a", None);
    let (dir, socket) = (node.owner.dir.clone(), node.owner.guest_dir("a").join("q.sock"));
    let listener = UnixListener::bind(&socket).expect("bound");
    node.owner.program("/bin/bash", "qemu-system-shell");
    let script = "trap 'echo asked; exit' TERM; while :; do sleep 0.05; done";
    let (shell, socket) = (dir.join("bin/qemu-system-shell"), socket.display());
    let line = format!("exec {} -c \"{script}\" x -qmp unix:{socket},server=on", shell.display());
    let orphan = node.owner.orphan(&line);
    executes(orphan, "qemu-system-shell");
    node.reconcile();
    node.reconcile();
    eventually("it ends", SOON, || if node.owner.lives(orphan) { Err(String::new()) } else { Ok(()) });
    drop(node);
    listener.set_nonblocking(true).expect("set");
    let mut met = 0;
    while let Ok((mut peer, _)) = listener.accept() {
        let mut heard = Vec::new();
        peer.read_to_end(&mut heard).expect("read");
        assert!(heard.is_empty(), "{heard:?}");
        met += 1;
    }
    assert!(met > 0, "it connected, to see who is there");
}
