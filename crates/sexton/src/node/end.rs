//! Ending one incarnation: the climb of the stop ladder, the exit, and giving back what it held.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use sexton_core::domain::Domain;
use sexton_core::pin::Released;
use sexton_core::tree::Tree;
use sexton_ledger::entry::{Entry, Exit, Resource, ResourceState};
use sexton_ledger::{Batch, EventKind, NewEvent, RequestRecord};
use sexton_plan::kill::KillBy;
use sexton_plan::ladder::{Happening, Rung, STUCK_AFTER, STUCK_LOOK};
use sexton_plan::state::{ExitSource, ExitStatus, LostReason, State};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::adapter::{Asked, Step};
use super::asking::{Asking, nothing_to_wait_for, say};
use super::clock::now;
use super::crash::crash_point;
use super::fate::{Fate, conclude, plan_restart, told};
use super::let_go::{let_go, let_go_later, reap};
use super::life::{Life, Next, RollBack, fact};
use super::process::{Ending, Process, Zombie};
use super::request::Stop;
use super::resources::domain_name;
use super::slots;
use super::stop::{self, Target};
use super::unstarted::{Unstarted, not_started};
use crate::chain::chain;
use crate::metrics::Metric;
use crate::refusal::{Kind, Refusal};

/// How long what was killed is waited for before it is killed again, and the domain swept: what `cgroup.kill` misses is
/// rare. The wait doubles each time, for a host that is slow to end what dies is not to be kept busy with it.
const SWEEP_AFTER: Duration = Duration::from_millis(50);
/// How long an end by force may take before it is recorded that it was ordered, where that is not to be recorded at once.
const RECORDED_AFTER: Duration = Duration::from_millis(100);
/// How long what ends along with the main process is waited for before that one's exit is told and recorded alone.
const TOGETHER: Duration = Duration::from_millis(5);
/// The exit code of a child that was never released, and of one whose program could not be run.
const RAN_NOTHING: u8 = 127;

/// The kills of one climb.
#[derive(Debug, Default)]
struct Kills {
    /// When the first was.
    first: Option<Instant>,
    /// The pause after the last.
    pause: Duration,
}

impl Kills {
    /// Another one, now.
    fn count(&mut self) {
        self.first.get_or_insert_with(Instant::now);
        self.pause = self.pause.saturating_mul(2).clamp(SWEEP_AFTER, STUCK_LOOK);
    }

    /// How long to wait for what was killed: no longer than until it is to be called stuck.
    fn patience(&self) -> Duration {
        let left = self.first.map_or(STUCK_AFTER, |first| STUCK_AFTER.saturating_sub(first.elapsed()));
        self.pause.min(left)
    }
}

impl Life {
    /// Brings it to its end: the stop path, the exit, and everything given back.
    pub(super) async fn end(&mut self, process: Option<Process>) -> Next {
        self.finish(process, LostReason::Vanished).await
    }

    /// As [`Life::end`]; where nobody can tell how it ended, it is lost for `reason`.
    pub(super) async fn finish(&mut self, process: Option<Process>, reason: LostReason) -> Next {
        self.bound_logs();
        crash_point!("end.begun");
        let domain = self.find_domain().await;
        let force = self.entry.stop.as_ref().is_some_and(|order| order.force);
        self.climb(Rung::first(force), process.as_ref(), domain.as_ref()).await;
        crash_point!("end.empty");
        self.learn_exit(process.as_ref()).await;
        self.settle(Fate::Over(reason), domain, process).await
    }

