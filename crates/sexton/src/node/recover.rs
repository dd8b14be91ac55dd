//! Finding instances again: look, judge, go on. A normal start and a restart are this one path.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sexton_core::handle::{Handle, Life as ProcessLife, OpenHandleError};
use sexton_core::pin::Pins;
use sexton_core::proc;
use sexton_core::spawn::NeverRan;
use sexton_ledger::entry::Entry;
use sexton_ledger::{Batch, EventKind, NewEvent};
use sexton_plan::identity::Identity;
use sexton_plan::judge::{Claimed, DomainSeen, MarkSeen, NamespaceSeen, ProcessSeen, Verdict, judge, out_of_sight};
use sexton_plan::state::{ExitSource, ExitStatus, LostReason, State};
use sexton_plan::world::Doubted;
use sexton_sys::clone::{ChildFailure, MARK_RELEASED};
use sexton_sys::file::flags;
use tokio::time::sleep;

use super::clock::now;
use super::crash::crash_point;
use super::host::Host;
use super::keeper;
use super::life::{Command, Life, Next, RollBack, called, fact};
use super::noted::Noted;
use super::process::Process;
use super::resources::is_adoption_begun;
use super::unstarted::{Unstarted, is_lack};
use crate::chain::chain;
use crate::refusal::Kind;

/// The pause before what could not be read is read again.
pub const READ_AGAIN: Duration = Duration::from_secs(1);

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
    let looked = if was_starting(entry) { look_mark(entry, host) } else { Ok((MarkSeen::Absent, None)) };
    let unread = looked.as_ref().err().map(ToString::to_string);
    let (mark, refused) = looked.unwrap_or((MarkSeen::Unread, None));
    let seen = |process, handle: Option<Handle>, why: Option<String>| {
        let why = unread.clone().map(|unread| format!("its mark could not be read: {unread}")).or(why);
        Seen { process, handle: handle.map(Arc::new), mark, refused, why }
    };
    let Some(identity) = &entry.identity else { return seen(ProcessSeen::NotRecorded, None, None) };
    if entry.state.is_terminal() {
        return seen(ProcessSeen::Gone, None, None);
    }
    let witness = entry.cgroup.as_ref().map(|cgroup| cgroup.ino);
    match Handle::reopen(identity, &entry.handle, witness, &host.here) {
        Ok(handle) => seen(ProcessSeen::Same, Some(handle), None),
        Err(OpenHandleError::Gone) => seen(ProcessSeen::Gone, None, None),
        Err(error @ OpenHandleError::OutOfSight) => {
            seen(out_of_sight(look_domain(entry, host), look_namespace(identity, host)), None, Some(chain(&error)))
        }
        Err(error @ (OpenHandleError::Unproven | OpenHandleError::Sys(_) | OpenHandleError::Proc(_))) => {
            seen(ProcessSeen::Unproven, None, Some(chain(&error)))
        }
    }
}

/// Whether the PID namespace in which a process was recorded is known to have ended.
fn look_namespace(recorded: &Identity, host: &Host) -> NamespaceSeen {
    if host.namespaces.has_ended(recorded.pid_ns) { NamespaceSeen::Ended } else { NamespaceSeen::Unknown }
}

/// What lives in the domain of a process that cannot be seen from here.
fn look_domain(entry: &Entry, host: &Host) -> DomainSeen {
    let (Some(subtree), Some(cgroup)) = (&host.subtree, &entry.cgroup) else { return DomainSeen::Unknown };
    match subtree.is_populated(&cgroup.path, cgroup.ino) {
        Ok(true) => DomainSeen::Populated,
        Ok(false) => DomainSeen::Empty,
        Err(error) => {
            tracing::warn!(name = %entry.name, error = chain(&error), "domain not read");
            DomainSeen::Unknown
        }
    }
}

/// Whether its start is all that was seen of it: it may be doubted since.
fn was_starting(entry: &Entry) -> bool {
    matches!(entry.state, State::Starting | State::Unverified) && entry.started_at.is_none()
}

