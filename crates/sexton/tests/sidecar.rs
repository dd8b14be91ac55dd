//! Beside an owner who does everything wrong: files that are none, numbers that mean somebody else, trees that vanish,
//! configurations that are broken, and a file system that does not answer.

#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

#[path = "support/failing.rs"]
mod failing;
#[path = "support/owner.rs"]
mod owner;
mod support;
#[path = "support/unanswering.rs"]
mod unanswering;
#[path = "support/watching.rs"]
mod watching;

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use failing::Failing;
use owner::Owner;
use serde_json::{Value, json};
use sexton_plan::id::Pid;
use sexton_testkit::{SOON, crash_bin_dir, eventually, skip};
use support::SEXTON;
use unanswering::Unanswering;
use watching::Node;

const SIGHUP: i32 = 1;

/// Files that are no metadata, each with a process that would be ended if its file were missing.
fn odd_files(owner: &Owner) -> Vec<String> {
    let texts: [(&str, Vec<u8>); 9] = [
        ("half", b"{\"HypervisorPID\": 1".to_vec()),
        ("empty", Vec::new()),
        ("binary", b"{\"HypervisorPID\":1,\"x\":\"\xff\xfe\"}".to_vec()),
        ("list", b"[{\"HypervisorPID\":1}]".to_vec()),
        ("twice", b"{\"HypervisorPID\":1,\"Hypervisor\\u0050ID\":2}".to_vec()),
        ("deep", [b"{\"x\":".as_slice(), &b"[".repeat(10_000), &b"]".repeat(10_000), b"}"].concat()),
        ("trailing", b"{\"HypervisorPID\":1}\n{}".to_vec()),
        ("nul", b"{\"HypervisorPID\":1}\0".to_vec()),
        ("huge", [b"{\"x\":\"".as_slice(), &vec![b'x'; 17 << 20], b"\"}"].concat()),
    ];
    let mut ids = Vec::new();
    for (id, text) in texts {
        owner.guest(id, None);
        owner.write(id, text);
        ids.push(id.to_owned());
    }
    for id in ["dir", "link", "fifo", "below-link", "loop"] {
        owner.guest(id, None);
        ids.push(id.to_owned());
    }
    fs::create_dir(owner.file("dir")).expect("made");
    fs::write(owner.dir.join("outside.json"), "{\"HypervisorPID\":1}").expect("written");
    symlink(owner.dir.join("outside.json"), owner.file("link")).expect("linked");
    symlink("metadata.json", owner.file("loop")).expect("linked");
    assert!(Command::new("mkfifo").arg(owner.file("fifo")).status().expect("mkfifo").success());
    fs::rename(owner.guest_dir("below-link"), owner.dir.join("moved")).expect("moved");
    symlink(owner.dir.join("moved"), owner.guest_dir("below-link")).expect("linked");
    ids
}

/// What lies in a directory, without what its files hold.
fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn what_is_no_metadata_is_told_and_never_changed_and_its_process_lives() {
    let mut node = Node::new("1ms");
    let ids = odd_files(&node.owner);
    let guests: Vec<Pid> = ids.iter().map(|id| node.owner.fake(id)).collect();
    let seen =
        |id: &String| (fs::read(node.owner.file(id)).ok().filter(|_| id != "fifo"), names(&node.owner.guest_dir(id)));
    let is_readable = |id: &&String| *id != "fifo";
    let before: Vec<_> = ids.iter().filter(is_readable).map(seen).collect();
    for _ in 0..3 {
        node.reconcile();
    }
    for (id, pid) in ids.iter().zip(&guests) {
        assert!(node.owner.lives(*pid), "{id}");
        assert!(
            node.left(*pid).is_some_and(|why| why.contains(&format!("{id}/metadata.json"))),
            "{id}: {:?}",
            node.left(*pid)
        );
    }
    let after: Vec<_> = ids.iter().filter(is_readable).map(seen).collect();
    assert!(before == after, "nothing was changed");
    assert_eq!(node.told("orphan.seen"), [0; 0]);
    assert_eq!(fs::read_to_string(node.owner.dir.join("outside.json")).expect("there"), "{\"HypervisorPID\":1}");
    // Once it is a file, it is one.
    node.owner.write("half", "{\"HypervisorPID\": 1}");
    node.reconcile();
    assert_eq!(node.owner.read("half"), format!("{{\"HypervisorPID\": {}}}", guests[0]));
}

