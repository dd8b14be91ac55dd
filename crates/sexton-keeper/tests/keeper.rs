//! The keeper with a worker that does what the test tells it to.
//!
//! The worker is this very test program, started by the keeper with the name of one test, `fake_worker`, which then
//! connects to the test that started the keeper and carries out its orders. All it knows of the keeper goes through
//! `KeeperLink` and the wire, as in the daemon.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::exit,
    reason = "what goes wrong in a test is to fail it; the fake worker is a process of its own"
)]

mod common;
#[path = "common/fake_worker.rs"]
mod fake_worker;
#[path = "common/rig.rs"]
mod rig;

use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{eventually, is_alive, send, stat};
use rig::{Rig, install, start};
use sexton_keeper::link::KeeperLink;
use sexton_keeper::wire::ToKeeper;
use sexton_testkit::refusing;

const HUP: u8 = 1;
const KILL: u8 = 9;
const TERM: u8 = 15;
const CONT: u8 = 18;
const STOP: u8 = 19;

/// The worker's part: does nothing unless a keeper started it.
#[test]
fn fake_worker() {
    let Ok(number) = std::env::var("SEXTON_KEEPER_FD") else {
        return;
    };
    let link = KeeperLink::inherit(number.parse().unwrap()).unwrap();
    let mut control = UnixStream::connect(std::env::var("FAKE_CONTROL").unwrap()).unwrap();
    let orders = BufReader::new(control.try_clone().unwrap());
    let phase = std::env::var("SEXTON_PHASE").unwrap();
    writeln!(control, "{phase} {}", std::process::id()).unwrap();
    link.send(&ToKeeper::Hello { version: 1 }).unwrap();
    fake_worker::serve(&link, control, orders);
}

#[test]
fn a_dead_worker_is_replaced_at_once_and_told_why() {
    let rig = Rig::new("replace");
    let first = rig.ready_worker();
    assert_eq!(first.phase, "run");
    let killed = Instant::now();
    send(first.pid, KILL);
    let mut second = rig.worker();
    assert!(killed.elapsed() < Duration::from_millis(1000), "it took {:?}", killed.elapsed());
    let welcome = second.hears("Welcome");
    let keeper = rig.keeper.id();
    assert!(welcome.contains(&format!("keeper_pid: {keeper}, restarts: 1")), "{welcome}");
    assert!(welcome.contains(&format!("pid: {}, status: 9 }}), was_ready: true", first.pid)), "{welcome}");
    let expected = format!("worker {} was killed by SIGKILL", first.pid);
    eventually("the status tells", || rig.status("last_end").filter(|end| *end == expected));
    assert_eq!(stat(second.pid, 4), Some(keeper.to_string()));
}

#[test]
fn a_worker_has_no_stdin_and_no_descriptor_but_the_link_and_the_locks() {
    let mut rig = Rig::new("fds");
    let mut worker = rig.ready_worker();
    assert_eq!(worker.order("stdin"), "stdin /dev/null");
    // What any child of this test has, and the link, and the control stream twice.
    let inherited = Command::new("ls").arg("/proc/self/fd").output().unwrap().stdout;
    let inherited = inherited.iter().filter(|&&byte| byte == b'\n').count();
    assert_eq!(worker.order("fds"), format!("fds {}", inherited + 3));
    rig.signal(KILL);
    rig.keeper.wait().unwrap();
    // A shell opens and locks them, for a descriptor of this program would go to whatever other tests start meanwhile.
    let script = "exec 8> \"$LOCK.8\" 9> \"$LOCK.9\" && flock -n 8 && flock -n 9 && exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).env("LOCK", rig.dir.join("lock"));
    rig.keeper = start(command, &rig.dir, &["--lock-fd", "8", "--lock-fd", "9"]);
    let mut worker = rig.ready_worker();
    assert_eq!(worker.order("fds"), format!("fds {}", inherited + 3 + 2));
    let others = ["lock.8", "lock.9"].map(|lock| std::fs::File::open(rig.dir.join(lock)).unwrap());
    assert!(others.iter().all(|other| other.try_lock().is_err()));
    rig.signal(KILL);
    for other in others {
        eventually("keeper and worker are gone", || other.try_lock().ok());
    }
}

