//! Making, knowing, pinning and ending real processes, on the real kernel.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sexton_core::domain::{Domain, DomainError, Subtree};
use sexton_core::handle::{Handle, Life, OpenHandleError};
use sexton_core::pin::{PinBoard, Released};
use sexton_core::proc::{self, Here};
use sexton_core::spawn::{self, Going, Program, SpawnError, User};
use sexton_plan::identity::Identity;
use sexton_plan::state::ExitStatus;
use sexton_sys::pidfd::{self, FileHandle};
use sexton_sys::{Fd, xattr};
use sexton_testkit::{cgroup2, pidfds_can_be_mounted, skip};

/// A directory and a cgroup subtree of this test's own, removed at its end.
struct Ground {
    dir: PathBuf,
    subtree: Subtree,
    here: Here,
}

impl Ground {
    fn new(name: &str) -> Ground {
        let run = format!("sexton-test-{}-{name}", std::process::id());
        let dir = std::env::temp_dir().join(&run);
        fs::create_dir_all(&dir).expect("temp dir");
        let subtree = Subtree::find(&run).expect("cgroup2");
        subtree.make().expect("subtree");
        Ground { dir, subtree, here: proc::here().expect("proc") }
    }

    fn start(&self, argv: &[&str], domain: Option<&Domain>) -> (spawn::Waiting, Handle) {
        self.try_start(argv, domain).expect("spawned")
    }

    fn try_start(&self, argv: &[&str], domain: Option<&Domain>) -> Result<(spawn::Waiting, Handle), SpawnError> {
        self.try_start_as(None, argv, domain)
    }

    fn try_start_as(
        &self,
        user: Option<&User>,
        argv: &[&str],
        domain: Option<&Domain>,
    ) -> Result<(spawn::Waiting, Handle), SpawnError> {
        let argv: Vec<String> = argv.iter().map(|arg| (*arg).to_owned()).collect();
        let out = File::create(self.dir.join("out")).expect("out");
        let null = File::open("/dev/null").expect("null");
        let mark = File::options().read(true).write(true).create(true).truncate(true).open(self.dir.join("mark"));
        let mark = mark.expect("mark");
        let env = [("PATH".to_owned(), "/usr/bin:/bin".to_owned())];
        let stdio = [null.as_raw_fd(), out.as_raw_fd(), out.as_raw_fd()];
        let program = Program {
            argv: &argv,
            env: &env,
            cwd: "/",
            user,
            stdio,
            mark: Some(mark.as_raw_fd()),
            domain,
            netns: None,
            pidns: false,
            no_new_privs: false,
            own_memory: false,
            nofile: Some([256, 512]),
        };
        spawn::spawn(&program, &self.here)
    }

    fn output(&self) -> String {
        fs::read_to_string(self.dir.join("out")).expect("out")
    }

    fn mark(&self) -> Vec<u8> {
        fs::read(self.dir.join("mark")).expect("mark")
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.dir);
        let _gone = self.subtree.remove();
    }
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn left(going: &mut Going) {
    eventually("execve", || going.has_left().expect("its program runs").then_some(()));
}

#[test]
fn a_program_runs_with_nothing_but_its_three_descriptors() {
    let ground = Ground::new("plain");
    let script = "ls /proc/self/fd | tr '\\n' ' '; ulimit -Sn; ulimit -Hn; grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; cat /proc/self/oom_score_adj; exit 7";
    let (waiting, handle) = ground.start(&["sh", "-c", script], None);
    assert_eq!(handle.life().expect("polled"), Life::Alive);
    assert_eq!(ground.output(), "", "nothing runs before the release");
    let mut going = waiting.release().expect("released");
    left(&mut going);
    let status = eventually("exit", || handle.reap().expect("own child"));
    assert_eq!(status, ExitStatus::Code(7));
    let output = ground.output();
    // ls itself has its directory open as 3.
    assert!(output.starts_with("0 1 2 3 256\n512\n"), "{output}");
    assert!(output.contains("SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000"), "{output}");
    assert!(output.ends_with("\n0\n"), "{output}");
    assert_eq!(ground.mark(), sexton_sys::clone::MARK_RELEASED);
}

