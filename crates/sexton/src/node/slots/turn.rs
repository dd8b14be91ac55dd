//! One turn of work on the network: what is to be recorded first, what the thread does, and what becomes of it.

use std::sync::Arc;

use sexton_ledger::Batch;
use sexton_ledger::slot::SlotRow;
use sexton_plan::pool::Moves;
use sexton_plan::slot::SlotState;

use super::crew::Crew;
use super::kept::Kept;
use super::news::{News, NotMade};
use super::owner::Owner;
use crate::net::{self, Made, NetError, Released, Slot};
use crate::node::crash::crash_point;
use crate::node::host::Host;
use crate::refusal::{Kind, Refusal};

impl Owner {
    /// Takes down what is leaving, and makes what is missing of the pool, in one go; whether the thread is at work now.
    pub(super) fn begin_turn(&mut self) -> bool {
        self.leaving.retain(|index| self.kept.contains_key(index));
        let Moves { mut make, release } = self.moves();
        self.leaving.extend(release);
        // What is about to leave is made anew once it is gone.
        make.retain(|index| self.trouble.is_none() && !self.kept.contains_key(index));
        if !make.is_empty() && !self.are_permitted() {
            make.clear();
        }
        if make.is_empty() && self.leaving.is_empty() {
            return false;
        }
        let (mut down, mut up) = (Vec::new(), Vec::new());
        let (mut going, mut coming) = (Batch { volatile: true, ..Batch::default() }, Batch::default());
        coming.volatile = true;
        for index in std::mem::take(&mut self.leaving) {
            let Some(kept) = self.kept.get_mut(&index) else { continue };
            kept.row.state = SlotState::Releasing;
            going.slots.push(kept.row.clone());
            down.push(kept.slot.clone());
        }
        for slot in make.into_iter().filter_map(|index| self.pool.scheme.slot(index)) {
            let row = intent(&slot);
            coming.slots.push(row.clone());
            up.push(slot.clone());
            self.kept.insert(slot.index, Kept { row, slot });
        }
        if !up.is_empty() && self.tables.insert(self.pool.scheme.table()) {
            coming.meta.push(self.tables_meta());
        }
        let (host, crew) = (Arc::clone(&self.host), Arc::clone(&self.crew));
        let turn = Turn { going, coming, down, up };
        self.begin(async move { turn.carry_out(&host, &crew).await });
        true
    }

    /// Whether slots may be made here: asked before anything of one is recorded, for what may not be made could not be
    /// taken down either.
    fn are_permitted(&mut self) -> bool {
        if !self.is_permitted {
            match net::permitted() {
                Ok(()) => self.is_permitted = true,
                Err(error) => self.trouble = Some(refusal(&error)),
            }
        }
        self.is_permitted
    }

    /// Takes down what slots share and no slot uses any more; whether the thread is at work now.
    pub(super) fn begin_dismantle(&mut self) -> bool {
        let Some(table) = self.unused_table().filter(|_| self.trouble.is_none()) else { return false };
        let name = table.clone();
        let done = self.crew.send(move |net| net.dismantle(&name));
        self.begin(async move { News::Dismantled(table, done.await.and_then(|result| result)) });
        true
    }

    /// Begins `work` on the thread, which tells when it is done.
    pub(super) fn begin(&mut self, work: impl Future<Output = News> + Send + 'static) {
        self.is_busy = true;
        let news = self.news.clone();
        tokio::spawn(async move {
            // Without an owner the daemon is ending.
            let _heard = news.send(work.await);
        });
    }

    /// Takes in what the thread has done.
    pub(super) fn heed(&mut self, news: News) {
        self.is_busy = false;
        self.has_looked = matches!(news, News::Looked(..));
        match news {
            News::Turned { released, made } => {
                let mut batch = Batch { volatile: true, ..Batch::default() };
                let any = (!released.is_empty(), !made.is_empty());
                released.into_iter().for_each(|(index, result)| self.released(index, result, &mut batch));
                made.into_iter().for_each(|(index, result)| self.made(index, result, &mut batch));
                self.host.owe_unwaited(batch);
                if any.0 {
                    crash_point!("slot.freed");
                }
                if any.1 {
                    crash_point!("slot.ready");
                }
            }
            News::Looked(reviews, seen) => self.looked(reviews, &seen),
            News::Repaired(repaired) => {
                for (index, result) in repaired {
                    if let Err(error) = result {
                        tracing::warn!(index, %error, "a slot in use was not repaired");
                        self.failed.insert(index, error.to_string());
                    }
                }
            }
            News::Dismantled(table, result) => self.dismantled(&table, result),
        }
    }

