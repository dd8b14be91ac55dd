//! What a host shows from outside: mounts, cgroups, namespaces, links.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where cgroup2 is mounted.
pub fn cgroup2() -> Option<PathBuf> {
    let found = mounts().into_iter().find(|(_, kind)| kind == "cgroup2")?;
    Some(found.0)
}

/// Every mount point with its kind of file system, in the order of mounting.
fn mounts() -> Vec<(PathBuf, String)> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let (point, kind) = (before.split(' ').nth(4)?, after.split(' ').next()?);
        Some((PathBuf::from(point), kind.to_owned()))
    };
    text.lines().filter_map(mount).collect()
}

/// The mount points at or below `dir`, the innermost first.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        mounts().into_iter().map(|(point, _)| point).filter(|point| point.starts_with(dir)).collect();
    found.reverse();
    found
}

/// The directory and all below, the deepest last. What is removed meanwhile is left out.
pub(crate) fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_owned()];
    let mut next = 0;
    while let Some(dir) = found.get(next).cloned() {
        next += 1;
        let Ok(entries) = fs::read_dir(dir) else { continue };
        let dirs = entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        found.extend(dirs.map(|entry| entry.path()));
    }
    found
}

/// The processes in the cgroup directory `dir` and below.
pub fn processes_in(dir: &Path) -> Vec<i32> {
    let text = |dir: PathBuf| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let pids = |text: String| text.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>();
    tree(dir).into_iter().flat_map(|dir| pids(text(dir))).filter(|pid| *pid > 1).collect()
}

/// What can be left behind on a host, each as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSnapshot {
    things: BTreeSet<String>,
}

impl HostSnapshot {
    /// What is here that was not there in `before`.
    pub fn new_since(&self, before: &HostSnapshot) -> Vec<String> {
        self.things.difference(&before.things).cloned().collect()
    }

    /// What was there in `before` and is not here.
    pub fn gone_since(&self, before: &HostSnapshot) -> Vec<String> {
        before.new_since(self)
    }

    /// Without everything that holds `word`, as of tests that run beside this one.
    #[must_use]
    pub fn without(mut self, word: &str) -> HostSnapshot {
        self.things.retain(|thing| !thing.contains(word));
        self
    }
}

/// Looks at every mount, cgroup2 directory, named network namespace, and network link.
pub fn host_snapshot() -> HostSnapshot {
    let mut things: BTreeSet<String> =
        mounts().into_iter().map(|(at, kind)| format!("mount {kind} {}", at.display())).collect();
    if let Some(root) = cgroup2() {
        things.extend(tree(&root).into_iter().map(|dir| format!("cgroup {}", dir.display())));
    }
    for (kind, dir) in [("netns", "/run/netns"), ("link", "/sys/class/net")] {
        let Ok(entries) = fs::read_dir(dir) else { continue };
        let names = entries.filter_map(Result::ok).map(|entry| entry.file_name());
        things.extend(names.map(|name| format!("{kind} {}", String::from_utf8_lossy(name.as_bytes()))));
    }
    HostSnapshot { things }
}
