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

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use sexton_ledger::entry::{Exit, Restarts, StopOrder};
    use sexton_plan::state::{ExitSource, ExitStatus, Restart};

    use super::*;
    use crate::node::{recover, sample};

    const BEGAN: Timestamp = Timestamp::UNIX_EPOCH;

    /// One that was restarted `count` times, and has failed after `lived` seconds.
    fn failed(count: u32, lived: i64) -> Entry {
        let mut entry = sample::entry("its");
        entry.spec.restart = Restart::OnFailure;
        entry.state = State::Exited;
        entry.exit = Some(Exit::new(ExitStatus::Code(1), ExitSource::Wait, BEGAN));
        entry.started_at = Some(BEGAN);
        entry.ended_at = Some(BEGAN + Duration::from_secs(lived.cast_unsigned()));
        entry.restarts = Restarts { count, next_at: None };
        entry
    }

    /// How many restarts there are with the next one, and after how many milliseconds that is due.
    fn planned(mut entry: Entry, lacked_room: bool) -> (u32, Option<i128>) {
        plan_restart(&mut entry, lacked_room);
        assert_eq!(entry.stop, None);
        let pause = |at: Timestamp| at.duration_since(entry.ended_at.expect("it ended")).as_millis();
        (entry.restarts.count, entry.restarts.next_at.map(pause))
    }

    #[test]
    fn restarts_are_counted_anew_after_a_minute_and_end_with_a_stop() {
        assert_eq!(planned(failed(0, 1), false), (1, Some(100)));
        assert_eq!(planned(failed(4, 59), false), (5, Some(1_600)));
        assert_eq!(planned(failed(4, 60), false), (1, Some(100)));
        assert_eq!(planned(failed(u32::MAX, 1), false), (u32::MAX, Some(60_000)));
        let stop = StopOrder { force: false, grace: Duration::ZERO, remove: false, reason: None };
        let pending = Restarts { count: 4, next_at: Some(BEGAN) };
        let stopped = Entry { stop: Some(stop), restarts: pending, ..failed(4, 1) };
        assert_eq!(planned(stopped.clone(), false), (4, None));
        assert_eq!(planned(stopped, true), (4, None));
    }

    #[test]
    fn a_restart_that_never_ran_is_tried_again_where_that_was_not_its_fault() {
        let never_ran = |count, reason: &str| Entry {
            state: State::Failed,
            reason: Some(reason.to_owned()),
            exit: None,
            started_at: None,
            ..failed(count, 1)
        };
        assert_eq!(planned(never_ran(4, recover::INTERRUPTED), false), (4, Some(0)), "the daemon died");
        assert_eq!(planned(never_ran(4, "no room"), true), (5, Some(1_600)), "the host had no room");
        assert_eq!(planned(never_ran(4, "no such program"), false), (4, None));
        // Its first start was somebody's request, who was told.
        assert_eq!(planned(never_ran(0, recover::INTERRUPTED), false), (0, None));
        assert_eq!(planned(never_ran(0, "no room"), true), (0, None));
    }
}
