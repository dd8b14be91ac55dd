//! The driver: it knows every life on this node, passes requests on to them, and reconciles.
//!
//! It owns the list of names; each life owns its row. Nothing here waits for a life: what takes time is a task of its
//! own that answers when it is done.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sexton_core::gate::{self, OwnedPermit};
use sexton_keeper::link::{FromKeeper, LinkError};
use sexton_keeper::wire::{ExitRecord, Swept, ToWorker};
use sexton_ledger::entry::{Entry, Restarts, Spec, StuckProcess};
use sexton_ledger::{Batch, EventKind, NewEvent, RequestRecord};
use sexton_plan::id::Name;
use sexton_plan::state::State;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::adopt;
use super::drain::{Drain, DrainNews};
use super::host::SharedHost;
use super::keeper::is_of;
use super::keys::{Keys, Known};
use super::life::{Answer, Command, Life, LifeHandle, Next, not_admitted, refuse_or_answer};
use super::noted::Noted;
use super::reconcile::{self, Reconciler};
use super::recover;
use super::request::{
    Caller, Facts, Filter, IdempotencyKey, InFlight, NewInstance, Node, Operation, Page, Request, Wanted,
};
use super::slots::SlotLeft;
use super::unstarted::Unstarted;
use super::user::ResolveUserError;
use crate::metrics::Metric;
use crate::refusal::{Kind, Refusal};

/// Instances on one node: what the keeper's roster holds.
const MOST_INSTANCES: usize = 65_000;
/// How long a worker waits, before it serves, for what had ended before it began to be shown as ended. BOUND: longer than
/// the keeper is waited for, and a record on a slow disk.
const ENDS_SHOWN: Duration = Duration::from_secs(5);

/// Why the driver stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The configured shutdown, asked for so many times.
    Shutdown(u8),
    /// A successor is prepared.
    Retire,
    /// The keeper has ended.
    KeeperGone,
}

/// The driver of one node.
#[derive(Debug)]
pub struct Driver {
    host: SharedHost,
    lives: BTreeMap<Name, LifeHandle>,
    /// Those found whose end is still to be shown.
    ended: Vec<LifeHandle>,
    requests: mpsc::Receiver<Request>,
    removed: (mpsc::UnboundedSender<Name>, mpsc::UnboundedReceiver<Name>),
    keys: Keys,
    reconciler: Reconciler,
    drain: Drain,
    drain_news: mpsc::UnboundedReceiver<DrainNews>,
    shutdown: Shutdown,
    reconcile_every: Duration,
    worker_restarts: u64,
    keeper_pid: u32,
    /// Why it is to end, where that was told before it ran.
    stopped: Option<Stopped>,
    claims: adopt::Claims,
}

impl Driver {
    /// The driver of `host`, and the way to it. `drain` is the node's status as the ledger has it.
    pub fn new(
        host: SharedHost,
        (drain, drain_news): (Drain, mpsc::UnboundedReceiver<DrainNews>),
        (reconciler, reconcile_every): (Reconciler, Duration),
        drain_at_shutdown: Option<Option<Duration>>,
    ) -> (Driver, Node) {
        let (node, requests) = Node::channel();
        let driver = Driver {
            host,
            lives: BTreeMap::new(),
            ended: Vec::new(),
            requests,
            removed: mpsc::unbounded_channel(),
            keys: Keys::default(),
            reconciler,
            drain,
            drain_news,
            shutdown: Shutdown { drains: drain_at_shutdown, level: 0 },
            reconcile_every,
            worker_restarts: 0,
            keeper_pid: 0,
            stopped: None,
            claims: adopt::Claims::default(),
        };
        (driver, node)
    }

    /// What the keeper's welcome told.
    pub fn welcomed(&mut self, keeper_pid: u32, worker_restarts: u64) {
        self.keeper_pid = keeper_pid;
        self.worker_restarts = worker_restarts;
        self.reconciler.welcomed(keeper_pid);
    }

