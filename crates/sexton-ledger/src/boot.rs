//! Settling what the previous boot left: nothing of it can live, and nobody can know how most of it ended.

use std::path::Path;

use jiff::Timestamp;
use rusqlite::{Connection, TransactionBehavior};
use serde_json::json;
use sexton_plan::id::{BootId, NodeId};
use sexton_plan::state::{LostReason, Restart, State};

use crate::connect::connect;
use crate::entry::{Entry, ResourceState};
use crate::event::{EventKind, NewEvent};
use crate::look::{self, Files, OpenError, Sight};
use crate::rows::{self, Stamp};
use crate::whereabouts::{BOOT_ID, PID_NS, Whereabouts};

/// What a check of the boot did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Instances that this very call settled.
    pub settled: u64,
}

/// Who checks the boot.
#[derive(Clone, Copy, Debug)]
pub struct BootCheck<'a> {
    /// This boot, as the caller read it.
    pub boot_id: &'a BootId,
    /// As [`crate::OpenOptions::pid_ns`]; `None` for a caller that may be in any namespace.
    pub pid_ns: Option<u64>,
    /// Whose instances are local; the ledger's own node where `None`. To any other node nothing in it is local.
    pub node: Option<&'a NodeId>,
    /// The wall clock.
    pub now: fn() -> Timestamp,
}

/// Settles the instances of the previous boot once, however many processes call this at the same time.
///
/// Without a ledger there is nothing to settle, and none is made. No process is signalled.
///
/// # Errors
/// [`OpenError`]; then nothing has changed.
///
/// # Blocking
/// As long as other processes write, 2 s at most before [`OpenError::Locked`].
pub fn boot_check(state_dir: &Path, check: BootCheck<'_>) -> Result<Settled, OpenError> {
    match look::look(state_dir, Some(check.boot_id))? {
        Sight::Absent => return Ok(Settled::default()),
        Sight::Sound(look) => {
            let before = Whereabouts::read(&look.conn)?;
            if change(&before, check.boot_id, check.pid_ns) == Change::None {
                return Ok(Settled::default());
            }
        }
    }
    let mut conn = connect(&Files::in_dir(state_dir))?;
    let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let before = Whereabouts::read(&transaction)?;
    let Some(node) = check.node.or(before.node.as_ref()).cloned() else { return Ok(Settled::default()) };
    if before.node.as_ref().is_some_and(|own| *own != node) {
        // Its rows are another node's, and so is the change of the boot: whoever is that node has still to see it.
        return Ok(Settled::default());
    }
    let stamp = Stamp { boot_id: check.boot_id.clone(), node, now: check.now };
    let settled = settle(&transaction, &stamp, &before, check.pid_ns)?;
    transaction.commit()?;
    Ok(settled)
}

/// What is different since the ledger was last open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    None,
    Boot,
    PidNamespace,
}

fn change(before: &Whereabouts, boot_id: &BootId, pid_ns: Option<u64>) -> Change {
    if before.boot_id.as_ref() != Some(boot_id) {
        return Change::Boot;
    }
    match (before.pid_ns, pid_ns) {
        (Some(before), Some(now)) if before != now => Change::PidNamespace,
        (Some(_) | None, Some(_) | None) => Change::None,
    }
}

/// Settles, in the open transaction, what cannot live any more, and writes down the boot and namespace of now.
pub(crate) fn settle(
    conn: &Connection,
    stamp: &Stamp,
    before: &Whereabouts,
    pid_ns: Option<u64>,
) -> Result<Settled, OpenError> {
    let mut settled = Settled::default();
    let change = change(before, &stamp.boot_id, pid_ns);
    let reason = match change {
        Change::Boot => Some(LostReason::Reboot),
        Change::PidNamespace => Some(LostReason::ContainerRestart),
        Change::None => None,
    };
    // A ledger that was never open during any boot holds nothing that could have ended with one.
    if let (Some(reason), Some(boot_before)) = (reason, &before.boot_id) {
        let mut last = rows::last_seq(conn)?;
        let mut events = Vec::new();
        for mut entry in rows::read_live_entries(conn, &stamp.node)? {
            settle_entry(&mut entry, reason, (stamp.now)());
            rows::put_entry(conn, &entry)?;
            events.push(event_of(&entry));
            settled.settled += 1;
        }
        if change == Change::Boot {
            let data = json!({"before": boot_before, "after": stamp.boot_id, "settled": settled.settled});
            events.insert(0, NewEvent::of_node(EventKind::BootChanged, data));
        }
        rows::append_events(conn, stamp, &events, &mut last)?;
    }
    if change == Change::Boot {
        // Namespaces, links and rules went with the kernel that held them.
        rows::free_all_slots(conn)?;
        rows::put_meta(conn, BOOT_ID, Some(stamp.boot_id.as_str()))?;
    }
    if pid_ns.is_some() && pid_ns != before.pid_ns {
        rows::put_meta(conn, PID_NS, pid_ns.map(|ino| ino.to_string()).as_deref())?;
    }
    Ok(settled)
}

/// Makes `entry` terminal: `exited` where its exit was known already, else `lost`.
fn settle_entry(entry: &mut Entry, reason: LostReason, now: Timestamp) {
    let stop = entry.stop.take();
    if entry.exit.is_some() {
        entry.state = State::Exited;
        entry.reason = stop.as_ref().and_then(|stop| stop.reason.clone());
    } else {
        entry.state = State::Lost;
        entry.reason = Some(reason.as_str().to_owned());
    }
    entry.ended_at = Some(now);
    entry.stuck = None;
    entry.handle.clear();
    release_all(entry, reason);
    entry.restarts.next_at = (stop.is_none() && is_restarted(entry)).then_some(now);
    // The logs and whatever else goes with the name are the daemon's to remove, so it is left the order.
    entry.stop = stop.filter(|stop| stop.remove);
}

/// With the boot went every kernel object. A container's end takes the processes, but not a cgroup or a pin that the
/// host keeps: those are the daemon's to give back.
fn release_all(entry: &mut Entry, reason: LostReason) {
    match reason {
        LostReason::Reboot => {
            entry.resources.clear();
            entry.cgroup = None;
            entry.slot = None;
        }
        LostReason::ContainerRestart | LostReason::Vanished | LostReason::PidReused => {
            for resource in &mut entry.resources {
                resource.state = ResourceState::Releasing;
            }
        }
    }
}

/// Whether the restart policy makes a new life follow this end. Nobody knows that a lost one failed.
fn is_restarted(entry: &Entry) -> bool {
    match entry.spec.restart {
        Restart::Never => false,
        Restart::OnFailure => entry.exit.is_some_and(|exit| !exit.is_success()),
        Restart::Always => true,
    }
}

fn event_of(entry: &Entry) -> NewEvent {
    let kind = if entry.state == State::Lost { EventKind::InstanceLost } else { EventKind::InstanceExited };
    let data = json!({"reason": entry.reason, "exit": entry.exit});
    NewEvent::once(kind, &entry.name, &entry.incarnation, data)
}
