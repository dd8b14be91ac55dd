//! Taking custody of a process that something else started. Nothing here signals; a refusal changes nothing.

use std::sync::Arc;

use serde_json::json;
use sexton_core::domain::Domain;
use sexton_core::gate::OwnedPermit;
use sexton_core::handle::{Handle, OpenHandleError};
use sexton_core::proc;
use sexton_ledger::entry::{Cgroup, Entry, Resource, ResourceState};
use sexton_ledger::{Batch, EventKind};
use sexton_plan::id::{Incarnation, Pid};
use sexton_plan::state::State;

use super::host::Host;
use super::life::{Answer, Life, Next, Taken, called, fact, now};
use super::process::Process;
use super::request::{Caller, Proof, Wanted};
use super::resources::domain_name;
use crate::chain::chain;
use crate::refusal::{Kind, Refusal};

/// Where an adopted process came from, until it is in custody.
const ORIGIN: &str = "cgroup-origin";

/// The tag of a daemon's own processes: no other daemon takes them for anybody's either.
const DAEMON: &str = "daemon";

/// Tags this worker and its keeper.
pub fn tag_own(host: &Host, keeper_pid: u32) {
    for pid in [std::process::id(), keeper_pid] {
        let pid = i32::try_from(pid).ok().and_then(Pid::new);
        if let Some(Ok(handle)) = pid.map(|pid| Handle::open(pid, &host.here)) {
            handle.tag(DAEMON);
        }
    }
}

