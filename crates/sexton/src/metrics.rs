//! What is counted and measured, under the contract's names; shown as Prometheus text and as JSON.
//!
//! A metric that nothing has been told about yet shows 0 where it has no labels, and nothing where it has.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};

use sexton_plan::state::State;

use crate::node::request::Facts;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Counter,
    Gauge,
    Histogram,
}

impl Type {
    const fn as_str(self) -> &'static str {
        match self {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Histogram => "histogram",
        }
    }
}

/// Upper bounds of a histogram's buckets, in seconds.
const BUCKETS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

macro_rules! metrics {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $kind:ident, [$($label:literal),*], $help:literal;)*) => {
        /// One metric.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Metric {
            $(#[doc = $help] $variant,)*
        }

        impl Metric {
            /// Every metric, in the order of the contract.
            pub const ALL: &'static [Metric] = &[$(Metric::$variant,)*];

            /// Its Prometheus name.
            pub const fn name(self) -> &'static str {
                match self { $(Metric::$variant => $name,)* }
            }

            const fn kind(self) -> Type {
                match self { $(Metric::$variant => Type::$kind,)* }
            }

            const fn labels(self) -> &'static [&'static str] {
                match self { $(Metric::$variant => &[$($label),*],)* }
            }

            const fn help(self) -> &'static str {
                match self { $(Metric::$variant => $help,)* }
            }
        }
    };
}

metrics! {
    Instances = "sexton_instances", Gauge, ["state", "kind"], "Instances by state and kind.";
    Exits = "sexton_exits_total", Counter, ["source"], "Ends of main processes by who told their status.";
    ReaperRegistered = "sexton_reaper_registered", Gauge, [], "Processes registered with the reaper.";
    Reaped = "sexton_reaped_total", Counter, [], "Registered processes whose status was collected.";
    Vanished = "sexton_reaper_vanished_total", Counter, [], "Registered processes that went without a status.";
    Sweeps = "sexton_reaper_sweeps_total", Counter, [], "Sweeps that collected zombies of processes nobody here started; a look that finds none is not one.";
    LastSweep = "sexton_reaper_last_sweep_timestamp_seconds", Gauge, [], "When the last such sweep ended; 0 before the first.";
    ReaperRestarts = "sexton_reaper_restarts_total", Counter, [], "Times the reaper was started again.";
    Zombies = "sexton_zombies_reaped_total", Counter, [], "Zombies of processes nobody here started, collected.";
    Orphans = "sexton_orphans", Counter, ["action"], "Orphans by what was done with them.";
    Adopted = "sexton_adopted_total", Counter, ["strength"], "Processes taken into custody by strength of identity.";
    SignalRefused = "sexton_signal_refused_total", Counter, ["reason"], "Signals not sent, by reason.";
    KillSteps = "sexton_kill_steps_total", Counter, ["step"], "Steps of the stop ladder taken.";
    Resources = "sexton_resources", Gauge, ["kind", "state"], "Things acquired from the host by kind and state.";
    Slots = "sexton_slots", Gauge, ["state"], "Network slots by state.";
    DrainState = "sexton_drain_state", Gauge, [], "0 not draining, 1 draining, 2 drained.";
    Inflight = "sexton_inflight", Gauge, ["kind"], "Operations admitted and not yet ended, by kind.";
    Generation = "sexton_reconcile_generation", Gauge, [], "Number of the last finished reconcile pass.";
    ReconcileSeconds = "sexton_reconcile_duration_seconds", Histogram, [], "How long a reconcile pass takes.";
    StartSeconds = "sexton_start_duration_seconds", Histogram, [], "How long a start takes.";
    StopSeconds = "sexton_stop_duration_seconds", Histogram, [], "How long a stop takes.";
    CommitSeconds = "sexton_ledger_commit_seconds", Histogram, [], "How long a commit of the ledger takes.";
    WorkerRestarts = "sexton_worker_restarts_total", Counter, [], "Times the worker was replaced.";
    EventsDropped = "sexton_events_dropped_total", Counter, [], "Events that could not be recorded.";
}

/// What is known of one metric under one set of labels.
#[derive(Clone, Debug, PartialEq)]
enum Measure {
    Number(f64),
    Spread { counts: [u64; BUCKETS.len()], count: u64, sum: f64 },
}