#[test]
fn a_worker_that_never_gets_ready_is_started_ever_more_slowly() {
    let rig = Rig::new("backoff");
    let mut starts = Vec::new();
    for _ in 0..5 {
        let mut worker = rig.worker();
        starts.push(Instant::now());
        worker.order_end("exit 1");
    }
    let pauses: Vec<u128> = starts.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    assert!(pauses[1] >= 100 && pauses[2] >= 200 && pauses[3] >= 400, "{pauses:?}");
    assert!(!rig.dir.join("run/keeper.status").exists(), "a start that was never ready leaves no trace");
    let ready = rig.ready_worker();
    let killed = Instant::now();
    send(ready.pid, KILL);
    // It would have been 1.6 s, had no worker been ready.
    let _next = rig.worker();
    assert!(killed.elapsed() < Duration::from_millis(1000), "it took {:?}", killed.elapsed());
}

#[test]
fn a_refusal_to_start_is_the_keepers_own_and_later_ones_are_not() {
    for code in [64, 69, 73, 75, 76, 77, 78] {
        let mut rig = Rig::new(&format!("refusal-{code}"));
        rig.worker().order_end(&format!("exit {code}"));
        assert_eq!(rig.ends().code(), Some(code));
        assert_eq!(std::fs::read_dir(rig.dir.join("run")).unwrap().count(), 0, "a refused start changes no file");
    }
    let rig = Rig::new("refusal-late");
    rig.ready_worker().order_end("exit 64");
    drop(rig.ready_worker());
}

#[test]
fn a_finished_worker_ends_the_keeper_with_its_code() {
    let mut rig = Rig::new("finished");
    let mut worker = rig.ready_worker();
    worker.order("finished 3");
    worker.order_end("exit 9");
    assert_eq!(rig.ends().code(), Some(3));
    assert_eq!(std::fs::read_dir(rig.dir.join("run")).unwrap().count(), 0);
}

#[test]
fn a_listener_outlives_every_worker() {
    let rig = Rig::new("store");
    let socket = rig.dir.join("api.sock");
    let mut first = rig.ready_worker();
    let stored = first.order(&format!("store {}", socket.display()));
    let inode = stored.strip_prefix("stored ").unwrap().to_owned();
    first.order("ready");
    send(first.pid, KILL);
    let client = UnixStream::connect(&socket).unwrap();
    for _ in 0..2 {
        let mut next = rig.worker();
        let told = next.hears("Stored");
        assert!(told.ends_with(&format!("inode {inode}")), "{told}, not {inode}");
        next.hears("Go");
        next.order("ready");
        send(next.pid, KILL);
    }
    let mut last = rig.worker();
    last.hears("Go");
    last.order("unstore api");
    last.order("ready");
    drop(client);
    send(last.pid, KILL);
    let mut without = rig.worker();
    without.hears("Go");
    assert!(!without.heard.iter().any(|said| said.contains("Stored")), "{:?}", without.heard);
}

