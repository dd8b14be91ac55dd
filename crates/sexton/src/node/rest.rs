//! A terminal instance: it waits to be started, removed, or restarted by its policy.

use std::fs;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use sexton_core::gate::{self, EnterError};
use sexton_ledger::entry::{Entry, Restarts, StopOrder};
use sexton_ledger::{Batch, EventKind, NewEvent};
use sexton_plan::restart;
use sexton_plan::state::State;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::clock::now;
use super::crash::crash_point;
use super::life::{Answer, Command, Life, Next, called, fact, not_admitted};
use super::request::{Caller, IdempotencyKey};
use super::resources::intents;

/// The pause before a resource that could not be given back is tried again.
const RELEASE_AGAIN: Duration = Duration::from_secs(1);
/// The pause before a restart that the ledger could not record is tried again.
const RESTART_AGAIN: Duration = Duration::from_secs(1);

impl Life {
    /// Terminal: waits for what leads on.
    pub(super) async fn rest(&mut self) -> Next {
        loop {
            let settled = self.entry.resources.is_empty();
            if settled && self.entry.stop.as_ref().is_some_and(|order| order.remove) {
                Box::pin(self.remove(Vec::new())).await;
                return Next::Removed;
            }
            tokio::select! {
                command = self.mailbox.recv() => {
                    if let Some(next) = Box::pin(self.obey_at_rest(command)).await {
                        return next;
                    }
                }
                () = sleep(RELEASE_AGAIN), if !settled => {
                    Box::pin(self.release_again()).await;
                }
                () = due(self.entry.restarts), if settled => {
                    if Box::pin(self.restart()).await {
                        return Next::Start(None);
                    }
                }
            }
        }
    }

    async fn obey_at_rest(&mut self, command: Option<Box<Command>>) -> Option<Next> {
        let Some(command) = command else { return std::future::pending().await };
        match *command {
            Command::Start { caller, key, reply } => return self.begin_again(&caller, key, reply).await,
            Command::Stop { stop, caller, reply } => {
                let late = self.end_restarts(&caller).await;
                self.note(Some(self.with_order(&stop, None, false)), &caller, late);
                self.answer(reply);
            }
            Command::Drain { .. } => drop(self.end_restarts(&Caller::drain()).await),
            Command::Remove { caller, reply, .. } => return self.remove_at_rest(&caller, reply).await,
            Command::Signal { reply, .. } => self.refuse(reply, "has no process to signal"),
            Command::Snapshot { value, caller, reply } => self.keep_snapshot(value, &caller, reply).await,
            Command::Rejudge => {}
        }
        None
    }

    /// A stop ends a pending restart, if there is one, for good.
    async fn end_restarts(&mut self, caller: &Caller) -> Option<oneshot::Receiver<()>> {
        self.entry.restarts.next_at?;
        let mut next = (*self.entry).clone();
        next.restarts.next_at = None;
        let events = vec![called(&next, "stop", caller)];
        self.owe(next, events).await
    }

    /// Removes it now, or as soon as everything is given back.
    async fn remove_at_rest(&mut self, caller: &Caller, reply: Answer) -> Option<Next> {
        let event = called(&self.entry, "remove", caller);
        let order = Some(StopOrder { force: true, grace: Duration::ZERO, remove: true, reason: None });
        if self.entry.resources.is_empty() {
            let late = self.remove(vec![event]).await;
            self.note(order, caller, late);
            self.answer(reply);
            return Some(Next::Removed);
        }
        let mut next = (*self.entry).clone();
        next.restarts.next_at = None;
        next.stop.clone_from(&order);
        let late = self.owe(next, vec![event]).await;
        self.note(order, caller, late);
        self.answer(reply);
        None
    }

    /// Takes the row off the list, and its logs with it.
    pub(super) async fn remove(&self, mut events: Vec<NewEvent>) -> Option<oneshot::Receiver<()>> {
        let entry = &self.entry;
        events.push(fact(EventKind::InstanceRemoved, entry, json!({})));
        crash_point!("remove.begun");
        let late = self.host.owe(Batch { removes: vec![entry.name.clone()], events, ..Batch::default() }).await;
        crash_point!("remove.recorded");
        // What is left of them is removed by the next start's recovery.
        let _gone = fs::remove_dir_all(self.host.paths.logs(&entry.name));
        late
    }

