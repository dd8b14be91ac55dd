//! Draining: the gate is closed, what is in flight is waited for, cancelled or stopped, until nothing is left.
//!
//! It is durable: a worker that dies in the middle is followed by one that goes on. It is left only by a new keeper,
//! after the node has been drained. Which status may follow which is decided in [`sexton_plan::gate`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sexton_ledger::entry::Entry;
use sexton_ledger::{Batch, EventKind, NewEvent};
use sexton_plan::gate::{NodeStatus, Turn};
use sexton_plan::id::{Name, Word};
use sexton_plan::ladder::STUCK_AFTER;
use sexton_plan::state::State;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::crash::crash_point;
use super::deadline::{Clocks, Deadline};
use super::host::Host;
use super::life::{Command, LifeHandle};
use super::noted::{self, Note, Noted};
use super::reconcile::entries;
use super::request::{Caller, NodeState, Unclaimed};
use super::strays;
use crate::refusal::{Kind, Refusal};

const STATUS: &str = "node.status";
const FORCED: &str = "node.forced";
const DRAINED: &str = "node.drained";
/// How many orders have led to what is recorded, so that a note of one of them says nothing more.
const ORDERED: &str = "node.drain_orders";

/// How long a forced drain waits for an end by SIGKILL: until what does not end has been called stuck.
const FORCE_TIME: Duration = STUCK_AFTER.saturating_add(Duration::from_millis(500));
/// The pause between two looks at a host that is slow to end what it has been told to.
const FORCE_LOOK: Duration = Duration::from_millis(500);

/// Orders that are given without giving others a turn.
const ORDERS_AT_ONCE: usize = 16;

/// What a drain does with instances, by kind.
#[derive(Clone, Debug, Default)]
pub struct DrainRules {
    /// Kinds that are ended at once; all others are waited for.
    pub cancel: Vec<Word>,
}

/// What the drain's own tasks tell the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainNews {
    /// The deadline of the drain that began with this number has passed.
    DeadlinePassed(u64),
    /// The forced drain of this number has had the time that an end by SIGKILL takes, or some more of it.
    ForceSpent(u64, Progress),
    /// Whatever had been admitted has left the gate: it is shown, or over.
    Shown,
    /// Nothing is left.
    Empty,
}

/// How far a forced drain has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// How many are about to end.
    ending: usize,
    /// Since when there are so few.
    since: Instant,
}

/// The node's status, and the drain under way.
#[derive(Debug)]
pub struct Drain {
    state: watch::Sender<NodeState>,
    news: mpsc::UnboundedSender<DrainNews>,
    rules: DrainRules,
    /// As [`ORDERED`].
    ordered: u64,
    orders: u64,
    /// Somebody is going to tell [`DrainNews::Empty`]: one alone, however often the drain is ordered.
    is_awaited: bool,
    /// What is left that is no instance's, once nothing else is.
    unclaimed: Vec<Unclaimed>,
}

impl Drain {
    /// As the ledger has it; a drained node takes work again under a new keeper.
    pub fn resume(
        meta: &BTreeMap<String, String>,
        rules: DrainRules,
        new_keeper: bool,
    ) -> (Drain, mpsc::UnboundedReceiver<DrainNews>) {
        let drained = meta.contains_key(DRAINED);
        // A word that a later version has written says nothing to this one.
        let before: NodeStatus = meta.get(STATUS).and_then(|status| status.parse().ok()).unwrap_or_default();
        let status = before.at_start(drained, new_keeper);
        let draining = status == NodeStatus::Draining;
        let deadline = Deadline::resume(meta).filter(|_| draining);
        let (news, heard) = mpsc::unbounded_channel();
        let forced = draining && meta.contains_key(FORCED);
        let ordered = ordered(meta.get(ORDERED));
        let state = NodeState { status, forced, ends: false, drained: drained && draining, deadline };
        (
            Drain {
                state: watch::Sender::new(state),
                news,
                rules,
                ordered,
                orders: 0,
                is_awaited: false,
                unclaimed: Vec::new(),
            },
            heard,
        )
    }

    /// Adds to `owed` what was ordered, answered, and is not in the ledger, whose facts are `meta`.
    pub fn ordered_before(&self, noted: &Noted, meta: &BTreeMap<String, String>, owed: &mut Batch) {
        let recorded = ordered(meta.get(ORDERED));
        for (facts, caller) in noted.drains().filter(|(facts, _)| number_of(facts) > recorded) {
            let is_forced = facts.get(FORCED).is_some_and(Option::is_some);
            owed.events.push(called(caller, is_forced));
            owed.meta.extend(facts.clone());
        }
        let was: NodeStatus = meta.get(STATUS).and_then(|status| status.parse().ok()).unwrap_or_default();
        if !owed.meta.is_empty() && was.turn(NodeStatus::Draining) == Turn::Becomes {
            owed.events.push(turned(&self.state()));
        }
    }

