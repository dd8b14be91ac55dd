//! Whole lives on the real kernel, driven in process, without keeper and API.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use sexton::node::keeper::Keeper;
use sexton::node::request::{Caller, NewInstance, Node, Stop, Until};
use sexton::node::worker::{self, Options};
use sexton::refusal::Kind;
use sexton_ledger::entry::{Entry, Limits, Spec};
use sexton_plan::state::{Restart, State};
use sexton_testkit::{SOON, eventually, pidfds_can_be_mounted};

struct Ground {
    dir: PathBuf,
    options: Options,
}

impl Ground {
    fn new(name: &str) -> Ground {
        let run = format!("sexton-lives-{}-{name}", std::process::id());
        let dir = std::env::temp_dir().join(&run);
        let options = Options {
            state_dir: dir.join("state"),
            is_first: false,
            run_dir: dir.join("run"),
            slots: sexton::node::slots::Pool::new(&run, &sexton::config::Slots::default()),
            cgroup: run,
            node: None,
            log_keep: 1 << 20,
            log_incarnations: 3,
            reconcile_every: Duration::from_secs(30),
            runtimes: Default::default(),
            watches: Vec::new(),
            drain: sexton::node::drain::DrainRules { cancel: vec!["build".parse().expect("word")] },
            drain_at_shutdown: None,
        };
        Ground { dir, options }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if pidfds_can_be_mounted() {
            sexton_core::pin::PinBoard::open(&self.options.run_dir).expect("pins").remove().expect("pins removed");
        }
        for controller in ["pids", "memory"] {
            let _gone = std::fs::remove_dir(format!("/sys/fs/cgroup/{controller}/{}", self.options.cgroup));
        }
        let subtree = sexton_core::domain::Subtree::find(&self.options.cgroup).expect("cgroup2");
        subtree.remove().expect("nothing left in the subtree");
        std::fs::remove_dir_all(&self.dir).expect("removed");
    }
}

fn spec(argv: &[&str]) -> Spec {
    Spec {
        argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
        env: BTreeMap::new(),
        cwd: None,
        user: None,
        kind: "sandbox".parse().expect("word"),
        runtime: "command".to_owned(),
        labels: BTreeMap::new(),
        grace: Duration::from_secs(10),
        stop_signal: 15,
        slot: false,
        limits: Limits::default(),
        pidns: false,
        restart: Restart::Never,
    }
}

fn new(name: &str, spec: Spec) -> NewInstance {
    NewInstance { name: name.parse().expect("name"), spec }
}

fn me() -> Caller {
    Caller { uid: Some(0), by: "unix".to_owned() }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(work)
}

/// Waits for the outcome of one instance.
async fn settled(node: &Node, name: &str) -> std::sync::Arc<Entry> {
    let limit = Some(Duration::from_secs(20));
    let (entry, held) = node.wait(name.parse().expect("name"), Until::Settled, limit).await.expect("driver");
    assert!(held, "{entry:?}");
    entry.expect("listed")
}

#[test]
fn an_instance_runs_ends_and_leaves_nothing() {
    let ground = Ground::new("plain");
    run(async {
        let begun = worker::begin(&ground.options, Keeper::none(), true).await.expect("begun");
        let node = begun.node.clone();
        let mut driver = begun.driver;
        tokio::spawn(async move { driver.run().await });
        let entry = node.create(new("a", spec(&["sh", "-c", "echo out; echo err >&2; exit 7"])), None, me()).await;
        assert!(entry.expect("created").identity.is_some());
        let over = settled(&node, "a").await;
        assert_eq!((over.state, over.exit.and_then(|exit| exit.code)), (State::Exited, Some(7)));
        let log = |stream: &str| {
            let path = begun.host.paths.log(&over.name, &over.incarnation, stream);
            std::fs::read_to_string(path).expect("log")
        };
        assert_eq!((log("stdout").as_str(), log("stderr").as_str()), ("out\n", "err\n"));
        let missing = node.create(new("b", spec(&["/no/such/program"])), None, me()).await.expect_err("no program");
        assert!(missing.detail.contains("No such file"), "{missing}");
        let failed = settled(&node, "b").await;
        assert_eq!(failed.state, State::Failed);
        for name in ["a", "b"] {
            node.remove(name.parse().expect("name"), false, me()).await.expect("removed");
        }
    });
}

