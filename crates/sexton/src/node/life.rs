//! One instance's life: the row that it owns, what it may be told, and how it records, shows and answers.
//! [`course`](super::course) is the way it takes.

use std::sync::Arc;

use serde_json::{Value, json};
use sexton_core::gate::{self, OwnedPermit};
use sexton_ledger::entry::{Entry, StopOrder};
use sexton_ledger::{Batch, EventKind, NewEvent, RequestRecord, Snapshot};
use sexton_plan::id::Name;
use sexton_plan::state::State;
use tokio::sync::{mpsc, oneshot, watch};

use super::asking::Asking;
use super::clock::now;
use super::host::SharedHost;
use super::noted::{self, Note};
use super::process::Process;
use super::request::{Caller, IdempotencyKey, Stop};
use super::stop;
use super::unstarted::Unstarted;
use crate::refusal::{Kind, Refusal};
use sexton_core::gate::EnterError;
use sexton_core::handle::Handle;
use sexton_plan::identity::Identity;

/// Commands that wait for one life; its task answers within one step of whatever it is doing.
const MAILBOX: usize = 32;

/// Where an answer goes.
pub type Answer = oneshot::Sender<Result<Arc<Entry>, Refusal>>;

/// What one life may be told.
#[derive(Debug)]
#[allow(missing_docs, reason = "each is documented at the method of `Node` that leads to it")]
pub enum Command {
    Start {
        caller: Caller,
        key: Option<IdempotencyKey>,
        reply: Answer,
    },
    Stop {
        stop: Stop,
        caller: Caller,
        reply: Answer,
    },
    /// The node's drain ends it, for this reason.
    Drain {
        force: bool,
        reason: &'static str,
    },
    Signal {
        signal: u8,
        caller: Caller,
        reply: Answer,
    },
    Remove {
        force: bool,
        caller: Caller,
        reply: Answer,
    },
    Snapshot {
        value: Snapshot,
        caller: Caller,
        reply: Answer,
    },
    /// Judge an unverified instance again.
    Rejudge,
}

impl Command {
    /// Answers whoever asked that it is not carried out.
    pub(super) fn refuse(self, refusal: Refusal) {
        match self {
            Command::Start { reply, .. }
            | Command::Stop { reply, .. }
            | Command::Signal { reply, .. }
            | Command::Remove { reply, .. }
            | Command::Snapshot { reply, .. } => {
                let _heard = reply.send(Err(refusal));
            }
            Command::Drain { .. } | Command::Rejudge => {}
        }
    }
}

/// The driver's hold on one life.
#[derive(Clone, Debug)]
pub struct LifeHandle {
    /// Where commands go. Boxed, for a channel lays out room for all that it can hold.
    pub mailbox: mpsc::Sender<Box<Command>>,
    /// The newest row, `None` once removed.
    pub entry: watch::Receiver<Option<Arc<Entry>>>,
}

impl LifeHandle {
    /// Passes a command on; a full mailbox is waited for beside whatever goes on.
    pub(super) fn pass_on(&self, command: Command) {
        match self.mailbox.try_send(Box::new(command)) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(command)) => {
                let life = self.clone();
                tokio::spawn(async move {
                    if let Err(mpsc::error::SendError(command)) = life.mailbox.send(command).await {
                        life.refuse_late(*command);
                    }
                });
            }
            Err(mpsc::error::TrySendError::Closed(command)) => self.refuse_late(*command),
        }
    }

    /// Answers another try of a keyed request once the start that is under way has succeeded or failed, or a stop has
    /// overtaken it.
    pub(super) async fn answer_when_begun(self, key: IdempotencyKey, caller: Caller, reply: Answer) {
        self.answer_when(key, caller, reply, |entry| entry.state != State::Starting).await;
    }

    /// Answers another try of a keyed request once what has not run, and was not answered for, is undone.
    async fn answer_when_over(self, key: IdempotencyKey, caller: Caller, reply: Answer) {
        self.answer_when(key, caller, reply, |entry| entry.state.is_terminal()).await;
    }

    async fn answer_when(self, key: IdempotencyKey, caller: Caller, reply: Answer, is_so: fn(&Entry) -> bool) {
        let mut entry = self.entry.clone();
        let is_so = |entry: &Option<Arc<Entry>>| entry.as_deref().is_some_and(is_so);
        let answer = match entry.wait_for(is_so).await.map(|entry| entry.clone()) {
            // Its record knows what was answered, or that nothing was: then it is begun again.
            Ok(Some(entry)) if entry.state == State::Failed || entry.started_at.is_none() => {
                return self.pass_on(Command::Start { caller, key: Some(key), reply });
            }
            Ok(Some(entry)) => Ok(entry),
            Ok(None) | Err(_) => Err(Refusal::new(Kind::NotReady, "the same request was refused just now; ask again")),
        };
        let _heard = reply.send(answer);
    }

    /// A life that takes no more commands was removed, where it shows so; without a word the daemon is ending.
    fn refuse_late(&self, command: Command) {
        if self.entry.borrow().is_none() {
            command.refuse(Refusal::new(Kind::NotFound, "the instance was removed in the meantime"));
        }
    }
}