    /// Ends what a start that never ran has made, and gives back what it took.
    pub(super) async fn roll_back(&mut self, roll_back: RollBack) -> Next {
        let RollBack { why, process, reply } = roll_back;
        let kind = why.kind;
        // Nothing bore its name before it was asked for, and whoever asked is to ask again.
        let is_withdrawn = self.is_new && why.is_to_be_asked_again();
        crash_point!("rollback.begun");
        let domain = self.find_domain().await;
        self.climb(Rung::Kill, process.as_ref(), domain.as_ref()).await;
        if let Some(process) = &process {
            // Reaped, so that no zombie stays; a status of what never ran means nothing.
            let _status = process.ended(Zombie::Reaped).await;
        }
        crash_point!("rollback.empty");
        if is_withdrawn {
            // Also where something cannot be given back at once: it goes as soon as that is.
            let order = self.with_order(&Stop { force: true, grace: None }, None, true);
            self.entry = Arc::new(Entry { stop: Some(order), ..(*self.entry).clone() });
        }
        let mut next = self.settle(Fate::NeverRan(why), domain, None).await;
        let refusal = Refusal::new(kind, not_started(&self.entry));
        if is_withdrawn && self.entry.resources.is_empty() {
            self.remove(Vec::new()).await;
            next = Next::Withdrawn(refusal.clone());
        }
        if let Some(reply) = reply {
            let _heard = reply.send(Err(refusal));
        }
        next
    }

    /// The domain of this incarnation: by its recorded proof, or by its name, which no other incarnation can have.
    pub(super) async fn find_domain(&mut self) -> Option<Domain> {
        loop {
            let subtree = self.host.subtree.as_ref();
            let found = match (&self.entry.cgroup, subtree) {
                (None, Some(subtree)) if self.entry.resources.iter().any(|held| held.kind == "cgroup") => {
                    let path = format!("{}/{}", subtree.path(), domain_name(&self.entry));
                    stop::unless_gone(subtree.find_path(&path))
                }
                (cgroup, subtree) => stop::find_domain(subtree, cgroup.as_ref()),
            };
            match found {
                Ok(domain) => return domain,
                // "Could not read" is never "is gone".
                Err(error) => tracing::warn!(name = %self.entry.name, error = chain(&error), "domain not opened"),
            }
            self.obeying(sleep(super::recover::READ_AGAIN), None).await;
        }
    }

    /// Climbs the stop ladder until nothing lives, obeying commands all the while.
    async fn climb(&mut self, first: Rung, process: Option<&Process>, domain: Option<&Domain>) {
        let here = self.host.here.clone();
        let by_tree = domain.is_none() && self.entry.kill_by() != Some(KillBy::Pidns);
        let tree = by_tree.then(|| Mutex::new(Tree::new(here.clone())));
        let target = Target { process, domain, tree, here: &here };
        target.look();
        let mut rung = if target.lives() { first } else { Rung::Done };
        if rung != Rung::Done && process.is_none() && self.entry.started_at.is_some() {
            // The main process ended while nobody was there: told before what it left behind is ended.
            self.show_exit().await;
        }
        let began = Instant::now();
        let mut kills = Kills::default();
        self.asking = if rung == Rung::Ask { self.how_to_ask(&target) } else { Asking::default() };
        while rung != Rung::Done {
            let step = match rung {
                Rung::Ask => Some("ask"),
                Rung::Kill => Some("kill"),
                Rung::Stuck => Some("stuck"),
                // Waiting is no step.
                Rung::Grace | Rung::Watch | Rung::Done => None,
            };
            if let Some(step) = step {
                self.host.metrics.add(Metric::KillSteps, &[step], 1.0);
            }
            let happening = match rung {
                Rung::Ask => self.ask(&target),
                Rung::Grace => self.hold(&target, rung, |life| began + life.grace()).await,
                Rung::Kill => {
                    crash_point!("stop.killing");
                    target.kill();
                    crash_point!("stop.killed");
                    if kills.first.is_some() {
                        target.sweep();
                    }
                    kills.count();
                    if kills.first.is_some_and(|first| first.elapsed() > RECORDED_AFTER) {
                        self.record_owed().await;
                    }
                    Happening::Carried
                }
                Rung::Watch => self.watch(&target, &kills).await,
                Rung::Stuck => {
                    self.tell_stuck(&target).await;
                    let next_look = Instant::now() + STUCK_LOOK;
                    self.hold(&target, rung, |_| next_look).await
                }
                Rung::Done => Happening::Empty,
            };
            rung = rung.next(happening);
        }
    }

