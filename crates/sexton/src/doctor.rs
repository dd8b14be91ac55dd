//! What this kernel and host allow, and what is wrong. Everything is found by trying or by reading; nothing is changed.

mod service;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sexton_core::domain::{DomainError, Subtree};
use sexton_core::{features, proc};
use sexton_ledger::entry::Entry;
use sexton_plan::id::Pid;
use sexton_plan::state::State;
use sexton_sys::inotify::Inotify;
use sexton_sys::{Errno, clone, file, limit, pidfd};

use crate::chain::chain;
use crate::config::Settings;
use crate::lacking::{lacking, open_null};
use crate::net::{Net, Scheme};
use crate::node::host::Host;
use crate::node::strays;

/// How good or bad one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Ok,
    /// Something is not to be had here; what stands in for it is said.
    Warn,
    /// Something is wrong.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What, in a word.
    pub name: String,
    /// Whether it is not wrong.
    pub ok: bool,
    /// How good or bad it is.
    pub grade: Grade,
    /// What was found.
    pub detail: String,
    /// What to do, where there is something to do.
    pub hint: Option<String>,
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether nothing is wrong.
    pub ok: bool,
    /// What was looked at.
    pub checks: Vec<Check>,
}

impl Report {
    /// A report of `checks`.
    pub fn new(checks: Vec<Check>) -> Report {
        Report { ok: checks.iter().all(|check| check.ok), checks }
    }
}

fn ok(name: &str, detail: impl Into<String>) -> Check {
    Check { name: name.to_owned(), ok: true, grade: Grade::Ok, detail: detail.into(), hint: None }
}

fn warn(name: &str, detail: impl Into<String>, hint: &str) -> Check {
    Check { name: name.to_owned(), ok: true, grade: Grade::Warn, detail: detail.into(), hint: Some(hint.to_owned()) }
}

fn fail(name: &str, detail: impl Into<String>, hint: &str) -> Check {
    Check { name: name.to_owned(), ok: false, grade: Grade::Fail, detail: detail.into(), hint: Some(hint.to_owned()) }
}

/// Looks at kernel and host, with or without a daemon.
pub fn examine(settings: &Settings) -> Vec<Check> {
    let mut checks = vec![kernel(), processes(), null_device(), identity(), exit_status()];
    checks.extend(cgroups(&settings.cgroup));
    checks.push(directory("state directory", &settings.state_dir));
    checks.push(directory("run directory", &settings.run_dir));
    checks.push(logs(&settings.state_dir));
    checks.push(watching());
    checks.push(open_files());
    checks.extend(service::examine(settings));
    if settings.slots.count > 0 || !settings.slots.uplink.0.is_empty() {
        checks.extend(slots(settings));
    }
    checks
}

fn kernel() -> Check {
    match fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(release) => ok("kernel", format!("Linux {}", release.trim())),
        Err(error) => fail("kernel", format!("/proc cannot be read: {error}"), "mount procfs at /proc"),
    }
}

fn processes() -> Check {
    if let Some(lacking) = lacking() {
        let hint = "Linux 5.4 or later, and a seccomp filter that lets pidfd_open, pidfd_send_signal and waitid pass";
        return fail("processes", format!("`sexton serve` cannot start without {lacking}"), hint);
    }
    match clone::try_birth_in_cgroup() {
        Ok(()) => ok("processes", "clone3 makes them in their cgroup"),
        Err(error) => warn(
            "processes",
            format!("clone makes them, and they are moved into their cgroup before they run anything: {error}"),
            "Linux 5.7 or later, and a seccomp filter that lets clone3 pass, have them born there, which is faster",
        ),
    }
}

fn null_device() -> Check {
    match open_null() {
        Ok(_) => ok("null device", "/dev/null is the stdin of what is started"),
        Err(error) => {
            fail("null device", format!("nothing can be started: {}", chain(&error)), "`mknod -m 666 /dev/null c 1 3`")
        }
    }
}

fn identity() -> Check {
    if features::pidfs() {
        return ok("identity", "the inode of a pidfd names one process for the whole boot (pidfs)");
    }
    let hint = "Linux 6.9 and later have pidfs; until then identities are weak, and need the cgroup as second witness";
    warn("identity", "no pidfs: identities are boot id, PID and start tick", hint)
}

/// Whether a pidfd tells about its process; the exit code is told by the same call, from Linux 6.15 on.
fn exit_status() -> Check {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    match pidfd::open(own).and_then(|fd| pidfd::facts(fd.raw())) {
        Ok(_) => ok("pidfd info", "pidfds tell parent, cgroup and, from Linux 6.15 on, exit status"),
        Err(error) => {
            let hint = "exit codes are then known from wait, zombies and the keeper's record alone";
            warn("pidfd info", format!("not to be had: {error}"), hint)
        }
    }
}

