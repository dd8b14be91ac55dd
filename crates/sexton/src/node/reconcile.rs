//! Passes: what is unverified is judged again, strays are cleared away, what is watched is put right. And the plan,
//! which is what the next pass would do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sexton_ledger::entry::Entry;
use sexton_ledger::{Batch, EventKind, NewEvent};
use sexton_plan::id::{Name, Pid};
use sexton_plan::plan::{Action, Plan, Policies};
use sexton_plan::state::State;
use sexton_plan::world::{Left, World};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::host::{Host, SharedHost};
use super::life::{Command, LifeHandle};
use super::planning::{changed, holds, sound};
use super::recover::doubted;
use super::request::Caller;
use super::strays::{self, Orphan, Strays};
use super::watch::{Ask, PassKind};
use crate::metrics::Metric;
use crate::refusal::Refusal;

/// How long `apply` waits for a life that is judged again.
const REJUDGED: Duration = Duration::from_secs(5);
/// The least and the most that a pass may take; between them, no longer than the pause between two.
const PASS_STALLS: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(60)];
/// The ledger's key of the strays that were told of.
const TOLD: &str = "strays.told";

type Lives = BTreeMap<Name, LifeHandle>;
type Reply<T> = oneshot::Sender<T>;

/// The passes of one node: one at a time, and what asked meanwhile has the next one in common.
#[derive(Debug)]
pub struct Reconciler {
    host: SharedHost,
    watcher: mpsc::Sender<Ask>,
    under_way: Option<oneshot::Receiver<()>>,
    answers: Vec<Reply<u64>>,
    next: Vec<Reply<u64>>,
    told: BTreeSet<(Pid, Option<u64>)>,
    generation: u64,
    /// When the present pass began.
    began: Instant,
    /// The look for the pass that a worker begins with.
    ahead: Option<JoinHandle<Strays>>,
    rests: (mpsc::UnboundedSender<Rest>, mpsc::UnboundedReceiver<Rest>),
}

/// What the watcher has done.
#[derive(Debug)]
pub enum News {
    /// Its part of a pass.
    Passed,
    /// Its part of a plan that is applied; the rest is the reconciler's.
    Rest(Rest),
}

/// The part of an accepted plan that is about our own.
#[derive(Debug)]
pub struct Rest {
    own: Vec<Action>,
    caller: Caller,
    reply: Reply<Result<(), Refusal>>,
}

impl Reconciler {
    /// Before its first pass.
    pub fn new(host: SharedHost, watcher: mpsc::Sender<Ask>) -> Reconciler {
        let told = BTreeSet::new();
        Reconciler {
            host,
            watcher,
            under_way: None,
            answers: Vec::new(),
            next: Vec::new(),
            told,
            generation: 0,
            began: Instant::now(),
            ahead: None,
            rests: mpsc::unbounded_channel(),
        }
    }

    /// What an earlier worker told of already. The look for the first pass begins now, beside the recovery: that takes
    /// nothing that is not claimed already.
    pub fn resume(&mut self, meta: &BTreeMap<String, String>) {
        self.ahead = Some(tokio::spawn(Strays::look(&self.host)));
        self.told = meta.get(TOLD).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    }

    /// The keeper's number, once it is known.
    pub fn welcomed(&self, keeper_pid: u32) {
        let keeper = i32::try_from(keeper_pid).ok().and_then(Pid::new);
        // The queue is empty: nothing was asked before the keeper's welcome.
        let _sent = self.watcher.try_send(Ask::Keeper(keeper));
    }

    /// Number of the last finished pass.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// How long the present pass has been under way, where one is that takes too long for passes at that pace: it hangs
    /// on a file system that does not answer, most likely.
    pub fn stalled(&self, every: Duration) -> Option<Duration> {
        let [least, most] = PASS_STALLS;
        let since = self.under_way.as_ref().map(|_| self.began.elapsed());
        since.filter(|since| *since > every.clamp(least, most))
    }

    /// Begins the pass that a worker begins with; tells its number once it is over.
    pub async fn first(&mut self, lives: &Lives) -> oneshot::Receiver<u64> {
        let (reply, news) = oneshot::channel();
        self.next.push(reply);
        self.begin(PassKind::First, lives).await;
        news
    }

    /// A pass that begins after this request, for `reply` or, without one, for the interval's sake.
    pub async fn ask(&mut self, reply: Option<Reply<u64>>, lives: &Lives) {
        self.next.extend(reply);
        if self.under_way.is_none() {
            self.begin(PassKind::Counted, lives).await;
        }
    }

