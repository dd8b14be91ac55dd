//! The daemon itself: who it is, what it uses, what it is told to do.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use sexton_plan::gate::NodeStatus;

use super::{everything, wait};
use crate::api::answer::{Answer, json};
use crate::api::call::{Call, detached};
use crate::api::json::{Fields, bad_field};
use crate::api::types::{LedgerView, Left, List, NodeView, OperationsView, SelfView, VersionView};
use crate::doctor::{self, Report};
use crate::node::request::Facts;
use crate::refusal::{Kind, Refusal};

pub(in crate::api) async fn version(_call: Call) -> Result<Answer, Refusal> {
    Ok(json(200, &VersionView { version: env!("CARGO_PKG_VERSION").to_owned(), api: "v1".to_owned() }))
}

pub(in crate::api) async fn own(call: Call) -> Result<Answer, Refusal> {
    let facts = call.context.node.facts().await?;
    let usage =
        Usage::look().map_err(|error| Refusal::new(Kind::Internal, format!("could not read `/proc/self`: {error}")))?;
    Ok(json(
        200,
        &SelfView {
            worker_pid: std::process::id(),
            keeper_pid: facts.keeper_pid,
            fds: usage.fds,
            threads: usage.threads,
            rss_bytes: usage.rss_bytes,
            ledger_path: call.context.ledger_path().display().to_string(),
            generation: facts.generation,
        },
    ))
}

/// What this process uses.
struct Usage {
    fds: u64,
    threads: u64,
    rss_bytes: u64,
}

impl Usage {
    fn look() -> std::io::Result<Usage> {
        let status = fs::read_to_string("/proc/self/status")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_ascii_whitespace().next()?.parse::<u64>().ok()
        };
        // The descriptor that lists the others is not counted.
        let fds = fs::read_dir("/proc/self/fd")?.count().saturating_sub(1) as u64;
        Ok(Usage { fds, threads: field("Threads:").unwrap_or(0), rss_bytes: field("VmRSS:").unwrap_or(0) * 1_024 })
    }
}

pub(in crate::api) async fn ledger(call: Call) -> Result<Answer, Refusal> {
    let path = call.context.ledger_path();
    let size = |suffix: &str| fs::metadata(format!("{}{suffix}", path.display())).map_or(0, |about| about.len());
    let bytes = size("") + size("-wal");
    let reader = call.context.events.0.clone();
    let first = tokio::task::spawn_blocking(move || reader.first_seq()).await.map_err(|_| Refusal::ending())?;
    let first_seq =
        first.map_err(|error| Refusal::new(Kind::Internal, format!("could not read the ledger: {error}")))?;
    let last_seq = *call.context.last_seq.borrow();
    Ok(json(200, &LedgerView { path: path.display().to_string(), bytes, first_seq, last_seq }))
}

pub(in crate::api) async fn reconcile(call: Call) -> Result<Answer, Refusal> {
    let node = call.context.node.clone();
    let generation = detached(async move { node.reconcile().await }).await??;
    Ok(json(200, &serde_json::json!({ "generation": generation })))
}

/// The node as it is shown.
fn node_view(facts: &Facts) -> NodeView {
    let left = if facts.state.is_draining() && !facts.state.drained { left(facts) } else { Vec::new() };
    NodeView {
        id: facts.node.clone(),
        status: facts.state.status.to_string(),
        drained: facts.state.drained,
        deadline: facts.state.deadline.as_ref().map(|deadline| deadline.at),
        inflight: facts.inflight.len() + facts.operations.len(),
        operations: by_kind(facts),
        left,
    }
}

/// What a drain waits for, each by name.
fn left(facts: &Facts) -> Vec<Left> {
    let instances = facts.inflight.iter().map(|one| Left { name: one.name.to_string(), error: one.error.clone() });
    let operations = facts
        .operations
        .iter()
        .map(|one| Left { name: one.kind.clone(), error: Some(format!("an operation under way since {}", one.since)) });
    let slots = facts.slots.iter().map(|one| Left { name: one.name.clone(), error: Some(one.error.clone()) });
    let cgroups = facts.unclaimed.iter().map(|one| Left { name: one.cgroup.clone(), error: Some(one.error.clone()) });
    instances.chain(operations).chain(slots).chain(cgroups).collect()
}

/// What is in flight, by kind.
fn by_kind(facts: &Facts) -> Vec<OperationsView> {
    let instances = facts.inflight.iter().map(|one| ("instance", one.since));
    let operations = facts.operations.iter().map(|one| (one.kind.as_str(), one.since));
    let mut kinds: BTreeMap<&str, (usize, Timestamp)> = BTreeMap::new();
    for (kind, since) in instances.chain(operations) {
        let (count, oldest) = kinds.entry(kind).or_insert((0, since));
        *count += 1;
        *oldest = since.min(*oldest);
    }
    let view =
        |(kind, (count, since)): (&str, (usize, Timestamp))| OperationsView { kind: kind.to_owned(), count, since };
    kinds.into_iter().map(view).collect()
}

