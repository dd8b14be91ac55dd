//! Watches: processes and metadata that belong to somebody else, who may have died.
//!
//! ```text
//!   look ──► World ──► plan ──► check ──► act (looks again) ──► event
//! ```
//!
//! One task does all of it, pass by pass, so that the driver never waits for a file. It signals nothing itself: that
//! is `stop::end_orphan`'s.

mod act;
mod attributes;
mod look;
mod metadata;
mod object;
pub mod rule;
mod told;
mod trees;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sexton_ledger::{Batch, EventKind, NewEvent};
use sexton_plan::claim::Claim;
use sexton_plan::id::Pid;
use sexton_plan::plan::{Action, Plan};
use sexton_plan::world::{Left, Sighting, World};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, timeout_at};

use self::look::{Looker, Who, who};
use self::rule::Watch;
use self::told::{Told, Writing};
use self::trees::Trees;
use super::host::SharedHost;
use super::planning::{exactly, sound};
use super::stop::OrphanEnd;
use crate::refusal::{Kind, Refusal};

/// BOUND: the driver has one pass under way at most; the rest are plans that callers wait for.
const QUEUE: usize = 64;
/// How long a pass waits for the ends of what it asked to end; what takes longer tells by its event.
const PASS_WAITS: Duration = Duration::from_millis(500);

/// What the task of the watches may be asked.
#[derive(Debug)]
pub enum Ask {
    /// The keeper's number, once it is known.
    Keeper(Option<Pid>),
    /// One pass.
    Pass(PassKind, oneshot::Sender<()>),
    /// What the next pass would do.
    Plan(oneshot::Sender<Plan>),
    /// Exactly these actions.
    Apply(Vec<Action>, oneshot::Sender<Result<(), Refusal>>),
}

/// Whether a pass counts as one of the two that must see an orphan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassKind {
    /// The one that a worker begins with: whoever starts as it does may not be up yet.
    First,
    /// By interval, or asked for.
    Counted,
}

/// How a termination went.
type Ending = (Action, Result<OrphanEnd, String>);

/// The task of the watches.
#[derive(Debug)]
pub struct Watcher {
    looker: Arc<Looker>,
    asks: mpsc::Receiver<Ask>,
    /// Orphans without metadata that the last counted pass saw.
    before: BTreeSet<Who>,
    told: Told,
    /// What the ledger keeps of where metadata was found.
    trees: Option<String>,
    endings: JoinSet<Ending>,
    ending: BTreeMap<Who, Vec<oneshot::Sender<()>>>,
    /// What could not be done, and why, since the last pass.
    failed: BTreeMap<Who, Left>,
}

impl Watcher {
    /// The task, and the way to it.
    pub fn new(host: SharedHost, watches: Vec<Watch>, meta: &BTreeMap<String, String>) -> (Watcher, mpsc::Sender<Ask>) {
        let (sender, asks) = mpsc::channel(QUEUE);
        let trees = Trees::resume(meta, &host.here.boot_id);
        let watcher = Watcher {
            trees: trees.meta().1,
            looker: Arc::new(Looker { host, watches, keeper: None, trees: Arc::new(trees) }),
            asks,
            before: BTreeSet::new(),
            told: Told::resume(meta),
            endings: JoinSet::new(),
            ending: BTreeMap::new(),
            failed: BTreeMap::new(),
        };
        (watcher, sender)
    }

    /// Serves until the driver is gone.
    pub async fn run(mut self) {
        loop {
            tokio::select! {
                ask = self.asks.recv() => match ask {
                    Some(ask) => self.serve(ask).await,
                    None => return,
                },
                Some(ended) = self.endings.join_next() => self.heed(ended.ok()).await,
            }
        }
    }

    async fn serve(&mut self, ask: Ask) {
        match ask {
            Ask::Keeper(keeper) => {
                self.looker = Arc::new(Looker { keeper, ..(*self.looker).clone() });
            }
            Ask::Pass(kind, reply) => {
                self.pass(kind).await;
                let _heard = reply.send(());
            }
            Ask::Plan(reply) => {
                let world = self.look().await;
                let mut planned = sound(&world, &self.looker.policies());
                planned.left.extend(self.failed.values().cloned());
                let _heard = reply.send(planned);
            }
            Ask::Apply(wanted, reply) => self.apply(wanted, reply).await,
        }
    }

    /// One pass: look, tell, decide, act.
    async fn pass(&mut self, kind: PassKind) {
        self.finish_writing().await;
        let world = self.look().await;
        self.tell(&world).await;
        let planned = sound(&world, &self.looker.policies());
        self.failed.clear();
        self.carry_out(&planned.actions).await;
        self.before = match kind {
            PassKind::First => BTreeSet::new(),
            PassKind::Counted => orphans(&world).map(|seen| who(&seen.identity)).collect(),
        };
        self.prune().await;
        let until = Instant::now() + PASS_WAITS;
        while let Ok(Some(ended)) = timeout_at(until, self.endings.join_next()).await {
            self.heed(ended.ok()).await;
        }
    }

