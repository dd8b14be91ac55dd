//! The owner of all slots: their rows, the pool, and who waits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use sexton_ledger::entry::{Entry, Place};
use sexton_ledger::slot::SlotRow;
use sexton_plan::id::Incarnation;
use sexton_plan::pool::{self, Moves, Wish};
use sexton_plan::slot::{Holder, Holding, SlotState};
use tokio::sync::mpsc;

use super::crew::Crew;
use super::kept::{Kept, Lives, claim, lives};
use super::news::News;
use super::{Ask, Claimed, Closing, Queue, Reply, Review, Shown, SlotLeft, Waits};
use crate::config;
use crate::net::{self, Scheme, Slot};
use crate::node::host::SharedHost;
use crate::refusal::{Kind, Refusal};

/// The ledger's key of the names of what slots share and what may be on the host.
const TABLES: &str = "slots.table";
/// What stood there instead of the name of the only one there could be.
const MADE: &str = "made";

/// What the owner begins with.
#[derive(Clone, Debug)]
pub struct Pool {
    /// How slots are named and numbered.
    pub scheme: Scheme,
    /// Unused slots to keep ready.
    pub spare: u32,
    /// Whether the node is draining, so that none are.
    pub is_closed: bool,
}

impl Pool {
    /// The pool of the daemon whose subtree is `cgroup`, by the `[slots]` of its configuration.
    pub fn new(cgroup: &str, slots: &config::Slots) -> Pool {
        Pool { scheme: Scheme::new(cgroup, slots), spare: slots.count, is_closed: false }
    }
}

/// A life that waits for a slot.
#[derive(Debug)]
struct Waiting {
    holder: Holder,
    reply: Reply<Result<Claimed, Refusal>>,
}

/// The owner of all slots of one node.
#[derive(Debug)]
pub struct Owner {
    pub(super) host: SharedHost,
    pub(super) crew: Arc<Crew>,
    pub(super) pool: Pool,
    pub(super) kept: BTreeMap<u32, Kept>,
    /// Numbers at which something foreign is, and what.
    pub(super) skipped: BTreeMap<u32, String>,
    /// To be taken down in the next turn.
    pub(super) leaving: BTreeSet<u32>,
    /// Who waits for that.
    pub(super) releasers: BTreeMap<u32, Vec<Reply<Result<(), String>>>>,
    /// Whether the thread is at work.
    pub(super) is_busy: bool,
    /// Whether slots are known to be permitted here.
    pub(super) is_permitted: bool,
    /// Why the last slot could not be made; nothing more is tried unasked.
    pub(super) trouble: Option<Refusal>,
    /// The nft tables that slots share and that may be on the host: the present one, and others while the daemon's cgroup
    /// was another one.
    pub(super) tables: BTreeSet<String>,
    /// Who waits for a look.
    pub(super) reviews: Vec<Review>,
    /// Whether the thread has looked just now: who waits for a look and who waits for slots take turns.
    pub(super) has_looked: bool,
    /// Who waits for what a look has come to.
    pub(super) waits: Vec<Waits>,
    /// What could not be done since somebody began to wait for that.
    pub(super) failed: BTreeMap<u32, String>,
    pub(super) news: mpsc::UnboundedSender<News>,
    waiting: VecDeque<Waiting>,
    closers: Vec<Reply<Result<(), String>>>,
    queue: Queue,
    heard: mpsc::UnboundedReceiver<News>,
}

impl Owner {
    /// The owner of what `rows` say, on a node with these `entries`. Each row is judged: what nobody claims goes.
    pub fn new(host: SharedHost, queue: Queue, pool: Pool, rows: Vec<SlotRow>, entries: &[Entry]) -> Owner {
        let (news, heard) = mpsc::unbounded_channel();
        let mut owner = Owner {
            host,
            crew: Arc::new(Crew::new(pool.scheme.clone())),
            pool,
            kept: BTreeMap::new(),
            skipped: BTreeMap::new(),
            leaving: BTreeSet::new(),
            releasers: BTreeMap::new(),
            is_busy: false,
            is_permitted: false,
            trouble: None,
            tables: BTreeSet::new(),
            reviews: Vec::new(),
            has_looked: false,
            waits: Vec::new(),
            failed: BTreeMap::new(),
            news,
            waiting: VecDeque::new(),
            closers: Vec::new(),
            queue,
            heard,
        };
        let lives = lives(entries.iter());
        for row in rows {
            owner.recover(row, &lives);
        }
        owner
    }

    /// What an earlier worker made beside the slots.
    #[must_use]
    pub fn resume(mut self, meta: &BTreeMap<String, String>) -> Owner {
        let present = self.pool.scheme.table();
        self.tables = recorded_tables(meta, &present);
        self.tables.extend(self.kept.values().map(|kept| kept.slot.table().to_owned()));
        if !self.kept.is_empty() {
            // A repair makes it.
            self.tables.insert(present);
        }
        self
    }