#[test]
fn what_a_writing_leaves_is_removed_as_soon_as_it_can_be() {
    let append_only = |dir: &Path, how: &str| Command::new("chattr").arg(how).arg(dir).output().expect("chattr").status;
    let mut node = Node::new("1h");
    node.owner.guest("a", Some("{\"HypervisorPID\":1}"));
    let dir = node.owner.guest_dir("a");
    let before = names(&dir);
    // A directory in which files can be made, and neither renamed nor removed.
    if !append_only(&dir, "+a").success() {
        skip!("no append-only directories here");
    }
    let pid = node.owner.fake("a");
    (0..3).for_each(|_| node.reconcile());
    let (left, why) = (names(&dir), node.left(pid));
    node.daemon.replace_worker().expect("another worker");
    node.reconcile();
    let left_later = names(&dir);
    assert!(append_only(&dir, "-a").success());
    node.reconcile();
    // REGRESSION: every pass left another file for ever.
    assert_eq!((left.len(), &left_later), (before.len() + 1, &left), "{left:?}");
    assert!(why.is_some_and(|why| why.contains("left beside")), "it is told");
    assert_eq!(names(&dir), before);
    assert_eq!(node.owner.read("a"), format!("{{\"HypervisorPID\":{pid}}}"));
    assert_eq!(node.told("orphan.adopted"), [pid.as_raw()]);
}

#[test]
fn a_pid_that_was_written_is_told_whatever_the_disk_says_afterwards() {
    if !sexton_testkit::skip::has_program("strace") {
        skip!(package "strace");
    }
    let mut node = Node::new("1h");
    node.owner.guest("a", Some("{\"HypervisorPID\":1}"));
    let pid = node.owner.fake("a");
    let worker = node.daemon.worker_pid().expect("a worker");
    let failing = Failing::of(worker, "fsync", &node.owner.guest_dir("a"), "EIO", "1+");
    node.reconcile();
    drop(failing);
    assert_eq!(node.owner.read("a"), format!("{{\"HypervisorPID\":{pid}}}"));
    node.reconcile();
    // REGRESSION: where its directory could not be synced, it was called not written, and never told.
    assert_eq!(node.told("orphan.adopted"), [pid.as_raw()]);
}

#[test]
fn a_plan_is_applied_as_it_was_given_or_not_at_all() {
    let mut node = Node::new("1ms");
    node.owner.guest("a", Some("{\"HypervisorPID\":1}"));
    let pid = node.owner.fake("a");
    let plan = node.get("/v1/plan");
    assert_eq!(plan["actions"][0]["identity"]["strength"], "pidfs", "{plan}");
    let forged = |forge: fn(&mut Value)| {
        let mut forged = plan.clone();
        forge(&mut forged["actions"][0]);
        forged
    };
    for plan in [
        forged(|action| action["identity"]["strength"] = json!("starttime")),
        forged(|action| drop(action["identity"].as_object_mut().expect("an identity").remove("strength"))),
        forged(|action| action["identity"]["start_ticks"] = json!(1)),
        forged(|action| action["reason"] = json!("because")),
    ] {
        node.post("/v1/apply", &plan, 409);
        assert_eq!(node.owner.read("a"), "{\"HypervisorPID\":1}", "{plan}");
    }
    node.post("/v1/apply", &plan, 200);
    assert_eq!(node.owner.read("a"), format!("{{\"HypervisorPID\":{pid}}}"));
}

#[test]
fn a_users_process_passes_for_no_guest_that_is_not_the_users() {
    let mut node = Node::new("1ms");
    let dir = node.owner.dir.display().to_string();
    let stale = "{\"HypervisorPID\":1}";
    for (id, text) in [("alone", Some(stale)), ("beside", Some(stale)), ("missing", None), ("own", Some(stale))] {
        node.owner.guest(id, text);
    }
    chown(node.owner.guest_dir("own"), Some(1000), None).expect("root");
    let of_user = |id: &str| {
        format!(
            "exec setpriv --reuid=1000 --regid=1000 --clear-groups {dir}/bin/qemu-system-fake -f {dir}/guests/{id}/disk"
        )
    };
    let strangers = ["alone", "beside", "missing"].map(|id| node.owner.orphan(&of_user(id)));
    let own = node.owner.orphan(&of_user("own"));
    let survivor = node.owner.fake("beside");
    for pid in strangers.into_iter().chain([own]) {
        owner::executes(pid, "qemu-system-fake");
    }
    for _ in 0..3 {
        node.reconcile();
    }
    for pid in strangers {
        assert!(node.owner.lives(pid), "it is nobody's orphan");
        assert!(node.left(pid).is_some_and(|why| why.contains("user 1000's")), "{:?}", node.left(pid));
    }
    assert_eq!(node.owner.read("alone"), stale);
    assert_eq!(node.owner.read("beside"), format!("{{\"HypervisorPID\":{survivor}}}"));
    assert_eq!(node.owner.read("own"), format!("{{\"HypervisorPID\":{own}}}"));
}