    /// Carries out exactly `wanted`, or nothing.
    async fn apply(&mut self, wanted: Vec<Action>, reply: oneshot::Sender<Result<(), Refusal>>) {
        let world = self.look().await;
        let actions = match exactly(&wanted, &world, &self.looker.policies()) {
            Ok(actions) => actions,
            Err(refusal) => {
                let _heard = reply.send(Err(refusal));
                return;
            }
        };
        self.tell(&world).await;
        self.failed.clear();
        self.carry_out(&actions).await;
        let mut ends = Vec::new();
        for action in &actions {
            let waiting = action.watched().and_then(|(_, _, identity)| self.ending.get_mut(&who(identity)));
            if let Some(waiting) = waiting {
                let (told, news) = oneshot::channel();
                waiting.push(told);
                ends.push(news);
            }
        }
        let failed = self
            .failed
            .values()
            .next()
            .map(|left| Refusal::new(Kind::WrongState, format!("{}: {}", left.what, left.reason)));
        tokio::spawn(async move {
            for end in ends {
                let _ended = end.await;
            }
            let _heard = reply.send(failed.map_or(Ok(()), Err));
        });
    }

    /// Looks, without what is being ended; where metadata was found is durable before anything is done about what has none.
    async fn look(&mut self) -> World {
        let (looker, before) = (Arc::clone(&self.looker), self.before.clone());
        let mut world = spawn_blocking(move || looker.look(&before)).await.unwrap_or_default();
        let (key, trees) = self.looker.trees.meta();
        if trees != self.trees {
            self.trees.clone_from(&trees);
            self.looker.host.owe(Batch { meta: vec![(key, trees)], ..Batch::default() }).await;
        }
        let is_ending = |seen: &Sighting| self.ending.contains_key(&who(&seen.identity));
        let ending = world.sightings.iter().filter(|seen| is_ending(seen)).map(|seen| Left {
            what: format!("{}/{}", seen.watch, seen.id),
            pid: Some(seen.identity.pid),
            reason: "it is being ended".to_owned(),
        });
        world.left.extend(ending.collect::<Vec<_>>());
        world.sightings.retain(|seen| !is_ending(seen));
        world
    }

    /// Tells of each orphan once.
    async fn tell(&mut self, world: &World) {
        let told = &mut self.told;
        let new = orphans(world).filter_map(|seen| told.see(&seen.watch, &seen.id, &seen.identity));
        let events: Vec<NewEvent> = new.collect();
        if !events.is_empty() {
            self.owe(events).await;
        }
    }

    async fn prune(&mut self) {
        let pruned = self.told.prune(&self.looker.host.here, |who| self.ending.contains_key(who));
        if pruned.changed {
            self.owe(pruned.events).await;
        }
    }

    /// Records what has happened, with which orphans were told of.
    async fn owe(&self, events: Vec<NewEvent>) {
        self.looker.host.owe(Batch { events, meta: self.told.meta(), ..Batch::default() }).await;
    }

    async fn carry_out(&mut self, actions: &[Action]) {
        let (untidy, actions): (Vec<&Action>, Vec<&Action>) = actions.iter().partition(|action| self.is_untidy(action));
        for action in untidy {
            self.failed(action, "what an earlier writing left beside the metadata could not be removed".to_owned());
        }
        let mut intended = self.intend(&actions).await.map(Vec::into_iter);
        for action in actions {
            match action {
                Action::WriteBack { .. } => match &mut intended {
                    Ok(writing) => {
                        if let Some(writing) = writing.next() {
                            self.write_back(action, writing).await;
                        }
                    }
                    Err(refusal) => {
                        let why = refusal.to_string();
                        self.failed(action, why);
                    }
                },
                Action::Terminate { .. } => self.terminate(action).await,
                // Others have the rows that these are about.
                Action::Adopt { .. } | Action::FinishStop { .. } | Action::Close { .. } | Action::Release { .. } => {}
                Action::RepairSlot { .. } | Action::ReleaseSlot { .. } | Action::MakeSlot { .. } => {}
                Action::ReleaseTable { .. } => {}
            }
        }
    }

    /// Whether it would write beside what an earlier writing has left.
    fn is_untidy(&self, action: &Action) -> bool {
        let writes = matches!(action, Action::WriteBack { .. });
        writes && action.watched().is_some_and(|(watch, id, _)| self.told.is_untidy(watch, id))
    }

    /// Makes durable what is about to be written back, in the order of the plan: a file that is right tells nobody
    /// whether its event was recorded.
    async fn intend(&mut self, actions: &[&Action]) -> Result<Vec<Writing>, Refusal> {
        let writes = |action: &&&Action| matches!(action, Action::WriteBack { .. });
        let watched = actions.iter().filter(writes).filter_map(|action| action.watched());
        let writing = watched.map(|(watch, id, identity)| Writing {
            watch: watch.to_owned(),
            id: id.to_owned(),
            identity: identity.clone(),
            beside: metadata::name_beside(),
            is_told: false,
        });
        let writing: Vec<Writing> = writing.collect();
        if writing.is_empty() {
            return Ok(writing);
        }
        self.told.intend(writing.clone());
        let recorded = self.looker.host.record(Batch { meta: self.told.meta(), ..Batch::default() }).await;
        if let Err(refusal) = recorded {
            writing.iter().for_each(|writing| self.told.written(writing));
            return Err(refusal);
        }
        Ok(writing)
    }

