//! Finding instances again: look, judge, go on. A normal start and a restart are this one path.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use sexton_core::domain::Domain;
use sexton_core::handle::{Handle, Life as ProcessLife, OpenHandleError};
use sexton_core::pin::Pins;
use sexton_core::proc;
use sexton_ledger::entry::Entry;
use sexton_ledger::{Batch, EventKind};
use sexton_plan::id::{Incarnation, Pid};
use sexton_plan::judge::{Claimed, MarkSeen, ProcessSeen, Verdict, judge};
use sexton_plan::state::{ExitSource, ExitStatus, LostReason, State};
use sexton_sys::clone::{ChildFailure, MARK_RELEASED};

use super::crash::crash_point;
use super::host::Host;
use super::life::{Command, Life, Next, RollBack, fact, now};
use super::process::Process;
use super::start::chain;

/// What a start says that was cut off before its program ran.
pub const INTERRUPTED: &str = "the daemon ended before the program ran";

/// One look at one recorded instance.
pub struct Seen {
    process: ProcessSeen,
    handle: Option<Arc<Handle>>,
    mark: MarkSeen,
    refused: Option<ChildFailure>,
    why: Option<String>,
}

/// Looks for the recorded main process, by the kernel's own handle: nothing is read of it.
pub fn look(entry: &Entry, host: &Host) -> Seen {
    let (mark, refused) =
        if entry.state == State::Starting { look_mark(entry, host) } else { (MarkSeen::Absent, None) };
    let seen =
        |process, handle: Option<Handle>, why| Seen { process, handle: handle.map(Arc::new), mark, refused, why };
    let Some(identity) = &entry.identity else { return seen(ProcessSeen::NotRecorded, None, None) };
    if entry.state.is_terminal() {
        return seen(ProcessSeen::Gone, None, None);
    }
    let witness = entry.cgroup.as_ref().map(|cgroup| cgroup.ino);
    match Handle::reopen(identity, &entry.handle, witness, &host.here) {
        Ok(handle) => seen(ProcessSeen::Same, Some(handle), None),
        Err(OpenHandleError::Gone) => seen(ProcessSeen::Gone, None, None),
        Err(error @ (OpenHandleError::Unproven | OpenHandleError::Sys(_) | OpenHandleError::Proc(_))) => {
            seen(ProcessSeen::Unproven, None, Some(chain(&error)))
        }
    }
}

/// How far a start came that nobody saw through.
fn look_mark(entry: &Entry, host: &Host) -> (MarkSeen, Option<ChildFailure>) {
    let Ok(bytes) = fs::read(host.paths.mark(&entry.incarnation)) else { return (MarkSeen::Absent, None) };
    let Ok(bytes) = <[u8; 8]>::try_from(bytes.as_slice()) else { return (MarkSeen::Absent, None) };
    match ChildFailure::from_bytes(bytes) {
        Some(failure) => (MarkSeen::Refused, Some(failure)),
        None if bytes == MARK_RELEASED => (MarkSeen::Released, None),
        None => (MarkSeen::Waiting, None),
    }
}

/// Why the program of a life never ran, where its mark says so.
pub fn refused_by_mark(entry: &Entry, host: &Host) -> Option<String> {
    look_mark(entry, host).1.map(spawn_refusal)
}

/// The facts about a row on which its judgement rests.
pub fn claimed(entry: &Entry) -> Claimed {
    Claimed {
        state: entry.state,
        stop_ordered: entry.stop.is_some(),
        exit_known: entry.exit.is_some(),
        holds_resources: !entry.resources.is_empty(),
    }
}

