//! Passes: what is unverified is judged again, strays are cleared away, what is watched is put right. And the plan,
//! which is what the next pass would do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::json;
use sexton_ledger::entry::Entry;
use sexton_ledger::{Batch, EventKind, NewEvent};
use sexton_plan::id::{Name, Pid};
use sexton_plan::plan::Plan;
use sexton_plan::state::State;
use sexton_plan::world::Left;
use tokio::sync::{mpsc, oneshot};

use super::host::SharedHost;
use super::life::{Command, LifeHandle};
use super::recover::{Orphan, Strays};
use super::request::Caller;
use super::watch::{Ask, PassKind};
use crate::refusal::Refusal;

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
}

impl Reconciler {
    /// Before its first pass.
    pub fn new(host: SharedHost, watcher: mpsc::Sender<Ask>) -> Reconciler {
        let told = BTreeSet::new();
        Reconciler { host, watcher, under_way: None, answers: Vec::new(), next: Vec::new(), told, generation: 0 }
    }

    /// What an earlier worker told of already.
    pub fn resume(&mut self, meta: &BTreeMap<String, String>) {
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

    /// The pass that a worker begins with.
    pub async fn first(&mut self, lives: &Lives) {
        self.begin(PassKind::First, lives).await;
        self.passed().await;
        self.finish(lives).await;
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
        // The kernel first, the claims after: what was seen was claimed before it was made.
        let strays = Strays::look(&self.host).await;
        let entries = entries(lives);
        for life in lives.values() {
            let unverified = life.entry.borrow().as_ref().is_some_and(|entry| entry.state == State::Unverified);
            if unverified {
                // A full mailbox means that it is busy anyway.
                let _told = life.mailbox.try_send(Command::Rejudge);
            }
        }
        let orphans = strays.clear(&self.host, &entries).await;
        self.tell_orphans(&orphans).await;
        let (told, news) = oneshot::channel();
        let _sent = self.watcher.send(Ask::Pass(kind, told)).await;
        let (slots, (done, both)) = (self.host.slots.clone(), oneshot::channel());
        tokio::spawn(async move {
            // A watcher that is gone has nothing more to do.
            let _watched = tokio::join!(news, slots.pass(entries));
            let _heard = done.send(());
        });
        self.under_way = Some(both);
    }

    /// Waits for the pass under way. CANCEL: may be dropped and asked again.
    pub async fn passed(&mut self) {
        match &mut self.under_way {
            // A watcher that is gone has nothing more to do.
            Some(news) => drop(news.await),
            None => std::future::pending().await,
        }
    }

    /// Counts the pass that has ended, answers who asked for it, and begins the next one if somebody waits.
    pub async fn finish(&mut self, lives: &Lives) {
        self.under_way = None;
        self.generation += 1;
        for reply in std::mem::take(&mut self.answers) {
            let _heard = reply.send(self.generation);
        }
        if !self.next.is_empty() {
            self.begin(PassKind::Counted, lives).await;
        }
    }

    /// What the next pass would do, and what is let alone. Changes nothing.
    pub async fn plan(&self, lives: &Lives, reply: Reply<Plan>) {
        let strays = Strays::look(&self.host).await;
        let entries = entries(lives);
        let mut left: Vec<Left> = entries.iter().filter_map(|entry| unverified(entry)).collect();
        left.extend(strays.orphans(&self.host, &entries).iter().map(|orphan| Left {
            what: format!("a process in cgroup `{}`", orphan.cgroup),
            pid: Some(orphan.pid),
            reason: "no row claims it".to_owned(),
        }));
        let (watcher, generation) = (self.watcher.clone(), self.generation);
        tokio::spawn(async move {
            let (told, news) = oneshot::channel();
            let _sent = watcher.send(Ask::Plan(told)).await;
            let Ok(mut plan) = news.await else { return };
            plan.generation = generation;
            plan.left.extend(left);
            plan.left.sort();
            plan.left.dedup();
            let _heard = reply.send(plan);
        });
    }

    /// Does exactly what `plan` says, or nothing.
    pub fn apply(&self, plan: Plan, caller: Caller, reply: Reply<Result<(), Refusal>>) {
        let (watcher, host) = (self.watcher.clone(), Arc::clone(&self.host));
        tokio::spawn(async move {
            let (told, news) = oneshot::channel();
            let _sent = watcher.send(Ask::Apply(plan, told)).await;
            let applied = news.await.unwrap_or_else(|_| Err(Refusal::ending()));
            if applied.is_ok() {
                let data = json!({ "call": "apply", "by": caller.by, "uid": caller.uid });
                let events = vec![NewEvent::of_node(EventKind::ApiCalled, data)];
                host.owe(Batch { events, ..Batch::default() }).await;
            }
            let _heard = reply.send(applied);
        });
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

fn entries(lives: &Lives) -> Vec<Arc<Entry>> {
    lives.values().filter_map(|life| life.entry.borrow().clone()).collect()
}

fn unverified(entry: &Entry) -> Option<Left> {
    (entry.state == State::Unverified).then(|| Left {
        what: format!("instance `{}`", entry.name),
        pid: entry.identity.as_ref().map(|identity| identity.pid),
        reason: entry.reason.clone().unwrap_or_else(|| "its identity is not proven".to_owned()),
    })
}
