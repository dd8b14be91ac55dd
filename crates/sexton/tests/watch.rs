//! Watches on the real kernel: orphans with and without metadata, look-alikes, and files that nobody may touch.

#[path = "support/owner.rs"]
mod owner;

use std::fs;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use owner::{Owner, SHAPES};
use sexton::node::adapter::Runtimes;
use sexton::node::host::Host;
use sexton::node::keeper::Keeper;
use sexton::node::request::{Caller, Node};
use sexton::node::watch::rule::{Executables, IdFrom, Runtime, Template, Watch};
use sexton::node::worker::{self, Begun, Options};
use sexton_core::handle::Handle;
use sexton_ledger::{Event, EventKind};
use sexton_plan::id::Pid;
use sexton_plan::plan::{Action, OnOrphan};
use sexton_sys::pidfd::{self, End};
use sexton_sys::{Fd, renumber, wait};
use sexton_testkit::{SOON, eventually};

/// A node that watches the guests of somebody else.
struct Ground {
    owner: Owner,
    options: Options,
}

impl Ground {
    fn new(name: &str, on_orphan: OnOrphan, grace: Duration) -> Ground {
        // Whoever is alone in a PID namespace has a number that others have too.
        let whose = std::env::var(INSIDE).unwrap_or_else(|_| std::process::id().to_string());
        let run = format!("sexton-watch-{whose}-{name}");
        let dir = std::env::temp_dir().join(&run);
        let owner = Owner::new(&dir);
        let runtime = Runtime {
            name: "qemu".to_owned(),
            executables: Executables::Qemu,
            id_from: None,
            stop_grace: Duration::from_secs(10),
        };
        let watch = Watch {
            name: "hypeman".to_owned(),
            runtimes: vec![runtime],
            metadata: Template::parse(&owner.template()).expect("a template"),
            pid_field: "HypervisorPID".to_owned(),
            start_ticks_field: None,
            grace,
            on_orphan,
        };
        let options = Options {
            is_first: false,
            state_dir: dir.join("state"),
            run_dir: dir.join("run"),
            slots: sexton::node::slots::Pool::new(&run, &sexton::config::Slots::default()),
            cgroup: run,
            node: None,
            log_keep: 1 << 20,
            log_incarnations: 3,
            reconcile_every: Duration::from_secs(3_600),
            runtimes: Default::default(),
            watches: vec![watch],
            drain: sexton::node::drain::DrainRules::default(),
            drain_at_shutdown: None,
        };
        Ground { owner, options }
    }
}

impl Deref for Ground {
    type Target = Owner;

    fn deref(&self) -> &Owner {
        &self.owner
    }
}

impl DerefMut for Ground {
    fn deref_mut(&mut self) -> &mut Owner {
        &mut self.owner
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.owner.end_all();
        match sexton_core::pin::PinBoard::open(&self.options.run_dir) {
            Ok(pins) => pins.remove().expect("pins removed"),
            // A mount namespace of one's own may take none, and an older kernel has none.
            Err(error) => {
                assert!(std::env::var_os(INSIDE).is_some() || !sexton_testkit::pidfds_can_be_mounted(), "{error}");
            }
        }
        for controller in ["pids", "memory"] {
            let _gone = fs::remove_dir(format!("/sys/fs/cgroup/{controller}/{}", self.options.cgroup));
        }
        let subtree = sexton_core::domain::Subtree::find(&self.options.cgroup).expect("cgroup2");
        subtree.remove().expect("nothing left in the subtree");
        fs::remove_dir_all(&self.dir).expect("removed");
    }
}

/// As `eventually`, while the node goes on.
async fn soon(mut holds: impl FnMut() -> bool) {
    soon_told(async || holds()).await;
}

/// As [`soon`], where the node itself is asked.
async fn soon_told(mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..2_000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not come true in 20 s");
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(work)
}

async fn begin(options: &Options) -> (Node, Arc<Host>, sexton_ledger::Reader) {
    let begun = worker::begin(options, Keeper::none(), true).await.expect("begun");
    let Begun { mut driver, node, host, reader, .. } = begun;
    let first = driver.begin_first_pass().await;
    tokio::spawn(async move { driver.run().await });
    first.await.expect("a first pass");
    (node, host, reader)
}