    /// Clears up behind a worker before this one, and tells what that has written back and could not tell; removes what
    /// could not be removed. What cannot be read or removed yet stays for the next pass.
    async fn finish_writing(&mut self) {
        let (mut events, mut is_changed) = (Vec::new(), false);
        for writing in self.told.unfinished() {
            let (looker, wanted) = (Arc::clone(&self.looker), writing.clone());
            let finished = spawn_blocking(move || looker.finish_writing(&wanted)).await;
            let Writing { watch, id, identity, is_told, .. } = &writing;
            match finished.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(true) if !is_told => events.push(told::fact(EventKind::OrphanAdopted, watch, id, identity)),
                Ok(_) => {}
                Err(why) => {
                    tracing::warn!(watch, id, why, "what is left of a writing stays");
                    continue;
                }
            }
            self.told.written(&writing);
            is_changed = true;
        }
        if is_changed {
            self.owe(events).await;
        }
    }

    async fn write_back(&mut self, action: &Action, writing: Writing) {
        let Writing { watch, id, identity, .. } = &writing;
        let (looker, wanted, planned) = (Arc::clone(&self.looker), action.clone(), writing.clone());
        let written = spawn_blocking(move || {
            let written = looker.write_back(&wanted, &planned.beside);
            (written, looker.is_left_beside(&planned))
        });
        let (written, is_left) = written.await.unwrap_or_else(|error| (Err(error.to_string()), true));
        if is_left {
            self.told.left_beside(&writing);
        } else {
            self.told.written(&writing);
        }
        match written {
            Ok(()) => {
                tracing::info!(watch, id, pid = %identity.pid, "PID written back");
                self.owe(vec![told::fact(EventKind::OrphanAdopted, watch, id, identity)]).await;
            }
            Err(why) => {
                self.failed(action, why);
                self.owe(Vec::new()).await;
            }
        }
    }

    /// Begins to end an orphan: that it is being ended is durable before anything is sent.
    async fn terminate(&mut self, action: &Action) {
        let Some((watch, id, identity)) = action.watched() else { return };
        self.told.note_ending(identity, true);
        let recorded = self.looker.host.record(Batch { meta: self.told.meta(), ..Batch::default() }).await;
        if let Err(refusal) = recorded {
            self.told.note_ending(identity, false);
            return self.failed(action, refusal.to_string());
        }
        tracing::warn!(watch, id, pid = %identity.pid, "an orphan is ended");
        self.ending.insert(who(identity), Vec::new());
        let (looker, action) = (Arc::clone(&self.looker), action.clone());
        self.endings.spawn(async move {
            let ended = act::terminate(looker, action.clone()).await;
            (action, ended)
        });
    }

    /// Heeds how a termination went.
    async fn heed(&mut self, ending: Option<Ending>) {
        let Some((action, ended)) = ending else { return };
        let Some((watch, id, identity)) = action.watched() else { return };
        let waiting = self.ending.remove(&who(identity));
        let events = match ended {
            Ok(OrphanEnd::Ended) => vec![self.told.ended(watch, id, identity)],
            Ok(OrphanEnd::Spared) => {
                self.told.note_ending(identity, false);
                self.failed(&action, "the facts changed, and it was let alone".to_owned());
                Vec::new()
            }
            Ok(OrphanEnd::Stuck) => {
                self.failed(&action, "SIGKILL was delivered, and it lives".to_owned());
                Vec::new()
            }
            Err(why) => {
                self.told.note_ending(identity, false);
                self.failed(&action, why);
                Vec::new()
            }
        };
        self.owe(events).await;
        for told in waiting.into_iter().flatten() {
            let _heard = told.send(());
        }
    }

    fn failed(&mut self, action: &Action, reason: String) {
        let Some((watch, id, identity)) = action.watched() else { return };
        tracing::warn!(watch, id, pid = %identity.pid, reason, "not done");
        let left = Left { what: format!("{watch}/{id}"), pid: Some(identity.pid), reason };
        self.failed.insert(who(identity), left);
    }
}

/// Processes without parent, owner and metadata. What belongs to several watches may have its metadata with another.
fn orphans(world: &World) -> impl Iterator<Item = &Sighting> {
    let of_process = |pid| world.sightings.iter().filter(move |seen| seen.identity.pid == pid).count();
    let missing = world.sightings.iter().filter(|seen| seen.claim == Claim::Missing && seen.is_alone());
    missing.filter(move |seen| of_process(seen.identity.pid) == 1)
}