fn cgroups(path: &str) -> Vec<Check> {
    let subtree = match Subtree::find(path) {
        Ok(subtree) => subtree,
        Err(DomainError::NoCgroup2) => {
            let told = "not mounted: what an instance started escapes its stop if it left its session and its parent ended \
                        before; limits are refused";
            let hint = "mount cgroup2, or run with `--pidns`, which nothing escapes";
            return vec![warn("cgroup2", told, hint)];
        }
        Err(error) => return vec![fail("cgroup2", chain(&error), "see `man 7 cgroups`")],
    };
    if let Err(error) = subtree.try_write() {
        let hint = "mount cgroup2 so that it can be written, or have a cgroup delegated to this user (`--cgroup`)";
        return vec![fail("cgroup2", chain(&error), hint)];
    }
    // The files of a limit are there where its controller is; the root has neither, so an existing cgroup is asked.
    let figures = subtree.find_path(subtree.path()).ok();
    let has = |file: &str| figures.as_ref().is_some_and(|domain| domain.figure(file).is_some());
    let missing: Vec<&str> = [("pids", "pids.current"), ("memory", "memory.current")]
        .into_iter()
        .filter(|(_, file)| !has(file))
        .map(|(name, _)| name)
        .collect();
    let limits = if figures.is_none() {
        ok("limits", "known once the cgroup is made")
    } else if missing.is_empty() {
        ok("limits", "pids and memory can be limited through cgroup2")
    } else {
        let told = format!("cgroup2 has no controller {} here", missing.join(", "));
        warn("limits", told, "the v1 controllers are used where they are mounted, else limits are refused")
    };
    let place = if subtree.exists() { "exists" } else { "is made by `sexton serve`" };
    vec![ok("cgroup2", format!("mounted; {} {place}", subtree.path())), limits]
}

fn directory(name: &str, path: &Path) -> Check {
    match fs::metadata(path) {
        Ok(about) if !about.is_dir() => {
            fail(name, format!("{} is no directory", path.display()), "name another one, or move it away")
        }
        Ok(about) if about.mode() & 0o022 != 0 => {
            let told = format!("{} may be written by others (mode {:03o})", path.display(), about.mode() & 0o777);
            fail(name, told, "take write permission from group and others")
        }
        Ok(_) => ok(name, path.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            ok(name, format!("{} is made by `sexton serve`", path.display()))
        }
        Err(error) => fail(name, format!("{}: {error}", path.display()), "give this user access to it"),
    }
}

/// Whether the head of a log can be dropped in place: tried on a file without a name.
fn logs(state_dir: &Path) -> Check {
    const O_TMPFILE: i32 = 0o20_200_000;
    const BLOCK: usize = 4_096;
    let unnamed = || -> std::io::Result<File> {
        let mut file = File::options().write(true).custom_flags(O_TMPFILE).mode(0o600).open(state_dir)?;
        file.write_all(&[1; BLOCK])?;
        Ok(file)
    };
    match unnamed() {
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP.0) => warn(
            "logs",
            "not tried: the file system makes no file without a name",
            "if it punches no holes either, logs are bounded by copying, which may lose what is written meanwhile",
        ),
        Err(error) => warn("logs", format!("not tried: {error}"), "run this where the state directory can be written"),
        Ok(tried) => match file::punch_hole(tried.as_raw_fd(), 0, BLOCK as u64) {
            Ok(()) => ok("logs", "the oldest bytes of a log are dropped in place"),
            Err(error) => {
                let hint =
                    "logs are bounded by copying, which may lose what is written meanwhile; use ext4, xfs or btrfs";
                warn("logs", format!("the file system cannot punch holes: {error}"), hint)
            }
        },
    }
}

/// Whether the kernel tells of writes to logs: each queue counts against its user's.
fn watching() -> Check {
    match Inotify::new() {
        Ok(_) => ok("log watching", "the kernel tells of writes to logs"),
        Err(error) => warn(
            "log watching",
            format!("{error}: logs are looked at every second instead"),
            "raise `fs.inotify.max_user_instances` by sysctl",
        ),
    }
}

/// Descriptors that a node with 1,000 instances and 1,024 callers needs, and some.
const OPEN_FILES: u64 = 8_192;

fn open_files() -> Check {
    match limit::open_files() {
        Ok([_, hard]) if hard >= OPEN_FILES => ok("open files", format!("up to {hard}")),
        Ok([_, hard]) => warn("open files", format!("at most {hard}"), "raise LimitNOFILE= or `ulimit -Hn`"),
        Err(error) => warn("open files", error.to_string(), "see `man 2 prlimit`"),
    }
}

