//! What a life does about its slot: it claims one with its intent, and gives it back at its end.

use std::os::fd::OwnedFd;

use sexton_ledger::entry::{Entry, Resource, ResourceState};
use sexton_ledger::slot::SlotRow;
use sexton_plan::slot::Holder;

use super::KIND;
use crate::node::life::Life;
use crate::refusal::{Kind, Refusal};

impl Life {
    /// Claims a slot for `next`, where its spec wants one; what is given back is to be recorded in one batch with it,
    /// or to be unclaimed.
    ///
    /// # Errors
    /// Every slot is in use, or none can be made; nothing has changed.
    pub(in crate::node) async fn claim_slot(&self, next: &mut Entry) -> Result<Vec<SlotRow>, Refusal> {
        if !next.spec.slot {
            return Ok(Vec::new());
        }
        let holder = Holder { name: next.name.clone(), incarnation: next.incarnation.clone() };
        let claimed = self.host.slots.claim(holder).await?;
        let key = claimed.place.netns.clone();
        next.resources.push(Resource { kind: KIND.to_owned(), key, state: ResourceState::Intent });
        next.slot = Some(claimed.place);
        Ok(vec![claimed.row])
    }

    /// The network namespace of this life's slot, where it has one, for its child to enter.
    pub(in crate::node) async fn enter_slot(&self) -> Result<Option<OwnedFd>, Refusal> {
        let Some(place) = &self.entry.slot else { return Ok(None) };
        let opened = self.host.slots.enter(place.index).await;
        let refused = |error| Refusal::new(Kind::NoSlot, format!("network namespace `{}`: {error}", place.netns));
        opened.map(Some).map_err(refused)
    }

    /// Gives back the slot of `next`, which could not be recorded.
    pub(in crate::node) async fn unclaim_slot(&self, next: &Entry) {
        if let Some(place) = &next.slot {
            self.host.slots.unclaim(place.index, next.incarnation.clone()).await;
        }
    }
}