fn me() -> Caller {
    Caller { uid: Some(0), by: "unix".to_owned() }
}

/// The ids that events of `kind` tell of, in their order.
fn told(reader: &sexton_ledger::Reader, kind: EventKind) -> Vec<(String, i32)> {
    let events: Vec<Event> = reader.events_after(0, 1_000).expect("readable");
    let of_kind = events.into_iter().filter(|event| event.kind == kind);
    let fact = |event: &Event, key: &str| event.data.get(key).cloned().expect("a fact");
    let pid = |event: &Event| i32::try_from(fact(event, "pid").as_i64().expect("pid")).expect("fits");
    of_kind.map(|event| (fact(&event, "id").as_str().expect("id").to_owned(), pid(&event))).collect()
}

fn inode(path: &Path) -> (u64, i64) {
    let about = fs::metadata(path).expect("there");
    (about.ino(), about.mtime_nsec())
}

const SIGUSR1: u8 = 10;

#[test]
fn live_numbers_are_written_back_and_nothing_else_is_touched() {
    let mut ground = Ground::new("write", OnOrphan::Terminate, Duration::ZERO);
    let mut expected = Vec::new();
    for (number, (before, after)) in SHAPES.iter().enumerate() {
        let id = format!("vm-{number}");
        ground.guest(&id, Some(before));
        let pid = ground.fake(&id);
        expected.push((id, pid, after.replace('@', &pid.to_string())));
    }
    // Somebody else's number by now: a stranger that is no runtime.
    ground.guest("stale", None);
    let stranger = ground.orphan("exec sleep 1000");
    fs::write(ground.file("stale"), format!("{{\"HypervisorPID\":{stranger}}}")).expect("written");
    let pid = ground.fake("stale");
    expected.push(("stale".to_owned(), pid, format!("{{\"HypervisorPID\":{pid}}}")));
    // Right already.
    ground.guest("right", None);
    let right = ground.fake("right");
    fs::write(ground.file("right"), format!("{{\"HypervisorPID\":{right}}}")).expect("written");
    let untouched = inode(&ground.file("right"));
    // Odd: a list, a link out of the tree, a member twice.
    ground.guest("list", Some("[1]"));
    ground.guest("twice", Some("{\"HypervisorPID\":1,\"HypervisorPID\":2}"));
    ground.guest("link", None);
    fs::write(ground.dir.join("outside.json"), "{\"HypervisorPID\":1}").expect("written");
    std::os::unix::fs::symlink(ground.dir.join("outside.json"), ground.file("link")).expect("linked");
    let odd: Vec<Pid> = ["list", "twice", "link"].into_iter().map(|id| ground.fake(id)).collect();
    run(async {
        let (node, _host, reader) = begin(&ground.options).await;
        assert_eq!(node.plan().await.expect("plan").actions, [], "the first pass has written already");
        for _ in 0..3 {
            node.reconcile().await.expect("reconciled");
        }
        for (id, pid, text) in &expected {
            assert_eq!(fs::read_to_string(ground.file(id)).expect("readable"), *text, "{id}");
            let mode = fs::metadata(ground.file(id)).expect("there").mode() & 0o7777;
            assert!(*id == "stale" || mode == 0o640, "{id}: {mode:o}");
            assert!(ground.lives(*pid), "{id}");
        }
        let mut adopted: Vec<_> = expected.iter().map(|(id, pid, _)| (id.clone(), pid.as_raw())).collect();
        adopted.sort();
        assert_eq!(told(&reader, EventKind::OrphanAdopted), adopted, "once each");
        assert_eq!(inode(&ground.file("right")), untouched, "a file that is right is not written");
        assert_eq!(fs::read_to_string(ground.dir.join("outside.json")).expect("there"), "{\"HypervisorPID\":1}");
        let left = node.plan().await.expect("plan").left;
        for pid in &odd {
            assert!(ground.lives(*pid) && left.iter().any(|left| left.pid == Some(*pid)), "{left:?}");
        }
        assert!(ground.lives(stranger) && ground.lives(right));
        assert_eq!(told(&reader, EventKind::OrphanTerminated), []);
        let items =
            node.list(sexton::node::request::Filter { limit: 10, ..Default::default() }).await.expect("list").items;
        assert!(items.is_empty(), "a watched process is no instance");
    });
}