#[test]
fn who_comes_too_late_for_what_was_removed_hears_so() {
    let ground = Ground::new("late");
    run(async {
        let begun = worker::begin(&ground.options, Keeper::none(), true).await.expect("begun");
        let node = begun.node.clone();
        let mut driver = begun.driver;
        tokio::spawn(async move { driver.run().await });
        node.create(new("a", spec(&["true"])), None, me()).await.expect("created");
        settled(&node, "a").await;
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let node = node.clone();
            callers.spawn(async move { node.remove("a".parse().expect("name"), false, me()).await });
        }
        let answers = callers.join_all().await;
        let refused: Vec<Kind> = answers.iter().filter_map(|answer| Some(answer.as_ref().err()?.kind)).collect();
        assert_eq!(refused, [Kind::NotFound; 7], "{answers:?}");
    });
}

#[test]
fn limits_hold_or_are_refused() {
    let ground = Ground::new("limits");
    run(async {
        let begun = worker::begin(&ground.options, Keeper::none(), true).await.expect("begun");
        let node = begun.node.clone();
        let mut driver = begun.driver;
        tokio::spawn(async move { driver.run().await });
        let limits = Limits { pids: Some(3), memory: None };
        let script = "for i in 1 2 3 4 5 6; do sleep 1000 & done; wait";
        let created = node.create(new("l", Spec { limits, ..spec(&["sh", "-c", script]) }), None, me()).await;
        created.expect("this host has a pids controller, of v1 or of cgroup2");
        let over = settled(&node, "l").await;
        assert_ne!(over.exit.and_then(|exit| exit.code), Some(0), "fork was refused: {over:?}");
        node.remove("l".parse().expect("name"), false, me()).await.expect("removed");
    });
}

#[test]
fn a_tree_that_ignores_the_polite_signal_is_ended_whole() {
    let ground = Ground::new("tree");
    run(async {
        let begun = worker::begin(&ground.options, Keeper::none(), true).await.expect("begun");
        let node = begun.node.clone();
        let mut driver = begun.driver;
        tokio::spawn(async move { driver.run().await });
        let deaf = ground.dir.join("deaf");
        let begin = format!("trap '' TERM; (setsid sh -c 'while :; do sleep 1; done' &) ; : > {}", deaf.display());
        let script = format!("{begin}; while :; do sleep 1; done");
        let spec = Spec { grace: Duration::from_millis(100), ..spec(&["sh", "-c", &script]) };
        node.create(new("t", spec), None, me()).await.expect("created");
        let is_deaf =
            move || eventually("it is deaf", SOON, || deaf.exists().then_some(()).ok_or("not yet".to_owned()));
        tokio::task::spawn_blocking(is_deaf).await.expect("deaf");
        let stop = Stop { force: false, grace: None };
        let answer = node.stop("t".parse().expect("name"), stop, me()).await.expect("stopped");
        assert_eq!(answer.state, State::Stopping);
        let over = settled(&node, "t").await;
        assert_eq!((over.state, over.exit.and_then(|exit| exit.signal)), (State::Exited, Some(9)));
    });
}