    /// The node's status as a stream.
    pub fn subscribe(&self) -> watch::Receiver<NodeState> {
        self.state.subscribe()
    }

    /// The node's status.
    pub fn state(&self) -> NodeState {
        self.state.borrow().clone()
    }

    /// What is left that is no instance's, as it was last seen.
    pub fn unclaimed(&self) -> &[Unclaimed] {
        &self.unclaimed
    }

    /// After a start: writes what `resume` decided, closes the gate if a drain is under way, and goes on with it.
    pub async fn go_on(&mut self, host: &Host, meta: &BTreeMap<String, String>, lives: &BTreeMap<Name, LifeHandle>) {
        let state = self.state();
        if state.is_draining() {
            self.close(host);
            if !state.drained {
                self.empty(host, lives);
            }
        } else if meta.get(STATUS).is_some_and(|status| status == NodeStatus::Draining.as_str()) {
            let mut meta = vec![(STATUS.to_owned(), Some(state.status.to_string()))];
            meta.extend(Deadline::meta(None));
            meta.extend([FORCED, DRAINED].map(|key| (key.to_owned(), None)));
            let events = vec![turned(&state)];
            host.owe(Batch { meta, events, ..Batch::default() }).await;
        }
    }

    /// Makes the node `wanted`, for those who place work; a drain is begun by [`Drain::order`].
    ///
    /// # Errors
    /// It drains, or the ledger cannot be written: nothing has changed.
    pub async fn set(&mut self, host: &Host, wanted: NodeStatus) -> Result<(), Refusal> {
        let mut next = self.state();
        match next.status.turn(wanted) {
            Turn::Stays => return Ok(()),
            Turn::Refused => {
                let why = "the node is draining, which only a new start after `drained` ends";
                return Err(Refusal::new(Kind::WrongState, why));
            }
            Turn::Becomes => next.status = wanted,
        }
        let meta = vec![(STATUS.to_owned(), Some(wanted.to_string()))];
        host.record(Batch { meta, events: vec![turned(&next)], ..Batch::default() }).await?;
        self.state.send_replace(next);
        Ok(())
    }

    /// Begins a drain, or changes the one under way: a deadline, or force. Nobody but a shutdown has no caller, and the
    /// keeper orders that again.
    pub async fn order(
        &mut self,
        host: &Host,
        lives: &BTreeMap<Name, LifeHandle>,
        (force, timeout): (bool, Option<Duration>),
        caller: Option<&Caller>,
    ) {
        // The gate first: what was admitted before is in `lives`, and nothing comes after.
        self.close(host);
        crash_point!("drain.closed");
        let before = self.state();
        let set = timeout.and_then(|after| Deadline::after(after, Clocks::read(&host.here)));
        let deadline = set.or_else(|| before.deadline.clone());
        let status = NodeStatus::Draining;
        let next = NodeState { status, forced: before.forced || force, deadline, ..before.clone() };
        let asked = caller.map(|caller| called(caller, force));
        let becomes = (before.status.turn(status) == Turn::Becomes).then(|| turned(&next));
        let events = asked.into_iter().chain(becomes).collect();
        let facts = if next == before { BTreeMap::new() } else { self.facts(&next) };
        let meta = facts.clone().into_iter().collect();
        let late = host.owe(Batch { meta, events, ..Batch::default() }).await;
        if let (Some(durable), Some(caller), false) = (late, caller, facts.is_empty()) {
            noted::keep_until(host, &Note::Drain { facts, caller: caller.clone() }, durable);
        }
        crash_point!("drain.recorded");
        self.state.send_replace(next);
        if !before.drained {
            self.empty(host, lives);
        }
    }

    /// As the ledger keeps the next order, which leads to `next`.
    fn facts(&mut self, next: &NodeState) -> BTreeMap<String, Option<String>> {
        self.ordered += 1;
        let mut facts = BTreeMap::from(Deadline::meta(next.deadline.as_ref()));
        facts.insert(STATUS.to_owned(), Some(next.status.to_string()));
        facts.insert(FORCED.to_owned(), next.forced.then(|| "true".to_owned()));
        facts.insert(ORDERED.to_owned(), Some(self.ordered.to_string()));
        facts
    }

    /// The daemon ends with this drain.
    pub fn ends(&self) {
        self.state.send_modify(|state| state.ends = true);
    }

    /// Closes the gate; what was admitted is heard of when it is shown.
    fn close(&self, host: &Host) {
        if host.gate.is_draining() {
            return;
        }
        host.gate.begin_drain();
        let news = self.news.clone();
        host.gate.when_idle(move || {
            let _heard = news.send(DrainNews::Shown);
        });
    }

