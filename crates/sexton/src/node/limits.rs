//! Limits of one instance: in its own cgroup where cgroup2 has the controllers, in the v1 hierarchies where the host
//! keeps them there, refused where it has neither.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sexton_core::cgroup_dir::{make_with_way, remove_tree, remove_with_way};
use sexton_core::domain::{Domain, DomainError};
use sexton_core::pin::Released;
use sexton_core::proc::{self, ReadProcError};
use sexton_ledger::entry::Limits;
use sexton_plan::id::Pid;

/// Where v1 hierarchies are mounted on a hybrid host (`cgroups(7)`).
const V1_ROOT: &str = "/sys/fs/cgroup";
/// The v1 controllers that can keep a limit of ours.
const V1_CONTROLLERS: [&str; 2] = ["pids", "memory"];

/// What the kernel may charge to a cgroup for a program before that has memory of its own, beside its arguments and its
/// environment. BOUND: some hundred KiB were seen; pages and page tables may be sixteen times as large elsewhere.
const EXEC_NEEDS: u64 = 16 << 20;

/// Whether a program with `text` bytes of arguments and environment may run out of memory before it has any of its own.
pub fn is_scarce(limits: &Limits, text: usize) -> bool {
    let needs = EXEC_NEEDS.saturating_add(text.try_into().unwrap_or(u64::MAX));
    limits.memory.is_some_and(|memory| memory < needs)
}

/// Why a limit is not kept: it is never silently ignored.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// A v1 hierarchy refused it, or the process that it is for.
    #[error("limit `{controller}` on `{}`", .dir.display())]
    V1 {
        /// What keeps it.
        controller: &'static str,
        /// Where.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The host keeps such a limit nowhere.
    #[error("limit `{controller}` is not available on this host")]
    V2 {
        /// What would keep it.
        controller: &'static str,
        /// Why.
        source: DomainError,
    },
}

/// One limit: its v1 controller, the v1 file, the cgroup2 file, the value.
fn wanted(limits: &Limits) -> impl Iterator<Item = (&'static str, &'static str, &'static str, u64)> {
    let pids = limits.pids.map(|value| ("pids", "pids.max", "pids.max", value));
    let memory = limits.memory.map(|value| ("memory", "memory.limit_in_bytes", "memory.max", value));
    pids.into_iter().chain(memory)
}

/// The hierarchies of v1 that keep limits on this host, and the daemon's own place in each.
///
/// They are looked for once, when the worker begins: what is recorded as an intent, what is made and what a process is
/// moved into must be the same.
#[derive(Clone, Debug)]
pub struct V1 {
    subtree: String,
    controllers: Vec<&'static str>,
}

impl V1 {
    /// Finds them, and makes the places, which last as the cgroup2 subtree does.
    ///
    /// # Errors
    /// It cannot be told whether the host has one.
    pub fn make(subtree: &str) -> io::Result<V1> {
        let controllers = look_v1(Path::new(V1_ROOT))?;
        for controller in &controllers {
            let dir = v1_dir(subtree, controller, "");
            if let Err(error) = make_with_way(&dir) {
                tracing::warn!(%error, dir = %dir.display(), "no place for v1 limits");
            }
        }
        Ok(V1 { subtree: subtree.to_owned(), controllers })
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.contains(&controller)
    }