type Series = BTreeMap<(Metric, Vec<String>), Measure>;

/// All metrics of this process.
#[derive(Debug, Default)]
pub struct Metrics {
    series: Mutex<Series>,
}

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, Series> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to a counter or gauge; `labels` are the values in the order of the contract.
    pub fn add(&self, metric: Metric, labels: &[&str], more: f64) {
        debug_assert_eq!(labels.len(), metric.labels().len(), "{}", metric.name());
        let key = (metric, labels.iter().map(|label| (*label).to_owned()).collect());
        if let Measure::Number(number) = self.lock().entry(key).or_insert(Measure::Number(0.0)) {
            *number += more;
        }
    }

    /// Sets a gauge, or a counter whose truth is kept elsewhere.
    pub fn set(&self, metric: Metric, labels: &[&str], to: f64) {
        debug_assert_eq!(labels.len(), metric.labels().len(), "{}", metric.name());
        let key = (metric, labels.iter().map(|label| (*label).to_owned()).collect());
        self.lock().insert(key, Measure::Number(to));
    }

    /// Forgets every set of labels of a gauge, before it is set anew.
    pub fn clear(&self, metric: Metric) {
        self.lock().retain(|(other, _), _| *other != metric);
    }

    /// Takes one duration into a histogram.
    pub fn observe(&self, metric: Metric, took: Duration) {
        debug_assert_eq!(metric.kind(), Type::Histogram, "{}", metric.name());
        let mut series = self.lock();
        let measure = series.entry((metric, Vec::new())).or_insert_with(empty_spread);
        if let Measure::Spread { counts, count, sum } = measure {
            let seconds = took.as_secs_f64();
            for (slot, _) in counts.iter_mut().zip(BUCKETS).filter(|(_, bound)| seconds <= *bound) {
                *slot += 1;
            }
            *count += 1;
            *sum += seconds;
        }
    }

    /// Takes in what the driver says of itself.
    pub fn take_in(&self, facts: &Facts) {
        self.clear(Metric::Instances);
        for (state, kind, count) in &facts.instances {
            self.set(Metric::Instances, &[state.as_str(), kind], float(*count));
        }
        self.clear(Metric::Inflight);
        for (_, kind, count) in facts.instances.iter().filter(|(state, _, _)| !state.is_terminal()) {
            self.add(Metric::Inflight, &[kind], float(*count));
        }
        for operation in &facts.operations {
            self.add(Metric::Inflight, &[&operation.kind], 1.0);
        }
        let alive = |state: State| matches!(state, State::Running | State::Stopping | State::Stuck);
        let registered: u64 = facts.instances.iter().filter(|(state, _, _)| alive(*state)).map(|(_, _, n)| *n).sum();
        self.set(Metric::ReaperRegistered, &[], float(registered));
        let drain = f64::from(u8::from(facts.state.is_draining()) + u8::from(facts.state.drained));
        self.set(Metric::DrainState, &[], drain);
        self.set(Metric::Generation, &[], float(facts.generation));
        self.set(Metric::WorkerRestarts, &[], float(facts.worker_restarts));
        // The reaper of registered processes lives in the worker, and begins again with it.
        self.set(Metric::ReaperRestarts, &[], float(facts.worker_restarts));
    }

    /// Every series of `metric`; one of 0 where it has no labels and was never told of.
    fn of(series: &Series, metric: Metric) -> Vec<(Vec<String>, Measure)> {
        let from = (metric, Vec::new());
        let known = series.range(from..).take_while(|((other, _), _)| *other == metric);
        let mut found: Vec<_> = known.map(|((_, labels), measure)| (labels.clone(), measure.clone())).collect();
        if found.is_empty() && metric.labels().is_empty() {
            let zero = if metric.kind() == Type::Histogram { empty_spread() } else { Measure::Number(0.0) };
            found.push((Vec::new(), zero));
        }
        found
    }

    /// All of them as Prometheus reads them (text format 0.0.4).
    pub fn as_text(&self) -> String {
        let series = self.lock();
        let mut text = String::new();
        for metric in Metric::ALL {
            let name = metric.name();
            // Writing to a string does not fail.
            let _written = writeln!(text, "# HELP {name} {}\n# TYPE {name} {}", metric.help(), metric.kind().as_str());
            for (labels, measure) in Metrics::of(&series, *metric) {
                write_series(&mut text, *metric, &labels, &measure);
            }
        }
        text
    }

    /// All of them as JSON: an object by name, each a number, or a list of objects with labels and `value`.
    pub fn as_json(&self) -> Value {
        let series = self.lock();
        let mut all = Map::new();
        for metric in Metric::ALL {
            let shown = Metrics::of(&series, *metric).into_iter().map(|(labels, measure)| {
                let mut object: Map<String, Value> =
                    metric.labels().iter().zip(labels).map(|(key, value)| ((*key).to_owned(), value.into())).collect();
                object.insert("value".to_owned(), measure.as_json());
                object
            });
            let mut shown: Vec<_> = shown.collect();
            let value = match shown.pop() {
                Some(mut only) if metric.labels().is_empty() => only.remove("value").unwrap_or_default(),
                Some(last) => {
                    shown.push(last);
                    json!(shown)
                }
                None => json!([]),
            };
            all.insert(metric.name().to_owned(), value);
        }
        Value::Object(all)
    }
}