/// One instance's life.
#[derive(Debug)]
pub struct Life {
    pub(super) host: SharedHost,
    pub(super) entry: Arc<Entry>,
    /// What has happened and is not recorded yet: it is recorded with what follows from it.
    pub(super) owed: Vec<NewEvent>,
    pub(super) mailbox: mpsc::Receiver<Box<Command>>,
    /// The way into that mailbox; it does not keep it open.
    me: mpsc::WeakSender<Box<Command>>,
    /// The keyed request that the start under way is to answer.
    pub(super) request: Option<RequestRecord>,
    /// The polite part of the stop under way.
    pub(super) asking: Asking,
    /// Whether the logs of this incarnation have been made known.
    pub(super) logs_are_known: bool,
    /// Whether this is the first incarnation of its name, begun by this worker.
    pub(super) is_new: bool,
    /// Whether the process of this incarnation is one that this worker has pinned.
    pub(super) is_pinned: bool,
    /// Whether this worker has seen its program run.
    pub(super) is_seen_through: bool,
    /// Whether its start was not seen through, and its mark was taken away: nobody can tell its exit from that of a child
    /// which ran nothing.
    pub(super) is_mark_lost: bool,
    pub(super) published: watch::Sender<Option<Arc<Entry>>>,
    pub(super) removed: mpsc::UnboundedSender<Name>,
}

/// What comes next.
#[derive(Debug)]
pub enum Next {
    /// Make the intent durable, for whoever asked.
    Intend {
        /// The caller's promise, if any.
        key: Option<IdempotencyKey>,
        /// Who asks.
        caller: Caller,
        /// Where the answer goes.
        reply: Answer,
        /// The admission, until the intent is shown.
        permit: OwnedPermit,
    },
    /// Take custody of a process that something else started.
    TakeCustody {
        /// The process.
        taken: Taken,
        /// Who asks.
        caller: Caller,
        /// Where the answer goes.
        reply: Answer,
    },
    /// Run a new incarnation, recorded as `starting`.
    Start(Option<Answer>),
    /// Watch a main process that runs.
    Guard(Process),
    /// Bring it to its end, with or without a main process that may still live.
    End(Option<Process>),
    /// A start that never ran: end its process, if there is one, and give back what it took.
    RollBack(RollBack),
    /// Gone while nobody was there: learn how it ended.
    Close,
    /// An adoption that was cut off: undo it.
    GiveUpAdoption,
    /// Neither ours nor gone for certain.
    Doubt,
    /// Terminal, with something still to be given back.
    Release,
    /// Terminal.
    Rest,
    /// Off the list.
    Removed,
    /// Off the list as if it had never been asked for: what asked for it is refused.
    Withdrawn(Refusal),
}

impl Next {
    /// Whether the main process, of a life that is not shown as ended yet, is known to be over.
    pub fn is_over(&self) -> bool {
        match self {
            Next::Guard(process) => matches!(process.handle().is_over(), Ok(true)),
            Next::Close | Next::RollBack(_) => true,
            Next::Intend { .. }
            | Next::TakeCustody { .. }
            | Next::Start(_)
            | Next::End(_)
            | Next::GiveUpAdoption
            | Next::Doubt
            | Next::Release
            | Next::Rest
            | Next::Removed
            | Next::Withdrawn(_) => false,
        }
    }
}

/// A process that may be taken, held.
#[derive(Debug)]
pub struct Taken {
    pub(super) handle: Arc<Handle>,
    /// Keeps every other request of this daemon off it.
    pub(super) claim: Arc<Identity>,
    /// The admission, until the intent is shown.
    pub(super) permit: OwnedPermit,
}

impl Taken {
    /// Who it is.
    pub fn identity(&self) -> &Identity {
        self.handle.identity()
    }

    /// The kernel's handle of it.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.handle.to_bytes()
    }
}