#[test]
fn an_orphan_without_metadata_is_ended_when_two_passes_saw_it_and_its_look_alikes_are_not() {
    let mut ground = Ground::new("end", OnOrphan::Terminate, Duration::ZERO);
    for id in ["gone", "shown", "later"] {
        ground.guest(id, None);
    }
    let orphan = ground.fake("gone");
    // The same name, arguments and environment, and another program.
    let dir = ground.dir.display().to_string();
    let alike =
        ground.orphan(&format!("exec bash -c 'exec -a {dir}/bin/qemu-system-fake tail -f {dir}/guests/gone/disk'"));
    // The same program, and a parent that cares.
    let mut child = Command::new(format!("{dir}/bin/qemu-system-fake"))
        .arg("-f")
        .arg(format!("{dir}/guests/shown/disk"))
        .spawn()
        .expect("tail");
    run(async {
        let (node, _host, reader) = begin(&ground.options).await;
        for _ in 0..3 {
            let plan = node.plan().await.expect("plan");
            assert_eq!(plan.actions, [], "it was seen by no pass that counts: {plan:?}");
        }
        node.reconcile().await.expect("reconciled");
        assert!(ground.lives(orphan), "one pass is not two");
        assert_eq!(told(&reader, EventKind::OrphanSeen), [("gone".to_owned(), orphan.as_raw())]);
        let plan = node.plan().await.expect("plan");
        assert!(matches!(plan.actions.as_slice(), [Action::Terminate { id, .. }] if id == "gone"), "{plan:?}");
        assert!(ground.lives(orphan), "a plan is no pass");
        node.reconcile().await.expect("reconciled");
        soon(|| !ground.lives(orphan)).await;
        soon(|| !told(&reader, EventKind::OrphanTerminated).is_empty()).await;
        node.reconcile().await.expect("reconciled");
        assert_eq!(told(&reader, EventKind::OrphanTerminated), [("gone".to_owned(), orphan.as_raw())]);
        assert_eq!(told(&reader, EventKind::OrphanSeen).len(), 1);
        assert!(ground.lives(alike) && child.try_wait().expect("a child").is_none());
        assert_eq!(node.plan().await.expect("plan").actions, [], "at rest");
    });
    child.kill().expect("killed");
    child.wait().expect("reaped");
}

#[test]
fn what_a_dead_worker_has_written_and_could_not_tell_is_told_once() {
    let mut ground = Ground::new("owed", OnOrphan::Report, Duration::ZERO);
    for id in ["written", "unwritten"] {
        ground.guest(id, Some("{\"HypervisorPID\":1}"));
    }
    let pids = ["written", "unwritten"].map(|id| ground.fake(id));
    let here = sexton_core::proc::here().expect("here");
    run(async {
        // The ledger and the files as kill -9 leaves them between the rename and the record.
        let mut quiet = ground.options.clone();
        quiet.watches = Vec::new();
        let (_node, host, _reader) = begin(&quiet).await;
        let intent = |(id, pid): (&str, Pid)| {
            let identity = Handle::open(pid, &here).expect("alive").identity().clone();
            serde_json::json!({ "watch": "hypeman", "id": id, "identity": identity, "beside": ".1.sexton" })
        };
        let intents: Vec<_> = ["written", "unwritten"].into_iter().zip(pids).map(intent).collect();
        let meta = vec![("watch.writing".to_owned(), Some(serde_json::json!(intents).to_string()))];
        host.record(sexton_ledger::Batch { meta, ..Default::default() }).await.expect("recorded");
    });
    let [written, unwritten] = pids;
    fs::write(ground.file("written"), format!("{{\"HypervisorPID\":{written}}}")).expect("written");
    let untouched = inode(&ground.file("written"));
    for _ in 0..2 {
        run(async {
            let (node, _host, reader) = begin(&ground.options).await;
            node.reconcile().await.expect("reconciled");
            let expected = [("written".to_owned(), written.as_raw()), ("unwritten".to_owned(), unwritten.as_raw())];
            assert_eq!(told(&reader, EventKind::OrphanAdopted), expected, "once each");
        });
    }
    assert_eq!(inode(&ground.file("written")), untouched);
}