#[test]
fn a_guest_in_a_jail_of_its_own_user_is_written_back() {
    let mut node = Node::new("1ms");
    node.owner.guest("jailed", Some("{\"HypervisorPID\":1}"));
    let dir = node.owner.dir.display().to_string();
    // As Firecracker's jailer does: another root, another user, and no namespace of users.
    let jail = format!(
        "exec unshare -m --propagation private sh -c 'mkdir {dir}/jail && mount -t tmpfs jail {dir}/jail && \
         for part in /usr /bin /lib /lib64 {dir}; do mkdir -p {dir}/jail$part && mount --bind $part {dir}/jail$part; done; \
         exec chroot --userspec=1000:1000 {dir}/jail {dir}/bin/qemu-system-fake -f {dir}/guests/jailed/disk'"
    );
    let pid = node.owner.orphan(&jail);
    owner::executes(pid, "qemu-system-fake");
    node.reconcile();
    assert_eq!(node.owner.read("jailed"), format!("{{\"HypervisorPID\":{pid}}}"), "{:?}", node.left(pid));
}

/// Becomes a process whose main thread has ended, while another one lives on.
const HEADLESS: &str = "import ctypes, os, threading, time; \
                        threading.Thread(target=time.sleep, args=(1000,)).start(); \
                        ctypes.CDLL(None).syscall(60 if os.uname().machine == \"x86_64\" else 93, 0)";