/// A start that never ran.
#[derive(Debug)]
pub struct RollBack {
    /// Why.
    pub why: Unstarted,
    /// Its process, which ran nothing, or nothing that anybody was told of.
    pub process: Option<Process>,
    /// Who waits for the start.
    pub reply: Option<Answer>,
}

impl Life {
    /// The life of an `entry` that is in the ledger, and the driver's hold on it.
    pub fn known(host: SharedHost, entry: Entry, removed: mpsc::UnboundedSender<Name>) -> (Life, LifeHandle) {
        let (mut life, handle) = Life::unrecorded(host, entry, removed);
        life.is_new = false;
        life.show(Arc::clone(&life.entry));
        (life, handle)
    }

    /// The life of an `entry` that is not in the ledger yet, and is not shown before it is.
    pub fn unrecorded(host: SharedHost, entry: Entry, removed: mpsc::UnboundedSender<Name>) -> (Life, LifeHandle) {
        let (sender, mailbox) = mpsc::channel(MAILBOX);
        let (published, watch) = watch::channel(None);
        (
            Life {
                host,
                entry: Arc::new(entry),
                owed: Vec::new(),
                mailbox,
                me: sender.downgrade(),
                request: None,
                asking: Asking::default(),
                logs_are_known: false,
                is_new: true,
                is_pinned: false,
                is_seen_through: false,
                is_mark_lost: false,
                published,
                removed,
            },
            LifeHandle { mailbox: sender, entry: watch },
        )
    }

    /// A hold on this life, as the driver has it; `None` where the driver is gone.
    fn handle(&self) -> Option<LifeHandle> {
        Some(LifeHandle { mailbox: self.me.upgrade()?, entry: self.published.subscribe() })
    }

    /// Has the logs of this incarnation bounded from now on; said once, for each time costs a look at two files.
    pub(super) fn bound_logs(&mut self) {
        if !std::mem::replace(&mut self.logs_are_known, true) {
            self.host.bound_logs(&self.entry.name, &self.entry.incarnation);
        }
    }

    /// Carries out one command for an instance that is not terminal; tells whether it is to end.
    pub(super) async fn obey(&mut self, command: Option<Box<Command>>, process: Option<&Process>) -> bool {
        // The driver is gone: the daemon is ending, and leaves everything as it is.
        let Some(command) = command else { return std::future::pending().await };
        if let Command::Drain { force, reason } = *command {
            return self.obey_drain(force, reason).await;
        }
        self.record_owed().await;
        match *command {
            Command::Stop { stop, caller, reply } => {
                self.order_stop(self.with_order(&stop, None, false), &caller, "stop");
                self.record_order(&caller).await;
                self.answer(reply);
                return true;
            }
            Command::Remove { force: true, caller, reply } => {
                let order = self.with_order(&Stop { force: false, grace: None }, None, true);
                self.order_stop(order, &caller, "remove");
                self.record_order(&caller).await;
                self.answer(reply);
                return true;
            }
            Command::Remove { force: false, reply, .. } => {
                self.refuse(reply, "is not over; stop it first, or remove it with force");
            }
            Command::Start { key: Some(key), caller, reply } => match self.handle() {
                // Another try of the same request runs it now.
                Some(life) if self.entry.state == State::Starting && !self.has_answered(&key) => {
                    tokio::spawn(life.answer_when_begun(key, caller, reply));
                }
                // It is being undone, and somebody has stopped it meanwhile.
                Some(life) if self.entry.started_at.is_none() && !self.has_answered(&key) => {
                    tokio::spawn(life.answer_when_over(key, caller, reply));
                }
                _ => self.answer_as_before(&key, reply),
            },
            Command::Start { key: None, reply, .. } => {
                self.refuse(reply, "is not over; only a terminal instance can be started");
            }
            Command::Signal { signal, caller, reply } => self.signal(process, signal, &caller, reply).await,
            Command::Snapshot { value, caller, reply } => self.keep_snapshot(value, &caller, reply).await,
            Command::Drain { .. } | Command::Rejudge => {}
        }
        false
    }

    /// The node's drain ends it; what it was told before changes nothing.
    pub(super) async fn obey_drain(&mut self, force: bool, reason: &str) -> bool {
        let order = self.with_order(&Stop { force, grace: None }, Some(reason), false);
        if self.entry.stop.as_ref() != Some(&order) {
            self.order_stop(order, &Caller::drain(), "stop");
            // By force it is over in a moment, and recorded with its end: after a crash the drain, which is durable
            // itself, orders it again.
            if !force {
                self.record_owed().await;
            }
        }
        true
    }