#[test]
fn the_exit_of_a_process_left_behind_is_recorded_reaped_and_told_until_it_is_acknowledged() {
    let rig = Rig::new("exits");
    let mut first = rig.ready_worker();
    let fifo = rig.dir.join("go");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let (pid, ino) = first.spawn_held(&format!("read x < {}; exit 37", fifo.display()));
    let (other, _) = first.spawn_held("kill -9 $$");
    send(first.pid, KILL);
    let mut second = rig.ready_worker();
    eventually("the child is the keeper's", || stat(pid, 4).filter(|parent| *parent == rig.keeper.id().to_string()));
    std::fs::write(&fifo, "x\n").unwrap();
    let mut told = [second.hears("Exit"), second.hears("Exit")];
    told.sort_by_key(|exit| !exit.contains(&format!("pid: {pid},")));
    assert!(told[0].contains(&format!("pid: {pid}, ino: {ino}, status: {},", 37 << 8)), "{told:?}");
    assert!(told[1].contains(&format!("pid: {other},")) && told[1].contains("status: 9,"), "{told:?}");
    assert!(stat(pid, 3).is_none() && stat(other, 3).is_none(), "both have been reaped");
    assert_eq!(rig.records(), 2);
    // Nobody acknowledged: another worker is told again, before it goes.
    send(second.pid, KILL);
    let mut third = rig.worker();
    third.hears("Go");
    let again: Vec<String> = third.heard.iter().filter(|said| said.contains("Exit")).cloned().collect();
    assert_eq!(again.len(), 2, "{:?}", third.heard);
    third.order("ack 1");
    third.order("ack 2");
    eventually("nothing is left to tell", || (rig.records() == 0).then_some(()));
    send(third.pid, KILL);
    let mut fourth = rig.worker();
    fourth.hears("Go");
    assert!(!fourth.heard.iter().any(|said| said.contains("Exit")), "{:?}", fourth.heard);
}

#[test]
fn a_new_keeper_tells_what_an_earlier_one_recorded() {
    let mut rig = Rig::new("reload");
    let mut first = rig.ready_worker();
    let (pid, ino) = first.spawn_held("sleep 0.05; exit 5");
    send(first.pid, KILL);
    let mut second = rig.ready_worker();
    second.hears("Exit");
    rig.signal(KILL);
    rig.restart();
    let mut third = rig.worker();
    let told = third.hears("Exit");
    assert!(told.contains(&format!("pid: {pid}, ino: {ino}, status: {},", 5 << 8)), "{told}");
}

#[test]
fn a_released_process_and_a_number_used_again_are_not_recorded() {
    let rig = Rig::new("release");
    let mut first = rig.ready_worker();
    first.order("sweep 1 50 50");
    let (released, ino) = first.spawn_held("sleep 0.3; exit 1");
    first.order(&format!("release {released} {ino}"));
    let (stranger, ino) = first.spawn("sleep 0.3; exit 2");
    first.order(&format!("hold {stranger} {}", ino + 1));
    send(first.pid, KILL);
    let mut second = rig.ready_worker();
    let mut count = 0;
    while count < 2 {
        let told = second.hears("Swept");
        count += told.split("count: ").nth(1).unwrap().split(',').next().unwrap().parse::<u32>().unwrap();
    }
    assert_eq!((count, rig.records()), (2, 0));
}

#[test]
fn a_release_of_an_earlier_process_of_that_number_leaves_the_exit_of_the_present_one() {
    let rig = Rig::new("stale-release");
    let mut first = rig.ready_worker();
    let (pid, ino) = first.spawn_held("exit 7");
    // In the way of its file, so that the exit is not recorded yet.
    let in_the_way = rig.dir.join("run/exits.new");
    std::fs::create_dir(&in_the_way).unwrap();
    send(first.pid, KILL);
    let mut second = rig.ready_worker();
    eventually("it is the keeper's zombie", || {
        let parent = stat(pid, 4).filter(|_| !is_alive(pid));
        parent.filter(|parent| *parent == rig.keeper.id().to_string())
    });
    second.order(&format!("release {pid} {}", ino + 1));
    std::fs::remove_dir(in_the_way).unwrap();
    let told = second.hears("Exit");
    assert!(told.contains(&format!("pid: {pid}, ino: {ino}, status: {},", 7 << 8)), "{told}");
}