#[test]
fn a_program_begins_as_its_user_in_a_session_of_its_own_with_no_signal_blocked() {
    let ground = Ground::new("user");
    let user = User { uid: 65_534, gid: 65_533, groups: vec![4_242] };
    // By no shell, for that would unblock signals itself.
    let argv = ["grep", "-hE", "^(Uid|Gid|Groups|SigBlk):|^[0-9]", "/proc/self/status", "/proc/self/stat"];
    let (waiting, handle) = ground.try_start_as(Some(&user), &argv, None).expect("spawned");
    left(&mut waiting.release().expect("released"));
    eventually("exit", || handle.reap().expect("own child"));
    let output = ground.output();
    let all = |id: u32| [id; 4].map(|id| id.to_string()).join("\t");
    let told = format!("Uid:\t{}\nGid:\t{}\nGroups:\t4242 \nSigBlk:\t{:016}\n", all(65_534), all(65_533), 0);
    let stat = output.strip_prefix(&told).unwrap_or_else(|| panic!("{output}"));
    assert_eq!(
        stat.split(' ').nth(5),
        Some(handle.identity().pid.to_string().as_str()),
        "it leads its session: {stat}"
    );
}

#[test]
fn one_that_is_killed_before_its_release_has_left_and_its_status_tells_how() {
    let ground = Ground::new("killed");
    let (waiting, handle) = ground.start(&["true"], None);
    handle.signal(9).expect("killed");
    let status = eventually("its end", || handle.reap().expect("own child"));
    assert_eq!(status, ExitStatus::Signal(9));
    // REGRESSION: `write: Broken pipe`, by which nobody knew what had become of it.
    let mut going = waiting.release().expect("no error");
    assert_eq!(going.has_left(), Ok(true));
    assert_ne!(ground.mark(), sexton_sys::clone::MARK_RELEASED);
}

#[test]
fn its_start_tick_is_the_one_that_proc_shows() {
    let ground = Ground::new("tick");
    for _ in 0..500 {
        let (waiting, handle) = ground.start(&["true"], None);
        let identity = handle.identity();
        let shown = proc::stat(identity.pid).expect("it waits").start_ticks;
        assert_eq!(identity.start_ticks, Some(shown));
        drop(waiting);
        eventually("its end", || handle.reap().expect("own child"));
    }
}

#[test]
fn the_oom_score_of_its_maker_is_neither_inherited_nor_changed() {
    const SCORE: &str = "/proc/self/oom_score_adj";
    let ground = Ground::new("oom");
    fs::write(SCORE, "300").expect("a score that is higher");
    let (waiting, handle) = ground.start(&["cat", SCORE], None);
    left(&mut waiting.release().expect("released"));
    eventually("exit", || handle.reap().expect("own child"));
    let kept = fs::read_to_string(SCORE).expect("own score");
    fs::write(SCORE, "0").expect("the score that was");
    assert_eq!((ground.output().as_str(), kept.as_str()), ("0\n", "300\n"));
}

