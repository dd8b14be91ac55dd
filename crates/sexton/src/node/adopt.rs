//! Taking custody of a process that something else started. Nothing here signals; a refusal changes nothing.

use std::sync::{Arc, Weak};

use serde_json::json;
use sexton_core::domain::{Domain, DomainError};
use sexton_core::gate::OwnedPermit;
use sexton_core::handle::{Handle, OpenHandleError};
use sexton_core::proc;
use sexton_ledger::entry::{Cgroup, Entry, Resource, ResourceState};
use sexton_ledger::{Batch, EventKind};
use sexton_plan::id::Pid;
use sexton_plan::identity::{Identity, Match};
use sexton_plan::state::State;

use super::clock::now;
use super::crash::crash_point;
use super::host::Host;
use super::life::{Answer, Life, Next, Taken, called, fact};
use super::limits;
use super::process::Process;
use super::request::{Caller, Proof, Wanted};
use super::resources::{ORIGIN, domain_name};
use crate::chain::chain;
use crate::refusal::{Kind, Refusal};

/// Who is being taken at this moment: the tag that keeps everybody else off follows the durable intent.
#[derive(Debug, Default)]
pub struct Claims(Vec<Weak<Identity>>);

impl Claims {
    /// Claims a process for as long as the claim is held; `None` while somebody else has it.
    fn claim(&mut self, identity: &Identity) -> Option<Arc<Identity>> {
        self.0.retain(|claim| claim.strong_count() > 0);
        if self.0.iter().filter_map(Weak::upgrade).any(|claim| may_be(&claim, identity)) {
            return None;
        }
        let claim = Arc::new(identity.clone());
        self.0.push(Arc::downgrade(&claim));
        Some(claim)
    }
}

/// Whether they are one process, or it cannot be told that they are two.
fn may_be(known: &Identity, identity: &Identity) -> bool {
    match known.compare(identity) {
        Match::Same => true,
        Match::Unproven => known.pid == identity.pid,
        Match::Different => false,
    }
}

/// Whether it may be the process of one of `entries`: where there is no cgroup2, and pidfds take no tag (before Linux
/// 6.17), nothing else tells that it is in our custody.
fn is_of_a_life(identity: &Identity, entries: &[Arc<Entry>]) -> bool {
    let live = entries.iter().filter(|entry| !entry.state.is_terminal());
    live.filter_map(|entry| entry.identity.as_ref()).any(|known| may_be(known, identity))
}

/// Opens the process that `wanted` means, if it may be taken: not that of one of `entries`.
///
/// # Errors
/// Gone, another one, or one that nobody may take.
pub fn take(
    wanted: Wanted,
    entries: &[Arc<Entry>],
    host: &Host,
    keeper_pid: u32,
    claims: &mut Claims,
    permit: OwnedPermit,
) -> Result<Taken, Refusal> {
    let refused = |why: String| Refusal::new(Kind::WrongState, format!("process {} {why}", wanted.pid));
    let own = [std::process::id(), keeper_pid];
    if own.contains(&wanted.pid.as_raw().cast_unsigned()) {
        return Err(refused("is the daemon's own".to_owned()));
    }
    let handle = Handle::open(wanted.pid, &host.here).map_err(|error| match error {
        OpenHandleError::Gone => refused("does not exist".to_owned()),
        OpenHandleError::Unproven
        | OpenHandleError::OutOfSight
        | OpenHandleError::Sys(_)
        | OpenHandleError::Proc(_) => refused(format!("cannot be opened: {}", chain(&error))),
    })?;
    let identity = handle.identity();
    let same = match wanted.proof {
        Proof::PidfsIno(ino) => identity.pidfs_ino == Some(ino),
        Proof::StartTicks(ticks) => identity.start_ticks == Some(ticks),
    };
    if !same {
        return Err(refused("is another one than the caller means".to_owned()));
    }
    let stat = proc::stat(wanted.pid).map_err(|error| refused(format!("cannot be read: {}", chain(&error))))?;
    if stat.is_kernel_thread() {
        return Err(refused("is a kernel thread".to_owned()));
    }
    if stat.is_zombie() {
        return Err(refused("has ended".to_owned()));
    }
    if stat.is_exiting() {
        // A cgroup takes in what lives of it and lists it nowhere.
        return Err(refused("cannot be moved: its main thread has exited".to_owned()));
    }
    // Both of a daemon's processes hold the lock of its state directory.
    match proc::has_locked_directory_with(wanted.pid, sexton_ledger::FILE_NAME) {
        Ok(false) => {}
        Ok(true) => return Err(refused("is another daemon's own".to_owned())),
        Err(error) => return Err(refused(format!("cannot be read: {}", chain(&error)))),
    }
    // Before the tag is looked at, so that of two who ask for it the second finds the one or the other.
    let claim = claims.claim(identity).ok_or_else(|| refused("is in custody already".to_owned()))?;
    let is_held = in_custody(wanted.pid, host).map_err(|why| refused(format!("cannot be read: {why}")))?;
    if handle.tagged().is_some() || is_held || is_of_a_life(identity, entries) {
        return Err(refused("is in custody already".to_owned()));
    }
    // What was read by number was read of this process, if it still has the number.
    match handle.signal(0) {
        Ok(true) => Ok(Taken { handle: Arc::new(handle), claim, permit }),
        Ok(false) => Err(refused("has ended".to_owned())),
        Err(error) => Err(refused(format!("may not be signalled: {error}"))),
    }
}