#[test]
fn a_worker_that_dies_is_followed_by_one_that_knows_everything() {
    let ground = Ground::new("again");
    let identity = run(async {
        let begun = worker::begin(&ground.options, Keeper::none(), true).await.expect("begun");
        let node = begun.node.clone();
        let mut driver = begun.driver;
        tokio::spawn(async move { driver.run().await });
        node.create(new("short", spec(&["sh", "-c", "sleep 0.3; exit 5"])), None, me()).await.expect("created");
        node.create(new("long", spec(&["sleep", "1000"])), None, me()).await.expect("created").identity.clone()
    });
    // The runtime and everything in it is gone, as after a crash; its children are still this test's.
    run(async {
        let begun = worker::begin(&ground.options, Keeper::none(), true).await.expect("begun again");
        let node = begun.node.clone();
        let mut driver = begun.driver;
        tokio::spawn(async move { driver.run().await });
        let long = node.one("long".parse().expect("name")).await.expect("listed");
        assert_eq!((long.state, &long.identity, long.adopted), (State::Running, &identity, true));
        let over = settled(&node, "short").await;
        assert_eq!(over.exit.and_then(|exit| exit.code), Some(5), "{over:?}");
        let stop = Stop { force: true, grace: None };
        node.stop("long".parse().expect("name"), stop, me()).await.expect("stopped");
        assert_eq!(settled(&node, "long").await.exit.and_then(|exit| exit.signal), Some(9));
    });
}

#[test]
fn a_drain_refuses_the_new_cancels_builds_and_waits_for_the_rest() {
    let ground = Ground::new("drain");
    run(async {
        let begun = worker::begin(&ground.options, Keeper::none(), true).await.expect("begun");
        let node = begun.node.clone();
        let mut driver = begun.driver;
        tokio::spawn(async move { driver.run().await });
        let build = Spec { kind: "build".parse().expect("word"), ..spec(&["sleep", "1000"]) };
        node.create(new("build", build), None, me()).await.expect("created");
        node.create(new("box", spec(&["sleep", "1000"])), None, me()).await.expect("created");
        node.drain(false, None, me()).await.expect("draining");
        let refused = node.create(new("late", spec(&["true"])), None, me()).await.expect_err("the gate is closed");
        assert_eq!(refused.kind.code(), "node_draining");
        assert_eq!(settled(&node, "build").await.reason.as_deref(), Some("cancelled"));
        let inflight = node.facts().await.expect("facts").inflight;
        assert_eq!(inflight.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["box"]);
        node.drain(true, None, me()).await.expect("forced");
        let mut status = node.status().await.expect("status");
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, status.wait_for(|state| state.drained)).await.expect("in time").expect("driver");
    });
    run(async {
        let begun = worker::begin(&ground.options, Keeper::none(), false).await.expect("a new worker alone");
        let node = begun.node.clone();
        let mut driver = begun.driver;
        tokio::spawn(async move { driver.run().await });
        let state = node.facts().await.expect("facts").state;
        assert!(state.is_draining() && state.drained);
    });
    run(async {
        let begun = worker::begin(&ground.options, Keeper::none(), true).await.expect("a new daemon");
        let node = begun.node.clone();
        let mut driver = begun.driver;
        tokio::spawn(async move { driver.run().await });
        assert!(!node.facts().await.expect("facts").state.is_draining());
        node.create(new("again", spec(&["true"])), None, me()).await.expect("created");
        settled(&node, "again").await;
    });
}

