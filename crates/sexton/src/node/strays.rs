//! What bears this node's mark on the host: looked at, and removed where the plan says that it is nobody's.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use sexton_core::domain::{Domain, DomainError};
use sexton_core::handle::Handle;
use sexton_core::proc::{self, Here};
use sexton_ledger::entry::Entry;
use sexton_plan::id::{Incarnation, Pid};
use sexton_plan::world::{Content, Marked, MarkedKind, Owner};
use sexton_sys::wait;

use super::host::{Host, SharedHost};
use super::request::Unclaimed;
use super::stop;
use crate::chain::chain;

/// What one look found on this host in our name, before anybody asked whose it is.
#[derive(Debug, Default)]
pub struct Strays {
    marks: Vec<String>,
    logs: Vec<String>,
    pins: Vec<String>,
    cgroups: Vec<String>,
    /// In the subtree's own cgroup, where no instance lives.
    at_root: Vec<Pid>,
    /// Children of this worker that have ended.
    ended: Vec<Handle>,
}

/// A live process in our cgroups that no row claims.
#[derive(Clone, Debug)]
pub struct Orphan {
    /// Its number.
    pub pid: Pid,
    /// Its start tick, so that a reused number is told again.
    pub start_ticks: Option<u64>,
    /// Where it lives.
    pub cgroup: String,
}

impl Strays {
    /// Begins a look at marks, logs, pins and cgroups, beside whatever else goes on. What cannot be read is not there to
    /// be cleared away.
    pub fn look(host: &SharedHost) -> impl Future<Output = Strays> + use<> {
        let seen = Arc::clone(host);
        let pins = host.with_pins(|pins| pins.keys().unwrap_or_default());
        let rest = tokio::task::spawn_blocking(move || Strays::look_beside_pins(&seen));
        async move { Strays { pins: pins.await.unwrap_or_default(), ..rest.await.unwrap_or_default() } }
    }

    fn look_beside_pins(host: &Host) -> Strays {
        let (marks, logs) = (names(&host.paths.marks()), names(&host.paths.all_logs()));
        let cgroups = host.subtree.as_ref().map(|subtree| subtree.children().unwrap_or_default()).unwrap_or_default();
        let at_root = host.subtree.as_ref().map(|subtree| subtree.processes().unwrap_or_default()).unwrap_or_default();
        Strays { marks, logs, pins: Vec::new(), cgroups, at_root, ended: ended_children(&host.here) }
    }

    /// Reaps who ended as a child of this worker and is the process of no row of `entries`, which were read after the
    /// look, and none of those that are `owed`, which alone know an exit that is not durable yet: a workload can have
    /// children that are its parent's (`CLONE_PARENT`), and they hold a number until then.
    pub fn reap(&self, entries: &[Arc<Entry>], owed: &BTreeSet<u32>) {
        let is_being_made = |entry: &Arc<Entry>| !entry.state.is_terminal() && entry.identity.is_none();
        if self.ended.is_empty() || entries.iter().any(is_being_made) {
            // It may be the child of a start under way, of which no row tells yet; the next pass sees it again.
            return;
        }
        let known: HashSet<Pid> =
            entries.iter().filter_map(|entry| entry.identity.as_ref()).map(|identity| identity.pid).collect();
        let is_known = |pid: Pid| known.contains(&pid) || owed.contains(&pid.as_raw().cast_unsigned());
        for child in self.ended.iter().filter(|child| !is_known(child.identity().pid)) {
            // RACE: one of a life that has ended since the look was reaped by that, and is nobody's child any more.
            if let Ok(Some(status)) = child.reap() {
                tracing::info!(pid = %child.identity().pid, ?status, "reaped what a workload had left to this worker");
            }
        }
    }