#[test]
fn an_exit_that_the_disk_does_not_confirm_stays_a_zombie_and_is_told_to_nobody() {
    let mut rig = Rig::new("unsynced");
    let _former = rig.ready_worker();
    rig.signal(KILL);
    rig.keeper.wait().unwrap();
    let log = rig.dir.join("log");
    let mut command = Command::new("sh");
    let line = format!("{} \"$@\" 2> \"$LOG\"", refusing(&["fdatasync EIO"]));
    command.args(["-c", &line, "sh"]).env("LOG", &log);
    rig.keeper = start(command, &rig.dir, &[]);
    let mut first = rig.ready_worker();
    let (pid, _) = first.spawn_held("exit 7");
    send(first.pid, KILL);
    let mut second = rig.ready_worker();
    eventually("the keeper says so", || {
        std::fs::read_to_string(&log).unwrap().contains("could not record 1 exits").then_some(())
    });
    assert_eq!(stat(pid, 3).as_deref(), Some("Z"));
    second.order("unstore nothing");
    assert!(!second.heard.iter().any(|said| said.contains("Exit")), "{:?}", second.heard);
}

#[test]
fn a_keeper_that_was_started_with_sigchld_ignored_learns_of_every_end() {
    let mut rig = Rig::new("ignored");
    let _former = rig.ready_worker();
    rig.signal(KILL);
    rig.keeper.wait().unwrap();
    let mut command = Command::new("env");
    command.arg("--ignore-signal=CHLD");
    rig.keeper = start(command, &rig.dir, &[]);
    let mut first = rig.ready_worker();
    let fifo = rig.dir.join("go");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let (pid, _) = first.spawn_held(&format!("read x < {}; exit 7", fifo.display()));
    send(first.pid, KILL);
    let mut second = rig.ready_worker();
    std::fs::write(&fifo, "x\n").unwrap();
    let told = second.hears("Exit");
    assert!(told.contains(&format!("pid: {pid},")) && told.contains(&format!("status: {},", 7 << 8)), "{told}");
}

#[test]
fn orphans_are_swept_after_their_grace_and_counted_exactly() {
    let rig = Rig::new("sweep");
    let mut worker = rig.ready_worker();
    worker.order("sweep 1 100 300");
    let begun = Instant::now();
    worker.spawn("i=0; while [ $i -lt 40 ]; do (true &); i=$((i+1)); done");
    let mut count = 0;
    while count < 40 {
        let told = worker.hears("Swept");
        count += told.split("count: ").nth(1).unwrap().split(',').next().unwrap().parse::<u32>().unwrap();
    }
    assert!(begun.elapsed() >= Duration::from_millis(300), "the grace was cut short: {:?}", begun.elapsed());
    assert_eq!(count, 40);
    assert_eq!(children_of(rig.keeper.id()), [worker.pid]);
}

#[test]
fn who_turns_out_to_be_held_while_it_is_under_grace_is_recorded() {
    let rig = Rig::new("sweep-held");
    let mut first = rig.ready_worker();
    let (pid, ino) = first.spawn("exec sleep 1000");
    send(first.pid, KILL);
    let mut second = rig.ready_worker();
    second.order("sweep 1 100 1000");
    send(pid, KILL);
    eventually("it has ended", || stat(pid, 3).filter(|state| state == "Z"));
    second.order(&format!("hold {pid} {ino}"));
    assert!(second.hears("Exit").contains(&format!("pid: {pid},")));
}

#[test]
fn nothing_is_swept_where_it_is_switched_off_until_it_is_switched_on() {
    let rig = Rig::new("sweep-off");
    let mut worker = rig.ready_worker();
    worker.order("sweep 0 10 10");
    worker.spawn("(sleep 0.05 &)");
    let zombie = eventually("the orphan is a zombie", || {
        children_of(rig.keeper.id()).into_iter().find(|&pid| stat(pid, 3).as_deref() == Some("Z"))
    });
    worker.order("sweep 1 10 10");
    assert!(worker.hears("Swept").contains(&format!("pid: {zombie},")));
}