    async fn restart(&mut self) -> bool {
        let _permit = match self.host.gate.enter_owned(gate::Kind::RESTART) {
            Ok(permit) => permit,
            Err(EnterError::Draining) => {
                // A drain ends pending restarts; whoever wants it back starts it.
                let mut next = (*self.entry).clone();
                next.restarts.next_at = None;
                self.owe(next, Vec::new()).await;
                return false;
            }
            Err(EnterError::Full) => {
                sleep(RESTART_AGAIN).await;
                return false;
            }
        };
        let restarts = Restarts { next_at: None, ..self.entry.restarts };
        let next = next_incarnation(&self.entry, &self.host, restarts);
        let begun = match self.host.has_descriptors() {
            Ok(()) => self.record_intent(next, Vec::new(), json!({ "restart": restarts.count }), None).await,
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = begun {
            tracing::warn!(name = %self.entry.name, %refusal, "restart put off");
            sleep(RESTART_AGAIN).await;
            return false;
        }
        true
    }

    /// Begins a new incarnation for a caller.
    async fn begin_again(&mut self, caller: &Caller, key: Option<IdempotencyKey>, reply: Answer) -> Option<Next> {
        if let Some(key) = key.as_ref().filter(|key| self.entry.state != State::Failed || self.has_answered(key)) {
            // Another try of the same request has run it meanwhile.
            self.answer_as_before(key, reply);
            return None;
        }
        let _permit = match self.host.gate.enter_owned(gate::Kind::START) {
            Ok(permit) => permit,
            Err(error) => {
                let _heard = reply.send(Err(not_admitted(error)));
                return None;
            }
        };
        if !self.entry.resources.is_empty() {
            self.refuse(reply, "has not given back everything yet");
            return None;
        }
        if let Err(refusal) = self.host.has_descriptors() {
            let _heard = reply.send(Err(refusal));
            return None;
        }
        let next = next_incarnation(&self.entry, &self.host, Restarts::default());
        let asked = vec![called(&next, "start", caller)];
        match self.record_intent(next, asked, json!({}), key).await {
            Ok(()) => Some(Next::Start(Some(reply))),
            Err(refusal) => {
                let _heard = reply.send(Err(refusal));
                None
            }
        }
    }
}

/// The row of the life that follows `entry`.
pub fn next_incarnation(entry: &Entry, host: &super::host::Host, restarts: Restarts) -> Entry {
    let Entry { name, spec, node, snapshot, created_at, .. } = entry.clone();
    let blank = Entry::new(name, sexton_ledger::new_incarnation(), spec, node, created_at);
    let mut next = Entry { snapshot, restarts, ..blank };
    next.resources = intents(&next, host.subtree.is_some(), &host.v1, host.pins.is_some());
    next
}

/// Waits until the next incarnation is due; for ever where none follows.
async fn due(restarts: Restarts) {
    match pause_left(restarts, now()) {
        Some(pause) => sleep(pause).await,
        None => std::future::pending().await,
    }
}

/// What is left of the pause before the next incarnation, by the wall clock that says `now`. No more than the whole: a
/// clock that was set back meanwhile makes nobody wait longer.
fn pause_left(restarts: Restarts, now: Timestamp) -> Option<Duration> {
    let left = Duration::try_from(restarts.next_at?.duration_since(now)).unwrap_or_default();
    Some(left.min(restart::pause(restarts.count)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_does_not_make_a_restart_wait() {
        let at: Timestamp = "2026-01-02T03:04:05Z".parse().expect("a time");
        let left = |now: &str| {
            let restarts = Restarts { count: 4, next_at: Some(at) };
            pause_left(restarts, now.parse().expect("a time")).expect("it follows")
        };
        assert_eq!(left("2026-01-02T03:04:04.900Z"), Duration::from_millis(100));
        assert_eq!(left("2026-01-02T04:00:00Z"), Duration::ZERO);
        assert_eq!(left("2025-12-01T00:00:00Z"), restart::pause(4));
        assert_eq!(pause_left(Restarts::default(), at), None);
    }
}