    /// What was found that no row of `entries` claims, which were read after the look; and who lives there.
    pub fn unclaimed(&self, host: &Host, entries: &[Arc<Entry>]) -> (Vec<Marked>, Vec<Orphan>) {
        let lives = lives(entries);
        let listed: HashSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        // What does not bear a life's name was not made by a start of ours.
        let is_of_no_life = |life: &&String| life.parse::<Incarnation>().is_ok() && !lives.contains(life.as_str());
        let cgroups: Vec<&str> =
            self.cgroups.iter().map(String::as_str).filter(|name| !is_of_life(name, &lives)).collect();
        let orphans = self.orphans(host, &cgroups);
        // Beside a ledger that is new, logs, pins and marks may be all that is left of what the old one knew.
        let owner = if host.fresh_ledger { Owner::Forgotten } else { Owner::Nobody };
        let plain = |kind, key: &String| Marked { kind, key: key.clone(), ino: None, owner, content: Content::Dead };
        let is_of_nobody =
            |name: &&String| !listed.contains(name.as_str()) && holds_logs_alone(&host.paths.all_logs().join(name));
        let logs = self.logs.iter().filter(is_of_nobody).map(|key| plain(MarkedKind::Logs, key));
        if !host.ledger.writable() {
            // An exit that is owed to it may be known to its pin alone.
            return (logs.collect(), orphans);
        }
        let marks = self.marks.iter().filter(is_of_no_life).map(|key| plain(MarkedKind::Mark, key));
        let pins = self.pins.iter().filter(is_of_no_life).map(|key| plain(MarkedKind::Pin, key));
        let ours =
            cgroups.into_iter().filter(|name| life_of(name).is_some_and(|life| life.parse::<Incarnation>().is_ok()));
        let cgroups = ours.filter_map(|name| stray_cgroup(host, name));
        (marks.chain(logs).chain(pins).chain(cgroups).collect(), orphans)
    }

    /// Live processes in those `cgroups` that no row claims, and in the subtree's own.
    fn orphans(&self, host: &Host, cgroups: &[&str]) -> Vec<Orphan> {
        let mut orphans: Vec<Orphan> = cgroups.iter().flat_map(|name| living(host, name)).collect();
        let path = host.subtree.as_ref().map_or("", |subtree| subtree.path());
        orphans.extend(self.at_root.iter().filter(|pid| !is_own(**pid)).map(|pid| orphan(*pid, path)));
        orphans
    }
}

/// Whom a drain waits for although no row of `entries` claims them: nobody knows whose they are, so nobody ends them.
pub fn inhabited(host: &Host, entries: &[Arc<Entry>]) -> Vec<Unclaimed> {
    let Some(subtree) = host.subtree.as_ref() else { return Vec::new() };
    let unread = |cgroup: &str, error: &DomainError| {
        Some(Unclaimed { cgroup: cgroup.to_owned(), error: format!("it could not be read: {}", chain(error)) })
    };
    let told = |cgroup: &str, living: Vec<Pid>| {
        // None is named where they are out of sight, in another PID namespace.
        let living: Vec<String> = living.iter().map(|pid| format!(" {pid}")).collect();
        let error = format!("no row claims what lives in it:{}", living.join(","));
        Some(Unclaimed { cgroup: cgroup.to_owned(), error })
    };
    let at_root = match subtree.processes() {
        Ok(mut living) => {
            living.retain(|pid| !is_own(*pid));
            if living.is_empty() { None } else { told(subtree.path(), living) }
        }
        Err(error) => unread(subtree.path(), &error),
    };
    let lives = lives(entries);
    let names = subtree.children();
    let unlisted = names.as_ref().err().and_then(|error| unread(subtree.path(), error));
    let names = names.unwrap_or_default().into_iter().filter(|name| !is_of_life(name, &lives));
    let below = names.filter_map(|name| {
        let path = format!("{}/{name}", subtree.path());
        let look = || {
            let Some(domain) = stop::unless_gone(subtree.find_path(&path))? else { return Ok(None) };
            if domain.is_subtree()? || !domain.is_populated()? {
                return Ok(None);
            }
            let living = domain.processes()?;
            let is_ours_alone = !living.is_empty() && living.iter().all(|pid| is_own(*pid));
            Ok(if is_ours_alone { None } else { Some(living) })
        };
        look().map_or_else(|error| unread(&path, &error), |living| told(&path, living?))
    });
    at_root.into_iter().chain(unlisted).chain(below).collect()
}