#[test]
fn a_dead_keeper_takes_its_worker_along_and_leaves_the_rest() {
    let rig = Rig::new("keeper-dies");
    let mut worker = rig.ready_worker();
    let (instance, _) = worker.spawn_held("exec sleep 1000");
    let killed = Instant::now();
    rig.signal(KILL);
    eventually("the worker is gone", || (!is_alive(worker.pid)).then_some(()));
    assert!(killed.elapsed() < Duration::from_secs(3), "{:?}", killed.elapsed());
    assert!(is_alive(instance));
    send(instance, KILL);
}

#[test]
fn a_dead_keeper_takes_along_a_worker_that_hears_nothing_any_more() {
    let rig = Rig::new("keeper-dies-alone");
    let mut worker = rig.ready_worker();
    worker.order("hang");
    rig.signal(KILL);
    eventually("the worker is gone", || (!is_alive(worker.pid)).then_some(()));
}

#[test]
fn hup_brings_the_program_on_disk_and_keeps_what_is_kept() {
    let rig = Rig::new("hup");
    let mut old = rig.ready_worker();
    let stored = old.order(&format!("store {}", rig.dir.join("api.sock").display()));
    let (instance, _) = old.spawn_held("exec sleep 1000");
    install(&rig.dir, &std::env::current_exe().unwrap());
    rig.signal(HUP);
    let mut candidate = rig.worker();
    assert_eq!(candidate.phase, "prepare");
    assert!(is_alive(old.pid));
    candidate.order("prepared");
    old.hears("Retire");
    old.order_end("exit 0");
    candidate.hears("Welcome");
    assert!(candidate.hears("Stored").ends_with(&stored.replace("stored", "inode")));
    candidate.hears("Go");
    candidate.order("ready");
    eventually("the swap is over", || rig.status("last_swap").filter(|swap| swap == "the program on disk runs"));
    let exe = std::fs::read_link(format!("/proc/{}/exe", candidate.pid)).unwrap();
    assert_eq!(exe, rig.dir.join("worker"));
    assert_eq!(stat(instance, 4), Some(rig.keeper.id().to_string()));
    send(instance, KILL);
    assert!(candidate.hears("Exit").contains(&format!("pid: {instance},")));
}

#[test]
fn a_broken_program_on_disk_leaves_the_worker_alone() {
    let rig = Rig::new("hup-broken");
    let mut worker = rig.ready_worker();
    std::fs::write(rig.dir.join("garbage"), "\x7fELF, but not much of one").unwrap();
    assert!(Command::new("chmod").arg("755").arg(rig.dir.join("garbage")).status().unwrap().success());
    install(&rig.dir, &rig.dir.join("garbage"));
    rig.signal(HUP);
    eventually("the status tells", || rig.status("last_swap").filter(|swap| swap.contains("could not be started")));
    std::fs::remove_file(rig.dir.join("worker")).unwrap();
    rig.signal(HUP);
    eventually("the status tells", || rig.status("last_swap").filter(|swap| swap.contains("No such file")));
    assert_eq!(worker.order("stdin"), "stdin /dev/null", "the old one works on");
    send(worker.pid, KILL);
    let second = rig.ready_worker();
    let exe = std::fs::read_link(format!("/proc/{}/exe", second.pid)).unwrap();
    assert!(exe.to_str().unwrap().ends_with("(deleted)"), "the old program runs again: {exe:?}");
}

#[test]
fn a_candidate_that_refuses_leaves_the_worker_alone() {
    let rig = Rig::new("hup-refused");
    let mut worker = rig.ready_worker();
    rig.signal(HUP);
    rig.worker().order_end("exit 64");
    let expected = "kept the old program: the new one exited with code 64";
    eventually("the status tells", || rig.status("last_swap").filter(|swap| swap == expected));
    assert_eq!(rig.status("worker_pid"), Some(worker.pid.to_string()));
    worker.order("ready");
    assert!(!worker.heard.iter().any(|said| said.contains("Retire")));
    assert_eq!(children_of(rig.keeper.id()), [worker.pid]);
}