    async fn begin(&mut self, kind: PassKind, lives: &Lives) {
        self.answers = std::mem::take(&mut self.next);
        self.began = Instant::now();
        // The kernel first, the claims after: what was seen was claimed before it was made.
        let strays = match self.ahead.take() {
            Some(look) => look.await.unwrap_or_default(),
            None => Strays::look(&self.host).await,
        };
        let entries = entries(lives);
        strays.reap(&entries, &self.host.keeper.owed_pids());
        for life in lives.values() {
            let unverified = life.entry.borrow().as_ref().is_some_and(|entry| entry.state == State::Unverified);
            if unverified {
                // A full mailbox means that it is busy anyway.
                let _told = life.mailbox.try_send(Box::new(Command::Rejudge));
            }
        }
        let (world, orphans) = own_world(&self.host, &strays, &entries);
        for action in &sound(&world, &Policies::new()).actions {
            self.release(action).await;
        }
        self.tell_orphans(&orphans).await;
        let (watcher, host) = (self.watcher.clone(), Arc::clone(&self.host));
        let (done, both) = oneshot::channel();
        tokio::spawn(async move {
            let watched = async {
                let (told, news) = oneshot::channel();
                // RACE: plans that wait for a file system that does not answer may fill the queue; the driver does not
                // wait with them. A watcher that is gone has nothing more to do.
                let _sent = watcher.send(Ask::Pass(kind, told)).await;
                let _passed = news.await;
            };
            tokio::join!(watched, host.slots.pass(entries));
            // Who hears that a pass is over, or that the daemon is ready, finds in the ledger what was told by then.
            host.recorded().await;
            let _heard = done.send(());
        });
        self.under_way = Some(both);
    }

