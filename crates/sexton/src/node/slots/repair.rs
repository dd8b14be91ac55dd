//! A look at every slot: what is missing of one in use is put back, what is missing of an unused one ends it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use sexton_core::handle::{Handle, Life};
use sexton_ledger::entry::Entry;
use sexton_ledger::slot::{SlotRow, SlotState};

use super::crew::Crew;
use super::news::{News, Outlook};
use super::owner::Owner;
use crate::net::{Seen, Slot};
use crate::node::host::Host;

impl Owner {
    /// Looks at all slots at once, and repairs those in use.
    pub(super) fn begin_look(&mut self, entries: Vec<Arc<Entry>>) {
        let made = |row: &SlotRow| matches!(row.state, SlotState::Ready | SlotState::Held);
        let kept = self.kept.values().filter(|kept| made(&kept.row)).map(|kept| kept.slot.clone());
        let skipped = self.skipped.keys().filter_map(|index| self.pool.scheme.slot(*index));
        let slots: Vec<Slot> = kept.chain(skipped).collect();
        if slots.is_empty() {
            return self.advance();
        }
        let look = Look { slots, held: self.held(&entries) };
        self.is_busy = true;
        let (host, crew, news) = (Arc::clone(&self.host), Arc::clone(&self.crew), self.news.clone());
        tokio::spawn(async move {
            // Without an owner the daemon is ending.
            let _heard = news.send(News::Looked(look.carry_out(&host, &crew).await));
        });
    }

    /// The slots that live instances hold, with their instances.
    fn held(&self, entries: &[Arc<Entry>]) -> BTreeMap<u32, (SlotRow, Arc<Entry>)> {
        let live = entries.iter().filter(|entry| !entry.state.is_terminal());
        let lives: BTreeMap<_, _> = live.map(|entry| (&entry.incarnation, entry)).collect();
        let held = self.kept.values().filter(|kept| kept.row.state == SlotState::Held).filter_map(|kept| {
            let holder = kept.row.holder.as_ref()?;
            Some((kept.row.index, (kept.row.clone(), Arc::clone(lives.get(&holder.incarnation)?))))
        });
        held.collect()
    }

    /// Takes in what a look has come to.
    pub(super) fn looked(&mut self, outlook: Outlook) {
        for (index, seen) in outlook.seen {
            let is_foreign = matches!(seen, Seen::Foreign(_));
            if !is_foreign {
                self.skipped.remove(&index);
            }
            // One that was given away meanwhile is looked at by the next pass.
            let is_unused = self.kept.get(&index).is_some_and(|kept| kept.row.state == SlotState::Ready);
            if is_unused && seen != Seen::Whole {
                tracing::warn!(index, ?seen, "an unused slot is not as it was made: it is replaced");
                self.leaving.insert(index);
            }
        }
        for (index, result) in outlook.repaired {
            match result {
                Ok(()) => tracing::info!(index, "a slot in use was repaired"),
                Err(error) => tracing::warn!(index, %error, "a slot in use was not repaired"),
            }
        }
    }
}

/// A look, and what it needs to know to repair.
struct Look {
    slots: Vec<Slot>,
    held: BTreeMap<u32, (SlotRow, Arc<Entry>)>,
}

impl Look {
    async fn carry_out(self, host: &Host, crew: &Crew) -> Outlook {
        let Look { slots, held } = self;
        let looked_at = slots.clone();
        let seen = match crew.send(move |net| net.observe(&looked_at)).await.and_then(|seen| seen) {
            Ok(seen) => seen,
            Err(error) => {
                // "Could not read" is never "is gone".
                tracing::warn!(%error, "the slots cannot be looked at");
                return Outlook { seen: Vec::new(), repaired: Vec::new() };
            }
        };
        let seen: Vec<(Slot, Seen)> = slots.into_iter().zip(seen).collect();
        let damaged = seen.iter().filter(|(_, seen)| matches!(seen, Seen::Damaged(_) | Seen::Absent));
        let damaged = damaged.filter_map(|(slot, seen)| {
            let (row, entry) = held.get(&slot.index)?;
            tracing::warn!(index = slot.index, ?seen, name = %entry.name, "a slot in use is not whole");
            Some((slot.clone(), namespace(entry, row, host)))
        });
        let damaged: Vec<(Slot, Option<OwnedFd>)> = damaged.collect();
        let seen = seen.into_iter().map(|(slot, seen)| (slot.index, seen)).collect();
        if damaged.is_empty() {
            return Outlook { seen, repaired: Vec::new() };
        }
        let repairs = crew.send(move |net| {
            let repair = |(slot, holder): &(Slot, Option<OwnedFd>)| {
                (slot.index, net.repair(slot, holder.as_ref().map(AsFd::as_fd)))
            };
            damaged.iter().map(repair).collect()
        });
        Outlook { seen, repaired: repairs.await.unwrap_or_default() }
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