/// Whether network slots can be made: what they need is asked for, and nothing made.
fn slots(settings: &Settings) -> Vec<Check> {
    let scheme = Scheme::new(&settings.cgroup, &settings.slots);
    let hint = "run this as root (CAP_NET_ADMIN, CAP_SYS_ADMIN), on a kernel with nf_tables, veth and namespaces";
    let kernel = match Net::open(scheme.clone()).observe(&[]) {
        Ok(_) if fs::exists("/proc/self/ns/net").unwrap_or_default() => {
            ok("slots", format!("links and rules can be asked for; room for {}", scheme.capacity()))
        }
        Ok(_) => fail("slots", "the kernel has no network namespaces", hint),
        Err(error) => fail("slots", error.to_string(), hint),
    };
    let mut checks = vec![kernel];
    checks.extend(neighbours(read_number(NEIGHBOURS), settings.slots.count));
    let Some(name) = scheme.uplink() else { return checks };
    let uplink = if fs::exists(Path::new("/sys/class/net").join(name)).unwrap_or_default() {
        ok("uplink", format!("slots reach the world as {name}"))
    } else {
        fail(
            "uplink",
            format!("there is no link `{name}`"),
            "set `slots.uplink` to one that `ip link` shows, or to \"\"",
        )
    };
    checks.push(uplink);
    checks
}

/// How many neighbours the host's ARP table holds, of all namespaces together.
const NEIGHBOURS: &str = "/proc/sys/net/ipv4/neigh/default/gc_thresh3";

/// Whether the host can know as many neighbours as slots are kept ready: whoever speaks to a slot from the host asks
/// for it by ARP. Nothing is said where the limit cannot be read, as in a container.
fn neighbours(limit: Option<u32>, slots: u32) -> Option<Check> {
    let limit = limit?;
    let detail = format!("the ARP table holds {limit} neighbours, and each of {slots} slots may be one");
    let hint =
        "raise `net.ipv4.neigh.default.gc_thresh3` (and gc_thresh2, gc_thresh1) by sysctl to twice `slots.count`";
    Some(if limit > slots { ok("neighbours", detail) } else { warn("neighbours", detail, hint) })
}

fn read_number(path: &str) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Looks at what a daemon has in custody, and at what lives in its cgroups without a row.
pub fn examine_custody(settings: &Settings, entries: &[impl AsRef<Entry>]) -> Vec<Check> {
    let named = |state: State| {
        let found: Vec<&str> = entries
            .iter()
            .map(AsRef::as_ref)
            .filter(|entry| entry.state == state)
            .map(|entry| entry.name.as_str())
            .collect();
        found.join(", ")
    };
    let mut checks = Vec::new();
    let stuck = named(State::Stuck);
    if !stuck.is_empty() {
        let hint = "`sexton show` tells what the kernel waits for; what they hold stays withheld";
        checks.push(fail("stuck", format!("SIGKILL did not end: {stuck}"), hint));
    }
    let unverified = named(State::Unverified);
    if !unverified.is_empty() {
        let hint = "they are judged again at every reconcile, and never signalled meanwhile";
        checks.push(fail("unverified", format!("proven neither ours nor gone: {unverified}"), hint));
    }
    checks.push(orphans(settings, entries));
    checks
}

/// Looks at the daemon itself.
pub fn examine_daemon(host: &Host) -> Vec<Check> {
    let ledger = if host.ledger.writable() {
        ok("ledger", "written")
    } else {
        fail("ledger", "cannot be written", "make room on its disk; stops go on, and their records follow")
    };
    let pins = if host.pins.is_some() {
        ok("pins", "exit codes outlive worker and keeper")
    } else {
        warn("pins", "not to be had", "CAP_SYS_ADMIN and Linux 6.15 pin exit codes; without, the keeper records them")
    };
    let events = match host.event_log.found() {
        None => ok("events", "being checked"),
        Some(Ok(count)) => ok("events", format!("{count} were there at the start, and are sound")),
        Some(Err(problem)) => fail("events", problem, "`sexton ledger verify` tells all that is wrong"),
    };
    vec![ledger, events, pins]
}