#[test]
fn all_of_this_holds_without_clone3_and_close_range() {
    const REFUSED: &str = "SEXTON_TEST_REFUSED";
    if std::env::var_os(REFUSED).is_none() {
        let line = format!("{} \"$0\"", sexton_testkit::refusing(&["clone3 ENOSYS", "close_range EPERM"]));
        let own = std::env::current_exe().expect("this program");
        let output = std::process::Command::new("sh").args(["-c", &line]).arg(own).env(REFUSED, "1").output();
        let output = output.expect("a shell");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn a_removed_domain_takes_nobody_in_and_nobody_is_left() {
    let ground = Ground::new("removed");
    let domain = ground.subtree.create("d", "owner-1").expect("domain");
    domain.remove().expect("removed");
    let refused = ground.try_start(&["true"], Some(&domain));
    assert!(matches!(refused, Err(SpawnError::Domain(DomainError::Gone(_)))), "{refused:?}");
    // Another one that bears its name is another one.
    fs::create_dir(cgroup2().expect("mounted").join(domain.path().trim_start_matches('/'))).expect("made");
    let refused = ground.try_start(&["true"], Some(&domain));
    assert!(matches!(refused, Err(SpawnError::Domain(DomainError::Gone(_)))), "{refused:?}");
    assert_eq!(fs::read_to_string("/proc/thread-self/children").expect("children"), "");
    let other = ground.subtree.find_path(domain.path()).expect("there");
    assert!(matches!(ground.subtree.find_again(domain.path(), domain.ino()), Err(DomainError::Gone(_))));
    other.remove().expect("removed");
}

#[test]
fn a_child_whose_maker_lets_go_runs_nothing() {
    let ground = Ground::new("dropped");
    let (waiting, handle) = ground.start(&["sh", "-c", "echo ran"], None);
    drop(waiting);
    eventually("its end", || handle.reap().expect("own child"));
    assert_eq!((ground.output().as_str(), ground.mark().len()), ("", 0));
}

#[test]
fn a_missing_program_tells_step_and_errno() {
    let ground = Ground::new("missing");
    for (program, errno) in [("/no/such/program", 2), ("no-such-program", 2), ("/dev/null", 13), ("/", 13)] {
        let (waiting, handle) = ground.start(&[program], None);
        let mut going = waiting.release().expect("released");
        let failure = eventually("report", || going.has_left().err());
        assert_eq!((failure.0.step.call(), failure.0.errno.0), ("execve", errno), "{program}");
        eventually("its end", || handle.reap().expect("own child"));
        let mark = ground.mark().try_into().expect("8 bytes");
        assert_eq!(sexton_sys::clone::ChildFailure::from_bytes(mark), Some(failure.0), "{program}");
    }
}

fn own_pidfd() -> Fd {
    pidfd::open(std::process::id().cast_signed()).expect("own process")
}

/// Whether a pidfd has a place for attributes that only root writes (Linux 6.17), found on one that is let go at once.
fn takes_tags() -> bool {
    xattr::set(own_pidfd().raw(), c"trusted.sexton-test", b"").is_ok()
}

#[test]
fn what_was_made_on_the_way_to_a_subtree_goes_with_the_last_one_below() {
    let run = format!("sexton-way-{}", std::process::id());
    let root = sexton_testkit::cgroup2().expect("mounted").join(&run);
    fs::create_dir(&root).expect("made");
    let [one, other] = ["one", "other"].map(|name| Subtree::find(&format!("{run}/a/b/{name}")).expect("cgroup2"));
    one.make().expect("made");
    other.make().expect("made");
    let way = other.find_path(&format!("/{run}/a/b")).expect("found");
    assert!(
        way.is_subtree().expect("read") && way.owner().expect("read").is_none(),
        "no daemon above takes it for a stray"
    );
    one.remove().expect("removed");
    assert!(root.join("a/b/other").exists(), "the other daemon's stays");
    other.remove().expect("removed");
    // REGRESSION: it stayed on the host.
    let is_left = root.join("a").exists();
    // What was there before stays.
    fs::remove_dir(root.join("a/b")).and_then(|()| fs::remove_dir(root.join("a"))).unwrap_or_default();
    fs::remove_dir(&root).expect("still there, and empty");
    assert!(!is_left);
}

#[test]
fn a_subtree_that_somebody_else_had_made_stays() {
    let run = format!("sexton-given-{}", std::process::id());
    let root = sexton_testkit::cgroup2().expect("mounted").join(&run);
    fs::create_dir(&root).expect("made");
    let [given, below] = [run.clone(), format!("{run}/below")].map(|path| Subtree::find(&path).expect("cgroup2"));
    given.make().expect("there");
    below.make().expect("made");
    given.remove().expect("let go of, though it is not empty");
    below.remove().expect("removed");
    given.remove().expect("let go of");
    // REGRESSION: it was removed, with the limits that its maker had set; by the last daemon below, too.
    fs::remove_dir(&root).expect("still there, and empty");
}

#[test]
fn what_a_crash_left_on_the_way_before_its_tag_goes_too() {
    let run = format!("sexton-untagged-{}", std::process::id());
    let root = sexton_testkit::cgroup2().expect("mounted").join(&run);
    let subtree = Subtree::find(&format!("{run}/a")).expect("cgroup2");
    // As the kernel makes it; the tag would be next.
    fs::DirBuilder::new().mode(0o1755).create(&root).expect("made");
    subtree.make().expect("made");
    subtree.remove().expect("removed");
    assert!(fs::remove_dir(&root).is_err(), "REGRESSION: it was nobody's, and stayed on the host");
}

#[test]
fn a_subtree_that_was_removed_is_made_anew_with_its_tag() {
    let ground = Ground::new("anew");
    ground.subtree.remove().expect("removed");
    ground.subtree.create("d", "owner-1").expect("domain").remove().expect("removed");
    let subtree = ground.subtree.find_path(ground.subtree.path()).expect("there again");
    // REGRESSION: a daemon whose subtree lies above took it for a stray, and what was made in it had no limits.
    assert!(subtree.is_subtree().expect("read"));
}

#[test]
fn a_domain_is_killed_whole_and_removed() {
    let ground = Ground::new("domain");
    let domain = ground.subtree.create("d", "owner-1").expect("domain");
    assert_eq!(domain.owner().expect("read").as_deref(), Some("owner-1"));
    let (waiting, handle) = ground.start(&["sh", "-c", "sleep 1000 & setsid sleep 1000 & wait"], Some(&domain));
    assert_eq!(handle.cgroup_id(), Some(domain.ino()));
    let takes_tags = takes_tags();
    assert_eq!(handle.tag("owner-1"), takes_tags);
    assert_eq!(handle.tagged().as_deref(), takes_tags.then_some("owner-1"));
    let mut going = waiting.release().expect("released");
    left(&mut going);
    eventually("three processes", || (domain.processes().expect("listed").len() == 3).then_some(()));
    assert!(domain.is_populated().expect("read"));
    let lives = |path: &str| ground.subtree.is_populated(path, domain.ino()).expect("read");
    assert!(lives(domain.path()) && lives("/where/another/namespace/shows/it"));
    assert!(!domain.try_remove(), "somebody lives in it");
    // KERNEL(5.14): before, there is no `cgroup.kill`, and each is signalled on its own.
    let kills_whole = sexton_testkit::cgroup2()
        .expect("mounted")
        .join(domain.path().trim_start_matches('/'))
        .join("cgroup.kill")
        .exists();
    assert_eq!(domain.kill().expect("killed"), kills_whole);
    if !kills_whole {
        let mut members = domain.members(&ground.here).expect("listed");
        assert!(members.all(|member| member.signal(9).expect("signalled")));
    }
    eventually("gone, with a zombie in it", || domain.try_remove().then_some(()));
    assert!(!domain.is_populated().expect("read") && !lives(domain.path()));
    assert_eq!(eventually("exit", || handle.reap().expect("own child")), ExitStatus::Signal(9));
    assert_eq!(domain.remove().expect("no error"), Released::WasGone);
    assert!(matches!(ground.subtree.find_again(domain.path(), domain.ino()), Err(DomainError::Gone(_))));
}

#[test]
fn what_is_nested_deeper_than_a_path_is_long_is_found_and_removed() {
    if pidfd::facts(own_pidfd().raw()).is_err() {
        skip!("pidfds tell no cgroup (Linux 6.13), and `/proc` names none whose path is longer than a page");
    }
    let ground = Ground::new("deep");
    let domain = ground.subtree.create("d", "owner").expect("domain");
    let mut deepest = domain.open().expect("open");
    for level in 0..40 {
        // Two of each: the one that is not gone down into is removed as well.
        for side in ["a", "b"] {
            let name = format!("{side}{level}-{}", "x".repeat(200));
            let here = format!("/proc/self/fd/{}", deepest.as_raw_fd());
            fs::create_dir(format!("{here}/{name}")).expect("made");
            if side == "b" {
                deepest = File::open(format!("{here}/{name}")).expect("open");
            }
        }
    }
    let (waiting, handle) = ground.start(&["sleep", "1000"], Some(&domain));
    let pid = handle.identity().pid;
    let procs = format!("/proc/self/fd/{}/cgroup.procs", deepest.as_raw_fd());
    fs::write(procs, pid.to_string()).expect("moved");
    let mut going = waiting.release().expect("released");
    left(&mut going);
    assert_eq!(domain.processes().expect("listed"), [pid]);
    let members = domain.members(&ground.here).expect("listed");
    assert_eq!(members.map(|member| member.identity().pid).collect::<Vec<_>>(), [pid]);
    domain.thaw().expect("thawed");
    assert!(domain.remove().is_err(), "somebody lives in it");
    assert!(domain.kill().expect("killed"));
    assert_eq!(eventually("exit", || handle.reap().expect("own child")), ExitStatus::Signal(9));
    assert_eq!(domain.remove().expect("removed"), Released::Now);
    assert_eq!(domain.remove().expect("no error"), Released::WasGone);
}

#[test]
fn a_process_is_found_again_by_its_handle_and_never_once_reaped() {
    if FileHandle::of(own_pidfd().raw()).is_err() {
        skip!("pidfds have no handles (Linux 6.14)");
    }
    let ground = Ground::new("handle");
    let (waiting, handle) = ground.start(&["sleep", "1000"], None);
    let mut going = waiting.release().expect("released");
    left(&mut going);
    let bytes = handle.to_bytes();
    assert!(!bytes.is_empty(), "this kernel has pidfs handles");
    let again = Handle::reopen(handle.identity(), &bytes, None, &ground.here).expect("found");
    let by_number = Handle::reopen(handle.identity(), &[], None, &ground.here).expect("found by number and inode");
    // Inodes are given out anew with each boot, so one of another boot proves nothing.
    let boot_id = "0f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff".parse().expect("a UUID");
    let before = Identity { boot_id, ..handle.identity().clone() };
    assert!(matches!(Handle::reopen(&before, &bytes, None, &ground.here), Err(OpenHandleError::Gone)));
    assert!(again.signal(9).expect("signalled"));
    eventually("exit", || handle.reap().expect("own child"));
    assert_eq!(again.life().expect("polled"), Life::Reaped(Some(ExitStatus::Signal(9))));
    assert!(!by_number.signal(9).expect("no error"), "nobody there to signal");
    assert!(matches!(Handle::reopen(handle.identity(), &bytes, None, &ground.here), Err(OpenHandleError::Gone)));
}

#[test]
fn a_pin_keeps_the_exit_status_when_every_descriptor_is_closed() {
    if !pidfds_can_be_mounted() {
        skip!("pidfds cannot be mounted (Linux 6.15)");
    }
    let ground = Ground::new("pin");
    let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    // The mount that the directory lies in, and whether the kernel propagates what is mounted in it.
    let before = mounts();
    let point = |line: &str| line.split(' ').nth(4).map(str::to_owned).expect("a mount point");
    let around = before.lines().filter(|line| ground.dir.starts_with(point(line)));
    let is_shared = around.max_by_key(|line| point(line).len()).expect("a mount").contains(" shared:");
    let board = PinBoard::open(&ground.dir).expect("pins");
    let ours = mounts().lines().filter(|line| line.contains(ground.dir.to_str().expect("utf-8"))).count();
    assert_eq!(ours, if is_shared { 2 } else { 1 }, "one mount on the host, and private ground where it needs that");
    let (waiting, handle) = ground.start(&["sh", "-c", "exit 42"], None);
    let handle = Arc::new(handle);
    let identity = handle.identity().clone();
    let pinned = Arc::clone(&handle);
    board.run(move |pins| pins.pin(&pinned, "k")).expect("thread").expect("pinned");
    let mut going = waiting.release().expect("released");
    left(&mut going);
    eventually("exit", || handle.reap().expect("own child"));
    drop(handle);
    drop(board);
    let board = PinBoard::open(&ground.dir).expect("the same board");
    let recorded = identity.clone();
    let found = board.run(move |pins| pins.open("k", &recorded)).expect("thread").expect("opened").expect("there");
    assert_eq!(found.life().expect("polled"), Life::Reaped(Some(ExitStatus::Code(42))));
    let keys = |board: &PinBoard| board.run(|pins| pins.keys().expect("listed")).expect("thread");
    assert_eq!(keys(&board), ["k"]);
    board.run(|pins| pins.unpin("k")).expect("thread").expect("unpinned");
    assert_eq!(keys(&board), Vec::<String>::new());
    board.remove().expect("removed");
}

#[test]
fn a_pid_namespace_ends_with_its_first_process() {
    let ground = Ground::new("pidns");
    let argv = ["sh", "-c", "echo $$; ls /proc | grep -c '^[0-9]'; exit 3"].map(str::to_owned);
    let out = File::create(ground.dir.join("out")).expect("out");
    let null = File::open("/dev/null").expect("null");
    let program = Program {
        argv: &argv,
        env: &[],
        cwd: "/",
        user: None,
        stdio: [null.as_raw_fd(), out.as_raw_fd(), out.as_raw_fd()],
        mark: None,
        domain: None,
        netns: None,
        pidns: true,
        no_new_privs: true,
        own_memory: false,
        nofile: None,
    };
    let (waiting, handle) = spawn::spawn(&program, &ground.here).expect("spawned");
    let mut going = waiting.release().expect("released");
    left(&mut going);
    assert_eq!(eventually("exit", || handle.reap().expect("own child")), ExitStatus::Code(3));
    let output = ground.output();
    assert!(output.starts_with("1\n"), "{output}");
    assert!(fs::read_to_string("/proc/mounts").expect("mounts").contains("proc"), "the host keeps its own");
}