/// Whether it lives in a cgroup that some Sexton tagged as its own, at whatever depth.
///
/// # Errors
/// It is gone, or it cannot be told where it lives.
pub(super) fn in_custody(pid: Pid, host: &Host) -> Result<bool, String> {
    let Some(subtree) = &host.subtree else { return Ok(false) };
    let path = proc::cgroup_path(pid).map_err(|error| chain(&error))?;
    let ancestors = std::path::Path::new(&path).ancestors().filter_map(|ancestor| ancestor.to_str());
    for ancestor in ancestors.filter(|ancestor| *ancestor != "/" && !ancestor.is_empty()) {
        match subtree.find_path(ancestor).and_then(|domain| domain.owner()) {
            Ok(Some(_)) => return Ok(true),
            Ok(None) | Err(DomainError::Gone(_)) => {}
            Err(error) => return Err(chain(&error)),
        }
    }
    Ok(false)
}

/// The row of an adoption: who it is, and where it is to go back to, is known before anything is acquired.
///
/// # Errors
/// The process is gone, or it cannot be told where it lives.
pub fn intent(blank: Entry, taken: &Taken, host: &Host) -> Result<Entry, Refusal> {
    let pid = taken.identity().pid;
    let unread = |error| Refusal::new(Kind::WrongState, format!("process {pid} cannot be read: {}", chain(&error)));
    let origin = host.subtree.as_ref().map_or(Ok("/".to_owned()), |_| proc::cgroup_path(pid)).map_err(unread)?;
    let origins_v1 = host.v1.origins(&blank.spec.limits, pid).map_err(unread)?;
    let mut resources = blank.resources.clone();
    for key in std::iter::once(origin).chain(origins_v1) {
        resources.push(Resource { kind: ORIGIN.to_owned(), key, state: ResourceState::Intent });
    }
    Ok(Entry { identity: Some(taken.identity().clone()), handle: taken.to_bytes(), adopted: true, resources, ..blank })
}

impl Life {
    /// Records the intent, acquires, and moves the process into its domain as the last step.
    pub(super) async fn take_custody(&mut self, taken: Taken, caller: &Caller, reply: Answer) -> Next {
        // The claim lasts until the process is in custody, or back where it came from.
        let Taken { handle, claim: _claim, permit } = taken;
        crash_point!("adopt.begun");
        let next = (*self.entry).clone();
        let events = vec![called(&next, "adopt", caller), fact(EventKind::InstanceStarting, &next, json!({}))];
        if let Err(refusal) = self.record(next, events, false).await {
            let _heard = reply.send(Err(refusal));
            return Next::Removed;
        }
        drop(permit);
        let held = match self.acquire_for(&handle).await {
            Ok((process, domain)) => self.in_custody(&process, domain).await.map(|()| process),
            Err(reason) => Err(Refusal::new(Kind::WrongState, reason)),
        };
        match held {
            Ok(process) => {
                self.answer(reply);
                Next::Guard(process)
            }
            Err(refusal) => {
                handle.untag(self.entry.incarnation.as_str());
                let next = self.give_up_adoption().await;
                let mut detail = format!("`{}` was not taken into custody: {}", self.entry.name, refusal.detail);
                if let Some(why) = &self.entry.reason {
                    detail = format!("{detail}; {why}");
                }
                let _heard = reply.send(Err(Refusal::new(refusal.kind, detail)));
                next
            }
        }
    }

    /// Undoes an adoption that did not come about, now or before the daemon died: what was moved is moved back, and
    /// nothing is ever signalled. What cannot be moved back keeps its row, and is tried again with every pass.
    pub(super) async fn give_up_adoption(&mut self) -> Next {
        let domain = self.find_domain().await;
        if let Err(why) = self.move_back(domain.as_ref()) {
            let mut owed = Batch::default();
            let next = self.doubted(&format!("the process could not be moved back: {why}"), &mut owed);
            self.host.owe(owed).await;
            return next;
        }
        let events = vec![fact(EventKind::InstanceRemoved, &self.entry, json!({ "reason": "not adopted" }))];
        let removes = vec![self.entry.name.clone()];
        self.host.owe(Batch { removes, events, ..Batch::default() }).await;
        super::let_go::let_go(&self.host, &self.entry).await;
        Next::Removed
    }