#[test]
fn an_orphan_of_a_declared_runtime_is_asked_by_its_own_steps() {
    let mut ground = Ground::new("declared", OnOrphan::Terminate, Duration::ZERO);
    let dir = ground.dir.display().to_string();
    ground.program("/bin/bash", "shim");
    let id_from = Some(IdFrom::Env("SHIM_ID".to_owned()));
    let stop_grace = Duration::from_secs(20);
    let executables = Executables::Files(vec![ground.dir.join("bin/shim")]);
    ground.options.runtimes = Runtimes([("shim".to_owned(), vec![(SIGUSR1, Some(stop_grace))])].into());
    let watch = ground.options.watches.first_mut().expect("a watch");
    watch.runtimes = vec![Runtime { name: "shim".to_owned(), executables, id_from, stop_grace }];
    let script = format!("trap \"echo asked > {dir}/asked; exit\" USR1; echo > {dir}/up; while :; do sleep 0.05; done");
    let orphan = ground.orphan(&format!("SHIM_ID=gone exec {dir}/bin/shim -c '{script}'"));
    eventually("it is up", SOON, || if ground.dir.join("up").exists() { Ok(()) } else { Err(String::new()) });
    run(async {
        let (node, _host, reader) = begin(&ground.options).await;
        for _ in 0..2 {
            node.reconcile().await.expect("reconciled");
        }
        soon(|| !told(&reader, EventKind::OrphanTerminated).is_empty()).await;
        assert!(!ground.lives(orphan));
    });
    assert_eq!(fs::read_to_string(ground.dir.join("asked")).expect("asked"), "asked\n");
}

#[test]
fn another_file_under_the_name_of_a_declared_runtime_is_somebody_elses() {
    let mut ground = Ground::new("place", OnOrphan::Terminate, Duration::ZERO);
    let (dir, shim) = (ground.dir.display().to_string(), ground.dir.join("bin/shim"));
    for name in ["shim", "other", "shim (deleted)", "upgraded"] {
        ground.program("/usr/bin/tail", name);
    }
    for id in ["gone", "mounted", "named"] {
        ground.guest(id, None);
    }
    let executables = Executables::Files(vec![shim.clone()]);
    let stop_grace = Duration::from_secs(10);
    let watch = ground.options.watches.first_mut().expect("a watch");
    watch.runtimes = vec![Runtime { name: "shim".to_owned(), executables, id_from: None, stop_grace }];
    let orphan = ground.orphan(&format!("exec {dir}/bin/shim -f {dir}/guests/gone/disk"));
    owner::executes(orphan, "shim");
    // An upgrade: what it executes was deleted, and lay where the runtime lies.
    fs::rename(ground.dir.join("bin/upgraded"), &shim).expect("replaced");
    let mounts =
        format!("mount --bind {dir}/bin/other {dir}/bin/shim && exec {dir}/bin/shim -f {dir}/guests/mounted/disk");
    let mounted = ground.orphan(&format!("exec unshare -m bash -c '{mounts}'"));
    let named = ground.orphan(&format!("exec '{dir}/bin/shim (deleted)' -f {dir}/guests/named/disk"));
    for (pid, name) in [(mounted, "shim"), (named, "shim (deleted)")] {
        let link = || fs::read_link(format!("/proc/{pid}/exe")).expect("alive");
        eventually(name, SOON, || if link().ends_with(name) { Ok(()) } else { Err(format!("{:?}", link())) });
    }
    run(async {
        let (node, _host, reader) = begin(&ground.options).await;
        for _ in 0..3 {
            node.reconcile().await.expect("reconciled");
        }
        soon(|| !told(&reader, EventKind::OrphanTerminated).is_empty()).await;
        assert!(ground.lives(mounted) && ground.lives(named));
        assert_eq!(node.plan().await.expect("plan").actions, [], "at rest");
        assert_eq!(told(&reader, EventKind::OrphanTerminated), [("gone".to_owned(), orphan.as_raw())]);
    });
}