    /// How it will be asked: by its runtime's steps.
    fn how_to_ask(&self, target: &Target<'_>) -> Asking {
        let main = target.process.filter(|_| target.main_lives()).map(|process| process.handle().identity());
        let steps = self.host.runtimes.steps(Asked::instance(&self.entry.spec, main), self.grace());
        let mut signals = steps.iter().filter_map(|step| match step {
            Step::Signal(signal, _) => Some(*signal),
            Step::Say(..) => None,
        });
        let signal = signals.next_back().unwrap_or(self.entry.spec.stop_signal);
        Asking { steps, signal, main: main.is_some(), until: None, heard: None }
    }

    /// Takes the next step of asking.
    fn ask(&mut self, target: &Target<'_>) -> Happening {
        self.asking.heard = None;
        let wait = match self.asking.steps.pop_front() {
            Some(Step::Signal(signal, wait)) => {
                target.ask(signal);
                crash_point!("stop.asked");
                wait
            }
            Some(Step::Say(sentence, wait)) => {
                self.asking.heard = Some(say(self.entry.name.to_string(), sentence, wait));
                Some(wait)
            }
            None => Some(Duration::ZERO),
        };
        self.asking.until = wait.map(|wait| Instant::now() + wait);
        Happening::Carried
    }

    /// After a kill: waits a little; what still lives is killed again, until it is to be called stuck.
    async fn watch(&mut self, target: &Target<'_>, kills: &Kills) -> Happening {
        let patience = kills.patience();
        if patience.is_zero() {
            return Happening::TimeOver;
        }
        let until = Instant::now() + patience;
        let happening = self.hold(target, Rung::Watch, |_| until).await;
        if happening == Happening::TimeOver { Happening::Carried } else { happening }
    }