    /// Finds every recorded instance again: look, judge, go on.
    pub async fn recover(&mut self, entries: Vec<Entry>, meta: &BTreeMap<String, String>, noted: Noted) {
        let mut owed = Batch::default();
        self.drain.ordered_before(&noted, meta, &mut owed);
        self.reconciler.resume(meta);
        let unanswered = self.host.ledger.reader().unanswered().unwrap_or_default();
        let mut unanswered: BTreeMap<_, _> =
            unanswered.into_iter().map(|record| (record.incarnation.clone(), record)).collect();
        for entry in entries {
            let seen = recover::look(&entry, &self.host);
            let name = entry.name.clone();
            let (mut life, handle) = Life::known(Arc::clone(&self.host), entry, self.removed.0.clone());
            life.request = unanswered.remove(&life.entry.incarnation);
            life.noted_before(&noted, &mut owed);
            let next = life.judged(seen, &mut owed);
            if next.is_over() {
                self.ended.push(handle.clone());
            }
            self.lives.insert(name, handle);
            tokio::spawn(life.run(next));
        }
        // One record for all: it is on its way before anything that a life records.
        noted.forget(self.host.fresh_ledger, self.host.owe_unwaited(owed));
        for record in self.host.keeper.exits() {
            self.exit_recorded(record);
        }
        self.drain.go_on(&self.host, meta, &self.lives).await;
    }

