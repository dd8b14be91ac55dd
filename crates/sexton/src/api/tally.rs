//! Counting what the event log tells: each fact is recorded once, so it is counted once, whoever brought it about.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use sexton_ledger::{Event, EventKind};
use sexton_plan::id::Incarnation;
use sexton_plan::state::{ExitSource, LostReason};

use super::Context;
use super::routes::events::news;
use crate::metrics::{Metric, Metrics};

/// Events read at once.
const BATCH: usize = 128;

/// A pause after the event log could not be read.
const PAUSE: Duration = Duration::from_secs(5);

/// Counts every event from now on, until the daemon ends.
pub(super) async fn run(context: Arc<Context>) {
    let mut last_seq = context.last_seq.clone();
    let mut after = *last_seq.borrow_and_update();
    let mut tally = Tally::default();
    while last_seq.changed().await.is_ok() {
        let newest = *last_seq.borrow_and_update();
        while after < newest {
            let events = match news(&context, after, BATCH).await {
                Ok(events) => events,
                Err(error) => {
                    tracing::warn!(%error, "events are not counted");
                    tokio::time::sleep(PAUSE).await;
                    break;
                }
            };
            let Some(last) = events.last() else { break };
            after = last.seq;
            events.iter().for_each(|event| tally.count(event, &context.metrics));
        }
    }
}

/// Lives on the way up or down, with the time at which that began. BOUND: a life is in it from its first event to its
/// last, and there are no more of them than instances.
#[derive(Debug, Default)]
struct Tally {
    starting: BTreeMap<Incarnation, Timestamp>,
    stopping: BTreeMap<Incarnation, Timestamp>,
}

impl Tally {
    fn count(&mut self, event: &Event, metrics: &Metrics) {
        match event.kind {
            EventKind::InstanceStarting => begin(&mut self.starting, event),
            EventKind::InstanceRunning => observe(&mut self.starting, event, Metric::StartSeconds, metrics),
            EventKind::InstanceStopping => begin(&mut self.stopping, event),
            EventKind::InstanceExited => {
                self.over(event, metrics);
                let source = event.data.pointer("/exit/source").and_then(Value::as_str).unwrap_or("none");
                metrics.add(Metric::Exits, &[source], 1.0);
                if source == ExitSource::Wait.as_str() {
                    metrics.add(Metric::Reaped, &[], 1.0);
                }
            }
            EventKind::InstanceFailed => self.over(event, metrics),
            EventKind::InstanceLost => {
                self.over(event, metrics);
                if text(event, "reason") == LostReason::Vanished.as_str() {
                    metrics.add(Metric::Vanished, &[], 1.0);
                }
            }
            EventKind::InstanceAdopted => metrics.add(Metric::Adopted, &[text(event, "strength")], 1.0),
            EventKind::OrphanSeen => metrics.add(Metric::Orphans, &["seen"], 1.0),
            EventKind::OrphanAdopted => metrics.add(Metric::Orphans, &["adopted"], 1.0),
            EventKind::OrphanTerminated => metrics.add(Metric::Orphans, &["terminated"], 1.0),
            EventKind::ZombieReaped => metrics.add(Metric::Zombies, &[], zombies(event)),
            EventKind::SignalRefused => metrics.add(Metric::SignalRefused, &[text(event, "reason")], 1.0),
            EventKind::InstanceStuck
            | EventKind::InstanceUnverified
            | EventKind::InstanceRemoved
            | EventKind::ResourceReleased
            | EventKind::ResourceReleaseFailed
            | EventKind::NodeStatus
            | EventKind::NodeDrained
            | EventKind::WorkerRestarted
            | EventKind::KeeperRestarted
            | EventKind::BootChanged
            | EventKind::ApiCalled => {}
        }
    }

    fn over(&mut self, event: &Event, metrics: &Metrics) {
        observe(&mut self.stopping, event, Metric::StopSeconds, metrics);
        event.incarnation.as_ref().map(|life| self.starting.remove(life));
    }
}

fn begin(lives: &mut BTreeMap<Incarnation, Timestamp>, event: &Event) {
    if let Some(life) = &event.incarnation {
        lives.insert(life.clone(), event.at);
    }
}

fn observe(lives: &mut BTreeMap<Incarnation, Timestamp>, event: &Event, metric: Metric, metrics: &Metrics) {
    let Some(began) = event.incarnation.as_ref().and_then(|life| lives.remove(life)) else { return };
    // A clock set back meanwhile tells nothing.
    if let Ok(took) = Duration::try_from(event.at.duration_since(began)) {
        metrics.observe(metric, took);
    }
}

/// A word of an event's particulars, `none` where it is not there.
fn text<'e>(event: &'e Event, field: &str) -> &'e str {
    event.data.get(field).and_then(Value::as_str).unwrap_or("none")
}

/// How many zombies one event tells of.
#[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn zombies(event: &Event) -> f64 {
    event.data.get("count").and_then(Value::as_u64).map_or(1.0, |count| count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(kind: EventKind, at: i64, data: Value) -> Event {
        Event {
            seq: 1,
            at: Timestamp::from_millisecond(at).expect("a time"),
            boot_id: "0f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff".parse().expect("a UUID"),
            node: "n1".parse().expect("a node"),
            instance: Some("vm-1".parse().expect("a name")),
            incarnation: Some("01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().expect("a ULID")),
            kind,
            data,
        }
    }

    #[test]
    fn a_life_is_counted_once_from_start_to_end() {
        let (metrics, mut tally) = (Metrics::default(), Tally::default());
        for (kind, at, data) in [
            (EventKind::InstanceStarting, 0, json!({})),
            (EventKind::InstanceRunning, 20, json!({})),
            (EventKind::InstanceStopping, 1_000, json!({})),
            (EventKind::InstanceExited, 3_000, json!({"exit": {"source": "wait"}})),
        ] {
            tally.count(&event(kind, at, data), &metrics);
        }
        let json = metrics.as_json();
        assert_eq!(json["sexton_exits_total"], json!([{"source": "wait", "value": 1}]));
        assert_eq!(
            (&json["sexton_start_duration_seconds"]["sum"], &json["sexton_stop_duration_seconds"]["sum"]),
            (&json!(0.02), &json!(2.0))
        );
        assert!(tally.starting.is_empty() && tally.stopping.is_empty());
    }

    #[test]
    fn a_clock_set_back_counts_no_duration() {
        let (metrics, mut tally) = (Metrics::default(), Tally::default());
        tally.count(&event(EventKind::InstanceStarting, 5_000, json!({})), &metrics);
        tally.count(&event(EventKind::InstanceRunning, 0, json!({})), &metrics);
        assert_eq!(metrics.as_json()["sexton_start_duration_seconds"]["count"], 0);
    }
}