impl Measure {
    fn as_json(&self) -> Value {
        match self {
            Measure::Number(number) => number_json(*number),
            Measure::Spread { counts, count, sum } => {
                let buckets: Vec<Value> =
                    BUCKETS.iter().zip(counts).map(|(le, count)| json!({ "le": le, "count": count })).collect();
                json!({ "count": count, "sum": sum, "buckets": buckets })
            }
        }
    }
}

/// A whole number without a fraction, as everything that is counted is.
#[allow(clippy::cast_possible_truncation, reason = "checked to be whole and small before")]
fn number_json(number: f64) -> Value {
    let is_whole = number.fract() == 0.0 && number.abs() < 9e15;
    if is_whole { json!(number as i64) } else { json!(number) }
}

const fn empty_spread() -> Measure {
    Measure::Spread { counts: [0; BUCKETS.len()], count: 0, sum: 0.0 }
}

#[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}

fn write_series(text: &mut String, metric: Metric, labels: &[String], measure: &Measure) {
    let name = metric.name();
    let pairs: Vec<String> =
        metric.labels().iter().zip(labels).map(|(key, value)| format!("{key}=\"{}\"", quoted(value))).collect();
    let braces = if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) };
    // Writing to a string does not fail.
    match measure {
        Measure::Number(number) => {
            let _written = writeln!(text, "{name}{braces} {number}");
        }
        Measure::Spread { counts, count, sum } => {
            for (bound, below) in BUCKETS.iter().zip(counts) {
                let _written = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {below}");
            }
            let _written =
                writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}");
        }
    }
}

/// A label's value with what the format gives a meaning escaped.
fn quoted(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_contract_is_there_before_anything_happened() {
        let metrics = Metrics::default();
        let (text, json) = (metrics.as_text(), metrics.as_json());
        for metric in Metric::ALL {
            assert!(text.contains(&format!("# TYPE {} ", metric.name())), "{}", metric.name());
            assert!(json.get(metric.name()).is_some(), "{}", metric.name());
        }
        assert!(text.contains("\nsexton_reaped_total 0\n"));
    }

    #[test]
    fn labels_and_buckets_are_written_as_prometheus_reads_them() {
        let metrics = Metrics::default();
        metrics.add(Metric::Exits, &["wait"], 2.0);
        metrics.observe(Metric::StartSeconds, Duration::from_millis(30));
        let instances = vec![(State::Running, "a\"b".to_owned(), 3)];
        metrics.take_in(&Facts { instances, generation: 7, ..Facts::default() });
        let text = metrics.as_text();
        for line in [
            "sexton_exits_total{source=\"wait\"} 2",
            "sexton_instances{state=\"running\",kind=\"a\\\"b\"} 3",
            "sexton_start_duration_seconds_bucket{le=\"0.025\"} 0",
            "sexton_start_duration_seconds_bucket{le=\"0.05\"} 1",
            "sexton_start_duration_seconds_bucket{le=\"+Inf\"} 1",
            "sexton_reconcile_generation 7",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
        assert_eq!(metrics.as_json()["sexton_exits_total"], json!([{"source": "wait", "value": 2}]));
        metrics.take_in(&Facts::default());
        assert!(!metrics.as_text().contains("sexton_instances{"), "what is gone is not shown for ever");
    }
}