    /// What the ledger is to say of the tables.
    pub(super) fn tables_meta(&self) -> (String, Option<String>) {
        let names: Vec<&str> = self.tables.iter().map(String::as_str).collect();
        (TABLES.to_owned(), (!names.is_empty()).then(|| names.join(" ")))
    }

    /// A table that no slot uses and none is to be made with.
    pub(super) fn unused_table(&self) -> Option<String> {
        let present = self.pool.scheme.table();
        let wish = self.wish();
        let is_used = |table: &String| {
            if *table == present {
                !self.kept.is_empty() || wish.spare + wish.waiting > 0
            } else {
                self.kept.values().any(|kept| kept.slot.table() == table)
            }
        };
        self.tables.iter().find(|table| !is_used(table)).cloned()
    }

    fn recover(&mut self, row: SlotRow, lives: &Lives<'_>) {
        let now = self.pool.scheme.slot(row.index);
        let Some(slot) = serde_json::from_value::<Slot>(row.place.clone()).ok().or(now) else {
            tracing::error!(index = row.index, "a slot's row cannot be understood, and its number is out of range");
            return;
        };
        let kept = Kept { row, slot };
        // All lives there are were read beside the rows: a holder that is not among them is none.
        if claim(&kept, &self.pool.scheme, lives, Holding::Nobody).abandoned().is_some() {
            self.leaving.insert(kept.row.index);
        }
        self.kept.insert(kept.row.index, kept);
    }

    /// Owns the slots until the daemon ends.
    pub async fn run(mut self) {
        loop {
            tokio::select! {
                biased;
                Some(news) = self.heard.recv() => self.heed(news),
                ask = self.queue.asks.recv() => match ask {
                    Some(ask) => self.serve(ask),
                    None => return,
                },
            }
            self.advance();
        }
    }

    fn serve(&mut self, ask: Ask) {
        match ask {
            Ask::Claim { holder, reply } => {
                self.trouble = None;
                self.waiting.push_back(Waiting { holder, reply });
            }
            Ask::Unclaim { index, incarnation } => self.unclaim(index, &incarnation),
            Ask::Enter { index, reply } => {
                let missing = || Err(std::io::ErrorKind::NotFound.into());
                let opened = self.kept.get(&index).map_or_else(missing, |kept| net::open_netns(&kept.slot));
                let _heard = reply.send(opened);
            }
            Ask::Release { netns, incarnation, reply } => self.release(&netns, &incarnation, reply),
            Ask::Review(review) => self.reviews.push(review),
            Ask::Close { reply } => {
                self.pool.is_closed = true;
                self.trouble = None;
                self.try_again();
                self.closers.push(reply);
            }
            Ask::List { reply } => {
                let _heard = reply.send(self.list());
            }
        }
    }

    /// Goes on with what is to be done next, unless something is under way.
    pub(super) fn advance(&mut self) {
        self.hand_out();
        if self.is_busy {
            return;
        }
        let looks_first = !std::mem::take(&mut self.has_looked);
        let is_at_work =
            (looks_first && self.begin_look()) || self.begin_dismantle() || self.begin_turn() || self.begin_look();
        if !is_at_work {
            self.at_rest();
        }
    }

    pub(super) fn wish(&self) -> Wish {
        Wish {
            spare: if self.pool.is_closed { 0 } else { self.pool.spare },
            waiting: u32::try_from(self.waiting.len()).unwrap_or(u32::MAX),
            capacity: self.pool.scheme.capacity(),
        }
    }

    pub(super) fn moves(&self) -> Moves {
        let skipped = self.skipped.keys().copied().collect();
        pool::moves(self.rows(), &skipped, self.wish())
    }

    /// The rows, but for unused slots that are about to leave.
    fn rows(&self) -> impl Iterator<Item = (u32, SlotState)> {
        let rows = self.kept.values().map(|kept| (kept.row.index, kept.row.state));
        rows.filter(|(index, state)| *state != SlotState::Ready || !self.leaving.contains(index))
    }

    /// Gives ready slots to those who wait, in the order in which they came.
    fn hand_out(&mut self) {
        while !self.waiting.is_empty()
            && let Some(index) = pool::next(self.rows())
            && let Some(Waiting { holder, reply }) = self.waiting.pop_front()
            && let Some(kept) = self.kept.get_mut(&index)
        {
            let row = SlotRow { state: SlotState::Held, holder: Some(holder), ..kept.row.clone() };
            if reply.send(Ok(Claimed { row: row.clone(), place: place(&kept.slot) })).is_ok() {
                kept.row = row;
            }
        }
    }

