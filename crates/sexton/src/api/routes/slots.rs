//! The network slots.

use std::collections::BTreeMap;

use super::limit;
use crate::api::answer::{Answer, json};
use crate::api::call::Call;
use crate::api::path::whole;
use crate::api::types::{List, SlotView};
use crate::node::slots::Shown;
use crate::refusal::Refusal;

/// Every slot by number; none where nothing but the node is there.
async fn everything(call: &Call) -> Vec<Shown> {
    match &call.context.host {
        Some(host) => host.slots.list().await,
        None => Vec::new(),
    }
}

pub(in crate::api) async fn list(call: Call) -> Result<Answer, Refusal> {
    let limit = limit(&call)?;
    let after =
        call.query.parsed("after", "the number of a slot", |text| whole(text).and_then(|n| u32::try_from(n).ok()))?;
    let node = call.context.node.facts().await?.node;
    let all = everything(&call).await.into_iter();
    let mut items: Vec<SlotView> = all
        .filter(|slot| after.is_none_or(|after| slot.place.index > after))
        .take(limit + 1)
        .map(|slot| SlotView::new(slot, &node))
        .collect();
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|slot| slot.index.into());
    Ok(json(200, &List { items, next }))
}

/// How many slots there are, by state.
pub(super) async fn counts(call: &Call) -> BTreeMap<&'static str, u32> {
    let mut counts = BTreeMap::new();
    for slot in everything(call).await {
        *counts.entry(slot.state).or_insert(0) += 1;
    }
    counts
}
