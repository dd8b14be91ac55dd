//! A review of all slots: one look at the kernel, one world, one plan; and, for a pass or an `apply`, what it says.
//!
//! ```text
//!   look ──► World ──► plan ──► check ──► repair; what goes and what is made are the next turn's
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use sexton_core::handle::{Handle, Life};
use sexton_ledger::entry::Entry;
use sexton_ledger::slot::SlotRow;
use sexton_plan::plan::{Action, Policies};
use sexton_plan::pool::Wish;
use sexton_plan::slot::{Holding, Seen, SlotClaim, SlotState};
use sexton_plan::world::{Left, Network, SharedTable, SlotSighting, World};

use super::kept::{Kept, Lives, claim, lives};
use super::news::News;
use super::owner::Owner;
use super::{Purpose, Review, Waits};
use crate::net::Slot;
use crate::node::host::Host;
use crate::node::planning::{exactly, sound};
use crate::refusal::{Kind, Refusal};

/// A slot to be repaired, and the life that uses it.
type Hurt = (Slot, SlotRow, Arc<Entry>);

impl Owner {
    /// Looks at all slots at once for those who wait for that; whether the thread is at work now.
    pub(super) fn begin_look(&mut self) -> bool {
        let reviews = std::mem::take(&mut self.reviews);
        if reviews.is_empty() {
            return false;
        }
        let passed_by = self.skipped.keys().filter(|index| !self.kept.contains_key(index));
        let passed_by = passed_by.filter_map(|index| self.pool.scheme.slot(*index));
        let passed_by: Vec<Slot> = passed_by.collect();
        let kept: Vec<Slot> = self.kept.values().map(|kept| kept.slot.clone()).collect();
        let numbers: Vec<u32> = kept.iter().chain(&passed_by).map(|slot| slot.index).collect();
        if numbers.is_empty() {
            self.looked(reviews, &BTreeMap::new());
            return self.is_busy;
        }
        let look = self.crew.send(move |net| Ok([net.observe(&kept)?, net.observe_unclaimed(&passed_by)?].concat()));
        self.begin(async move {
            let seen = look.await.and_then(|seen| seen).unwrap_or_else(|error| {
                // "Could not read" is never "is gone".
                vec![Seen::Unread(error.to_string()); numbers.len()]
            });
            News::Looked(reviews, numbers.into_iter().zip(seen).collect())
        });
        true
    }

    /// Plans anew for each of `reviews`, with the rows as they are by now, and begins what it is to come to.
    pub(super) fn looked(&mut self, reviews: Vec<Review>, seen: &BTreeMap<u32, Seen>) {
        let mut hurt = BTreeMap::new();
        for Review { entries, purpose } in reviews {
            let (world, policies) = (self.world(&entries, seen), Policies::new());
            match purpose {
                Purpose::Plan(reply) => drop(reply.send(sound(&world, &policies))),
                Purpose::Pass(reply) => {
                    self.trouble = None;
                    self.use_again(seen);
                    self.carry_out(&sound(&world, &policies).actions, &entries, &mut hurt);
                    self.waits.push(Waits::Pass(reply));
                }
                Purpose::Apply(wanted, reply) => match exactly(&wanted, &world, &policies) {
                    Err(refusal) => drop(reply.send(Err(refusal))),
                    Ok(actions) => {
                        self.carry_out(&actions, &entries, &mut hurt);
                        self.waits.push(Waits::Apply(actions, reply));
                    }
                },
            }
        }
        if !hurt.is_empty() {
            let (host, crew) = (Arc::clone(&self.host), Arc::clone(&self.crew));
            self.begin(async move {
                let with_holders = hurt.into_values().map(|(slot, row, entry)| {
                    let namespace = namespace(&entry, &row, &host);
                    (slot, namespace)
                });
                let with_holders: Vec<(Slot, Option<OwnedFd>)> = with_holders.collect();
                let repairs = crew.send(move |net| {
                    let repair = |(slot, holder): &(Slot, Option<OwnedFd>)| {
                        (slot.index, net.repair(slot, holder.as_ref().map(AsFd::as_fd)))
                    };
                    with_holders.iter().map(repair).collect()
                });
                News::Repaired(repairs.await.unwrap_or_default())
            });
        }
    }

    /// Begins `actions`; what is to be repaired is added to `hurt`, what goes and what is made are the next turn's.
    ///
    /// Whatever is taken out of the pool between passes is made up for in the next turn, by the same function of the
    /// same rows; so what a plan wants made is what was refused before, or passed by.
    fn carry_out(&mut self, actions: &[Action], entries: &[Arc<Entry>], hurt: &mut BTreeMap<u32, Hurt>) {
        for action in actions {
            match action {
                Action::RepairSlot { index, incarnation, reason, instance, .. } => {
                    tracing::warn!(index, %instance, reason, "a slot in use is repaired");
                    let entry = entries.iter().find(|entry| entry.incarnation == *incarnation);
                    if let Some((kept, entry)) = self.kept.get(index).zip(entry) {
                        hurt.insert(*index, (kept.slot.clone(), kept.row.clone(), Arc::clone(entry)));
                    }
                }
                Action::ReleaseSlot { index, reason, .. } => {
                    tracing::warn!(index, reason, "a slot is taken down");
                    self.leaving.insert(*index);
                }
                Action::MakeSlot { index, .. } => {
                    self.skipped.remove(index);
                    self.trouble = None;
                }
                Action::ReleaseTable { .. } => self.trouble = None,
                Action::WriteBack { .. } | Action::Terminate { .. } | Action::Adopt { .. } => {}
                Action::FinishStop { .. } | Action::Close { .. } | Action::Release { .. } => {}
            }
        }
    }