#[test]
fn a_process_whose_main_thread_has_ended_is_told_and_neither_ended_nor_written_over() {
    let Ok(python) = fs::canonicalize("/usr/bin/python3") else { skip!(package "python3") };
    let mut node = Node::new("1ms");
    node.owner.program(python.to_str().expect("text"), "qemu-system-headless");
    node.owner.guest("a", None);
    node.owner.guest("b", None);
    let dir = node.owner.dir.display().to_string();
    let headless = |id: &str| format!("exec {dir}/bin/qemu-system-headless -c '{HEADLESS}' {dir}/guests/{id}/disk");
    let [lonely, recorded] = ["a", "b"].map(|id| node.owner.orphan(&headless(id)));
    for pid in [lonely, recorded] {
        eventually("its main thread ends", SOON, || match sexton_core::proc::stat(pid) {
            Ok(stat) if stat.state == 'Z' && stat.threads > 1 => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    let text = format!("{{\"HypervisorPID\":{recorded}}}");
    node.owner.write("b", &text);
    let other = node.owner.fake("b");
    for _ in 0..3 {
        node.reconcile();
    }
    for pid in [lonely, recorded] {
        assert!(node.owner.lives(pid));
        assert!(node.left(pid).is_some_and(|why| why.contains("its main thread has ended")), "{:?}", node.left(pid));
    }
    assert!(node.left(other).is_some_and(|why| why.contains("cannot be read")), "{:?}", node.left(other));
    assert_eq!(node.owner.read("b"), text);
}

#[test]
fn ten_megabytes_of_metadata_are_written_back_byte_for_byte() {
    let mut node = Node::new("1ms");
    let filler: String = (0..400_000).map(|number| format!("\n  \"key-{number}\": [{number}, {{}}],")).collect();
    let text = |pid: &str| format!("{{{filler}\n  \"HypervisorPID\": {pid},\n  \"last\": 1.50\n}}\n");
    assert!(text("1").len() > 10_000_000);
    node.owner.guest("big", Some(&text("1")));
    let pid = node.owner.fake("big");
    node.reconcile();
    assert!(node.owner.read("big") == text(&pid.to_string()), "it was not written back");
    assert_eq!(node.told("orphan.adopted"), [pid.as_raw()]);
}

#[test]
fn numbers_that_mean_somebody_else_are_written_over_and_nobody_is_touched() {
    let mut node = Node::new("1ms");
    let (told, thread) = std::sync::mpsc::channel();
    let (ends, ended) = std::sync::mpsc::channel::<()>();
    let waiting = std::thread::spawn(move || {
        let link = fs::read_link("/proc/thread-self").expect("a thread");
        told.send(link.file_name().expect("a number").to_string_lossy().into_owned()).expect("told");
        let _over = ended.recv();
    });
    let thread = thread.recv().expect("its number");
    let stranger = node.owner.orphan("exec sleep 1000");
    let other = {
        node.owner.guest("other", None);
        node.owner.fake("other")
    };
    node.owner.write("other", format!("{{\"HypervisorPID\":{other}}}"));
    let (worker, keeper) = (node.daemon.worker_pid().expect("a worker"), node.daemon.keeper_pid());
    let cases = [
        ("init", "1".to_owned()),
        ("worker", worker.to_string()),
        ("keeper", keeper.to_string()),
        ("test", std::process::id().to_string()),
        ("thread", thread),
        ("kernel", "2".to_owned()),
        ("stranger", stranger.to_string()),
        ("anothers", other.to_string()),
        ("zero", "0".to_owned()),
        ("negative", format!("-{stranger}")),
        ("large", "2147483648".to_owned()),
        ("larger", "18446744073709551617".to_owned()),
        ("float", format!("{stranger}.0")),
        ("text", format!("\"{stranger}\"")),
        ("object", format!("{{\"HypervisorPID\":{stranger}}}")),
    ];
    let mut guests = Vec::new();
    for (id, number) in &cases {
        node.owner.guest(id, Some(&format!("{{\"HypervisorPID\":{number},\"x\":[]}}")));
        guests.push(node.owner.fake(id));
    }
    node.reconcile();
    for ((id, _), pid) in cases.iter().zip(&guests) {
        assert_eq!(node.owner.read(id), format!("{{\"HypervisorPID\":{pid},\"x\":[]}}"), "{id}: {:?}", node.left(*pid));
    }
    for _ in 0..2 {
        node.reconcile();
    }
    assert_eq!(node.owner.read("other"), format!("{{\"HypervisorPID\":{other}}}"));
    assert!(guests.iter().chain([&stranger, &other]).all(|pid| node.owner.lives(*pid)));
    assert_eq!(node.daemon.worker_pid().expect("a worker"), worker);
    assert_eq!(node.told("orphan.terminated"), [0; 0]);
    drop(ends);
    waiting.join().expect("ended");
}

#[test]
fn a_tree_that_vanishes_proves_nothing_and_its_return_begins_anew() {
    let mut node = Node::new("1ms");
    node.owner.guest("gone", None);
    let orphan = node.owner.fake("gone");
    node.reconcile();
    let (here, away) = (node.owner.dir.join("guests"), node.owner.dir.join("away"));
    fs::rename(&here, &away).expect("moved");
    for _ in 0..3 {
        node.reconcile();
    }
    assert!(node.left(orphan).is_some_and(|why| why.contains("tree")), "{:?}", node.left(orphan));
    fs::rename(&away, &here).expect("moved back");
    node.reconcile();
    assert!(!node.is_being_ended(orphan), "it was seen for the first time since");
    node.reconcile();
    eventually("it ends", SOON, || if node.owner.lives(orphan) { Err(String::new()) } else { Ok(()) });
    assert_eq!(node.told("orphan.seen"), [orphan.as_raw()], "once a process");
}

#[test]
fn where_metadata_was_found_another_directory_proves_nothing() {
    let mut node = Node::new("1ms");
    for id in ["known", "other"] {
        node.owner.guest(id, Some("{}"));
    }
    let guests = ["known", "other"].map(|id| node.owner.fake(id));
    node.reconcile();
    let (here, away) = (node.owner.dir.join("guests"), node.owner.dir.join("away"));
    // As the mount point of a disk that is not mounted any more.
    fs::rename(&here, &away).expect("moved");
    fs::create_dir(&here).expect("made");
    // Whoever looks, the worker that has seen the metadata or the next one.
    for _ in 0..2 {
        for _ in 0..3 {
            node.reconcile();
        }
        for guest in guests {
            assert!(node.left(guest).is_some_and(|why| why.contains("tree")), "{:?}", node.left(guest));
            assert!(node.owner.lives(guest));
        }
        node.daemon.replace_worker().expect("another one");
    }
    // As the disk that is mounted again, on which one guest was removed.
    fs::remove_dir(&here).expect("empty");
    fs::rename(&away, &here).expect("moved back");
    fs::remove_file(node.owner.file("known")).expect("removed");
    for _ in 0..2 {
        node.reconcile();
    }
    eventually("it ends", SOON, || if node.owner.lives(guests[0]) { Err(String::new()) } else { Ok(()) });
    assert!(node.owner.lives(guests[1]));
}

#[test]
fn a_guest_in_a_pid_namespace_of_its_own_is_written_back_by_its_number_here() {
    let mut node = Node::new("1ms");
    node.owner.guest("inner", Some("{\"HypervisorPID\":1}"));
    let dir = node.owner.dir.display().to_string();
    let outer =
        node.owner.orphan(&format!("exec unshare --pid --fork {dir}/bin/qemu-system-fake -f {dir}/guests/inner/disk"));
    let inner = eventually("the first of a namespace", SOON, || {
        let children = sexton_core::proc::children(outer).map_err(|error| error.to_string())?;
        let is_it =
            |pid: &Pid| sexton_core::proc::executable(*pid).is_ok_and(|file| file.ends_with("qemu-system-fake"));
        children.into_iter().find(is_it).ok_or(String::new())
    });
    node.reconcile();
    assert_eq!(node.owner.read("inner"), "{\"HypervisorPID\":1}", "its parent may care");
    node.owner.hold(inner);
    node.owner.end(outer);
    node.reconcile();
    assert_eq!(node.owner.read("inner"), format!("{{\"HypervisorPID\":{inner}}}"));
}

/// Ends by the first SIGUSR1, and takes its time: its main thread has ended, so it has no executable file, and lives.
const SLOW_TO_END: &str = "
    #include <pthread.h>
    #include <signal.h>
    #include <unistd.h>
    static void *linger(void *unused) {
        usleep(600000);
        _exit(0);
    }
    int main(void) {
        sigset_t all;
        int asked;
        pthread_t thread;
        sigfillset(&all);
        sigprocmask(SIG_BLOCK, &all, 0);
        do sigwait(&all, &asked); while (asked != SIGUSR1);
        pthread_create(&thread, 0, linger, 0);
        pthread_exit(0);
    }";

#[test]
fn an_orphan_that_takes_its_time_to_end_was_ended_and_that_is_told() {
    let mut node = Node::configured(|owner| {
        let program = owner.dir.join("bin/slow");
        support::compile(SLOW_TO_END, &program);
        format!(
            "[[runtime]]\nname = \"slow\"\nexecutables = [\"{}\"]\nid_from = {{ env = \"SLOW_ID\" }}\n\
             stop = [{{ signal = \"USR1\", wait = \"200ms\" }}, {{ signal = \"TERM\", wait = \"10s\" }}]\n{}",
            program.display(),
            owner.config("1ms", "terminate").replace("\"qemu\"", "\"slow\", \"qemu\"")
        )
    });
    let orphan = node.owner.orphan(&format!("SLOW_ID=gone exec {}/bin/slow", node.owner.dir.display()));
    owner::executes(orphan, "slow");
    node.reconcile();
    node.reconcile();
    eventually("it is told", SOON, || match node.told("orphan.terminated").as_slice() {
        [told] if *told == orphan.as_raw() => Ok(()),
        told => Err(format!("{told:?}: {:?}\n{}", node.left(orphan), node.daemon.log())),
    });
    assert!(!node.owner.lives(orphan));
}

#[test]
fn the_daemons_own_processes_are_no_orphans_whatever_the_configuration_says() {
    // By other names than those of every daemon on this host: orphans of other tests are none of this one's.
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("own-{}", std::process::id()));
    fs::create_dir(&dir).expect("made");
    let [program, init] = ["sexton", "sexton-init"].map(|name| dir.join(name));
    for name in [&program, &init] {
        fs::hard_link(Path::new(SEXTON).with_file_name(name.file_name().expect("a name")), name).expect("linked");
    }
    let node = Node::of_program(&program, &[], |owner| {
        format!(
            "[[runtime]]\nname = \"own\"\nexecutables = [\"{}\", \"{}\"]\nid_from = {{ flag = \"--cgroup\" }}\n{}",
            program.display(),
            init.display(),
            owner.config("1ms", "terminate").replace("\"qemu\"", "\"own\", \"qemu\"")
        )
    });
    let (worker, keeper) = (node.daemon.worker_pid().expect("a worker"), node.daemon.keeper_pid());
    for _ in 0..3 {
        node.reconcile();
    }
    assert_eq!(node.told("orphan.seen"), [0; 0]);
    assert_eq!((node.daemon.worker_pid().expect("a worker"), node.daemon.keeper_pid()), (worker, keeper));
    fs::remove_dir_all(&dir).expect("removed");
}

#[test]
fn a_broken_watch_is_refused_at_start_and_leaves_the_old_worker_in_place() {
    let mut node = Node::new("1ms");
    let good = fs::read_to_string(node.ground.config()).expect("readable");
    let worker = node.daemon.worker_pid().expect("a worker");
    let broken = [
        good.replace("/guests/{id}/", "/guests/id/"),
        good.replace("/guests/{id}/", "/guests/{id}-x/"),
        good.replace("/guests/{id}/", "/guests/../{id}/"),
        good.replace("\"qemu\"", "\"qmu\""),
        good.replace("\"qemu\"", "\"command\""),
        good.replace("pid_field = \"HypervisorPID\"", "pid_field = \"\""),
        good.replace("on_orphan = \"terminate\"", "on_orphan = \"kill\""),
        good.replace("orphan_grace = \"1ms\"", "orphan_grace = \"1\""),
        good.replace("[[watch]]", "[watch]"),
    ];
    for (heard, text) in (1..).zip(broken) {
        fs::write(node.ground.config(), &text).expect("written");
        let refused = node.ground.command(&["serve"]).output().expect("serve");
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(64), "{text}\n{told}");
        node.daemon.keeper().expect("keeper").signal(SIGHUP).expect("sent");
        eventually("the new one is tried", SOON, || {
            let tried = node.daemon.log().matches("kept the old program").count();
            if tried == heard { Ok(()) } else { Err(format!("{tried} of {heard}")) }
        });
    }
    fs::write(node.ground.config(), good.replace("\"terminate\"", "\"report\"")).expect("written");
    assert_eq!(node.daemon.worker_pid().expect("a worker"), worker, "none of them got ready");
    node.owner.guest("a", Some("{}"));
    let pid = node.owner.fake("a");
    node.reconcile();
    assert_eq!(node.owner.read("a"), format!("{{\"HypervisorPID\":{pid}}}"));
    node.daemon.keeper().expect("keeper").signal(SIGHUP).expect("sent");
    eventually("another worker", SOON, || match node.daemon.worker_pid() {
        Ok(other) if other != worker => Ok(()),
        other => Err(format!("{other:?}")),
    });
    node.daemon.wait_ready().expect("ready");
    fs::remove_file(node.owner.file("a")).expect("removed");
    for _ in 0..3 {
        node.reconcile();
    }
    assert!(node.left(pid).is_some_and(|why| why.contains("reported only")), "{:?}", node.left(pid));
}

#[test]
fn a_writing_that_a_dead_worker_began_is_finished_and_leaves_nothing_beside() {
    let Some(bin) = crash_bin_dir() else { skip!("the daemon with crash points is built by `cargo xtask ci`") };
    let order = std::env::temp_dir().join(format!("sexton-sidecar-crash-{}", std::process::id()));
    let env = [("SEXTON_CRASH_FILE", order.to_str().expect("text"))];
    let mut node = Node::of_program(bin.join("sexton"), &env, |owner| owner.config("1h", "report"));
    let mut guests = Vec::new();
    for point in ["watch.written", "watch.exchanged"] {
        node.owner.guest(point, Some("{\"HypervisorPID\":1}"));
        let pid = node.owner.fake(point);
        guests.push(pid.as_raw());
        let worker = node.daemon.worker_pid().expect("a worker");
        fs::write(&order, format!("{point} 1")).expect("written");
        let _hung_up = node.daemon.client().post("/v1/reconcile", &json!({}));
        eventually("another worker", SOON, || match node.daemon.worker_pid() {
            Ok(other) if other != worker => Ok(()),
            other => Err(format!("{other:?}")),
        });
        node.daemon.wait_ready().expect("ready");
        assert!(!order.exists(), "{point}: nobody came by");
        assert_eq!(node.owner.read(point), format!("{{\"HypervisorPID\":{pid}}}"), "{point}");
        assert_eq!(names(&node.owner.guest_dir(point)), ["disk", "metadata.json"], "{point}");
    }
    assert_eq!(node.told("orphan.adopted"), guests, "once a writing");
}

#[test]
fn a_pass_that_hangs_is_told_by_healthz_and_stops_nobody_else() {
    let mut node = Node::configured(|owner| owner.config("1ms", "terminate").replace("\"1h\"", "\"1s\""));
    node.owner.guest("a", Some("{}"));
    let pid = node.owner.fake("a");
    node.reconcile();
    assert_eq!(node.status("/healthz"), 200);
    let Some(mut hole) = Unanswering::mount(&node.owner.dir.join("guests")) else { skip!("no /dev/fuse") };
    hole.wait_asked(1);
    let began = Instant::now();
    let told = eventually("healthz fails", SOON, || {
        let answer = node.daemon.client().get("/healthz").map_err(|error| error.to_string())?;
        if answer.status == 503 { Ok(answer.text()) } else { Err(answer.text()) }
    });
    assert!(told.contains("reconciler"), "{told}");
    assert!(began.elapsed() > Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(node.status("/livez"), 200);
    assert_eq!(node.status("/readyz"), 200);
    node.post("/v1/instances", &json!({ "name": "own", "argv": ["sleep", "1000"] }), 201);
    node.post("/v1/instances/own/stop?wait=20s", &json!({}), 200);
    hole.release();
    eventually("healthz is content", SOON, || {
        let answer = node.daemon.client().get("/healthz").map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    });
    assert!(node.owner.lives(pid));
}

#[test]
fn plans_that_hang_keep_nobody_from_anything_else() {
    /// More than anybody keeps in a queue.
    const PLANS: u64 = 80;
    let mut node = Node::new("1ms");
    node.owner.guest("a", Some("{}"));
    node.owner.fake("a");
    let Some(mut hole) = Unanswering::mount(&node.owner.dir.join("guests")) else { skip!("no /dev/fuse") };
    let fds = |node: &Node| node.get("/v1/self")["fds"].as_u64().expect("a number");
    let before = fds(&node);
    let ask = |method: &'static str, path: &'static str| {
        let client = node.daemon.client().clone();
        std::thread::spawn(move || client.ask(method, path, &[], None).expect("an answer").status)
    };
    let plans: Vec<_> = (0..PLANS).map(|_| ask("GET", "/v1/plan")).collect();
    hole.wait_asked(1);
    eventually("all have asked", SOON, || match fds(&node) {
        now if now >= before + PLANS => Ok(()),
        now => Err(format!("{now}, {before} before")),
    });
    let pass = ask("POST", "/v1/reconcile");
    node.post("/v1/instances", &json!({ "name": "own", "argv": ["sleep", "1000"] }), 201);
    node.post("/v1/instances/own/stop?wait=20s", &json!({}), 200);
    hole.release();
    for asked in plans.into_iter().chain([pass]) {
        assert_eq!(asked.join().expect("asked"), 200);
    }
}

#[test]
fn a_first_pass_that_hangs_keeps_nobody_from_stopping_what_runs() {
    let mut node = Node::new("1ms");
    node.post("/v1/instances", &json!({ "name": "own", "argv": ["sleep", "1000"] }), 201);
    node.owner.guest("a", Some("{}"));
    let pid = node.owner.fake("a");
    let Some(mut hole) = Unanswering::mount(&node.owner.dir.join("guests")) else { skip!("no /dev/fuse") };
    node.daemon.kill9_worker().expect("killed");
    hole.wait_asked(1);
    eventually("it is not ready", SOON, || match node.daemon.client().get("/readyz") {
        Ok(answer) if answer.status == 503 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let over = node.post("/v1/instances/own/stop?wait=20s", &json!({}), 200);
    assert_eq!(over["state"], "exited", "{over}");
    hole.release();
    node.daemon.wait_ready().expect("ready");
    node.reconcile();
    assert_eq!(node.owner.read("a"), format!("{{\"HypervisorPID\":{pid}}}"));
}