#[test]
fn a_candidate_that_dies_before_it_is_ready_brings_the_old_program_back() {
    let rig = Rig::new("hup-fallback");
    let mut old = rig.ready_worker();
    let (instance, _) = old.spawn_held("exec sleep 1000");
    install(&rig.dir, &std::env::current_exe().unwrap());
    let new_inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(rig.dir.join("worker")).unwrap());
    rig.signal(HUP);
    let mut candidate = rig.worker();
    candidate.order("prepared");
    old.hears("Retire");
    old.order_end("exit 0");
    candidate.hears("Go");
    candidate.order_end("exit 1");
    let third = rig.ready_worker();
    let image = std::fs::metadata(format!("/proc/{}/exe", third.pid)).unwrap();
    assert_ne!(std::os::unix::fs::MetadataExt::ino(&image), new_inode);
    eventually("the status tells", || rig.status("last_swap").filter(|swap| swap.contains("went back")));
    assert!(is_alive(instance));
    send(instance, KILL);
}

#[test]
fn a_second_hup_during_a_swap_is_not_forgotten() {
    let rig = Rig::new("hup-twice");
    let mut old = rig.ready_worker();
    rig.signal(HUP);
    let mut candidate = rig.worker();
    rig.signal(HUP);
    candidate.order("prepared");
    old.hears("Retire");
    old.order_end("exit 0");
    candidate.hears("Go");
    candidate.order("ready");
    let next = rig.worker();
    assert_eq!(next.phase, "prepare");
}

#[test]
fn a_worker_that_dies_while_its_successor_prepares_is_followed_by_it() {
    let rig = Rig::new("hup-crash");
    let old = rig.ready_worker();
    rig.signal(HUP);
    let mut candidate = rig.worker();
    send(old.pid, KILL);
    eventually("the old one is reaped", || stat(old.pid, 3).is_none().then_some(()));
    candidate.order("prepared");
    candidate.hears("Go");
    candidate.order("ready");
    eventually("it serves", || rig.status("worker_pid").filter(|pid| *pid == candidate.pid.to_string()));
    assert_eq!(rig.status("restarts").as_deref(), Some("1"), "no third one was started beside it");
}

#[test]
fn a_worker_that_was_told_to_retire_is_replaced_though_its_successor_dies() {
    for both in [false, true] {
        let rig = Rig::new("hup-both");
        let mut old = rig.ready_worker();
        rig.signal(HUP);
        let mut candidate = rig.worker();
        candidate.order("prepared");
        old.hears("Retire");
        if both {
            // At one moment, as the keeper sees it.
            rig.signal(STOP);
            for pid in [old.pid, candidate.pid] {
                send(pid, KILL);
                eventually("it has ended", || stat(pid, 3).filter(|state| state == "Z"));
            }
            rig.signal(CONT);
        } else {
            candidate.order_end("exit 1");
        }
        let next = rig.ready_worker();
        assert_eq!(next.phase, "run");
        eventually("the old one is gone", || stat(old.pid, 3).is_none().then_some(()));
        assert!(rig.status("last_swap").is_some_and(|swap| swap.starts_with("kept the old program")));
    }
}

#[test]
fn a_keeper_that_is_told_to_end_between_two_workers_ends_at_once() {
    let mut rig = Rig::new("between");
    for _ in 0..5 {
        let mut worker = rig.worker();
        worker.order_end("exit 1");
        eventually("it is reaped", || stat(worker.pid, 3).is_none().then_some(()));
    }
    rig.signal(TERM);
    assert_eq!(rig.ends().code(), Some(0));
}

#[test]
fn three_signals_ask_force_and_leave() {
    let mut rig = Rig::new("signals");
    let mut worker = rig.ready_worker();
    let (instance, _) = worker.spawn_held("exec sleep 1000");
    worker.order("weigh");
    rig.signal(TERM);
    worker.hears("Shutdown { level: 1 }");
    rig.signal(TERM);
    worker.hears("Shutdown { level: 2 }");
    rig.signal(TERM);
    assert_eq!(rig.keeper.wait().unwrap().code(), Some(0));
    // REGRESSION: the keeper ended first.
    let alive = [worker.pid, instance].map(is_alive);
    send(instance, KILL);
    assert_eq!(alive, [false, true], "the worker ends before its keeper, and an instance lives on");
}