/// Live processes in the daemon's own cgroups that no row claims.
fn orphans(settings: &Settings, entries: &[impl AsRef<Entry>]) -> Check {
    let holds = |entry: &&Entry| !entry.state.is_terminal() || !entry.resources.is_empty();
    let Ok(subtree) = Subtree::find(&settings.cgroup) else {
        let mains =
            entries.iter().map(AsRef::as_ref).filter(holds).filter_map(|entry| Some(entry.identity.as_ref()?.pid));
        return escaped(&mains.collect());
    };
    let claimed: BTreeSet<&str> = entries
        .iter()
        .map(AsRef::as_ref)
        .filter(holds)
        .filter_map(|entry| Some(entry.cgroup.as_ref()?.path.as_str()))
        .collect();
    let children = match subtree.children() {
        Ok(children) => children,
        Err(_) if !subtree.exists() => Vec::new(),
        Err(error) => return fail("orphans", chain(&error), "give this user access to it"),
    };
    let paths = children.iter().map(|name| format!("{}/{name}", subtree.path()));
    let unclaimed = paths.filter(|path| !claimed.contains(path.as_str()));
    let opened = unclaimed.filter_map(|path| subtree.find_path(&path).ok());
    // Another daemon's, below ours, is its own to tell of.
    let inside = opened
        .filter(|domain| !matches!(domain.is_subtree(), Ok(true)))
        .filter_map(|domain| domain.processes().ok())
        .flatten();
    let at_root = subtree.processes().unwrap_or_default();
    let found: Vec<String> = inside.chain(at_root).filter(|pid| !strays::is_own(*pid)).map(shown).collect();
    if found.is_empty() {
        return ok("orphans", format!("every process below {} is in custody", subtree.path()));
    }
    let hint = "nobody ends them unasked: bring back the ledger that knows them, or end them yourself";
    fail("orphans", format!("live, and claimed by no instance: {}", found.join(", ")), hint)
}

/// Where no cgroup tells whose a process is: orphans that the keeper inherited, but for the main processes `mains`.
fn escaped(mains: &BTreeSet<Pid>) -> Check {
    let keeper = i32::try_from(sexton_sys::process::parent_pid()).ok().and_then(Pid::new);
    // Without a keeper above, orphans go to the host's own init, among many others.
    let Some(keeper) = keeper else { return ok("orphans", "not looked for: the parent is PID 1") };
    let children = match proc::children(keeper) {
        Ok(children) => children,
        Err(error) => return warn("orphans", chain(&error), "give this user access to it"),
    };
    let me = std::process::id();
    let strangers = children.into_iter().filter(|pid| pid.as_raw().cast_unsigned() != me && !mains.contains(pid));
    // The keeper reaps those that are over in its own time.
    let live = |pid: &Pid| proc::stat(*pid).is_ok_and(|stat| stat.state != 'Z' || stat.threads > 1);
    let found: Vec<String> = strangers.filter(live).map(shown).collect();
    if found.is_empty() {
        return ok("orphans", "the keeper has no child that is no instance");
    }
    let hint = "instances may have started them, and no stop ends them: `sexton adopt` takes one into custody";
    warn("orphans", format!("they lost their parents, and nothing proves whose they are: {}", found.join(", ")), hint)
}

fn shown(pid: Pid) -> String {
    let command = proc::command_line(pid).unwrap_or_default();
    format!("{pid} ({})", crate::log::escape(&command))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, Surroundings, resolve_in};

    fn settings(dir: &Path) -> Settings {
        let flags = Flags {
            config: Some("/dev/null".into()),
            state_dir: Some(dir.display().to_string()),
            run_dir: Some("/nonexistent/run".into()),
            cgroup: Some(format!("sexton-doctor-{}", std::process::id())),
            ..Flags::default()
        };
        resolve_in(&flags, &Surroundings::default()).expect("resolved")
    }

    #[test]
    fn an_examination_changes_nothing_and_every_bad_news_has_a_hint() {
        let dir = std::env::temp_dir().join(format!("sexton-doctor-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("made");
        let mut checks = examine(&settings(&dir));
        checks.extend(examine_custody(&settings(&dir), &Vec::<std::sync::Arc<Entry>>::new()));
        assert_eq!(fs::read_dir(&dir).expect("listed").count(), 0, "the file that was tried has no name");
        for check in &checks {
            assert!(check.grade == Grade::Ok || check.hint.is_some(), "{check:?}");
        }
        assert!(checks.iter().any(|check| check.name == "logs"));
        fs::remove_dir(&dir).expect("removed");
    }

    #[test]
    fn an_arp_table_that_is_too_small_for_the_slots_is_told() {
        let grade = |limit, slots| neighbours(limit, slots).map(|check| check.grade);
        assert_eq!(grade(Some(1_024), 1_000), Some(Grade::Ok));
        assert_eq!(grade(Some(1_024), 1_024), Some(Grade::Warn), "the host has other neighbours too");
        assert_eq!(grade(None, 1_024), None);
        let mut settings = settings(Path::new("/tmp"));
        settings.slots.count = u32::MAX;
        let told = slots(&settings).into_iter().find(|check| check.name == "neighbours");
        assert_eq!(told.is_some(), fs::exists(NEIGHBOURS).expect("looked"), "{told:?}");
    }

    #[test]
    fn a_directory_that_others_may_write_is_wrong() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = std::env::temp_dir().join(format!("sexton-doctor-mode-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("made");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).expect("opened up");
        assert_eq!(directory("x", &dir).grade, Grade::Fail);
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("closed");
        assert_eq!(directory("x", &dir).grade, Grade::Ok);
        fs::remove_dir(&dir).expect("removed");
    }
}