/// How far a start came that nobody saw through.
fn look_mark(entry: &Entry, host: &Host) -> io::Result<(MarkSeen, Option<ChildFailure>)> {
    let bytes = match read_mark(&host.paths.mark(&entry.incarnation)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((MarkSeen::Absent, None)),
        Err(error) => return Err(error),
    };
    Ok(match ChildFailure::from_bytes(bytes) {
        Some(failure) => (MarkSeen::Refused, Some(failure)),
        None if bytes == MARK_RELEASED => (MarkSeen::Released, None),
        None => (MarkSeen::Waiting, None),
    })
}

/// The bytes of the mark at `path`. A pipe in its place keeps nobody waiting, and is no mark.
fn read_mark(path: &Path) -> io::Result<[u8; 8]> {
    let mut open = File::options().read(true).custom_flags(flags::NONBLOCK).open(path)?;
    let about = open.metadata()?;
    let mut bytes = [0; 8];
    if !about.is_file() || about.len() != bytes.len() as u64 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "another file is in its place"));
    }
    open.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Why the program of a life never ran, where its mark says so.
///
/// # Errors
/// It could not be read.
pub fn refused_by_mark(entry: &Entry, host: &Host) -> io::Result<Option<Unstarted>> {
    Ok(match look_mark(entry, host)? {
        (MarkSeen::Waiting, _) => {
            // Whoever is ended between the release and the first step after it.
            let reason = "ended before its program ran".to_owned();
            Some(Unstarted { reason, kind: Kind::WrongState, ran: false })
        }
        (MarkSeen::Absent | MarkSeen::Unread | MarkSeen::Released | MarkSeen::Refused, failure) => {
            failure.map(refused_in_child)
        }
    })
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
    /// Takes in what was ordered of it, and how it ended, where that was told and not recorded: from here on that is as good
    /// as recorded. Adds to `owed` what is.
    pub fn noted_before(&mut self, noted: &Noted, owed: &mut Batch) {
        let exit = noted.exit_of(&self.entry).filter(|_| !self.entry.state.is_terminal());
        if exit.is_some() {
            self.put(Entry { exit, ..(*self.entry).clone() }, owed);
        }
        for (order, caller) in noted.of(&self.entry) {
            let mut next = (*self.entry).clone();
            owed.events.push(called(&next, if order.remove { "remove" } else { "stop" }, &caller));
            next.stop = Some(order);
            next.restarts.next_at = None;
            self.put(next, owed);
        }
    }

    /// Shows `next` at once; the record follows in its order.
    fn put(&mut self, next: Entry, owed: &mut Batch) {
        let next = Arc::new(next);
        owed.puts.push(Arc::clone(&next));
        self.show(next);
    }

    /// Judges the instance by what was seen of it; tells what comes next, and adds to `owed` what is to be recorded.
    pub fn judged(&mut self, seen: Seen, owed: &mut Batch) -> Next {
        let Seen { process, handle, mark, refused, why } = seen;
        self.is_mark_lost = was_starting(&self.entry) && mark == MarkSeen::Absent;
        if is_adoption_begun(&self.entry) {
            // Nobody was told that it is in custody.
            if let Some(handle) = &handle {
                handle.untag(self.entry.incarnation.as_str());
            }
            return Next::GiveUpAdoption;
        }
        if let (Some(_), Some(identity)) = (&handle, &self.entry.identity) {
            self.host.keeper.hold_anew(keeper::held(identity));
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
                Some(process) => {
                    self.stop_on(owed);
                    Next::End(Some(process))
                }
                None => self.doubted("its pidfd cannot be watched", owed),
            },
            Verdict::RollBack => {
                let why = refused.map_or_else(|| Unstarted::asked(INTERRUPTED), refused_in_child);
                Next::RollBack(RollBack { why, process: process_of(handle), reply: None })
            }
            Verdict::Close => Next::Close,
            Verdict::Release => Next::Release,
            Verdict::Rest => Next::Rest,
            Verdict::LeaveUnverified => self.doubted(why.as_deref().unwrap_or("its identity is not proven"), owed),
        }
    }

    /// Takes custody again of a process that was found alive.
    fn adopt(&mut self, owed: &mut Batch) {
        let is_known = self.entry.adopted && self.entry.state == State::Running && self.entry.reason.is_none();
        if !is_known {
            let mut next = (*self.entry).clone();
            let events = &mut owed.events;
            if was_starting(&next) {
                next.started_at = Some(now());
                events.push(fact(EventKind::InstanceRunning, &next, json!({ "pid": pid_of(&next) })));
            }
            if !next.adopted {
                let strength = next.identity.as_ref().map(|identity| identity.strength());
                let data = json!({ "pid": pid_of(&next), "strength": strength });
                events.push(fact(EventKind::InstanceAdopted, &next, data));
            }
            next.adopted = true;
            next.state = State::Running;
            next.reason = None;
            self.put(next, owed);
        }
        // Whoever asked for it was never answered; the next try is.
        let entry = Arc::clone(&self.entry);
        if let Some(request) = self.answered(201, || serde_json::to_string(&*entry).unwrap_or_default()) {
            self.host.owe_unwaited(Batch { request: Some(request), ..Batch::default() });
        }
    }

    /// Shows that it is being ended, where that was not shown, or it was in doubt since.
    fn stop_on(&mut self, owed: &mut Batch) {
        if matches!(self.entry.state, State::Stopping | State::Stuck) {
            return;
        }
        let mut next = (*self.entry).clone();
        let data = if next.stop.is_some() { json!({ "asked": true }) } else { json!({ "exit": next.exit }) };
        owed.events.push(fact(EventKind::InstanceStopping, &next, data));
        next.state = State::Stopping;
        next.reason = None;
        self.put(next, owed);
    }

    /// Neither ours nor gone for certain: says so and keeps hands off.
    pub(super) fn doubted(&mut self, why: &str, owed: &mut Batch) -> Next {
        if self.entry.state != State::Unverified || self.entry.reason.as_deref() != Some(why) {
            let mut next = (*self.entry).clone();
            next.state = State::Unverified;
            next.reason = Some(why.to_owned());
            owed.events.push(fact(EventKind::InstanceUnverified, &next, json!({ "reason": why })));
            if next.stop.is_some() {
                owed.events.push(signal_refused(&next));
            }
            self.put(next, owed);
        }
        Next::Doubt
    }

    /// Unverified: refuses what would touch the process, and judges again when asked to. What a drain orders meanwhile is
    /// carried out once the process is proven ours.
    pub(super) async fn doubt(&mut self) -> Next {
        let mut drained = None;
        loop {
            let Some(command) = self.mailbox.recv().await else { return std::future::pending().await };
            match *command {
                Command::Drain { force, reason } => {
                    drained = Some((force, reason));
                    let events = vec![signal_refused(&self.entry)];
                    let _durable = self.host.owe_unwaited(Batch { events, ..Batch::default() });
                }
                Command::Rejudge => {
                    let seen = look(&self.entry, &self.host);
                    let mut owed = Batch::default();
                    let next = self.judged(seen, &mut owed);
                    self.host.owe_unwaited(owed);
                    return match (next, drained) {
                        (Next::Doubt, _) => continue,
                        (Next::Guard(process) | Next::End(Some(process)), Some((force, reason))) => {
                            self.obey_drain(force, reason).await;
                            Next::End(Some(process))
                        }
                        (next, _) => next,
                    };
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
            let host = Arc::clone(&self.host);
            match self.obeying(told_afterwards(Arc::clone(&self.entry), &host), None).await {
                Some((status, source)) => self.learned(status, source),
                None => reason = self.lost_reason(),
            }
        }
        if was_starting(&self.entry) && (self.entry.exit.is_some() || !self.is_mark_lost) {
            // It ran, for its mark says so, and nobody was told.
            let mut next = (*self.entry).clone();
            next.started_at = Some(now());
            let events = vec![fact(EventKind::InstanceRunning, &next, json!({ "pid": pid_of(&next) }))];
            self.owe(next, events).await;
        }
        self.finish(None, reason).await
    }

    fn lost_reason(&self) -> LostReason {
        let Some(identity) = &self.entry.identity else { return LostReason::Vanished };
        if identity.boot_id != self.host.here.boot_id {
            return LostReason::Reboot;
        }
        // The number of a namespace is given out anew; a process of this one is not older than its first.
        let boottime_offset = self.host.here.boottime_offset;
        let first = Identity { start_ticks: proc::namespace_start_ticks(), boottime_offset, ..identity.clone() };
        let is_older = identity.began_before(&first) == Some(true);
        if identity.pid_ns != self.host.here.pid_ns || is_older {
            return LostReason::ContainerRestart;
        }
        let reused =
            proc::stat(identity.pid).is_ok_and(|stat| identity.start_ticks.is_some_and(|t| t != stat.start_ticks));
        if reused { LostReason::PidReused } else { LostReason::Vanished }
    }
}

/// Asks the pin, then the keeper.
async fn told_afterwards(entry: Arc<Entry>, host: &Host) -> Option<(ExitStatus, ExitSource)> {
    let identity = entry.identity.clone()?;
    if let Some(ProcessLife::Reaped(Some(status))) = told_by_pin(&entry, &identity, host).await {
        return Some((status, ExitSource::Pin));
    }
    // A keeper that had no worker before this one has recorded nobody's exit but those of which it told first.
    let status = if host.keeper_is_new {
        host.keeper.exit_of(&identity).map(|(_, status)| status)
    } else {
        host.keeper.told_exit_of(&identity).await
    };
    status.map(|status| (status, ExitSource::Keeper))
}

/// What the pin of `entry`, whose process is `identity`, tells of its life.
async fn told_by_pin(entry: &Entry, identity: &Identity, host: &Host) -> Option<ProcessLife> {
    loop {
        let (key, recorded) = (entry.incarnation.to_string(), identity.clone());
        let look = move |pins: &Pins| pins.open(&key, &recorded)?.map(|handle| handle.life()).transpose();
        match host.with_pins(look).await? {
            Ok(told) => return told,
            Err(error) => {
                tracing::warn!(name = %entry.name, %error, "pin not opened");
                // "Could not read" is never "is gone": what was lacking may be there in a moment.
                if !is_lack(&error) {
                    return None;
                }
            }
        }
        sleep(READ_AGAIN).await;
    }
}

/// A signal is due, and not sent as long as its process is not proven ours; told once.
fn signal_refused(entry: &Entry) -> NewEvent {
    fact(EventKind::SignalRefused, entry, json!({ "pid": pid_of(entry), "reason": "unverified" }))
}

fn pid_of(entry: &Entry) -> Option<sexton_plan::id::Pid> {
    entry.identity.as_ref().map(|identity| identity.pid)
}

fn refused_in_child(failure: ChildFailure) -> Unstarted {
    Unstarted::refused(&NeverRan(failure))
}

/// An unverified instance, looked at again.
pub fn doubted(entry: &Entry, host: &Host) -> Doubted {
    let seen = look(entry, host);
    let why = seen.why.or_else(|| entry.reason.clone()).unwrap_or_else(|| "its identity is not proven".to_owned());
    // An adoption that is given up is nothing to take custody of again.
    let process = if is_adoption_begun(entry) { ProcessSeen::Unproven } else { seen.process };
    Doubted {
        name: entry.name.clone(),
        incarnation: entry.incarnation.clone(),
        identity: entry.identity.clone(),
        claimed: claimed(entry),
        process,
        mark: seen.mark,
        why,
    }
}
