//! Settling what the previous boot left: nothing of it can live, and nobody can know how most of it ended.

use std::path::Path;

use jiff::Timestamp;
use rusqlite::{Connection, TransactionBehavior};
use serde_json::json;
use sexton_plan::id::{BootId, NodeId};
use sexton_plan::state::{LostReason, Restart, State};

use crate::connect::connect;
use crate::entry::Entry;
use crate::event::{EventKind, NewEvent};
use crate::hold;
use crate::look::{self, Files, OpenError, Sight};
use crate::rows::{self, Stamp};
use crate::whereabouts::{BOOT_ID, Whereabouts};

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
    /// Whose instances are local; the ledger's own node where `None`. To any other node nothing in it is local.
    pub node: Option<&'a NodeId>,
    /// The wall clock.
    pub now: fn() -> Timestamp,
}

/// Settles the instances of the previous boot once, however many processes call this at the same time.
///
/// Without a ledger there is nothing to settle, and none is made. No process is signalled. Beside a daemon, which holds
/// the state directory and settles its boot itself, there is nothing to do either, whatever boot the caller names.
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
            if !is_another(&before, check.boot_id) {
                return Ok(Settled::default());
            }
        }
    }
    if hold::stays_held(state_dir).map_err(OpenError::Io)? {
        return Ok(Settled::default());
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
    // RACE: asked again in the transaction, for which a daemon that begins now must wait: it has shown nothing as alive.
    if hold::is_held(state_dir).map_err(OpenError::Io)? {
        return Ok(Settled::default());
    }
    let settled = settle(&transaction, &stamp, &before)?;
    transaction.commit()?;
    Ok(settled)
}

/// Whether the ledger was last open during another boot, or never.
fn is_another(before: &Whereabouts, boot_id: &BootId) -> bool {
    before.boot_id.as_ref() != Some(boot_id)
}

/// Settles, in the open transaction, what cannot live any more, and writes down the boot of now.
pub(crate) fn settle(conn: &Connection, stamp: &Stamp, before: &Whereabouts) -> Result<Settled, OpenError> {
    let mut settled = Settled::default();
    if !is_another(before, &stamp.boot_id) {
        return Ok(settled);
    }
    // A ledger that was never open during any boot holds nothing that could have ended with one.
    if let Some(boot_before) = &before.boot_id {
        let mut last = rows::last_seq(conn)?;
        let mut events = Vec::new();
        for mut entry in rows::read_live_entries(conn, &stamp.node)? {
            settle_entry(&mut entry, (stamp.now)());
            rows::put_entry(conn, &entry)?;
            events.push(event_of(&entry));
            settled.settled += 1;
        }
        let data = json!({"before": boot_before, "after": stamp.boot_id, "settled": settled.settled});
        events.insert(0, NewEvent::of_node(EventKind::BootChanged, data));
        rows::append_events(conn, stamp, &events, &mut last)?;
    }
    // Namespaces, links and rules went with the kernel that held them.
    rows::free_all_slots(conn)?;
    rows::put_meta(conn, BOOT_ID, Some(stamp.boot_id.as_str()))?;
    Ok(settled)
}

/// Makes `entry` terminal: `exited` where its exit was known already, else `lost`.
fn settle_entry(entry: &mut Entry, now: Timestamp) {
    let stop = entry.stop.take();
    if entry.exit.is_some() {
        entry.state = State::Exited;
        entry.reason = stop.as_ref().and_then(|stop| stop.reason.clone());
    } else {
        entry.state = State::Lost;
        entry.reason = Some(LostReason::Reboot.as_str().to_owned());
    }
    entry.ended_at = Some(now);
    entry.stuck = None;
    entry.handle.clear();
    // With the boot went every kernel object.
    entry.resources.clear();
    entry.cgroup = None;
    entry.slot = None;
    entry.restarts.next_at = (stop.is_none() && is_restarted(entry)).then_some(now);
    // The logs and whatever else goes with the name are the daemon's to remove, so it is left the order.
    entry.stop = stop.filter(|stop| stop.remove);
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