    /// What is ordered by `stop`, beside what was ordered before.
    pub(super) fn with_order(&self, stop: &Stop, reason: Option<&str>, remove: bool) -> StopOrder {
        let before = self.entry.stop.as_ref();
        StopOrder {
            force: stop.force || before.is_some_and(|order| order.force),
            grace: stop.grace.unwrap_or(self.entry.spec.grace),
            remove: remove || before.is_some_and(|order| order.remove),
            reason: reason.map(str::to_owned).or_else(|| before.and_then(|order| order.reason.clone())),
        }
    }

    /// Accepts a stop. Once that is recorded it is carried to its end, by the next start if need be.
    fn order_stop(&mut self, order: StopOrder, caller: &Caller, call: &str) {
        let mut next = Entry { stop: Some(order), ..(*self.entry).clone() };
        self.owed.push(called(&next, call, caller));
        if matches!(next.state, State::Starting | State::Running) {
            next.state = State::Stopping;
            self.owed.push(fact(EventKind::InstanceStopping, &next, json!({ "asked": true })));
        }
        self.entry = Arc::new(next);
    }

    /// Records an order before it is answered.
    async fn record_order(&mut self, caller: &Caller) {
        let late = self.record_owed().await;
        self.note(self.entry.stop.clone(), caller, late);
    }

    /// Keeps an order, which is answered next, beside the ledger where its record comes `late`.
    pub(super) fn note(&self, order: Option<StopOrder>, caller: &Caller, late: Option<oneshot::Receiver<()>>) {
        if let (Some(order), Some(durable)) = (order, late) {
            let note = Note::Stop { life: self.entry.incarnation.clone(), order, caller: caller.clone() };
            noted::keep_until(&self.host, &note, durable);
        }
    }

    async fn signal(&mut self, process: Option<&Process>, number: u8, caller: &Caller, reply: Answer) {
        let Some(process) = process else { return self.refuse(reply, "has no process to signal") };
        match stop::signal(process, number) {
            Ok(true) => {
                let event = called(&self.entry, "signal", caller);
                self.host.owe(Batch { events: vec![event], ..Batch::default() }).await;
                self.answer(reply);
            }
            Ok(false) => self.refuse(reply, "has ended"),
            Err(error) => {
                let _heard = reply.send(Err(Refusal::new(Kind::Internal, error.to_string())));
            }
        }
    }

    pub(super) async fn keep_snapshot(&mut self, value: Snapshot, caller: &Caller, reply: Answer) {
        // A drain waits for it. Kept while draining, it is what the owner needs to resume elsewhere: not refused.
        let _permit = self.host.gate.enter_owned(gate::Kind::SNAPSHOT);
        let mut next = (*self.entry).clone();
        next.snapshot = Some(value);
        let events = vec![called(&next, "snapshot", caller)];
        let kept = self.record(next, events, false).await;
        let _heard = reply.send(kept.map(|()| Arc::clone(&self.entry)));
    }

    /// Whether a keyed request was answered for good.
    pub(super) fn has_answered(&self, key: &IdempotencyKey) -> bool {
        self.kept_answer(key).is_some()
    }

    fn kept_answer(&self, key: &IdempotencyKey) -> Option<(u16, String)> {
        self.host.request(&key.key).ok().flatten()?.answer
    }

    /// Answers a keyed request that was answered before, as it was answered then.
    pub(super) fn answer_as_before(&self, key: &IdempotencyKey, reply: Answer) {
        match self.kept_answer(key) {
            Some((status, body)) => refuse_or_answer(reply, status, &body),
            None => self.answer(reply),
        }
    }

    /// Answers with the row as it is now.
    pub(super) fn answer(&self, reply: Answer) {
        let _heard = reply.send(Ok(Arc::clone(&self.entry)));
    }

    /// Refuses because of the present state.
    pub(super) fn refuse(&self, reply: Answer, why: &str) {
        let detail = format!("`{}` is {}: it {why}", self.entry.name, self.entry.state);
        let _heard = reply.send(Err(Refusal::new(Kind::WrongState, detail)));
    }

    /// The keyed request of the start under way, with its answer, to be recorded with what it answers.
    pub(super) fn answered(&mut self, status: u16, body: impl FnOnce() -> String) -> Option<RequestRecord> {
        let mut request = self.request.take()?;
        request.answer = Some((status, body()));
        Some(request)
    }