    /// Waits for what the watcher has done. CANCEL: may be dropped and asked again.
    pub async fn news(&mut self) -> News {
        let passed = async {
            match &mut self.under_way {
                // A watcher that is gone has nothing more to do.
                Some(news) => drop(news.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = passed => News::Passed,
            Some(rest) = self.rests.1.recv() => News::Rest(rest),
        }
    }

    /// Heeds what the watcher has done.
    pub async fn heed(&mut self, news: News, lives: &Lives) {
        match news {
            News::Passed => self.finish(lives).await,
            News::Rest(rest) => self.apply_own(rest, lives).await,
        }
    }

    /// Counts the pass that has ended, answers who asked for it, and begins the next one if somebody waits.
    async fn finish(&mut self, lives: &Lives) {
        self.under_way = None;
        self.generation += 1;
        self.host.metrics.observe(Metric::ReconcileSeconds, self.began.elapsed());
        for reply in std::mem::take(&mut self.answers) {
            let _heard = reply.send(self.generation);
        }
        if !self.next.is_empty() {
            self.begin(PassKind::Counted, lives).await;
        }
    }

    /// What the next pass would do, and what is let alone. Changes nothing.
    pub async fn plan(&self, lives: &Lives, reply: Reply<Plan>) {
        let own = self.plan_own(lives).await;
        let (watcher, slots, entries) = (self.watcher.clone(), self.host.slots.clone(), entries(lives));
        let generation = self.generation;
        tokio::spawn(async move {
            let (told, news) = oneshot::channel();
            let _sent = watcher.send(Ask::Plan(told)).await;
            let (Ok(watched), network) = tokio::join!(news, slots.plan(entries)) else { return };
            let _heard = reply.send(Plan { generation, ..own.joined(watched).joined(network) });
        });
    }

    /// Does exactly what `wanted` says, or nothing: what tasks of their own do first, for they can refuse it, then what
    /// is done here.
    pub async fn apply(&self, wanted: Plan, caller: Caller, lives: &Lives, reply: Reply<Result<(), Refusal>>) {
        let (watched, rest): (Vec<_>, Vec<_>) =
            wanted.actions.into_iter().partition(|action| action.watched().is_some());
        let (network, own): (Vec<_>, Vec<_>) = rest.into_iter().partition(Action::is_of_network);
        if let Err(refusal) = holds(&self.plan_own(lives).await, &own) {
            let _heard = reply.send(Err(refusal));
            return;
        }
        let (watcher, slots, entries) = (self.watcher.clone(), self.host.slots.clone(), entries(lives));
        let rests = self.rests.0.clone();
        tokio::spawn(async move {
            let apply = async {
                if !network.is_empty() {
                    holds(&slots.plan(entries.clone()).await, &network)?;
                }
                let (told, news) = oneshot::channel();
                let _sent = watcher.send(Ask::Apply(watched, told)).await;
                news.await.unwrap_or_else(|_| Err(Refusal::ending()))?;
                if network.is_empty() { Ok(()) } else { slots.apply(entries, network).await }
            };
            match apply.await {
                // Without a driver there is nobody to answer for.
                Ok(()) => drop(rests.send(Rest { own, caller, reply })),
                Err(refusal) => drop(reply.send(Err(refusal))),
            }
        });
    }

    /// What is planned about our own instances, and about what bears our mark.
    async fn plan_own(&self, lives: &Lives) -> Plan {
        let strays = Strays::look(&self.host).await;
        sound(&own_world(&self.host, &strays, &entries(lives)).0, &Policies::new())
    }

    /// The part of an accepted plan that is about our own, as far as it still is planned.
    async fn apply_own(&self, rest: Rest, lives: &Lives) {
        let Rest { own, caller, reply } = rest;
        let (mut done, mut settling) = (Ok(()), Vec::new());
        if !own.is_empty() {
            let present = self.plan_own(lives).await;
            for action in &own {
                if !present.actions.contains(action) || !self.release(action).await {
                    done = Err(changed(action));
                }
                settling.extend(rejudged(action, lives));
            }
        }
        let host = Arc::clone(&self.host);
        tokio::spawn(async move {
            for mut life in settling {
                let is_settled =
                    |entry: &Option<Arc<Entry>>| entry.as_ref().is_none_or(|entry| entry.state != State::Unverified);
                let _in_time = timeout(REJUDGED, life.wait_for(is_settled)).await;
            }
            if done.is_ok() {
                let data = json!({ "call": "apply", "by": caller.by, "uid": caller.uid });
                let events = vec![NewEvent::of_node(EventKind::ApiCalled, data)];
                host.owe(Batch { events, ..Batch::default() }).await;
            }
            let _heard = reply.send(done);
        });
    }

    /// Carries out `action` if it is a release; whether nothing is left of it to do here.
    async fn release(&self, action: &Action) -> bool {
        let Action::Release { kind, key, ino, .. } = action else { return true };
        let released = strays::release(&self.host, *kind, key, *ino).await;
        if let Err(error) = &released {
            tracing::warn!(?kind, key, error, "not released");
        }
        released.is_ok()
    }

    /// Tells of each live process in our cgroups that no row claims, once.
    async fn tell_orphans(&mut self, found: &[Orphan]) {
        let who = |orphan: &Orphan| (orphan.pid, orphan.start_ticks);
        let seen: BTreeSet<_> = found.iter().map(who).collect();
        if seen == self.told {
            return;
        }
        let new = found.iter().filter(|orphan| !self.told.contains(&who(orphan)));
        let events = new.map(|orphan| {
            tracing::warn!(pid = %orphan.pid, cgroup = orphan.cgroup, "a live process in our cgroup is in no row");
            let data = json!({ "pid": orphan.pid, "id": null, "cgroup": orphan.cgroup });
            NewEvent::of_node(EventKind::OrphanSeen, data)
        });
        let events = events.collect();
        self.told = seen;
        let told = if self.told.is_empty() { None } else { serde_json::to_string(&self.told).ok() };
        let meta = vec![(TOLD.to_owned(), told)];
        self.host.owe(Batch { events, meta, ..Batch::default() }).await;
    }
}

/// The rows, as their lives show them.
pub(super) fn entries(lives: &Lives) -> Vec<Arc<Entry>> {
    lives.values().filter_map(|life| life.entry.borrow().clone()).collect()
}

/// What one look found of our own: instances in doubt, what bears our mark, and who lives in our cgroups unclaimed.
fn own_world(host: &Host, strays: &Strays, entries: &[Arc<Entry>]) -> (World, Vec<Orphan>) {
    let unverified = entries.iter().filter(|entry| entry.state == State::Unverified);
    let (marked, orphans) = strays.unclaimed(host, entries);
    let left = orphans.iter().map(|orphan| Left {
        what: format!("a process in cgroup `{}`", orphan.cgroup),
        pid: Some(orphan.pid),
        reason: "no row claims it".to_owned(),
    });
    let world = World {
        doubted: unverified.map(|entry| doubted(entry, host)).collect(),
        marked,
        left: left.collect(),
        ..World::default()
    };
    (world, orphans)
}

/// Has the life of `action` judged again, if it is about one: it looks itself, and is judged as it was planned.
fn rejudged(action: &Action, lives: &Lives) -> Option<watch::Receiver<Option<Arc<Entry>>>> {
    let (Action::Adopt { instance, .. } | Action::FinishStop { instance, .. } | Action::Close { instance, .. }) =
        action
    else {
        return None;
    };
    let life = lives.get(instance)?;
    life.pass_on(Command::Rejudge);
    Some(life.entry.clone())
}