    /// Ends what is to be ended, and waits for the rest.
    fn empty(&mut self, host: &Host, lives: &BTreeMap<Name, LifeHandle>) {
        self.arm(host);
        self.end_what_is_due(lives);
        self.watch_lives(lives);
    }

    /// A pass over all lives: by their kind, or by force. Some are still starting, and shown by the next pass.
    fn end_what_is_due(&self, lives: &BTreeMap<Name, LifeHandle>) {
        self.apply_rules(lives);
        if self.state.borrow().forced {
            self.force(lives);
        }
    }

    /// Ends everything that still lives, with SIGKILL. Asked again, it tries again.
    fn force(&self, lives: &BTreeMap<Name, LifeHandle>) {
        let order = |life: &LifeHandle| {
            let is_cancelled =
                life.entry.borrow().as_ref().is_some_and(|entry| self.rules.cancel.contains(&entry.spec.kind));
            Order { life: life.clone(), force: true, reason: if is_cancelled { "cancelled" } else { "drained" } }
        };
        give(lives.values().map(order).collect());
        let progress = Progress { ending: about_to_end(lives), since: Instant::now() };
        self.tell_later(FORCE_TIME, DrainNews::ForceSpent(self.orders, progress));
    }

    /// Whether all has been done that can be: what is left stays, or for a while nothing has ended. A host that is slow to
    /// end so many is given more time.
    fn is_spent(&self, before: Progress, lives: &BTreeMap<Name, LifeHandle>) -> bool {
        let ending = about_to_end(lives);
        let only_stays = ending == 0 && lives.values().any(|life| !is_settled(&life.entry.borrow()));
        let since = if ending < before.ending { Instant::now() } else { before.since };
        if only_stays || since.elapsed() >= FORCE_TIME {
            return true;
        }
        self.tell_later(FORCE_LOOK, DrainNews::ForceSpent(self.orders, Progress { ending, since }));
        false
    }

    /// What to do when one of the drain's tasks tells something. Whether it is over: drained, or all that can be done
    /// to what is left has been done.
    pub async fn heed(&mut self, news: DrainNews, host: &Host, lives: &BTreeMap<Name, LifeHandle>) -> bool {
        match news {
            DrainNews::DeadlinePassed(order) if order == self.orders => {
                self.state.send_modify(|state| state.forced = true);
                crash_point!("drain.forcing");
                self.force(lives);
            }
            DrainNews::ForceSpent(order, before) if order == self.orders => {
                return self.is_spent(before, lives);
            }
            DrainNews::DeadlinePassed(_) | DrainNews::ForceSpent(..) => {}
            DrainNews::Shown => {
                self.end_what_is_due(lives);
                self.watch_lives(lives);
            }
            DrainNews::Empty => {
                self.is_awaited = false;
                if !host.gate.is_idle() {
                    // Something admitted before is inside, and tells when it leaves.
                    return false;
                }
                if lives.values().any(|life| !is_settled(&life.entry.borrow())) {
                    self.watch_lives(lives);
                    return false;
                }
                if !host.slots.is_down() {
                    self.take_down_slots(host);
                    return false;
                }
                self.unclaimed = strays::inhabited(host, &entries(lives));
                if !self.unclaimed.is_empty() {
                    // It is nobody's to end; whether it has ended is looked at until then.
                    self.look_again_later();
                    return false;
                }
                return self.conclude(host).await;
            }
        }
        false
    }

    /// Empties the pool of network slots; nobody is left to use it.
    fn take_down_slots(&mut self, host: &Host) {
        self.is_awaited = true;
        let (slots, news) = (host.slots.clone(), self.news.clone());
        tokio::spawn(async move {
            if let Err(error) = slots.close().await {
                tracing::warn!(error, "network slots not taken down");
                sleep(Duration::from_secs(1)).await;
            }
            let _heard = news.send(DrainNews::Empty);
        });
    }

    /// Nothing is left: says so durably, once.
    async fn conclude(&mut self, host: &Host) -> bool {
        if self.state().drained {
            return true;
        }
        crash_point!("drain.empty");
        let meta = vec![(DRAINED.to_owned(), Some("true".to_owned()))];
        let events = vec![NewEvent::of_node(EventKind::NodeDrained, json!({}))];
        if host.record(Batch { meta, events, ..Batch::default() }).await.is_err() {
            // `drained`, once shown, is durable: it is shown when it can be.
            self.look_again_later();
            return false;
        }
        crash_point!("drain.drained");
        self.state.send_modify(|state| state.drained = true);
        true
    }

    /// What is in the way tells nobody when it is gone.
    fn look_again_later(&mut self) {
        self.is_awaited = true;
        self.tell_later(Duration::from_secs(1), DrainNews::Empty);
    }