/// Opens the process that `wanted` means, if it may be taken.
///
/// # Errors
/// Gone, another one, or one that nobody may take.
pub fn take(
    wanted: Wanted,
    host: &Host,
    keeper_pid: u32,
    life: &Incarnation,
    permit: OwnedPermit,
) -> Result<Taken, Refusal> {
    let refused = |why: String| Refusal::new(Kind::WrongState, format!("process {} {why}", wanted.pid));
    let own = [std::process::id(), keeper_pid];
    if own.contains(&wanted.pid.as_raw().cast_unsigned()) {
        return Err(refused("is the daemon's own".to_owned()));
    }
    let handle = Handle::open(wanted.pid, &host.here).map_err(|error| match error {
        OpenHandleError::Gone => refused("does not exist".to_owned()),
        OpenHandleError::Unproven | OpenHandleError::Sys(_) | OpenHandleError::Proc(_) => {
            refused(format!("cannot be opened: {}", chain(&error)))
        }
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
    if stat.zombie_status().is_some() {
        return Err(refused("has ended".to_owned()));
    }
    let tag = handle.tagged();
    if tag.as_deref() == Some(DAEMON) {
        return Err(refused("is another daemon's own".to_owned()));
    }
    if tag.is_some() || in_custody(wanted.pid, host) {
        return Err(refused("is in custody already".to_owned()));
    }
    // What was read by number was read of this process, if it still has the number.
    match handle.signal(0) {
        Ok(true) => {
            // At once, so that of two who ask for it the second finds it taken.
            handle.tag(life.as_str());
            Ok(Taken { handle: Arc::new(handle), permit })
        }
        Ok(false) => Err(refused("has ended".to_owned())),
        Err(error) => Err(refused(format!("may not be signalled: {error}"))),
    }
}

/// Whether it lives in a cgroup that some Sexton tagged as its own, at whatever depth.
pub(super) fn in_custody(pid: Pid, host: &Host) -> bool {
    let (Some(subtree), Ok(path)) = (&host.subtree, proc::cgroup_path(pid)) else { return false };
    std::path::Path::new(&path)
        .ancestors()
        .filter_map(|ancestor| ancestor.to_str())
        .filter(|ancestor| *ancestor != "/" && !ancestor.is_empty())
        .any(|ancestor| {
            subtree.open_path(ancestor).is_ok_and(|domain| domain.owner().is_some() && !domain.is_subtree())
        })
}

/// The row of an adoption: who it is is known before anything is acquired.
pub fn intent(blank: Entry, taken: &Taken) -> Entry {
    let origin = proc::cgroup_path(taken.identity().pid).unwrap_or_else(|_| "/".to_owned());
    let mut resources = blank.resources.clone();
    resources.push(Resource { kind: ORIGIN.to_owned(), key: origin, state: ResourceState::Intent });
    Entry { identity: Some(taken.identity().clone()), handle: taken.to_bytes(), adopted: true, resources, ..blank }
}

impl Life {
    /// Records the intent, acquires, and moves the process into its domain as the last step.
    pub(super) async fn take_custody(&mut self, taken: Taken, caller: &Caller, reply: Answer) -> Next {
        let Taken { handle, permit } = taken;
        let next = (*self.entry).clone();
        let events = vec![called(&next, "adopt", caller), fact(EventKind::InstanceStarting, &next, json!({}))];
        if let Err(refusal) = self.record(next, events, false).await {
            handle.untag();
            let _heard = reply.send(Err(refusal));
            return Next::Removed;
        }
        drop(permit);
        match self.acquire_for(&handle).await {
            Ok((process, domain)) => self.in_custody(process, domain, reply).await,
            Err(reason) => {
                handle.untag();
                self.give_up_adoption().await;
                let detail = format!("`{}` was not taken into custody: {reason}", self.entry.name);
                let _heard = reply.send(Err(Refusal::new(Kind::WrongState, detail)));
                Next::Removed
            }
        }
    }

    /// Undoes an adoption that did not come about, now or before the daemon died: what was moved is moved back, and
    /// nothing is ever signalled.
    pub(super) async fn give_up_adoption(&mut self) -> Next {
        if let Some(domain) = self.open_domain().await {
            self.move_back(&domain);
            if let Err(error) = domain.remove() {
                tracing::warn!(error = chain(&error), "cgroup of an adoption not removed");
            }
        }
        for held in self.entry.resources.iter().filter(|held| held.kind == "cgroup-v1") {
            let _gone = super::limits::release_v1(&self.host.cgroup, &held.key);
        }
        let events = vec![fact(EventKind::InstanceRemoved, &self.entry, json!({ "reason": "not adopted" }))];
        let removes = vec![self.entry.name.clone()];
        self.host.owe(Batch { removes, events, ..Batch::default() }).await;
        super::end::let_go(&self.host, &self.entry).await;
        Next::Removed
    }

    /// Moves whatever is in `domain` back to where the process came from, or to the root.
    fn move_back(&self, domain: &Domain) {
        let origin = self.entry.resources.iter().find(|held| held.kind == ORIGIN).map_or("/", |held| held.key.as_str());
        let Some(subtree) = &self.host.subtree else { return };
        let Ok(home) = subtree.open_path(origin).or_else(|_| subtree.open_path("/")) else { return };
        for (pid, _) in domain.processes().unwrap_or_default() {
            if let Err(error) = home.take_in(pid) {
                tracing::warn!(error = chain(&error), "process not moved back");
            }
        }
    }

    async fn acquire_for(&self, handle: &Arc<Handle>) -> Result<(Process, Option<Domain>), String> {
        let process = Process::watch(Arc::clone(handle)).map_err(|error| error.to_string())?;
        let domain = self.make_domain()?;
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
            super::limits::take_in_v1(&self.host.cgroup, &self.entry.spec.limits, &domain_name(&self.entry), pid)?;
            domain.take_in(pid).map_err(|error| chain(&error))?;
            if !lives() || handle.cgroup_id().is_some_and(|id| id != domain.ino()) {
                return Err("it ended while it was being moved into its cgroup".to_owned());
            }
        }
        Ok((process, domain))
    }

    async fn in_custody(&mut self, process: Process, domain: Option<Domain>, reply: Answer) -> Next {
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
        self.owe(next, events).await;
        self.answer(reply);
        Next::Guard(process)
    }
}