    /// Nothing was recorded of the claim, so nobody was ever in it.
    fn unclaim(&mut self, index: u32, incarnation: &Incarnation) {
        if let Some(kept) = self.kept.get_mut(&index)
            && kept.row.holder.as_ref().is_some_and(|holder| holder.incarnation == *incarnation)
        {
            kept.row.state = SlotState::Ready;
            kept.row.holder = None;
        }
    }

    fn release(&mut self, netns: &str, incarnation: &Incarnation, reply: Reply<Result<(), String>>) {
        let is_it = |kept: &&Kept| {
            kept.slot.netns == netns
                && kept.row.holder.as_ref().is_some_and(|holder| holder.incarnation == *incarnation)
        };
        let Some(index) = self.kept.values().find(is_it).map(|kept| kept.row.index) else {
            let _heard = reply.send(Ok(()));
            return;
        };
        // One that is in the turn under way is taken down once more, which tells that it is gone.
        self.leaving.insert(index);
        self.releasers.entry(index).or_default().push(reply);
    }

    /// What could not be taken down is tried again.
    fn try_again(&mut self) {
        let is_left = |kept: &&Kept| matches!(kept.row.state, SlotState::Quarantined | SlotState::Releasing);
        self.leaving.extend(self.kept.values().filter(is_left).map(|kept| kept.row.index));
    }

    /// Nothing is left to do: whoever waits is told.
    fn at_rest(&mut self) {
        for Waiting { reply, .. } in std::mem::take(&mut self.waiting) {
            let full = || Refusal::new(Kind::NoSlot, "every network slot is in use");
            let _heard = reply.send(Err(self.trouble.clone().unwrap_or_else(full)));
        }
        self.tell_reviewed();
        let is_down = self.pool.is_closed && self.kept.is_empty() && self.tables.is_empty();
        let left = if self.pool.is_closed { self.left() } else { Vec::new() };
        self.queue.closing.send_replace(Closing { is_down, left: left.clone() });
        for reply in std::mem::take(&mut self.closers) {
            let told: Vec<String> = left.iter().map(|left| format!("{}: {}", left.name, left.error)).collect();
            let _heard = reply.send(if is_down { Ok(()) } else { Err(told.join("; ")) });
        }
    }

    /// What keeps the slots from ending.
    fn left(&self) -> Vec<SlotLeft> {
        let trouble = self.trouble.as_ref().map_or("it is being taken down", |trouble| &trouble.detail).to_owned();
        let left = |kept: &Kept| SlotLeft {
            name: kept.slot.netns.clone(),
            instance: kept.row.holder.as_ref().map(|holder| holder.name.clone()),
            error: match kept.row.state {
                SlotState::Quarantined => "somebody holds its network namespace".to_owned(),
                SlotState::Making | SlotState::Ready | SlotState::Held | SlotState::Releasing => trouble.clone(),
            },
        };
        let mut all: Vec<SlotLeft> = self.kept.values().map(left).collect();
        if all.is_empty() {
            let table = |name: &String| SlotLeft { name: name.clone(), instance: None, error: trouble.clone() };
            all.extend(self.tables.iter().map(table));
        }
        all
    }

    fn list(&self) -> Vec<Shown> {
        let shown = |kept: &Kept| Shown {
            place: place(&kept.slot),
            link: kept.slot.link.clone(),
            state: kept.row.state.as_str(),
            instance: kept.row.holder.as_ref().map(|holder| holder.name.clone()),
        };
        let skipped = |slot: Slot| Shown { place: place(&slot), link: slot.link, state: "skipped", instance: None };
        let mut all: Vec<Shown> = self.kept.values().map(shown).collect();
        let free = self.skipped.keys().filter(|index| !self.kept.contains_key(index));
        all.extend(free.filter_map(|index| self.pool.scheme.slot(*index)).map(skipped));
        all.sort_by_key(|shown| shown.place.index);
        all
    }
}

/// The tables that the ledger says may be on the host.
fn recorded_tables(meta: &BTreeMap<String, String>, present: &str) -> BTreeSet<String> {
    let names = meta.get(TABLES).map(String::as_str).unwrap_or_default().split_whitespace();
    names.map(|name| if name == MADE { present } else { name }.to_owned()).collect()
}

/// Where a slot is, as instances show it.
fn place(slot: &Slot) -> Place {
    Place {
        index: slot.index,
        netns: slot.netns.clone(),
        address: slot.address,
        gateway: slot.gateway,
        tap: slot.tap.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_was_recorded_under_another_cgroup_is_not_forgotten() {
        for (value, tables) in [("made", &["sexton"][..]), ("sexton_66b102c2 sexton", &["sexton", "sexton_66b102c2"])] {
            let meta = [(TABLES.to_owned(), value.to_owned())].into();
            assert!(recorded_tables(&meta, "sexton").iter().eq(tables), "{value}");
        }
        assert!(recorded_tables(&BTreeMap::new(), "sexton").is_empty());
    }
}
