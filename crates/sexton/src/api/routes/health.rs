//! Whether the daemon lives, works and is ready; what it has counted; what it serves.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::body::Bytes;
use serde_json::json;
use sexton_ledger::entry::ResourceState;

use super::{everything, slots};
use crate::api::answer::{self, Answer};
use crate::api::call::Call;
use crate::metrics::Metric;
use crate::node::request::Facts;
use crate::refusal::{Kind, Refusal};

/// A driver that takes longer to say who it is does not do its work, nor does a keeper that takes longer to hear.
const STALL: Duration = Duration::from_secs(5);

pub(in crate::api) async fn live(_call: Call) -> Result<Answer, Refusal> {
    Ok(answer::json(200, &json!({ "status": "live" })))
}

/// What the driver says of itself, if it says so in time.
async fn facts(call: &Call) -> Result<Facts, Refusal> {
    let asked = tokio::time::timeout(STALL, call.context.node.facts()).await;
    asked.map_err(|_| Refusal::new(Kind::NotReady, format!("the driver has not answered for {} s", STALL.as_secs())))?
}

pub(in crate::api) async fn healthy(call: Call) -> Result<Answer, Refusal> {
    if let Some(since) = facts(&call).await?.pass_stalled {
        let told = format!("a pass of the reconciler has been under way for {} s", since.as_secs());
        return Err(Refusal::new(Kind::NotReady, told));
    }
    if let Some(host) = &call.context.host
        && tokio::time::timeout(STALL, host.keeper.hears()).await.is_err()
    {
        let told = format!("the keeper, which reaps, has heard nothing for {} s", STALL.as_secs());
        return Err(Refusal::new(Kind::NotReady, told));
    }
    Ok(answer::json(200, &json!({ "status": "healthy" })))
}

pub(in crate::api) async fn ready(call: Call) -> Result<Answer, Refusal> {
    match facts(&call).await?.generation {
        0 => Err(Refusal::new(Kind::NotReady, "the first reconcile is not done")),
        generation => Ok(answer::json(200, &json!({ "status": "ready", "generation": generation }))),
    }
}

pub(in crate::api) async fn metrics_json(call: Call) -> Result<Answer, Refusal> {
    refresh(&call).await?;
    Ok(answer::json(200, &call.context.metrics.as_json()))
}

pub(in crate::api) async fn metrics_text(call: Call) -> Result<Answer, Refusal> {
    refresh(&call).await?;
    Ok(answer::whole(200, "text/plain; version=0.0.4; charset=utf-8", call.context.metrics.as_text()))
}

/// Takes in what only the driver knows.
async fn refresh(call: &Call) -> Result<(), Refusal> {
    let facts = facts(call).await?;
    call.context.metrics.take_in(&facts);
    let held = held(call).await?;
    call.context.metrics.clear(Metric::Resources);
    for ((kind, state), count) in held {
        call.context.metrics.set(Metric::Resources, &[&kind, state], f64::from(count));
    }
    call.context.metrics.clear(Metric::Slots);
    for (state, count) in slots::counts(call).await {
        call.context.metrics.set(Metric::Slots, &[state], f64::from(count));
    }
    Ok(())
}

/// What all instances have acquired, by kind and state.
async fn held(call: &Call) -> Result<BTreeMap<(String, &'static str), u32>, Refusal> {
    let mut held = BTreeMap::new();
    for resource in everything(&call.context.node).await?.iter().flat_map(|entry| &entry.resources) {
        let state = match resource.state {
            ResourceState::Intent => "intent",
            ResourceState::Held => "held",
            ResourceState::Releasing => "releasing",
        };
        *held.entry((resource.kind.clone(), state)).or_insert(0) += 1;
    }
    Ok(held)
}

pub(in crate::api) async fn openapi(call: Call) -> Result<Answer, Refusal> {
    Ok(answer::whole(200, "application/json", Bytes::clone(&call.context.document)))
}