    /// Serves until the daemon is to end.
    pub async fn run(&mut self) -> Stopped {
        let host = Arc::clone(&self.host);
        let mut ticks = interval(self.reconcile_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        if let Some(stopped) = self.stopped.take() {
            return stopped;
        }
        loop {
            tokio::select! {
                biased;
                Some(name) = self.removed.1.recv() => {
                    self.lives.remove(&name);
                }
                message = host.keeper.receive() => {
                    if let Some(stopped) = self.heed(message).await {
                        return stopped;
                    }
                }
                Some(news) = self.drain_news.recv() => {
                    let is_over = self.drain.heed(news, &self.host, &self.lives).await;
                    if is_over && self.shutdown.level > 0 {
                        return Stopped::Shutdown(self.shutdown.level);
                    }
                }
                Some(request) = self.requests.recv() => self.serve(request).await,
                news = self.reconciler.news() => self.reconciler.heed(news, &self.lives).await,
                _ = ticks.tick() => self.reconciler.ask(None, &self.lives).await,
            }
        }
    }

    async fn serve(&mut self, request: Request) {
        match request {
            Request::Create { new, key, caller, reply } => self.create(*new, key, caller, reply),
            Request::Start { name, caller, reply } => {
                self.tell(&name, reply, |reply| Command::Start { caller, key: None, reply });
            }
            Request::Stop { name, stop, caller, reply } => {
                self.tell(&name, reply, |reply| Command::Stop { stop, caller, reply });
            }
            Request::Signal { name, signal, caller, reply } => {
                self.tell(&name, reply, |reply| Command::Signal { signal, caller, reply });
            }
            Request::Remove { name, force, caller, reply } => {
                self.tell(&name, reply, |reply| Command::Remove { force, caller, reply });
            }
            Request::Snapshot { name, value, caller, reply } => {
                self.tell(&name, reply, |reply| Command::Snapshot { value, caller, reply });
            }
            Request::One { name, reply } => {
                let _heard = reply.send(self.entry(&name).ok_or_else(|| unknown(&name)));
            }
            Request::List { filter, reply } => {
                let _heard = reply.send(self.list(&filter));
            }
            Request::Watch { name, reply } => {
                let shown = self.lives.get(&name).filter(|life| life.entry.borrow().is_some());
                let _heard = reply.send(shown.map(|life| life.entry.clone()));
            }
            Request::Facts { reply } => {
                let _heard = reply.send(self.facts());
            }
            Request::Reconcile { reply } => self.reconciler.ask(Some(reply), &self.lives).await,
            Request::Plan { reply } => self.reconciler.plan(&self.lives, reply).await,
            Request::Apply { plan, caller, reply } => self.reconciler.apply(plan, caller, &self.lives, reply).await,
            Request::Adopt { new, wanted, caller, reply } => self.adopt(*new, wanted, caller, reply),
            Request::Drain { force, timeout, caller, reply } => {
                self.drain.order(&self.host, &self.lives, (force, timeout), Some(&caller)).await;
                let _heard = reply.send(());
            }
            Request::SetStatus { status, caller, reply } => {
                let set = self.drain.set(&self.host, status).await;
                if set.is_ok() {
                    let data = json!({ "call": "status", "by": caller.by, "uid": caller.uid, "status": status });
                    let events = vec![NewEvent::of_node(EventKind::ApiCalled, data)];
                    self.host.owe_unwaited(Batch { events, ..Batch::default() });
                }
                let _heard = reply.send(set);
            }
            Request::Status { reply } => {
                let _heard = reply.send(self.drain.subscribe());
            }
        }
    }

    /// What is in custody, or waits to be given back.
    pub fn left(&self) -> Vec<InFlight> {
        self.lives.values().filter_map(|life| in_flight(life.entry.borrow().as_deref()?)).collect()
    }

    /// Slots that keep a drain open, but for those that an instance is still to give back.
    fn slots_left(&self) -> Vec<SlotLeft> {
        let held_by = |slot: &SlotLeft| slot.instance.as_ref().and_then(|name| self.entry(name));
        let is_own = |slot: &SlotLeft| held_by(slot).is_none_or(|entry| in_flight(&entry).is_none());
        self.host.slots.left().into_iter().filter(is_own).collect()
    }

    /// Whether nothing is left after a drain, durably.
    pub fn is_drained(&self) -> bool {
        self.drain.state().drained
    }

    fn entry(&self, name: &Name) -> Option<Arc<Entry>> {
        self.lives.get(name)?.entry.borrow().clone()
    }

    /// Passes a command on to the life of `name`.
    fn tell(&self, name: &Name, reply: Answer, command: impl FnOnce(Answer) -> Command) {
        match self.lives.get(name).filter(|life| life.entry.borrow().is_some()) {
            Some(life) => life.pass_on(command(reply)),
            None => {
                let _heard = reply.send(Err(unknown(name)));
            }
        }
    }

    fn create(&mut self, new: NewInstance, key: Option<IdempotencyKey>, caller: Caller, reply: Answer) {
        if let Some(key) = &key {
            match self.keys.known(key, &self.host, &self.lives) {
                Ok(Some(known)) => return self.answer_again(known, key.clone(), caller, reply),
                Ok(None) => {}
                Err(refusal) => return refuse(reply, refusal),
            }
        }
        let permit = match self.admit(&new.name, gate::Kind::START) {
            Ok(permit) => permit,
            Err(refusal) => return refuse(reply, refusal),
        };
        if let Err(refusal) = may_run(&new.spec) {
            return refuse(reply, refusal);
        }
        let entry = first_incarnation(new, &self.host);
        let name = entry.name.clone();
        let (life, handle) = Life::unrecorded(Arc::clone(&self.host), entry, self.removed.0.clone());
        if let Some(key) = &key {
            self.keys.begun(key, &name, &handle, &self.lives);
        }
        self.lives.insert(name, handle);
        tokio::spawn(life.run(Next::Intend { key, caller, reply, permit }));
    }

    fn adopt(&mut self, new: NewInstance, wanted: Wanted, caller: Caller, reply: Answer) {
        if new.spec.slot {
            let why = "field `slot`: a process that runs already cannot be given a network slot";
            return refuse(reply, Refusal::new(Kind::BadArgument, why));
        }
        let admitted = self.admit(&new.name, gate::Kind::ADOPT);
        let blank = first_incarnation(new, &self.host);
        let entries = reconcile::entries(&self.lives);
        let take = |permit| adopt::take(wanted, &entries, &self.host, self.keeper_pid, &mut self.claims, permit);
        let intended = admitted.and_then(take).and_then(|taken| Ok((adopt::intent(blank, &taken, &self.host)?, taken)));
        let (entry, taken) = match intended {
            Ok(intended) => intended,
            Err(refusal) => return refuse(reply, refusal),
        };
        let name = entry.name.clone();
        let (life, handle) = Life::unrecorded(Arc::clone(&self.host), entry, self.removed.0.clone());
        self.lives.insert(name, handle);
        tokio::spawn(life.run(Next::TakeCustody { taken, caller, reply }));
    }

    /// Whether another instance may begin.
    fn admit(&self, name: &Name, kind: gate::Kind) -> Result<OwnedPermit, Refusal> {
        let permit = self.host.gate.enter_owned(kind).map_err(not_admitted)?;
        if self.lives.contains_key(name) {
            return Err(Refusal::new(Kind::NameInUse, format!("an instance named `{name}` exists")));
        }
        if self.lives.len() >= MOST_INSTANCES {
            return Err(Refusal::new(Kind::NodeFull, format!("the node holds {MOST_INSTANCES} instances")));
        }
        self.host.has_descriptors()?;
        Ok(permit)
    }

    /// Answers a request that was made before, as it was answered then.
    fn answer_again(&self, known: Known, key: IdempotencyKey, caller: Caller, reply: Answer) {
        let record = match known {
            Known::Kept(RequestRecord { answer: Some((status, body)), .. }) => {
                return refuse_or_answer(reply, status, &body);
            }
            Known::Kept(record) => record,
            Known::Begun(life) => return drop(tokio::spawn(life.answer_when_begun(key, caller, reply))),
        };
        let RequestRecord { name, incarnation, .. } = record;
        let Some(life) = self.lives.get(&name) else { return refuse(reply, unknown(&name)) };
        let shown = life.entry.borrow().clone();
        let Some(own) = shown.filter(|entry| entry.incarnation == incarnation) else {
            let detail = format!("what this request made is gone; `{name}` is another one now");
            return refuse(reply, Refusal::new(Kind::WrongState, detail));
        };
        if own.state == State::Failed {
            // It never ran, and nobody was answered for good: it is carried out now.
            return life.pass_on(Command::Start { caller, key: Some(key), reply });
        }
        tokio::spawn(life.clone().answer_when_begun(key, caller, reply));
    }

    fn list(&self, filter: &Filter) -> Page {
        let from = filter.after.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let shown = self.lives.range((from, Bound::Unbounded)).filter_map(|(_, life)| life.entry.borrow().clone());
        let mut items: Vec<Arc<Entry>> = shown.filter(|entry| filter.takes(entry)).take(filter.limit + 1).collect();
        let more = items.len() > filter.limit;
        items.truncate(filter.limit);
        let next = items.last().filter(|_| more).map(|entry| entry.name.clone());
        Page { items, next }
    }

    fn facts(&self) -> Facts {
        let mut instances: BTreeMap<(State, String), u64> = BTreeMap::new();
        for entry in self.lives.values().filter_map(|life| life.entry.borrow().clone()) {
            *instances.entry((entry.state, entry.spec.kind.to_string())).or_default() += 1;
        }
        Facts {
            node: self.host.node.to_string(),
            keeper_pid: self.keeper_pid,
            generation: self.reconciler.generation(),
            pass_stalled: self.reconciler.stalled(self.reconcile_every),
            state: self.drain.state(),
            operations: self.host.gate.in_flight().into_iter().map(Operation::of).collect(),
            inflight: self.left(),
            slots: self.slots_left(),
            unclaimed: self.drain.unclaimed().to_vec(),
            instances: instances.into_iter().map(|((state, kind), count)| (state, kind, count)).collect(),
            worker_restarts: self.worker_restarts,
        }
    }

    /// Begins the pass that a worker begins with, whose number is told once it is over: instances are served meanwhile.
    pub async fn begin_first_pass(&mut self) -> oneshot::Receiver<u64> {
        self.ends_shown().await;
        self.reconciler.first(&self.lives).await
    }

    /// Waits until nothing is shown as alive that had ended before this worker began: nobody is told what is known not
    /// to be so. A disk that takes no record is not waited for.
    async fn ends_shown(&mut self) {
        let ended = std::mem::take(&mut self.ended);
        let is_shown = |entry: &Option<Arc<Entry>>| {
            !entry.as_ref().is_some_and(|entry| matches!(entry.state, State::Starting | State::Running))
        };
        let all = async {
            for mut life in ended {
                let _removed = life.entry.wait_for(is_shown).await;
            }
        };
        let (host, mut all) = (Arc::clone(&self.host), std::pin::pin!(timeout(ENDS_SHOWN, all)));
        while self.stopped.is_none() {
            tokio::select! {
                _late = &mut all => return,
                // How they ended may be the keeper's to tell.
                message = host.keeper.receive() => self.stopped = self.heed(message).await,
            }
        }
    }

    /// Heeds one message of the keeper.
    async fn heed(&mut self, message: Result<FromKeeper, LinkError>) -> Option<Stopped> {
        let message = match message {
            Ok(FromKeeper { message, .. }) => message?,
            Err(LinkError::Malformed | LinkError::Empty) => return None,
            Err(error @ (LinkError::Closed | LinkError::Refused(_))) => {
                tracing::error!(%error, "ending, for a new keeper to start over");
                return Some(Stopped::KeeperGone);
            }
        };
        match message {
            ToWorker::Exit(record) => {
                self.host.keeper.remember(record);
                self.exit_recorded(record);
            }
            ToWorker::Swept(swept) => self.swept(&swept).await,
            ToWorker::Retire => return Some(Stopped::Retire),
            ToWorker::Shutdown { level } => return self.shut_down(level).await,
            ToWorker::Welcome(_) | ToWorker::Stored(_) | ToWorker::Go => {}
        }
        None
    }

    /// The configured shutdown: instances live on, or are drained first; asked for twice, by force.
    async fn shut_down(&mut self, level: u8) -> Option<Stopped> {
        let Some(timeout) = self.shutdown.drains else { return Some(Stopped::Shutdown(level)) };
        self.shutdown.level = level;
        self.drain.ends();
        self.drain.order(&self.host, &self.lives, (level > 1, timeout), None).await;
        self.drain.state().drained.then_some(Stopped::Shutdown(level))
    }

    /// A recorded exit that no life waits for is nobody's, or durable already.
    fn exit_recorded(&self, record: ExitRecord) {
        let awaited = self.lives.values().filter_map(|life| life.entry.borrow().clone()).any(|entry| {
            !entry.state.is_terminal() && entry.identity.as_ref().is_some_and(|identity| is_of(&record, identity))
        });
        if !awaited && !self.host.keeper.is_owed(&record) {
            self.host.keeper.settled(record.seq);
        }
    }

    async fn swept(&self, swept: &Swept) {
        let names = |comm: &[u8]| comm.escape_ascii().to_string();
        let pids: Vec<u32> = swept.named().iter().map(|zombie| zombie.pid).collect();
        let comms: Vec<String> = swept.named().iter().map(|zombie| names(zombie.comm())).collect();
        self.host.metrics.add(Metric::Sweeps, &[], 1.0);
        let second = super::clock::now().as_millisecond() / 1_000;
        self.host.metrics.set(Metric::LastSweep, &[], f64::from(u32::try_from(second).unwrap_or(u32::MAX)));
        tracing::info!(count = swept.count, ?pids, ?comms, "zombies reaped");
        let data = json!({ "count": swept.count, "pids": pids, "names": comms });
        let events = vec![NewEvent::of_node(EventKind::ZombieReaped, data)];
        self.host.owe(Batch { events, ..Batch::default() }).await;
    }
}

/// What a shutdown does: `None` leaves the instances, else they are drained, with this time limit.
#[derive(Debug)]
struct Shutdown {
    drains: Option<Option<Duration>>,
    level: u8,
}

/// What a drain waits for of this instance.
fn in_flight(entry: &Entry) -> Option<InFlight> {
    if entry.state.is_terminal() && entry.resources.is_empty() {
        return None;
    }
    let error = match entry.state {
        State::Stuck => Some(stuck(entry)),
        State::Unverified => entry.reason.clone(),
        State::Exited | State::Failed | State::Lost => Some("something is not given back yet".to_owned()),
        State::Starting | State::Running | State::Stopping => None,
    };
    let since = entry.started_at.unwrap_or(entry.created_at);
    Some(InFlight { name: entry.name.clone(), state: entry.state, since, error })
}

impl Operation {
    fn of(inside: gate::Inside) -> Operation {
        let now = super::clock::now();
        Operation { kind: inside.kind, since: now.checked_sub(inside.age).unwrap_or(now) }
    }
}

/// What lives in spite of SIGKILL.
fn stuck(entry: &Entry) -> String {
    let told = |one: &StuckProcess| format!("process {} in state {} at {}", one.pid, one.state, one.wchan);
    let processes: Vec<String> = entry.stuck.iter().flatten().map(told).collect();
    format!("SIGKILL was delivered and something still lives: {}", processes.join(", "))
}

impl Filter {
    /// Whether `entry` is one of those asked for.
    pub fn takes(&self, entry: &Entry) -> bool {
        let has = |(key, value): &(String, Option<String>)| {
            entry.spec.labels.get(key).is_some_and(|held| value.as_ref().is_none_or(|wanted| wanted == held))
        };
        self.state.is_none_or(|state| state == entry.state)
            && self.kind.as_ref().is_none_or(|kind| *kind == entry.spec.kind)
            && self.labels.iter().all(has)
    }
}

fn refuse(reply: Answer, refusal: Refusal) {
    let _heard = reply.send(Err(refusal));
}

/// What can be known of a spec before anything of it is recorded.
fn may_run(spec: &Spec) -> Result<(), Refusal> {
    let user = spec.user.as_deref().map(super::user::resolve).transpose();
    user.map(|_| ()).map_err(|error| match error {
        ResolveUserError::Unknown(_) => Refusal::new(Kind::BadArgument, format!("field `user`: {error}")),
        ResolveUserError::Io { .. } => {
            let why = Unstarted::failed(&error);
            Refusal::new(why.kind, format!("field `user`: {}", why.reason))
        }
    })
}

pub(super) fn unknown(name: &Name) -> Refusal {
    Refusal::new(Kind::NotFound, format!("there is no instance named `{name}`"))
}

/// The row of a new instance.
fn first_incarnation(new: NewInstance, host: &super::host::Host) -> Entry {
    let life = sexton_ledger::new_incarnation();
    let blank = Entry::new(new.name, life, new.spec, host.node.clone(), super::clock::now());
    super::rest::next_incarnation(&blank, host, Restarts::default())
}