    /// Moves whatever is in `domain` back to where the process came from, or to the root where that is gone, and
    /// removes it.
    fn move_back(&self, domain: Option<&Domain>) -> Result<(), String> {
        let keys = |kind| self.entry.resources.iter().filter(move |held| held.kind == kind).map(|held| &*held.key);
        if self.host.subtree.is_none() && keys("cgroup").next().is_some() {
            return Err("there is no cgroup2 here, where it could be looked at".to_owned());
        }
        if let (Some(domain), Some(subtree)) = (domain, &self.host.subtree) {
            let home = match subtree.find_path(keys(ORIGIN).find(|key| key.starts_with('/')).unwrap_or("/")) {
                Err(DomainError::Gone(_)) => subtree.find_path("/"),
                opened => opened,
            };
            domain.empty_into(&home.map_err(|error| chain(&error))?).map_err(|error| chain(&error))?;
            domain.remove().map_err(|error| chain(&error))?;
        }
        for key in keys("cgroup-v1") {
            limits::empty_v1(&self.host.cgroup, key, keys(ORIGIN))?;
            limits::release_v1(&self.host.cgroup, key)?;
        }
        Ok(())
    }

    async fn acquire_for(&self, handle: &Arc<Handle>) -> Result<(Process, Option<Domain>), String> {
        let taken = || Err("another daemon has taken it meanwhile".to_owned());
        handle.tag(self.entry.incarnation.as_str());
        if handle.tagged().is_some_and(|tag| tag != self.entry.incarnation.as_str()) {
            return taken();
        }
        crash_point!("adopt.tagged");
        let process = Process::watch(Arc::clone(handle)).map_err(|error| error.to_string())?;
        let domain = self.make_domain().map_err(|why| why.reason)?;
        if domain.is_none() && self.entry.spec.pidns {
            return Err(
                "`pidns` is not to be had: it was not started in a PID namespace of ours, and there is no cgroup2 \
                 that could hold it together"
                    .to_owned(),
            );
        }
        let (key, pinned) = (self.entry.incarnation.to_string(), Arc::clone(handle));
        if let Some(Err(error)) = self.host.with_pins(move |pins| pins.pin(&pinned, &key)).await {
            tracing::warn!(%error, "exit status not pinned");
        }
        if let Some(domain) = &domain {
            let pid = handle.identity().pid;
            // RACE: a cgroup takes processes by number alone. The number is asked for through the pidfd right before,
            // and whoever was moved is moved back unless the pidfd says right after that it was the one.
            let lives = || handle.signal(0) == Ok(true);
            if !lives() {
                return Err("it has ended".to_owned());
            }
            // RACE: where pidfds take no tag (before Linux 6.17) nothing but this tells, and not of who does the same now.
            if in_custody(pid, &self.host)? {
                return taken();
            }
            let limited = self.host.v1.take_in(&self.entry.spec.limits, &domain_name(&self.entry), pid);
            limited.map_err(|error| chain(&error))?;
            domain.take_in(pid).map_err(|error| chain(&error))?;
            crash_point!("adopt.moved");
            if !lives() || handle.is_over() == Ok(true) {
                return Err("it ended while it was being moved into its cgroup".to_owned());
            }
            if handle.cgroup_id().is_some_and(|id| id != domain.ino()) {
                return Err("its main thread is not in its cgroup: it has exited, or somebody moves it".to_owned());
            }
        }
        Ok((process, domain))
    }

    /// Makes durable that it is in custody: until then the next worker gives the adoption up.
    async fn in_custody(&mut self, process: &Process, domain: Option<Domain>) -> Result<(), Refusal> {
        let mut next = (*self.entry).clone();
        next.cgroup = domain.map(|domain| Cgroup { path: domain.path().to_owned(), ino: domain.ino() });
        next.resources.retain(|resource| resource.kind != ORIGIN);
        next.resources.iter_mut().for_each(|resource| resource.state = ResourceState::Held);
        next.state = State::Running;
        next.started_at = Some(now());
        let pid = process.handle().identity().pid;
        let data = json!({ "pid": pid, "strength": process.handle().identity().strength() });
        let events = vec![
            fact(EventKind::InstanceRunning, &next, json!({ "pid": pid })),
            fact(EventKind::InstanceAdopted, &next, data),
        ];
        self.record(next, events, false).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::sample;

    #[test]
    fn who_is_the_process_of_a_life_is_known_without_tag_and_cgroup() {
        let here = proc::here().expect("readable");
        let me = Pid::new(std::process::id().cast_signed()).expect("not init");
        let me = Handle::open(me, &here).expect("a hold").identity().clone();
        let of = |identity: Identity, state| {
            vec![Arc::new(Entry { identity: Some(identity), state, ..sample::entry("its") })]
        };
        assert!(is_of_a_life(&me, &of(me.clone(), State::Running)));
        assert!(!is_of_a_life(&me, &of(me.clone(), State::Exited)), "its number may be anybody's since");
        let weak = Identity { pidfs_ino: None, ..me.clone() };
        assert!(is_of_a_life(&me, &of(weak.clone(), State::Unverified)), "nobody can tell that it is another");
        let other = Pid::new(2).expect("not init");
        assert!(!is_of_a_life(&me, &of(Identity { pid: other, ..weak }, State::Running)));
        assert!(!is_of_a_life(&me, &[]));
    }
}