    /// The controllers that `limits` need.
    pub fn needed(&self, limits: &Limits) -> impl Iterator<Item = &'static str> {
        wanted(limits).map(|(controller, ..)| controller).filter(|controller| self.has(controller))
    }

    /// Sets `limits` for the incarnation whose cgroup is `domain`, called `name`.
    ///
    /// # Errors
    /// The host keeps such a limit nowhere: it is never silently ignored.
    pub fn apply(&self, domain: &Domain, name: &str, limits: &Limits) -> Result<(), LimitError> {
        for (controller, v1_file, v2_file, value) in wanted(limits) {
            if self.has(controller) {
                let dir = v1_dir(&self.subtree, controller, name);
                let set = || -> io::Result<()> {
                    fs::create_dir_all(&dir)?;
                    fs::write(dir.join(v1_file), value.to_string())
                };
                set().map_err(|source| LimitError::V1 { controller, dir, source })?;
            } else {
                domain.limit(v2_file, value).map_err(|source| LimitError::V2 { controller, source })?;
            }
        }
        Ok(())
    }

    /// Moves a waiting process under the limits of its incarnation, by the number that the caller holds a pidfd of.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn take_in(&self, limits: &Limits, name: &str, pid: Pid) -> Result<(), LimitError> {
        for controller in self.needed(limits) {
            let dir = v1_dir(&self.subtree, controller, name);
            let moved = fs::write(dir.join("cgroup.procs"), pid.to_string());
            moved.map_err(|source| LimitError::V1 { controller, dir, source })?;
        }
        Ok(())
    }

    /// Where a process is, in the hierarchies that `limits` need: `controller/path` of each.
    ///
    /// # Errors
    /// It is gone, or cannot be read.
    pub fn origins(&self, limits: &Limits, pid: Pid) -> Result<Vec<String>, ReadProcError> {
        let path = |controller: &str| Ok(format!("{controller}{}", proc::cgroup_v1_path(pid, controller)?));
        self.needed(limits).map(path).collect()
    }
}

/// The controllers that are mounted below `root`, as v1 mounts them.
fn look_v1(root: &Path) -> io::Result<Vec<&'static str>> {
    let mut found = Vec::new();
    for controller in V1_CONTROLLERS {
        match fs::metadata(root.join(controller).join("cgroup.procs")) {
            Ok(_) => found.push(controller),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Moves everybody in the v1 cgroup `key` to the one of `origins` in the same hierarchy, or to its root where that is
/// gone.
///
/// # Errors
/// The kernel refused to tell who is there, or to move somebody who has not ended.
pub fn empty_v1<'k>(subtree: &str, key: &str, mut origins: impl Iterator<Item = &'k str>) -> Result<(), String> {
    let Some((controller, name)) = key.split_once('/') else { return Ok(()) };
    let from = v1_dir(subtree, controller, name);
    let root = Path::new(V1_ROOT).join(controller);
    let home = origins.find_map(|origin| origin.split_once('/').filter(|(of, _)| *of == controller));
    let home = home.map(|(_, path)| root.join(path)).filter(|home| !is_gone(fs::metadata(home))).unwrap_or(root);
    // Listed is each process of which any thread is there, and its number moves the whole of it.
    let text = match fs::read_to_string(from.join("cgroup.procs")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|error| format!("{}: {error}", from.display()))?,
    };
    for id in text.lines().filter_map(|id| Pid::new(id.parse().ok()?)) {
        match fs::write(home.join("cgroup.procs"), id.to_string()) {
            Err(error) if error.raw_os_error() == Some(sexton_sys::Errno::ESRCH.0) => {}
            moved => moved.map_err(|error| format!("{}: {error}", home.display()))?,
        }
    }
    Ok(())
}

fn is_gone<T>(looked: io::Result<T>) -> bool {
    looked.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Removes the v1 cgroup `key` (`controller/name`), and what its workload made below.
///
/// # Errors
/// A process lives in it.
pub fn release_v1(subtree: &str, key: &str) -> Result<Released, String> {
    let Some((controller, name)) = key.split_once('/') else { return Ok(Released::WasGone) };
    remove_tree(&v1_dir(subtree, controller, name)).map_err(|error| error.to_string())
}

/// Removes the places of v1 limits that are empty.
pub fn remove_v1(subtree: &str) {
    for controller in V1_CONTROLLERS {
        let _gone = remove_with_way(&v1_dir(subtree, controller, ""));
    }
}

/// The v1 cgroup of one life, in the daemon's own place.
fn v1_dir(subtree: &str, controller: &str, name: &str) -> PathBuf {
    Path::new(V1_ROOT).join(controller).join(subtree.trim_matches('/')).join(name)
}