    fn tell_later(&self, after: Duration, what: DrainNews) {
        let news = self.news.clone();
        tokio::spawn(async move {
            sleep(after).await;
            let _heard = news.send(what);
        });
    }

    /// Tells the driver when the deadline has passed; an earlier order's deadline no longer counts.
    fn arm(&mut self, host: &Host) {
        self.orders += 1;
        let left = self.state.borrow().deadline.as_ref().map(|deadline| deadline.left(&Clocks::read(&host.here)));
        let Some(left) = left else { return };
        self.tell_later(left, DrainNews::DeadlinePassed(self.orders));
    }

    /// Cancels what is to be cancelled; ends pending restarts of everything.
    fn apply_rules(&self, lives: &BTreeMap<Name, LifeHandle>) {
        let is_due = |life: &&LifeHandle| {
            life.entry.borrow().as_ref().is_some_and(|entry| {
                let pending = entry.state.is_terminal() && entry.restarts.next_at.is_some();
                // What is being stopped already was told by the pass before, or by somebody else.
                pending || (entry.stop.is_none() && self.rules.cancel.contains(&entry.spec.kind))
            })
        };
        let order = |life: &LifeHandle| Order { life: life.clone(), force: false, reason: "cancelled" };
        give(lives.values().filter(is_due).map(order).collect());
    }

    /// Tells the driver when every life is terminal and has given everything back.
    fn watch_lives(&mut self, lives: &BTreeMap<Name, LifeHandle>) {
        if std::mem::replace(&mut self.is_awaited, true) {
            return;
        }
        let watches: Vec<_> = lives.values().map(|life| life.entry.clone()).collect();
        let news = self.news.clone();
        tokio::spawn(async move {
            for mut life in watches {
                // A closed stream is a life that is over.
                let _settled = life.wait_for(is_settled).await;
            }
            let _heard = news.send(DrainNews::Empty);
        });
    }
}

/// The ledger's facts, and over them what was ordered after they were written.
pub fn with_noted(meta: &BTreeMap<String, String>, noted: &Noted) -> BTreeMap<String, String> {
    let mut meta = meta.clone();
    for (facts, _) in noted.drains() {
        if number_of(facts) > ordered(meta.get(ORDERED)) {
            meta.retain(|key, _| !facts.contains_key(key));
            meta.extend(facts.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?))));
        }
    }
    meta
}

/// The number of an order, from 1; 0 where there has been none.
fn ordered(recorded: Option<&String>) -> u64 {
    recorded.and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn number_of(facts: &BTreeMap<String, Option<String>>) -> u64 {
    ordered(facts.get(ORDERED).and_then(Option::as_ref))
}

/// The event of whoever asked.
fn called(caller: &Caller, is_forced: bool) -> NewEvent {
    let data = json!({ "call": "drain", "by": caller.by, "uid": caller.uid, "force": is_forced });
    NewEvent::of_node(EventKind::ApiCalled, data)
}

/// The event of a status that is new.
fn turned(state: &NodeState) -> NewEvent {
    let deadline = state.deadline.as_ref().map(|deadline| deadline.at);
    let data = json!({ "status": state.status, "deadline": deadline, "force": state.forced });
    NewEvent::of_node(EventKind::NodeStatus, data)
}

fn is_settled(entry: &Option<Arc<Entry>>) -> bool {
    entry
        .as_ref()
        .is_none_or(|entry| entry.state.is_terminal() && entry.resources.is_empty() && entry.restarts.next_at.is_none())
}

/// How many are on their way to their end: they are left, and nothing says that they will stay.
fn about_to_end(lives: &BTreeMap<Name, LifeHandle>) -> usize {
    let is_ending = |entry: &Option<Arc<Entry>>| {
        let stays = |entry: &Arc<Entry>| matches!(entry.state, State::Stuck | State::Unverified);
        !is_settled(entry) && !entry.as_ref().is_some_and(stays)
    };
    lives.values().filter(|life| is_ending(&life.entry.borrow())).count()
}

/// That a life is to end.
struct Order {
    life: LifeHandle,
    force: bool,
    reason: &'static str,
}

impl Order {
    fn pass_on(self) {
        let Some(entry) = self.life.entry.borrow().clone() else { return };
        let pending = entry.restarts.next_at.is_some();
        if entry.state.is_terminal() && !pending {
            return;
        }
        self.life.pass_on(Command::Drain { force: self.force, reason: self.reason });
    }
}

/// Gives these orders, and everybody else a turn among them: whoever asks would wait until thousands have been killed.
fn give(orders: Vec<Order>) {
    tokio::spawn(async move {
        for (at, order) in orders.into_iter().enumerate() {
            if at % ORDERS_AT_ONCE == ORDERS_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            order.pass_on();
        }
    });
}