    fn dismantled(&mut self, table: &str, result: Result<Released, NetError>) {
        match result {
            Ok(Released::Now | Released::WasGone) => {}
            // Somebody else's by now, so nothing of ours is left.
            Err(NetError::Foreign(what)) => tracing::warn!(what, "a table is let alone"),
            Err(error) => {
                tracing::warn!(%error, "what slots share was not taken down");
                self.trouble = Some(refusal(&error));
                return;
            }
        }
        self.tables.remove(table);
        let meta = vec![self.tables_meta()];
        self.host.owe_unwaited(Batch { meta, volatile: true, ..Batch::default() });
    }

    fn released(&mut self, index: u32, result: Result<Released, NetError>, batch: &mut Batch) {
        let told = match result {
            Ok(Released::Now | Released::WasGone) => Ok(()),
            Err(NetError::Foreign(what)) => {
                // What is there now is not ours, so nothing of ours is left.
                self.skipped.insert(index, what);
                Ok(())
            }
            Err(error) => Err(error),
        };
        if told.is_ok() {
            self.kept.remove(&index);
            // Whoever asked meanwhile is told below; the number may be another's soon.
            self.leaving.remove(&index);
            batch.freed.push(index);
        } else if let Some(kept) = self.kept.get_mut(&index) {
            if matches!(told, Err(NetError::Busy(_))) {
                kept.row.state = SlotState::Quarantined;
            }
            batch.slots.push(kept.row.clone());
            tracing::warn!(index, ?told, "a slot was not taken down");
            self.failed.extend(told.as_ref().err().map(|error| (index, error.to_string())));
        }
        for reply in self.releasers.remove(&index).unwrap_or_default() {
            let _heard = reply.send(told.clone().map_err(|error| error.to_string()));
        }
    }

    fn made(&mut self, index: u32, result: Result<Made, NotMade>, batch: &mut Batch) {
        let error = match result {
            Ok(Made { ns_ino }) => {
                if let Some(kept) = self.kept.get_mut(&index) {
                    kept.row.state = SlotState::Ready;
                    kept.row.ns_ino = Some(ns_ino);
                    batch.slots.push(kept.row.clone());
                }
                return;
            }
            Err(error) => error,
        };
        tracing::warn!(index, ?error, "a slot was not made");
        self.failed.insert(index, error.to_string());
        match error {
            NotMade::Unrecorded(refusal) => {
                self.kept.remove(&index);
                self.trouble = Some(refusal);
            }
            NotMade::Net(NetError::Foreign(what)) => {
                self.kept.remove(&index);
                batch.freed.push(index);
                self.skipped.insert(index, what);
            }
            NotMade::Net(error @ NetError::Unsupported(_)) => {
                self.kept.remove(&index);
                batch.freed.push(index);
                self.trouble = Some(refusal(&error));
            }
            NotMade::Net(error @ (NetError::Busy(_) | NetError::Failed(_))) => {
                // Whatever is left of it goes the way of every slot.
                self.leaving.insert(index);
                self.trouble = Some(refusal(&error));
            }
        }
    }
}

/// The row of a slot that is about to be made.
fn intent(slot: &Slot) -> SlotRow {
    let place = serde_json::to_value(slot).unwrap_or_default();
    SlotRow { index: slot.index, state: SlotState::Making, holder: None, ns_ino: None, place }
}

fn refusal(error: &NetError) -> Refusal {
    Refusal::new(Kind::NoSlot, format!("no network slot can be made: {error}"))
}

/// A turn: what is to be recorded before it, and what it is to do.
struct Turn {
    going: Batch,
    coming: Batch,
    down: Vec<Slot>,
    up: Vec<Slot>,
}

impl Turn {
    /// Records, then works. What is to go goes though it cannot be recorded: its row says that it may be there.
    async fn carry_out(self, host: &Host, crew: &Crew) -> News {
        let Turn { going, coming, down, up } = self;
        if !down.is_empty() {
            host.owe(going).await;
            crash_point!("slot.releasing");
        }
        let refused = if up.is_empty() { None } else { host.record(coming).await.err() };
        let make = if refused.is_some() { Vec::new() } else { up.clone() };
        if !make.is_empty() {
            crash_point!("slot.making");
        }
        let numbers = |slots: &[Slot]| slots.iter().map(|slot| slot.index).collect::<Vec<u32>>();
        let (going, coming) = (numbers(&down), numbers(&up));
        let done = crew.send(move |net| (net.release(&down), net.make(&make))).await;
        let (released, made) = match done {
            Ok(done) => done,
            Err(error) => (vec![Err(error.clone()); going.len()], vec![Err(error); coming.len()]),
        };
        if !going.is_empty() {
            crash_point!("slot.released");
        }
        if !coming.is_empty() {
            crash_point!("slot.made");
        }
        let made = match refused {
            Some(refusal) => vec![Err(NotMade::Unrecorded(refusal)); coming.len()],
            None => made.into_iter().map(|result| result.map_err(NotMade::Net)).collect(),
        };
        News::Turned {
            released: going.into_iter().zip(released).collect(),
            made: coming.into_iter().zip(made).collect(),
        }
    }
}