#[test]
fn who_may_belong_to_a_watch_that_cannot_tell_is_nobodys_orphan() {
    let mut ground = Ground::new("doubtful", OnOrphan::Terminate, Duration::ZERO);
    let dir = ground.dir.display().to_string();
    ground.guest("base", None);
    let watch = ground.options.watches.first().expect("a watch");
    let tree = Template::parse(&format!("{dir}/other/{{id}}/metadata.json")).expect("a template");
    let other = Watch { name: "other".to_owned(), metadata: tree, on_orphan: OnOrphan::Report, ..watch.clone() };
    ground.options.watches.push(other);
    // A guest of the other's, by an id that cannot be told from what is around it, with a disk below the first's tree.
    let of_other =
        |id: &str| format!("exec {dir}/bin/qemu-system-fake -f {dir}/guests/base/disk {dir}/other/{id}/disk");
    let [guest, known] = ["a,b", "known"].map(|id| ground.orphan(&of_other(id)));
    fs::create_dir_all(ground.dir.join("other/known")).expect("made");
    fs::write(ground.dir.join("other/known/metadata.json"), format!("{{\"HypervisorPID\":{known}}}")).expect("written");
    for pid in [guest, known] {
        owner::executes(pid, "qemu-system-fake");
    }
    run(async {
        let (node, _host, reader) = begin(&ground.options).await;
        for _ in 0..3 {
            node.reconcile().await.expect("reconciled");
        }
        let plan = node.plan().await.expect("plan");
        let about: Vec<&str> =
            plan.left.iter().filter(|left| left.pid == Some(guest)).map(|left| &*left.what).collect();
        assert_eq!((plan.actions.as_slice(), about.len()), ([].as_slice(), 2), "{plan:?}");
        assert!(ground.lives(guest) && ground.lives(known));
        assert_eq!(told(&reader, EventKind::OrphanTerminated), []);
        assert_eq!(told(&reader, EventKind::OrphanSeen), [], "the other has its metadata, or may have it");
    });
}

#[test]
fn an_orphan_is_not_ended_before_its_grace_and_not_when_its_metadata_comes_back() {
    let grace = Duration::from_secs(2);
    let mut ground = Ground::new("grace", OnOrphan::Terminate, grace);
    for id in ["young", "back"] {
        ground.guest(id, None);
    }
    let (young, back) = (ground.fake("young"), ground.fake("back"));
    run(async {
        let (node, _host, _reader) = begin(&ground.options).await;
        node.reconcile().await.expect("reconciled");
        fs::write(ground.file("back"), format!("{{\"HypervisorPID\":{back}}}")).expect("written");
        let ticks = sexton_core::proc::stat(young).expect("alive").start_ticks;
        let age = || sexton_sys::time::boottime().saturating_sub(Duration::from_millis(ticks * 10));
        while ground.lives(young) {
            node.reconcile().await.expect("reconciled");
            assert!(age() < grace * 10, "never ended");
        }
        assert!(age() > grace, "{:?}", age());
        assert!(ground.lives(back));
    });
}

#[test]
fn an_orphan_whose_metadata_comes_back_after_it_was_asked_to_end_is_not_killed() {
    let mut ground = Ground::new("asked", OnOrphan::Terminate, Duration::ZERO);
    let watch = ground.options.watches.first_mut().expect("a watch");
    watch.runtimes.first_mut().expect("a runtime").stop_grace = Duration::from_secs(2);
    ground.guest("back", None);
    ground.program("/bin/bash", "qemu-system-deaf");
    let dir = ground.dir.display().to_string();
    let script = format!("trap \"echo > {dir}/asked\" TERM; echo > {dir}/up; while :; do sleep 0.05; done");
    let orphan = ground.orphan(&format!("exec {dir}/bin/qemu-system-deaf -c '{script}' {dir}/guests/back/disk"));
    eventually("it is up", SOON, || if ground.dir.join("up").exists() { Ok(()) } else { Err(String::new()) });
    run(async {
        let (node, _host, reader) = begin(&ground.options).await;
        for _ in 0..2 {
            node.reconcile().await.expect("reconciled");
        }
        soon(|| ground.dir.join("asked").exists()).await;
        // Its owner is back, and is yet to be told who it is.
        ground.write("back", "{}");
        soon_told(async || {
            let left = node.plan().await.expect("plan").left;
            assert!(ground.lives(orphan), "{left:?}");
            left.iter().any(|left| left.pid == Some(orphan) && left.reason.contains("let alone"))
        })
        .await;
        assert!(ground.lives(orphan));
        assert_eq!(told(&reader, EventKind::OrphanTerminated), []);
    });
}