#[test]
fn a_process_started_elsewhere_is_taken_into_custody_and_only_the_one_that_is_meant() {
    use sexton::node::request::{Proof, Wanted};
    let ground = Ground::new("adopt");
    run(async {
        let begun = worker::begin(&ground.options, Keeper::none(), true).await.expect("begun");
        let node = begun.node.clone();
        let mut driver = begun.driver;
        tokio::spawn(async move { driver.run().await });
        let mut elsewhere = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
        let pid = sexton_plan::id::Pid::new(i32::try_from(elsewhere.id()).expect("fits")).expect("pid");
        let ticks = sexton_core::proc::stat(pid).expect("stat").start_ticks;
        let meant = |ticks| Wanted { pid, proof: Proof::StartTicks(ticks) };
        let other = node.adopt(new("x", spec(&["sleep"])), meant(ticks + 1), me()).await.expect_err("another one");
        assert_eq!(other.kind.status(), 409);
        let wanted = Wanted { pid, proof: Proof::PidfsIno(1) };
        let other = node.adopt(new("x", spec(&["sleep"])), wanted, me()).await.expect_err("no process has that inode");
        assert!(other.detail.contains("another one than the caller means"), "{other}");
        let [first, second, third] =
            ["x", "z", "w"].map(|name| node.adopt(new(name, spec(&["sleep"])), meant(ticks), me()));
        let while_it_is_recorded = async {
            // The first one's life has begun by then, and waits for the disk.
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            third.await
        };
        let (first, second, third) = tokio::join!(first, second, while_it_is_recorded);
        let entry = first.expect("adopted");
        for other in [second, third] {
            let refused = other.expect_err("asked for at the same time");
            assert!(refused.detail.contains("in custody already"), "{refused}");
        }
        assert!(entry.adopted && entry.state == State::Running);
        let path = sexton_core::proc::cgroup_path(pid).expect("cgroup");
        assert_eq!(Some(path), entry.cgroup.as_ref().map(|cgroup| cgroup.path.clone()));
        let twice = node.adopt(new("y", spec(&["sleep"])), meant(ticks), me()).await.expect_err("in custody");
        assert!(twice.detail.contains("custody"), "{twice}");
        node.stop("x".parse().expect("name"), Stop { force: true, grace: None }, me()).await.expect("stopped");
        // Its own parent is this very process, so either of the two reaps it.
        let _reaped = tokio::task::spawn_blocking(move || elsewhere.wait()).await.expect("joined");
        let told = settled(&node, "x").await.exit.and_then(|exit| exit.signal);
        // KERNEL(6.15): before, nobody else learns how one ended whom its own parent was the first to reap.
        assert!(told == Some(9) || told.is_none() && !pidfds_can_be_mounted(), "{told:?}");
    });
}

#[test]
fn two_daemons_that_are_asked_for_one_process_at_once_do_not_both_have_it() {
    use sexton::node::request::{Proof, Wanted};
    let grounds = [Ground::new("adopt-one"), Ground::new("adopt-other")];
    run(async {
        let mut nodes = Vec::new();
        for ground in &grounds {
            let mut begun = worker::begin(&ground.options, Keeper::none(), true).await.expect("begun");
            nodes.push(begun.node.clone());
            tokio::spawn(async move { begun.driver.run().await });
        }
        let mut elsewhere = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
        let pid = sexton_plan::id::Pid::new(i32::try_from(elsewhere.id()).expect("fits")).expect("pid");
        let proof = Proof::StartTicks(sexton_core::proc::stat(pid).expect("stat").start_ticks);
        let ask = |node: &Node| {
            let node = node.clone();
            async move { node.adopt(new("x", spec(&["sleep"])), Wanted { pid, proof }, me()).await }
        };
        // Neither has recorded its intent when the other looks whose it is.
        let (one, other) = tokio::join!(ask(&nodes[0]), ask(&nodes[1]));
        let (winner, taken, refused) = match (one, other) {
            (Ok(taken), Err(refused)) => (&nodes[0], taken, refused),
            (Err(refused), Ok(taken)) => (&nodes[1], taken, refused),
            both => panic!("{both:?}"),
        };
        assert_eq!(refused.kind.status(), 409, "{refused}");
        let path = sexton_core::proc::cgroup_path(pid).expect("cgroup");
        assert_eq!(Some(&path), taken.cgroup.as_ref().map(|cgroup| &cgroup.path));
        let handle = sexton_core::handle::Handle::open(pid, &sexton_core::proc::here().expect("here")).expect("a hold");
        // KERNEL(6.17): before, a pidfd takes no tag.
        assert!(handle.tagged().is_none_or(|tag| tag == taken.incarnation.as_str()));
        winner.stop("x".parse().expect("name"), Stop { force: true, grace: None }, me()).await.expect("stopped");
        let _reaped = tokio::task::spawn_blocking(move || elsewhere.wait()).await.expect("joined");
        settled(winner, "x").await;
    });
}