    /// A number at which nothing foreign is any more is no longer passed by.
    fn use_again(&mut self, seen: &BTreeMap<u32, Seen>) {
        self.skipped.retain(|index, _| matches!(seen.get(index), None | Some(Seen::Foreign(_) | Seen::Unread(_))));
    }

    /// What the look found, beside the rows as they are now.
    fn world(&self, entries: &[Arc<Entry>], seen: &BTreeMap<u32, Seen>) -> World {
        let lives = lives(entries.iter().map(|entry| &**entry));
        let unseen = || Seen::Unread("it was made since".to_owned());
        let seen_of = |index: &u32| seen.get(index).cloned().unwrap_or_else(unseen);
        let kept = self.kept.iter().map(|(index, kept)| SlotSighting {
            index: *index,
            netns: kept.slot.netns.clone(),
            ns_ino: kept.row.ns_ino,
            table: kept.slot.table().to_owned(),
            claim: Some(self.claim(kept, &lives)),
            holder: kept.row.holder.clone(),
            seen: seen_of(index),
        });
        let passed_by = self.skipped.keys().filter(|index| !self.kept.contains_key(index));
        let passed_by = passed_by.filter_map(|index| self.pool.scheme.slot(*index)).map(|slot| SlotSighting {
            index: slot.index,
            table: slot.table().to_owned(),
            netns: slot.netns,
            ns_ino: None,
            claim: None,
            holder: None,
            seen: seen_of(&slot.index),
        });
        let trouble = self.trouble.as_ref().map(|trouble| Left {
            what: "network slots".to_owned(),
            pid: None,
            reason: trouble.detail.clone(),
        });
        let present = self.pool.scheme.table();
        let shared = |name: &String| SharedTable { name: name.clone(), is_former: *name != present };
        World {
            network: Network {
                slots: kept.chain(passed_by).collect(),
                // Whoever waits is served, or told no, before anything is at rest.
                wish: Wish { waiting: 0, ..self.wish() },
                tables: self.tables.iter().map(shared).collect(),
            },
            left: trouble.into_iter().collect(),
            ..World::default()
        }
    }

    fn claim(&self, kept: &Kept, lives: &Lives<'_>) -> SlotClaim {
        let claim = claim(kept, &self.pool.scheme, lives, Holding::Untold);
        if self.leaving.contains(&kept.row.index) {
            return SlotClaim { state: SlotState::Releasing, holding: Holding::Leaving, ..claim };
        }
        claim
    }

    /// Nothing is left to do: tells those whose review came to something.
    pub(super) fn tell_reviewed(&mut self) {
        for waits in std::mem::take(&mut self.waits) {
            match waits {
                Waits::Pass(reply) => drop(reply.send(())),
                Waits::Apply(actions, reply) => drop(reply.send(self.outcome(&actions))),
            }
        }
        self.failed.clear();
    }

    /// Whether all of `actions` has come about.
    fn outcome(&self, actions: &[Action]) -> Result<(), Refusal> {
        let failed = |action: &Action| match action {
            Action::RepairSlot { index, .. } | Action::ReleaseSlot { index, .. } | Action::MakeSlot { index, .. } => {
                self.failed.get(index).map(|why| format!("network slot {index}: {why}"))
            }
            Action::ReleaseTable { table, .. } => {
                self.trouble.as_ref().filter(|_| self.tables.contains(table)).map(|trouble| trouble.detail.clone())
            }
            Action::WriteBack { .. } | Action::Terminate { .. } | Action::Adopt { .. } => None,
            Action::FinishStop { .. } | Action::Close { .. } | Action::Release { .. } => None,
        };
        let why = actions.iter().find_map(failed);
        why.map_or(Ok(()), |why| Err(Refusal::new(Kind::WrongState, why)))
    }
}

/// The network namespace of the living main process of `entry`, where it is the one that its slot was made with.
fn namespace(entry: &Entry, row: &SlotRow, host: &Host) -> Option<OwnedFd> {
    let identity = entry.identity.as_ref()?;
    let witness = entry.cgroup.as_ref().map(|cgroup| cgroup.ino);
    let handle = Handle::reopen(identity, &entry.handle, witness, &host.here).ok()?;
    let opened = File::open(format!("/proc/{}/ns/net", identity.pid)).ok()?;
    // What was opened by number is of this process, if it still has the number.
    let lives = matches!(handle.life(), Ok(Life::Alive));
    let is_its_own = opened.metadata().is_ok_and(|about| Some(about.ino()) == row.ns_ino);
    (lives && is_its_own).then(|| opened.into())
}