    /// Waits on one rung until nothing lives, its time is over, or SIGKILL is asked for. What is obeyed meanwhile may
    /// change its `limit`.
    async fn hold(&mut self, target: &Target<'_>, rung: Rung, limit: impl Fn(&Life) -> Instant) -> Happening {
        let forced_before = self.is_forced();
        loop {
            let (until, next) = self.until(rung, limit(self));
            let zombie = self.zombie();
            let exit_unknown = self.entry.exit.is_none();
            let ending = async {
                match target.process {
                    Some(process) if exit_unknown => {
                        process.over().await;
                        sleep(TOGETHER).await;
                        process.ended(zombie).await
                    }
                    Some(_) | None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = target.emptied() => return Happening::Empty,
                ending = ending => {
                    self.tell_exit(ending).await;
                    if rung == Rung::Grace && self.asking.main {
                        // What the main process left behind has not been asked yet.
                        target.ask(self.asking.signal);
                        self.asking.rest();
                    }
                }
                command = self.mailbox.recv() => {
                    self.obey(command, target.process).await;
                    if self.is_forced() && !forced_before {
                        return Happening::Forced;
                    }
                }
                () = nothing_to_wait_for(&mut self.asking.heard) => return Happening::StepOver,
                () = sleep_until(until) => return next,
            }
        }
    }

    /// Until when a rung is held whose time is over at `limit`, and what has happened then.
    fn until(&self, rung: Rung, limit: Instant) -> (Instant, Happening) {
        match self.asking.until.filter(|until| rung == Rung::Grace && *until < limit) {
            Some(step) if self.asking.steps.is_empty() => (step, Happening::TimeOver),
            Some(step) => (step, Happening::StepOver),
            None => (limit, Happening::TimeOver),
        }
    }

    fn is_forced(&self) -> bool {
        self.entry.stop.as_ref().is_some_and(|order| order.force)
    }

    /// How long it is asked politely.
    fn grace(&self) -> Duration {
        self.entry.stop.as_ref().map_or(self.entry.spec.grace, |order| order.grace)
    }

    /// Waits for `work`, obeying commands meanwhile.
    pub(super) async fn obeying<T>(&mut self, work: impl Future<Output = T>, process: Option<&Process>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                command = self.mailbox.recv() => {
                    self.obey(command, process).await;
                }
            }
        }
    }

    /// The main process has ended and others live: its exit is shown at once.
    async fn tell_exit(&mut self, ending: Ending) {
        let Ending::Known(status, source) = ending else { return };
        self.learned(status, source);
        if self.entry.exit.is_none() {
            return;
        }
        self.show_exit().await;
        crash_point!("end.exit_told");
    }

    /// Shows that the main process has ended, and how, as far as that is known, while something is not over yet.
    async fn show_exit(&mut self) {
        let mut next = (*self.entry).clone();
        let mut events = Vec::new();
        if matches!(next.state, State::Starting | State::Running) {
            next.state = State::Stopping;
        }
        if next.state == State::Stopping {
            events.push(fact(EventKind::InstanceStopping, &next, json!({ "exit": next.exit })));
        }
        self.owe(next, events).await;
    }

    /// Something lives in spite of SIGKILL: says what, once as an event, and shows it anew at every look.
    async fn tell_stuck(&mut self, target: &Target<'_>) {
        let survivors = target.survivors();
        let told = self.entry.state == State::Stuck && self.entry.stuck.as_ref() == Some(&survivors);
        if told || survivors.is_empty() {
            return;
        }
        let mut next = (*self.entry).clone();
        next.state = State::Stuck;
        let events = vec![fact(EventKind::InstanceStuck, &next, json!({ "stuck": survivors }))];
        tracing::error!(name = %next.name, ?survivors, "SIGKILL was delivered and something still lives");
        next.stuck = Some(survivors);
        self.owe(next, events).await;
    }

    /// Learns how the main process ended, if that is not known yet and anybody tells.
    async fn learn_exit(&mut self, process: Option<&Process>) {
        let Some(process) = process.filter(|_| self.entry.exit.is_none()) else { return };
        let mut ending = self.obeying(process.ended(self.zombie()), Some(process)).await;
        if ending == Ending::Untold {
            let host = Arc::clone(&self.host);
            let told = self.obeying(host.keeper.told_exit_of(process.handle().identity()), Some(process)).await;
            ending = told.map_or(Ending::Untold, |status| Ending::Known(status, ExitSource::Keeper));
        }
        if let Ending::Known(status, source) = ending {
            self.learned(status, source);
        }
    }

    /// Its zombie stays where nothing else keeps the exit until that is durable.
    fn zombie(&self) -> Zombie {
        if self.is_pinned { Zombie::Reaped } else { Zombie::Kept }
    }

    /// Takes an exit into the row, unless it may be that of a child which ran nothing; it is recorded with what follows
    /// from it.
    pub(super) fn learned(&mut self, status: ExitStatus, source: ExitSource) {
        if self.is_mark_lost && status == ExitStatus::Code(RAN_NOTHING) {
            return;
        }
        let mut next = (*self.entry).clone();
        next.exit = Some(Exit::new(status, source, now()));
        self.entry = std::sync::Arc::new(next);
    }

    /// Why its program never ran, where its mark says so: nobody may have been there to read the report.
    async fn refused(&mut self) -> Option<Unstarted> {
        // Whose start was seen through has no mark any more; what is in its place, or in the way to it, tells nothing.
        while !self.is_seen_through {
            match super::recover::refused_by_mark(&self.entry, &self.host) {
                Ok(refused) => return refused,
                // How what never ran has ended is no exit.
                Err(error) => tracing::warn!(name = %self.entry.name, %error, "mark not read"),
            }
            self.obeying(sleep(super::recover::READ_AGAIN), None).await;
        }
        None
    }

    /// Gives everything back and makes it terminal, in one record; then lets go of the zombie or the pin, which had kept
    /// the exit.
    async fn settle(&mut self, fate: Fate, domain: Option<Domain>, process: Option<Process>) -> Next {
        let fate = match fate {
            Fate::Over(reason) => self.refused().await.map_or(Fate::Over(reason), Fate::NeverRan),
            never_ran @ Fate::NeverRan(_) => never_ran,
        };
        let unstarted = match &fate {
            Fate::NeverRan(why) => Some(why.clone()),
            Fate::Over(_) => None,
        };
        let lacked_room = unstarted.as_ref().is_some_and(Unstarted::passes);
        if self.entry.slot.is_some() && self.entry.exit.is_some() && matches!(fate, Fate::Over(_)) {
            // Giving a slot back takes the kernel a while.
            self.show_exit().await;
        }
        let left = self.release(domain.as_ref()).await;
        crash_point!("settle.released");
        let mut next = (*self.entry).clone();
        let mut events = std::mem::take(&mut self.owed);
        events.extend(given_back(&next, &left));
        events.extend(left.iter().map(|(held, error)| {
            let data = json!({ "kind": held.kind, "key": held.key, "error": error });
            NewEvent { once: false, ..fact(EventKind::ResourceReleaseFailed, &next, data) }
        }));
        let releasing = |(held, _)| Resource { state: ResourceState::Releasing, ..held };
        next.resources = left.into_iter().map(releasing).collect();
        next.slot = next.slot.filter(|_| next.resources.iter().any(|held| held.kind == slots::KIND));
        next.ended_at = Some(now());
        next.stuck = None;
        conclude(&mut next, fate);
        plan_restart(&mut next, lacked_room);
        let (kind, data) = told(&next);
        events.push(fact(kind, &next, data));
        let request = self.answered_at_end(&next, unstarted.as_ref());
        let next = Arc::new(next);
        let late = self.host.owe(Batch { puts: vec![Arc::clone(&next)], events, request, ..Batch::default() }).await;
        let zombie = process.map(|process| Arc::clone(process.handle()));
        // Before anybody reads that it is over.
        if late.is_none() {
            reap(zombie.as_deref());
        }
        if !std::mem::replace(&mut self.is_new, false) {
            self.prune_logs();
        }
        self.show(next);
        crash_point!("settle.recorded");
        match late {
            None => let_go(&self.host, &self.entry).await,
            // The ledger cannot be written.
            Some(durable) => {
                let kept_by = (zombie, self.is_pinned);
                let_go_later(Arc::clone(&self.host), Arc::clone(&self.entry), kept_by, durable);
            }
        }
        Next::Rest
    }

    /// The answer to the keyed request of a start that ended before it was answered. One that never ran, because it was
    /// interrupted or refused for a while, stays open for the caller's next try.
    fn answered_at_end(&mut self, next: &Entry, unstarted: Option<&Unstarted>) -> Option<RequestRecord> {
        match next.state {
            State::Failed => {
                let why = unstarted.filter(|why| why.reason != super::recover::INTERRUPTED)?;
                if why.is_to_be_asked_again() {
                    return None;
                }
                self.answered(why.kind.status(), || not_started(next))
            }
            State::Exited | State::Lost if next.started_at.is_none() && self.entry.stop.is_some() => {
                self.answered(Kind::WrongState.status(), || super::start::stopped_first(next))
            }
            State::Starting
            | State::Running
            | State::Stopping
            | State::Stuck
            | State::Unverified
            | State::Exited
            | State::Lost => self.answered(201, || serde_json::to_string(next).unwrap_or_default()),
        }
    }

    /// Gives back what the incarnation holds, in reverse order of acquisition; tells what could not be given back, and
    /// why. The pin goes last and apart: until the exit is durable, it may be the only one that knows it.
    async fn release(&self, domain: Option<&Domain>) -> Vec<(Resource, String)> {
        let mut left = Vec::new();
        for resource in self.entry.resources.iter().rev() {
            let released = match resource.kind.as_str() {
                "cgroup" if self.host.subtree.is_none() => {
                    Err("there is no cgroup2 here, where it could be looked at".to_owned())
                }
                "cgroup" => match domain.filter(|domain| !domain.try_remove()).cloned() {
                    Some(nested) => beside(move || nested.remove().map_err(|error| chain(&error))).await,
                    None => Ok(Released::WasGone),
                },
                "cgroup-v1" => {
                    let (subtree, key) = (self.host.cgroup.clone(), resource.key.clone());
                    beside(move || super::limits::release_v1(&subtree, &key)).await
                }
                slots::KIND => {
                    let given_back = self.host.slots.release(&resource.key, &self.entry.incarnation).await;
                    given_back.map(|()| Released::Now)
                }
                _ => Ok(Released::WasGone),
            };
            if let Err(error) = released {
                tracing::warn!(name = %self.entry.name, kind = resource.kind, error, "resource not released");
                left.push((resource.clone(), error));
            }
        }
        left
    }

    /// Tries again to give back what could not be given back; tells whether all is gone now.
    pub(super) async fn release_again(&mut self) -> bool {
        let domain = self.find_domain().await;
        self.clear(domain.as_ref()).await;
        let left = self.release(domain.as_ref()).await;
        if left.len() == self.entry.resources.len() {
            return false;
        }
        let mut next = (*self.entry).clone();
        let events = given_back(&next, &left);
        next.resources = left.into_iter().map(|(held, _)| held).collect();
        next.slot = next.slot.filter(|_| next.resources.iter().any(|held| held.kind == slots::KIND));
        let all = next.resources.is_empty();
        self.owe(next, events).await;
        all
    }

    /// Kills what lives in the domain of a life that is over, as nothing has a right to.
    async fn clear(&self, domain: Option<&Domain>) {
        let target = Target { process: None, domain, tree: None, here: &self.host.here };
        if !target.lives() {
            return;
        }
        tracing::warn!(name = %self.entry.name, "something lives in the cgroup of a life that is over, and is killed");
        target.kill();
        if timeout(SWEEP_AFTER, target.emptied()).await.is_err() {
            target.sweep();
        }
    }

    /// Removes the logs of lives that ended longest ago; those of the one that has just ended stay.
    fn prune_logs(&self) {
        let dir = self.host.paths.logs(&self.entry.name);
        let Ok(files) = fs::read_dir(&dir) else { return };
        let mut lives: Vec<String> = files
            .filter_map(|file| file.ok()?.file_name().into_string().ok())
            .filter_map(|name| Some(name.split_once('.')?.0.to_owned()))
            .filter(|life| life.as_str() <= self.entry.incarnation.as_str())
            .collect();
        lives.sort_unstable();
        lives.dedup();
        let surplus = lives.len().saturating_sub(self.host.log_incarnations.max(1));
        for life in lives.iter().take(surplus) {
            for stream in ["stdout", "stderr"] {
                let _gone = fs::remove_file(dir.join(format!("{life}.{stream}")));
            }
        }
    }
}

/// Removes what a workload may have made ten thousand of, beside the thread on which everybody else would wait for that.
async fn beside<F>(remove: F) -> Result<Released, String>
where
    F: FnOnce() -> Result<Released, String> + Send + 'static,
{
    spawn_blocking(remove).await.map_err(|error| error.to_string())?
}

/// The events of what `entry` held and holds no more; `left` could not be given back.
fn given_back(entry: &Entry, left: &[(Resource, String)]) -> Vec<NewEvent> {
    let gone = entry.resources.iter().filter(|held| left.iter().all(|(other, _)| other != *held));
    let event = |held: &Resource| {
        let data = json!({ "kind": held.kind, "key": held.key });
        NewEvent { once: false, ..fact(EventKind::ResourceReleased, entry, data) }
    };
    gone.map(event).collect()
}