#[test]
fn a_drain_goes_on_after_a_crash_and_a_detach_does_not_need_to() {
    let mut rig = Rig::new("drain");
    let mut first = rig.ready_worker();
    first.order("drain");
    rig.signal(TERM);
    first.hears("Shutdown { level: 1 }");
    send(first.pid, KILL);
    let mut second = rig.worker();
    second.hears("Go");
    second.hears("Shutdown { level: 1 }");
    second.order("finished 0");
    second.order_end("exit 0");
    assert_eq!(rig.ends().code(), Some(0));
    let mut rig = Rig::new("detach");
    let mut worker = rig.ready_worker();
    rig.signal(TERM);
    worker.hears("Shutdown { level: 1 }");
    send(worker.pid, KILL);
    assert_eq!(rig.ends().code(), Some(0));
}

#[test]
fn other_signals_do_nothing() {
    let rig = Rig::new("ignored");
    let mut worker = rig.ready_worker();
    for signal in [3, 10, 12, 13, 14, 18, 20, 21, 22, 23, 28, 34, 64] {
        send(rig.keeper.id(), signal);
    }
    worker.order("ready");
    send(worker.pid, KILL);
    drop(rig.ready_worker());
}

#[test]
fn a_thousand_exits_at_once_are_all_recorded_and_a_deaf_worker_costs_nothing() {
    let rig = Rig::new("many");
    let mut first = rig.ready_worker();
    let fifo = rig.dir.join("go");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // Opened for both, so that nobody waits for a writer.
    let gate = std::fs::File::options().read(true).write(true).open(&fifo).unwrap();
    let mut held = std::collections::BTreeSet::new();
    for _ in 0..1000 {
        held.insert(first.spawn_held(&format!("read x < {}; exit 3", fifo.display())).0);
    }
    send(first.pid, KILL);
    let mut second = rig.worker();
    (&gate).write_all(&b"x\n".repeat(1000)).unwrap();
    eventually("all are reaped", || (children_of(rig.keeper.id()) == [second.pid]).then_some(()));
    for _ in 0..1000 {
        let told = second.hears("Exit");
        let pid = told.split("pid: ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
        let seq: u64 = told.split("seq: ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
        assert!(held.remove(&pid) && told.contains(&format!("status: {},", 3 << 8)), "{told}");
        second.order(&format!("ack {seq}"));
    }
    assert!(held.is_empty());
    eventually("nothing is left to tell", || (rig.records() == 0).then_some(()));
}

#[test]
fn an_idle_keeper_sleeps_and_stays_small() {
    let rig = Rig::new("idle");
    let mut worker = rig.ready_worker();
    for pid in 0..1000_u64 {
        worker.order(&format!("hold {} {}", 100_000 + pid * 7, 1 << 40 | pid));
    }
    let switches = || {
        let text = std::fs::read_to_string(format!("/proc/{}/status", rig.keeper.id())).unwrap();
        let value = |key: &str| -> u64 {
            let line = text.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
        };
        (value("voluntary_ctxt_switches"), value("VmRSS"))
    };
    let sleeps = || stat(rig.keeper.id(), 3).as_deref() == Some("S");
    let (before, rss) = eventually("it has come to rest", || {
        let (before, rss) = switches();
        std::thread::sleep(Duration::from_millis(20));
        // On a busy machine one that is awake may not have had its turn.
        (sleeps() && switches().0 == before).then_some((before, rss))
    });
    // A second of nothing: this is the measurement itself, nothing waits for it.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(switches().0, before, "something woke it");
    let bound = if cfg!(debug_assertions) { 1024 } else { 256 };
    assert!(rss <= bound, "{rss} KiB");
}

fn children_of(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect()
}
