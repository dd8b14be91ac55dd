//! A slot with a row, and what that row says beside the instances.

use std::collections::BTreeMap;

use sexton_ledger::entry::Entry;
use sexton_ledger::slot::SlotRow;
use sexton_plan::id::Incarnation;
use sexton_plan::slot::{Holding, SlotClaim};

use super::KIND;
use crate::net::{Scheme, Slot};

/// A slot with a row.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) row: SlotRow,
    pub(super) slot: Slot,
}

/// Instances by their lives.
pub(super) type Lives<'a> = BTreeMap<&'a Incarnation, &'a Entry>;

/// `entries` by their lives.
pub(super) fn lives<'a>(entries: impl Iterator<Item = &'a Entry>) -> Lives<'a> {
    entries.map(|entry| (&entry.incarnation, entry)).collect()
}

/// What the row of a slot says; a holder that is not among `lives` is as `otherwise` tells.
pub(super) fn claim(kept: &Kept, scheme: &Scheme, lives: &Lives<'_>, otherwise: Holding) -> SlotClaim {
    let holds = |entry: &&Entry| entry.resources.iter().any(|held| held.kind == KIND && held.key == kept.slot.netns);
    let holding = match kept.row.holder.as_ref().map(|holder| lives.get(&holder.incarnation).copied()) {
        Some(Some(entry)) if !holds(&entry) => Holding::Nobody,
        Some(Some(entry)) if entry.state.is_terminal() => Holding::Leaving,
        Some(Some(_)) => Holding::Live,
        Some(None) => otherwise,
        None => Holding::Nobody,
    };
    SlotClaim { state: kept.row.state, holding, fits: scheme.slot(kept.row.index).as_ref() == Some(&kept.slot) }
}
