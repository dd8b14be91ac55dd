//! How an incarnation is over, and what follows from it.

use std::time::Duration;

use serde_json::{Value, json};
use sexton_ledger::EventKind;
use sexton_ledger::entry::Entry;
use sexton_plan::restart;
use sexton_plan::state::{LostReason, State};

use super::unstarted::Unstarted;

/// How an incarnation is over.
pub(super) enum Fate {
    /// Its exit is known, or nobody can know it, for this reason.
    Over(LostReason),
    /// It never ran.
    NeverRan(Unstarted),
}

/// The terminal state, and its reason.
pub(super) fn conclude(next: &mut Entry, fate: Fate) {
    match fate {
        Fate::NeverRan(why) => {
            next.state = State::Failed;
            next.reason = Some(why.reason);
            next.exit = None;
        }
        Fate::Over(_) if next.exit.is_some() => {
            next.state = State::Exited;
            next.reason = next.stop.as_ref().and_then(|order| order.reason.clone());
        }
        Fate::Over(reason) => {
            next.state = State::Lost;
            next.reason = Some(reason.to_string());
        }
    }
}

/// Whether and when a new incarnation follows; `lacked_room`: the host could not begin the last one.
pub(super) fn plan_restart(next: &mut Entry, lacked_room: bool) {
    let stopped = next.stop.is_some();
    let success = next.exit.is_some_and(|exit| exit.is_success());
    let lived = next
        .started_at
        .zip(next.ended_at)
        .map_or(Duration::ZERO, |(from, to)| Duration::try_from(to.duration_since(from)).unwrap_or_default());
    let count = if lived >= restart::STEADY { 0 } else { next.restarts.count };
    let interrupted = next.state == State::Failed && next.reason.as_deref() == Some(super::recover::INTERRUPTED);
    let is_restart = next.restarts.count > 0 && !stopped;
    if interrupted && is_restart {
        // The daemon died in the middle of a restart, which is no reason to give up on it.
        next.restarts.next_at = next.ended_at;
    } else if (lacked_room && is_restart) // Nor is a disk that is full for a while.
        || restart::restarts(next.spec.restart, restart::Ended { state: next.state, success, stopped })
    {
        next.restarts.count = count.saturating_add(1);
        next.restarts.next_at = next.ended_at.and_then(|at| at.checked_add(restart::pause(count)).ok());
    } else {
        next.restarts.next_at = None;
    }
    if next.stop.as_ref().is_some_and(|order| !order.remove) {
        next.stop = None;
    }
}

/// The event of a terminal state.
pub(super) fn told(entry: &Entry) -> (EventKind, Value) {
    match entry.state {
        State::Failed => (EventKind::InstanceFailed, json!({ "reason": entry.reason })),
        State::Lost => (EventKind::InstanceLost, json!({ "reason": entry.reason })),
        State::Exited | State::Starting | State::Running | State::Stopping | State::Stuck | State::Unverified => {
            (EventKind::InstanceExited, json!({ "exit": entry.exit, "reason": entry.reason }))
        }
    }
}