impl Life {
    /// Judges the instance by what was seen of it; tells what comes next, and adds to `owed` what is to be recorded.
    pub fn judged(&mut self, seen: Seen, owed: &mut Batch) -> Next {
        let Seen { process, handle, mark, refused, why } = seen;
        if self.entry.adopted && self.entry.state == State::Starting {
            // Nobody was told that it is in custody.
            if let Some(handle) = &handle {
                handle.untag();
            }
            return Next::GiveUpAdoption;
        }
        let process_of = |handle: Option<Arc<Handle>>| handle.and_then(|handle| Process::watch(handle).ok());
        match judge(claimed(&self.entry), process, mark) {
            Verdict::Adopt => match process_of(handle) {
                Some(process) => {
                    self.adopt(owed);
                    Next::Guard(process)
                }
                None => self.doubted("its pidfd cannot be watched", owed),
            },
            Verdict::FinishStop => match process_of(handle) {
                Some(process) => Next::End(Some(process)),
                None => self.doubted("its pidfd cannot be watched", owed),
            },
            Verdict::RollBack => {
                let reason = refused.map_or(INTERRUPTED.to_owned(), spawn_refusal);
                Next::RollBack(RollBack { reason, process: process_of(handle), reply: None })
            }
            Verdict::Close => Next::Close,
            Verdict::Release | Verdict::Rest => Next::Rest,
            Verdict::LeaveUnverified => self.doubted(why.as_deref().unwrap_or("its identity is not proven"), owed),
        }
    }

    /// Takes custody again of a process that was found alive. Shown at once; the record follows in its order.
    fn adopt(&mut self, owed: &mut Batch) {
        let mut next = (*self.entry).clone();
        let events = &mut owed.events;
        if next.state == State::Starting {
            next.started_at = Some(now());
            events.push(fact(EventKind::InstanceRunning, &next, json!({ "pid": pid_of(&next) })));
        }
        if !next.adopted {
            let strength = next.identity.as_ref().map(|identity| identity.strength());
            events.push(fact(EventKind::InstanceAdopted, &next, json!({ "pid": pid_of(&next), "strength": strength })));
        }
        let unchanged = next.adopted && next.state == State::Running;
        next.adopted = true;
        next.state = State::Running;
        next.reason = None;
        if !unchanged {
            owed.puts.push(next.clone());
        }
        // Whoever asked for it was never answered; the next try is.
        if let Some(request) = self.answered(201, || serde_json::to_string(&next).unwrap_or_default()) {
            self.host.owe_unwaited(Batch { request: Some(request), ..Batch::default() });
        }
        self.show(next);
    }

    /// Neither ours nor gone for certain: says so and keeps hands off.
    fn doubted(&mut self, why: &str, owed: &mut Batch) -> Next {
        if self.entry.state != State::Unverified || self.entry.reason.as_deref() != Some(why) {
            let mut next = (*self.entry).clone();
            next.state = State::Unverified;
            next.reason = Some(why.to_owned());
            owed.events.push(fact(EventKind::InstanceUnverified, &next, json!({ "reason": why })));
            owed.puts.push(next.clone());
            self.show(next);
        }
        Next::Doubt
    }

    /// Unverified: refuses what would touch the process, and judges again when asked to.
    pub(super) async fn doubt(&mut self) -> Next {
        loop {
            let Some(command) = self.mailbox.recv().await else { return std::future::pending().await };
            match command {
                Command::Rejudge => {
                    let seen = look(&self.entry, &self.host);
                    let mut owed = Batch::default();
                    let next = self.judged(seen, &mut owed);
                    self.host.owe_unwaited(owed);
                    if !matches!(next, Next::Doubt) {
                        return next;
                    }
                }
                Command::Snapshot { value, caller, reply } => self.keep_snapshot(value, &caller, reply).await,
                Command::Start { reply, .. }
                | Command::Stop { reply, .. }
                | Command::Signal { reply, .. }
                | Command::Remove { reply, .. } => self.refuse(reply, "is not proven to be ours, and is left alone"),
            }
        }
    }