pub(in crate::api) async fn node(call: Call) -> Result<Answer, Refusal> {
    Ok(json(200, &node_view(&call.context.node.facts().await?)))
}

pub(in crate::api) async fn nodes(call: Call) -> Result<Answer, Refusal> {
    let facts = call.context.node.facts().await?;
    Ok(json(200, &List { items: vec![node_view(&facts)], next: None }))
}

pub(in crate::api) async fn doctor(call: Call) -> Result<Answer, Refusal> {
    let entries = everything(&call.context.node).await?;
    let settings = call.context.settings.clone();
    let looked = tokio::task::spawn_blocking(move || {
        let mut checks = doctor::examine(&settings);
        checks.extend(doctor::examine_custody(&settings, &entries));
        checks
    });
    let mut checks = looked.await.map_err(|_| Refusal::ending())?;
    checks.extend(call.context.host.as_deref().map(doctor::examine_daemon).into_iter().flatten());
    Ok(json(200, &Report::new(checks)))
}

/// What a caller wants a node to become.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Drain { force: bool, timeout: Option<Duration> },
    Status(NodeStatus),
}

fn change(body: Option<Value>) -> Result<Change, Refusal> {
    let mut fields = Fields::new(body.unwrap_or_default())?;
    let status = fields.string("status")?.ok_or_else(|| bad_field("status", "is required"))?;
    let force = fields.fact("forceStop")?;
    let timeout = fields.duration("timeout")?;
    fields.end("", &["status", "forceStop", "timeout"])?;
    let rule = "must be `standby`, `healthy`, `unhealthy` or `draining`";
    let status = status.parse::<NodeStatus>().map_err(|_| bad_field("status", rule))?;
    match status {
        NodeStatus::Draining => Ok(Change::Drain { force, timeout }),
        _ if force => Err(bad_field("forceStop", "goes with `draining` alone")),
        _ if timeout.is_some() => Err(bad_field("timeout", "goes with `draining` alone")),
        NodeStatus::Standby | NodeStatus::Healthy | NodeStatus::Unhealthy => Ok(Change::Status(status)),
    }
}

pub(in crate::api) async fn set_node(mut call: Call) -> Result<Answer, Refusal> {
    let wait = wait(&call)?;
    let change = change(call.body.take())?;
    let facts = call.context.node.facts().await?;
    let id = call.segments.first().map_or("", String::as_str);
    if id != "self" && id != facts.node {
        let told = format!("there is no node `{}`", id.escape_debug());
        return Err(Refusal::new(Kind::NotFound, told));
    }
    match change {
        Change::Drain { force, timeout } => drain(&call, &facts, force, timeout, wait).await,
        Change::Status(status) => {
            let (node, caller) = (call.context.node.clone(), call.caller.clone());
            detached(async move { node.set_status(status, caller).await }).await??;
            Ok(json(200, &node_view(&call.context.node.facts().await?)))
        }
    }
}

/// Closes the gate, and waits for what is left as long as the caller wants to.
async fn drain(
    call: &Call,
    facts: &Facts,
    force: bool,
    timeout: Option<Duration>,
    wait: Option<Duration>,
) -> Result<Answer, Refusal> {
    // The configured deadline counts from the first order; a later one without its own does not move it.
    let configured = call.context.settings.drain_timeout.filter(|_| !facts.state.is_draining());
    let (node, caller) = (call.context.node.clone(), call.caller.clone());
    let timeout = timeout.or(configured);
    detached(async move { node.drain(force, timeout, caller).await }).await??;
    if let Some(wait) = wait {
        let mut status = call.context.node.status().await?;
        // Whether in time or not, what is shown is what is then true.
        let _in_time = tokio::time::timeout(wait, status.wait_for(|state| state.drained)).await;
    }
    let facts = call.context.node.facts().await?;
    let status = if facts.state.drained { 200 } else { 202 };
    Ok(json(status, &node_view(&facts)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_drain_is_asked_for_with_words_that_go_together() {
        let drain = json!({"status": "draining", "forceStop": true, "timeout": "10m"});
        assert_eq!(change(Some(drain)), Ok(Change::Drain { force: true, timeout: Some(Duration::from_secs(600)) }));
        for bad in [
            json!({}),
            json!({"status": "asleep"}),
            json!({"status": 5}),
            json!({"status": "healthy", "forceStop": true}),
            json!({"status": "standby", "timeout": "1s"}),
            json!({"status": "draining", "timeout": 5}),
            json!({"status": "draining", "force": true}),
        ] {
            assert_eq!(change(Some(bad.clone())).map_err(|refusal| refusal.kind), Err(Kind::BadArgument), "{bad}");
        }
    }
}