#[test]
fn a_watch_that_reports_tells_once_whoever_dies() {
    let mut ground = Ground::new("report", OnOrphan::Report, Duration::ZERO);
    ground.guest("a", None);
    let orphan = ground.fake("a");
    for _ in 0..2 {
        run(async {
            let (node, host, reader) = begin(&ground.options).await;
            for _ in 0..3 {
                node.reconcile().await.expect("reconciled");
            }
            let plan = node.plan().await.expect("plan");
            assert!(plan.actions.is_empty() && plan.left.iter().any(|left| left.pid == Some(orphan)), "{plan:?}");
            assert_eq!(told(&reader, EventKind::OrphanSeen), [("a".to_owned(), orphan.as_raw())]);
            drop(host);
        });
    }
    assert!(ground.lives(orphan));
}

#[test]
fn a_plan_is_applied_exactly_or_refused_whole() {
    let mut ground = Ground::new("apply", OnOrphan::Terminate, Duration::ZERO);
    for id in ["a", "b"] {
        ground.guest(id, None);
    }
    let (a, b) = (ground.fake("a"), ground.fake("b"));
    run(async {
        let (node, _host, _reader) = begin(&ground.options).await;
        node.reconcile().await.expect("reconciled");
        let plan = node.plan().await.expect("plan");
        assert_eq!(plan.actions.len(), 2, "{plan:?}");
        let mut forged = plan.clone();
        let Some(Action::Terminate { identity, .. }) = forged.actions.last_mut() else { panic!("{forged:?}") };
        identity.pidfs_ino = identity.pidfs_ino.map(|ino| ino + 1);
        let refused = node.apply(forged, me()).await.expect_err("another process");
        assert_eq!(refused.kind.status(), 409);
        assert!(ground.lives(a) && ground.lives(b), "nothing was done");
        let text = serde_json::to_string(&plan).expect("text");
        let mut half: sexton_plan::plan::Plan = serde_json::from_str(&text).expect("as it was given");
        half.actions.truncate(1);
        node.apply(half, me()).await.expect("applied");
        assert!(!ground.lives(a) && ground.lives(b), "exactly those");
        node.apply(plan, me()).await.expect_err("one of them is done");
        assert!(ground.lives(b), "and nothing else was");
    });
}

#[test]
fn the_start_tick_is_written_beside_the_number_where_it_is_wanted() {
    let mut ground = Ground::new("ticks", OnOrphan::Report, Duration::ZERO);
    ground.options.watches.iter_mut().for_each(|watch| watch.start_ticks_field = Some("Ticks".to_owned()));
    ground.guest("a", Some("{\"HypervisorPID\":1}"));
    let pid = ground.fake("a");
    let ticks = sexton_core::proc::stat(pid).expect("alive").start_ticks;
    let right = format!("{{\"HypervisorPID\":{pid},\"Ticks\":{ticks}}}");
    run(async {
        let (node, _host, reader) = begin(&ground.options).await;
        assert_eq!(fs::read_to_string(ground.file("a")).expect("readable"), right);
        // The number is right, and the tick is that of another life.
        fs::write(ground.file("a"), format!("{{\"HypervisorPID\":{pid},\"Ticks\":7}}")).expect("written");
        node.reconcile().await.expect("reconciled");
        assert_eq!(fs::read_to_string(ground.file("a")).expect("readable"), right);
        assert_eq!(told(&reader, EventKind::OrphanAdopted).len(), 2, "once a writing");
    });
}