    /// Gone while nobody was there: its exit from the ladder, or lost with the reason.
    pub(super) async fn close(&mut self) -> Next {
        crash_point!("close.begun");
        let mut reason = LostReason::Vanished;
        if self.entry.exit.is_none() {
            match self.told_afterwards().await {
                Some((status, source)) => self.learned(status, source),
                None => reason = self.lost_reason(),
            }
        }
        if self.entry.state == State::Starting {
            // It ran, for its mark says so, and nobody was told.
            let mut next = (*self.entry).clone();
            next.started_at = Some(now());
            let events = vec![fact(EventKind::InstanceRunning, &next, json!({ "pid": pid_of(&next) }))];
            self.owe(next, events).await;
        }
        self.finish(None, reason).await
    }

    /// Asks the pin, then the keeper.
    async fn told_afterwards(&self) -> Option<(ExitStatus, ExitSource)> {
        let identity = self.entry.identity.clone()?;
        let (key, recorded) = (self.entry.incarnation.to_string(), identity.clone());
        let pinned = self.host.with_pins(move |pins| pins.open(&key, &recorded)).await;
        let handle = pinned.and_then(|opened| match opened {
            Ok(handle) => handle,
            Err(error) => {
                tracing::warn!(%error, "pin not opened");
                None
            }
        });
        if let Some(ProcessLife::Reaped(Some(status))) = handle.and_then(|handle| handle.life().ok()) {
            return Some((status, ExitSource::Pin));
        }
        let (_, status) = self.host.keeper.exit_of(&identity)?;
        Some((status, ExitSource::Keeper))
    }

    fn lost_reason(&self) -> LostReason {
        let Some(identity) = &self.entry.identity else { return LostReason::Vanished };
        if identity.boot_id != self.host.here.boot_id {
            return LostReason::Reboot;
        }
        if identity.pid_ns != self.host.here.pid_ns {
            return LostReason::ContainerRestart;
        }
        let reused =
            proc::stat(identity.pid).is_ok_and(|stat| identity.start_ticks.is_some_and(|t| t != stat.start_ticks));
        if reused { LostReason::PidReused } else { LostReason::Vanished }
    }
}

fn pid_of(entry: &Entry) -> Option<sexton_plan::id::Pid> {
    entry.identity.as_ref().map(|identity| identity.pid)
}

fn spawn_refusal(failure: ChildFailure) -> String {
    sexton_core::spawn::NeverRan(failure).to_string()
}

/// What one look found on this host in our name, before anybody asked whose it is.
#[derive(Debug, Default)]
pub struct Strays {
    marks: Vec<String>,
    logs: Vec<String>,
    pins: Vec<String>,
    cgroups: Vec<String>,
    /// In the subtree's own cgroup, where no instance lives.
    at_root: Vec<Pid>,
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
    /// Looks at marks, logs, pins and cgroups. What cannot be read is not there to be cleared away.
    pub async fn look(host: &Host) -> Strays {
        let (marks, logs) = (names(&host.paths.marks()), names(&host.paths.all_logs()));
        let pins = host.with_pins(|pins| pins.keys().unwrap_or_default()).await.unwrap_or_default();
        let cgroups = host.subtree.as_ref().map(|subtree| subtree.children().unwrap_or_default()).unwrap_or_default();
        let at_root = host.subtree.as_ref().map(|subtree| subtree.processes().unwrap_or_default()).unwrap_or_default();
        Strays { marks, logs, pins, cgroups, at_root }
    }

    /// Removes what belongs to no row of `entries`, which were read after the look: marks and pins of lives that are
    /// over, logs of instances that are off the list, empty cgroups. Tells of live processes in cgroups that no row
    /// claims, and leaves them alone.
    pub async fn clear(self, host: &Host, entries: &[Arc<Entry>]) -> Vec<Orphan> {
        let lives = lives(entries);
        for mark in self.marks.iter().filter(|mark| !lives.contains(mark.as_str())) {
            let _gone = fs::remove_file(host.paths.marks().join(mark));
        }
        let listed: BTreeSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        // Beside a ledger that is new, logs may be all that is left of what the old one knew.
        let kept = |name: &&String| host.fresh_ledger || listed.contains(name.as_str());
        for name in self.logs.iter().filter(|name| !kept(name)) {
            let _gone = fs::remove_dir_all(host.paths.all_logs().join(name));
        }
        let stray: Vec<String> = self.pins.iter().filter(|key| !lives.contains(key.as_str())).cloned().collect();
        if !stray.is_empty() {
            host.with_pins(move |pins| unpin_all(pins, &stray)).await;
        }
        for name in self.unclaimed(entries) {
            clear_cgroup(host, name);
        }
        self.orphans(host, entries)
    }