/// Whether it is the keeper or this worker: under systemd they live in the subtree's own cgroup, or in a leaf of it
/// (`DelegateSubgroup=`).
pub fn is_own(pid: Pid) -> bool {
    [std::process::id(), sexton_sys::process::parent_pid()].contains(&pid.as_raw().cast_unsigned())
}

/// Holds on the children of this worker that have ended and not been reaped.
fn ended_children(here: &Here) -> Vec<Handle> {
    let children = proc::own_children().unwrap_or_default().into_iter();
    let has_ended = |pid: &Pid| matches!(wait::peek(pid.as_raw().cast_unsigned()), Ok(Some(_)));
    children.filter(has_ended).filter_map(|pid| Handle::open(pid, here).ok()).collect()
}

/// The lives that hold something.
fn lives(entries: &[Arc<Entry>]) -> HashSet<&str> {
    let live = |entry: &&Arc<Entry>| !entry.state.is_terminal() || !entry.resources.is_empty();
    entries.iter().filter(live).map(|entry| entry.incarnation.as_str()).collect()
}

/// The life by which a cgroup is named.
fn life_of(cgroup: &str) -> Option<&str> {
    cgroup.rsplit_once('.').map(|(_, life)| life)
}

fn is_of_life(cgroup: &str, lives: &HashSet<&str>) -> bool {
    life_of(cgroup).is_some_and(|life| lives.contains(life))
}

/// The names in a directory; none where it cannot be read.
fn names(dir: &Path) -> Vec<String> {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    files.map(|file| file.file_name().to_string_lossy().into_owned()).collect()
}

/// Whether all that a directory holds are logs of lives: what anybody else has laid there is not ours to remove.
fn holds_logs_alone(dir: &Path) -> bool {
    let is_log = |file: fs::DirEntry| {
        let name = file.file_name();
        name.to_str().and_then(|name| name.split_once('.')).is_some_and(|(life, _)| life.parse::<Incarnation>().is_ok())
    };
    fs::read_dir(dir).is_ok_and(|mut files| files.all(|file| file.is_ok_and(is_log)))
}

fn orphan(pid: Pid, cgroup: &str) -> Orphan {
    let start_ticks = proc::stat(pid).ok().map(|stat| stat.start_ticks);
    Orphan { pid, start_ticks, cgroup: cgroup.to_owned() }
}

/// Removes one thing that the plan says is nobody's. Gone is done.
///
/// # Errors
/// It is in use after all, or the kernel refused.
pub async fn release(host: &Host, kind: MarkedKind, key: &str, ino: Option<u64>) -> Result<(), String> {
    let gone = |removed: io::Result<()>| match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.to_string()),
        Ok(()) | Err(_) => Ok(()),
    };
    match kind {
        MarkedKind::Mark => gone(fs::remove_file(host.paths.marks().join(key))),
        MarkedKind::Logs => gone(fs::remove_dir_all(host.paths.all_logs().join(key))),
        MarkedKind::Pin => {
            let key = key.to_owned();
            let unpinned = host.with_pins(move |pins| pins.unpin(&key).map(drop).map_err(|error| error.to_string()));
            unpinned.await.unwrap_or(Ok(()))
        }
        MarkedKind::Cgroup => release_cgroup(host, key, ino),
    }
}