    /// Records the next row with its events, then shows it; refused whole where the ledger cannot be written.
    /// `volatile`: dies with the power anyway.
    ///
    /// # Errors
    /// The ledger cannot be written now; nothing has changed.
    pub(super) async fn record(&mut self, next: Entry, events: Vec<NewEvent>, volatile: bool) -> Result<(), Refusal> {
        let next = Arc::new(next);
        self.host.record(Batch { puts: vec![Arc::clone(&next)], events, volatile, ..Batch::default() }).await?;
        self.show(next);
        Ok(())
    }

    /// Makes the intent of the incarnation `next` durable, behind `events`, and shows it: before that, nothing of it
    /// exists. `data` goes with its `instance.starting`, `key` is what its start is to answer.
    ///
    /// # Errors
    /// There is no slot for it, or the ledger cannot be written now; nothing has changed.
    pub(super) async fn record_intent(
        &mut self,
        mut next: Entry,
        mut events: Vec<NewEvent>,
        data: Value,
        key: Option<IdempotencyKey>,
    ) -> Result<(), Refusal> {
        let slots = self.claim_slot(&mut next).await?;
        events.push(fact(EventKind::InstanceStarting, &next, data));
        let request = key.map(|key| asked(&next, key));
        // What it guards dies with the power; a crash of the daemon it survives. What is answered is synced.
        let next = Arc::new(next);
        let puts = vec![Arc::clone(&next)];
        let batch = Batch { puts, slots, events, request: request.clone(), volatile: true, ..Batch::default() };
        if let Err(refusal) = self.host.record(batch).await {
            self.unclaim_slot(&next).await;
            return Err(refusal);
        }
        self.request = request;
        self.show(next);
        Ok(())
    }

    /// Records what has happened already, and shows it. As [`Host::owe`](super::host::Host::owe).
    pub(super) async fn owe(&mut self, next: Entry, events: Vec<NewEvent>) -> Option<oneshot::Receiver<()>> {
        self.entry = Arc::new(next);
        self.owed.extend(events);
        self.record_row().await
    }

    /// Records and shows what has happened and is not recorded yet, as [`Life::owe`].
    pub(super) async fn record_owed(&mut self) -> Option<oneshot::Receiver<()>> {
        if self.owed.is_empty() { None } else { self.record_row().await }
    }

    async fn record_row(&mut self) -> Option<oneshot::Receiver<()>> {
        let events = std::mem::take(&mut self.owed);
        let late = self.host.owe(Batch { puts: vec![Arc::clone(&self.entry)], events, ..Batch::default() }).await;
        self.show(Arc::clone(&self.entry));
        late
    }

    /// Shows a row that is recorded.
    pub(super) fn show(&mut self, next: Arc<Entry>) {
        self.entry = next;
        self.published.send_replace(Some(Arc::clone(&self.entry)));
    }
}

/// What was answered then: the row of that moment, or the refusal.
pub(super) fn refuse_or_answer(reply: Answer, status: u16, body: &str) {
    let answer = if status < 300 {
        serde_json::from_str::<Entry>(body)
            .map(Arc::new)
            .map_err(|error| Refusal::new(Kind::Internal, error.to_string()))
    } else {
        // Of those for which one is to ask again, it is kept only where the program ran.
        let kinds = [Kind::LedgerUnwritable, Kind::WrongState, Kind::Internal];
        let kind = kinds.into_iter().find(|kind| kind.status() == status);
        Err(Refusal::new(kind.unwrap_or(Kind::ExecFailed), body))
    };
    let _heard = reply.send(answer);
}

/// The gate is closed, or full.
pub(super) fn not_admitted(error: EnterError) -> Refusal {
    match error {
        EnterError::Draining => Refusal::new(Kind::NodeDraining, "the node is draining and takes no new work"),
        EnterError::Full => Refusal::new(Kind::NodeFull, error.to_string()),
    }
}

/// A fact about this life that can be true only once.
pub fn fact(kind: EventKind, entry: &Entry, data: Value) -> NewEvent {
    NewEvent::once(kind, &entry.name, &entry.incarnation, data)
}

/// Who asked for what was carried out.
pub fn called(entry: &Entry, call: &str, caller: &Caller) -> NewEvent {
    let data = json!({ "call": call, "by": caller.by, "uid": caller.uid });
    NewEvent { once: false, ..NewEvent::once(EventKind::ApiCalled, &entry.name, &entry.incarnation, data) }
}

/// What is kept of a request until it can be answered.
fn asked(entry: &Entry, key: IdempotencyKey) -> RequestRecord {
    RequestRecord {
        key: key.key,
        fingerprint: key.fingerprint,
        name: entry.name.clone(),
        incarnation: entry.incarnation.clone(),
        answer: None,
        at: now(),
    }
}