    /// Live processes in our cgroups that no row of `entries` claims.
    pub fn orphans(&self, host: &Host, entries: &[Arc<Entry>]) -> Vec<Orphan> {
        let mut orphans: Vec<Orphan> = self.unclaimed(entries).flat_map(|name| living(host, name)).collect();
        let path = host.subtree.as_ref().map_or("", |subtree| subtree.path());
        // Under systemd the keeper and this worker live there.
        let own = [std::process::id(), sexton_sys::process::parent_pid()];
        let foreign = self.at_root.iter().filter(|pid| !own.contains(&pid.as_raw().cast_unsigned()));
        orphans.extend(foreign.map(|pid| orphan(*pid, path)));
        orphans
    }

    /// Cgroups of no life in `entries`.
    fn unclaimed<'a>(&'a self, entries: &'a [Arc<Entry>]) -> impl Iterator<Item = &'a String> {
        let lives = lives(entries);
        let is_claimed = move |name: &&String| name.rsplit_once('.').is_some_and(|(_, life)| lives.contains(life));
        self.cgroups.iter().filter(move |name| !is_claimed(name))
    }
}

/// The lives that hold something.
fn lives(entries: &[Arc<Entry>]) -> BTreeSet<&str> {
    let live = |entry: &&Arc<Entry>| !entry.state.is_terminal() || !entry.resources.is_empty();
    entries.iter().filter(live).map(|entry| entry.incarnation.as_str()).collect()
}

/// The names in a directory; none where it cannot be read.
fn names(dir: &Path) -> Vec<String> {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    files.map(|file| file.file_name().to_string_lossy().into_owned()).collect()
}

fn orphan(pid: Pid, cgroup: &str) -> Orphan {
    let start_ticks = proc::stat(pid).ok().map(|stat| stat.start_ticks);
    Orphan { pid, start_ticks, cgroup: cgroup.to_owned() }
}

fn unpin_all(pins: &Pins, keys: &[String]) {
    for key in keys {
        if let Err(error) = pins.unpin(key) {
            tracing::warn!(%error, key, "stray pin not removed");
        }
    }
}

/// Removes the cgroup `name` if nothing lives in it.
fn clear_cgroup(host: &Host, name: &str) {
    // What does not bear a life's name was not made by a start of ours.
    if name.rsplit_once('.').is_none_or(|(_, life)| life.parse::<Incarnation>().is_err()) {
        return;
    }
    let Some(domain) = open_cgroup(host, name) else { return };
    if let (Ok(false), Ok(found)) = (domain.is_populated(), domain.processes())
        && found.is_empty()
        && let Err(error) = domain.remove()
    {
        tracing::warn!(error = chain(&error), "stray cgroup not removed");
    }
}

/// What lives in the cgroup `name`.
fn living(host: &Host, name: &str) -> Vec<Orphan> {
    let Some(domain) = open_cgroup(host, name) else { return Vec::new() };
    if domain.is_subtree() {
        // Another daemon's, below ours.
        return Vec::new();
    }
    match domain.processes() {
        Ok(found) => found.into_iter().map(|(pid, _)| orphan(pid, domain.path())).collect(),
        Err(error) => {
            tracing::warn!(error = chain(&error), "stray cgroup not read");
            Vec::new()
        }
    }
}

fn open_cgroup(host: &Host, name: &str) -> Option<Domain> {
    let subtree = host.subtree.as_ref()?;
    subtree.open_path(&format!("{}/{name}", subtree.path())).ok()
}
