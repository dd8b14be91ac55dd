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
use super::news::News;
use super::review::{Lives, Review, Waits, claim, lives};
use super::{Ask, Claimed, Closing, Queue, Reply, Shown, SlotLeft};
use crate::config;
use crate::net::{self, Scheme, Slot};
use crate::node::host::SharedHost;
use crate::refusal::{Kind, Refusal};

/// The ledger's key that says that what slots share may be on the host.
pub(super) const TABLE: &str = "slots.table";

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

/// A slot with a row.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) row: SlotRow,
    pub(super) slot: Slot,
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
    /// Why the last slot could not be made; nothing more is tried unasked.
    pub(super) trouble: Option<Refusal>,
    /// Whether what slots share may be on the host.
    pub(super) has_table: bool,
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
            trouble: None,
            has_table: false,
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
        self.has_table = !self.kept.is_empty() || meta.contains_key(TABLE);
        self
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
            (looks_first && self.begin_look()) || self.begin_turn() || self.begin_look() || self.begin_dismantle();
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
        let is_down = self.pool.is_closed && self.kept.is_empty() && !self.has_table;
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
        if all.is_empty() && self.has_table {
            all.push(SlotLeft { name: self.pool.scheme.table(), instance: None, error: trouble });
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