#[test]
fn the_owners_own_new_guest_is_not_written_over_by_the_survivor_of_the_old_one() {
    let mut ground = Ground::new("rival", OnOrphan::Terminate, Duration::ZERO);
    ground.guest("a", None);
    let survivor = ground.fake("a");
    let dir = ground.dir.display().to_string();
    let mut guest = Command::new(format!("{dir}/bin/qemu-system-fake"));
    let mut guest = guest.arg("-f").arg(format!("{dir}/guests/a/disk")).spawn().expect("tail");
    let text = format!("{{\"HypervisorPID\":{}}}", guest.id());
    fs::write(ground.file("a"), &text).expect("written");
    run(async {
        let (node, _host, _reader) = begin(&ground.options).await;
        for _ in 0..3 {
            node.reconcile().await.expect("reconciled");
        }
        assert_eq!(fs::read_to_string(ground.file("a")).expect("readable"), text);
        let left = node.plan().await.expect("plan").left;
        assert!(ground.lives(survivor) && left.iter().any(|left| left.pid == Some(survivor)), "{left:?}");
    });
    guest.kill().expect("killed");
    guest.wait().expect("reaped");
}

/// Set in the process that is alone in a PID namespace, where numbers can be chosen: to the number of its parent outside.
const INSIDE: &str = "SEXTON_TEST_INSIDE";
const NUMBER: i32 = 4711;

#[test]
fn a_number_that_passes_to_another_process_between_two_passes_takes_nothing_along() {
    if std::env::var_os(INSIDE).is_some() {
        return reuse_between_passes();
    }
    let test = "a_number_that_passes_to_another_process_between_two_passes_takes_nothing_along";
    let may = Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "true"]).status();
    if !may.is_ok_and(|status| status.success()) {
        sexton_testkit::skip!("no PID namespace of one's own");
    }
    let mut inside = Command::new("unshare");
    inside.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(std::env::current_exe().expect("own program"));
    // Whatever the test starts by itself is a child of the first process there, and carries this variable.
    inside
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, std::process::id().to_string())
        .env("SHIM_ID", "a")
        .process_group(0);
    let out = inside.output().expect("unshare runs");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}\n{}", String::from_utf8_lossy(&out.stderr));
    assert!(said.contains("1 passed"), "{said}");
}

fn reuse_between_passes() {
    let mut ground = Ground::new("reused", OnOrphan::Terminate, Duration::ZERO);
    ground.guest("a", None);
    let executables = Executables::Files(vec![std::env::current_exe().expect("own program")]);
    let (id_from, stop_grace) = (Some(IdFrom::Env("SHIM_ID".to_owned())), Duration::from_secs(10));
    let watch = ground.options.watches.first_mut().expect("a watch");
    watch.runtimes = vec![Runtime { name: "shim".to_owned(), executables, id_from, stop_grace }];
    let child = || renumber::child_with_pid(NUMBER).expect("a free number");
    let lives = |child: &Fd| pidfd::poll_end(child.raw()).expect("polled") == End::None;
    let reap = |child: &Fd| {
        while wait::reap_pidfd(child.raw()).expect("our child").is_none() {
            std::thread::yield_now();
        }
    };
    let ticks = || sexton_core::proc::stat(Pid::new(NUMBER).expect("not init")).expect("alive").start_ticks;
    let is_old = || sexton_sys::time::boottime() > Duration::from_millis(ticks() * 10 + 20);
    run(async {
        let (node, _host, reader) = begin(&ground.options).await;
        for _ in 0..10 {
            let first = child();
            soon(is_old).await;
            node.reconcile().await.expect("reconciled");
            pidfd::send_signal(first.raw(), 9).expect("signalled");
            reap(&first);
            let second = child();
            // Older than the grace, so that nothing but the passes keeps it.
            soon(is_old).await;
            node.reconcile().await.expect("reconciled");
            assert!(lives(&second), "no pass had seen it before");
            pidfd::send_signal(second.raw(), 9).expect("signalled");
            reap(&second);
        }
        assert_eq!(told(&reader, EventKind::OrphanSeen).len(), 20, "once a process");
        assert_eq!(told(&reader, EventKind::OrphanTerminated), []);
        // One that stays is ended.
        let stays = child();
        soon(is_old).await;
        node.reconcile().await.expect("reconciled");
        node.reconcile().await.expect("reconciled");
        soon(|| !lives(&stays)).await;
        reap(&stays);
    });
}