fn release_cgroup(host: &Host, name: &str, ino: Option<u64>) -> Result<(), String> {
    let (Some(subtree), Some(ino)) = (host.subtree.as_ref(), ino) else { return Ok(()) };
    let reopened = stop::unless_gone(subtree.find_again(&format!("{}/{name}", subtree.path()), ino));
    let Some(domain) = reopened.map_err(|error| chain(&error))? else { return Ok(()) };
    match content(&domain) {
        Content::Dead => domain.remove().map(drop).map_err(|error| chain(&error)),
        Content::Living | Content::Unread => Err("something lives in it, or it could not be read".to_owned()),
    }
}

/// The cgroup `name`, which no row claims; `None` where it is gone.
fn stray_cgroup(host: &Host, name: &str) -> Option<Marked> {
    let subtree = host.subtree.as_ref()?;
    let opened = stop::unless_gone(subtree.find_path(&format!("{}/{name}", subtree.path())));
    let (ino, content) = match opened {
        Ok(domain) => {
            let domain = domain?;
            (Some(domain.ino()), content(&domain))
        }
        Err(_) => (None, Content::Unread),
    };
    Some(Marked { kind: MarkedKind::Cgroup, key: name.to_owned(), ino, owner: Owner::Nobody, content })
}

/// What is in a cgroup; another daemon's below ours is never empty.
fn content(domain: &Domain) -> Content {
    let is_dead = || -> Result<bool, DomainError> {
        Ok(!domain.is_populated()? && domain.processes()?.is_empty() && !domain.is_subtree()?)
    };
    match is_dead() {
        Ok(true) => Content::Dead,
        Ok(false) => Content::Living,
        Err(_) => Content::Unread,
    }
}

/// What lives in the cgroup `name`.
fn living(host: &Host, name: &str) -> Vec<Orphan> {
    let Some(subtree) = host.subtree.as_ref() else { return Vec::new() };
    let path = format!("{}/{name}", subtree.path());
    let living = || -> Result<Vec<Pid>, DomainError> {
        let Some(domain) = stop::unless_gone(subtree.find_path(&path))? else { return Ok(Vec::new()) };
        // Another daemon's, below ours.
        if domain.is_subtree()? { Ok(Vec::new()) } else { domain.processes() }
    };
    match living() {
        Ok(found) => found.into_iter().filter(|pid| !is_own(*pid)).map(|pid| orphan(pid, &path)).collect(),
        Err(error) => {
            tracing::warn!(error = chain(&error), "stray cgroup not read");
            Vec::new()
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_types, clippy::zombie_processes, reason = "a zombie is what is tested")]
mod tests {
    use sexton_core::handle::Life;
    use sexton_plan::state::State;

    use super::*;
    use crate::node::sample;

    #[test]
    fn a_pass_reaps_who_is_the_process_of_no_row_and_of_no_end_that_is_owed() {
        let here = proc::here().expect("readable");
        let child = std::process::Command::new("true").spawn().expect("runs");
        let pid = Pid::new(child.id().cast_signed()).expect("not init");
        let handle = Handle::open(pid, &here).expect("a hold");
        let is_zombie = || matches!(handle.life(), Ok(Life::Zombie(_)));
        while !is_zombie() {
            std::thread::yield_now();
        }
        let seen = || Strays { ended: vec![Handle::open(pid, &here).expect("a hold")], ..Strays::default() };
        let known = Entry { identity: Some(handle.identity().clone()), ..sample::entry("its") };
        let being_made = Entry { state: State::Starting, ..sample::entry("another") };
        let over = Entry { state: State::Exited, ..sample::entry("over") };
        let (nobody, it) = (BTreeSet::new(), BTreeSet::from([child.id()]));
        // Where the kernel keeps no status (before Linux 6.15), whoever reaps it is the only one to know its exit.
        for (entry, owed) in [(known, &nobody), (being_made, &nobody), (over.clone(), &it)] {
            seen().reap(&[Arc::new(entry)], owed);
            assert!(is_zombie());
        }
        seen().reap(&[Arc::new(over)], &nobody);
        assert!(!is_zombie(), "it is nobody's");
    }
}
