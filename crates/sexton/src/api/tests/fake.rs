//! A driver that answers from a map: enough of the node to see what routes make of its answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use sexton_ledger::entry::Entry;
use sexton_plan::gate::{NodeStatus, Turn};
use sexton_plan::id::Name;
use sexton_plan::plan::Plan;
use sexton_plan::state::State;
use tokio::sync::{mpsc, watch};

use crate::node::request::NodeState;
use crate::node::request::{Facts, Filter, InFlight, NewInstance, Page, Request};
use crate::node::sample;
use crate::refusal::{Kind, Refusal};

type Lives = BTreeMap<Name, watch::Sender<Option<Arc<Entry>>>>;

fn entry_of(new: NewInstance) -> Entry {
    Entry { name: new.name, spec: new.spec, ..sample::entry("any") }
}

fn unknown() -> Refusal {
    Refusal::new(Kind::NotFound, "there is no such instance")
}

fn entry(lives: &Lives, name: &Name) -> Result<Arc<Entry>, Refusal> {
    lives.get(name).and_then(|life| life.borrow().clone()).ok_or_else(unknown)
}

/// Changes an entry and shows it.
fn change(lives: &Lives, name: &Name, how: impl FnOnce(&mut Entry)) -> Result<Arc<Entry>, Refusal> {
    let mut changed = entry(lives, name)?.as_ref().clone();
    how(&mut changed);
    let changed = Arc::new(changed);
    if let Some(life) = lives.get(name) {
        life.send_replace(Some(changed.clone()));
    }
    Ok(changed)
}

fn list(lives: &Lives, filter: &Filter) -> Page {
    let entries = lives.values().filter_map(|life| life.borrow().clone());
    let behind = entries.filter(|entry| filter.after.as_ref().is_none_or(|after| entry.name > *after));
    let of_state = behind.filter(|entry| filter.state.is_none_or(|state| entry.state == state));
    let mut items: Vec<_> = of_state.take(filter.limit + 1).collect();
    let has_more = items.len() > filter.limit;
    items.truncate(filter.limit);
    let next = items.last().filter(|_| has_more).map(|entry| entry.name.clone());
    Page { items, next }
}

fn facts(lives: &Lives, state: NodeState) -> Facts {
    let live = lives.values().filter_map(|life| life.borrow().clone()).filter(|entry| !entry.state.is_terminal());
    let in_flight = live.map(|entry| InFlight {
        name: entry.name.clone(),
        state: entry.state,
        since: Timestamp::UNIX_EPOCH,
        error: None,
    });
    Facts { node: "n1".into(), generation: 1, state, inflight: in_flight.collect(), ..Facts::default() }
}

fn remove(lives: &mut Lives, name: &Name, force: bool) -> Result<Arc<Entry>, Refusal> {
    let entry = entry(lives, name)?;
    if !force && !entry.state.is_terminal() {
        return Err(Refusal::new(Kind::WrongState, "it runs"));
    }
    if let Some(life) = lives.remove(name) {
        life.send_replace(None);
    }
    Ok(entry)
}

/// Answers requests: instances run at once; a stop ends `slow-…` never and all others at once.
pub(super) async fn drive(mut requests: mpsc::Receiver<Request>) {
    let mut lives = Lives::new();
    let state = watch::Sender::new(NodeState::default());
    while let Some(request) = requests.recv().await {
        answer(&mut lives, &state, request);
    }
}

fn set_status(state: &watch::Sender<NodeState>, status: NodeStatus) -> Result<(), Refusal> {
    let turn = state.borrow().status.turn(status);
    match turn {
        Turn::Refused => Err(Refusal::new(Kind::WrongState, "it drains")),
        Turn::Becomes | Turn::Stays => {
            state.send_modify(|state| state.status = status);
            Ok(())
        }
    }
}

fn answer(lives: &mut Lives, state: &watch::Sender<NodeState>, request: Request) {
    let end = |entry: &mut Entry| entry.state = State::Exited;
    match request {
        Request::Create { new, reply, .. } => {
            let entry = Arc::new(entry_of(*new));
            let answer = if lives.contains_key(&entry.name) {
                Err(Refusal::new(Kind::NameInUse, "the name is in use"))
            } else if entry.name.as_str() == "full" {
                Err(Refusal::new(Kind::NodeDraining, "the node is draining"))
            } else {
                lives.insert(entry.name.clone(), watch::Sender::new(Some(entry.clone())));
                Ok(entry)
            };
            let _heard = reply.send(answer);
        }
        Request::Start { name, reply, .. } => {
            let _heard = reply.send(change(lives, &name, |entry| entry.state = State::Running));
        }
        Request::Stop { name, reply, .. } => {
            let how = |entry: &mut Entry| {
                if name.as_str().starts_with("slow-") { entry.state = State::Stopping } else { end(entry) }
            };
            let _heard = reply.send(change(lives, &name, how));
        }
        Request::Signal { name, reply, signal, .. } => {
            let _heard = reply.send(change(lives, &name, |entry| entry.reason = Some(format!("signal {signal}"))));
        }
        Request::Remove { name, reply, force, .. } => {
            let answer = remove(lives, &name, force);
            let _heard = reply.send(answer);
        }
        Request::Snapshot { name, value, reply, .. } => {
            let _heard = reply.send(change(lives, &name, |entry| entry.snapshot = Some(value)));
        }
        Request::One { name, reply } => {
            let _heard = reply.send(entry(lives, &name));
        }
        Request::List { filter, reply } => {
            let _heard = reply.send(list(lives, &filter));
        }
        Request::Watch { name, reply } => {
            let _heard = reply.send(lives.get(&name).map(watch::Sender::subscribe));
        }
        Request::Facts { reply } => {
            let _heard = reply.send(facts(lives, state.borrow().clone()));
        }
        Request::Plan { reply } => {
            let _heard = reply.send(Plan { generation: 3, ..Plan::default() });
        }
        Request::Apply { plan, reply, .. } => {
            let answer = if plan.actions.is_empty() { Ok(()) } else { Err(Refusal::new(Kind::WrongState, "it moved")) };
            let _heard = reply.send(answer);
        }
        Request::Reconcile { reply } => {
            let _heard = reply.send(2);
        }
        Request::Drain { reply, .. } => {
            let drained = lives.is_empty();
            state.send_replace(NodeState { status: NodeStatus::Draining, drained, ..NodeState::default() });
            let _heard = reply.send(());
        }
        Request::SetStatus { status, reply, .. } => {
            let _heard = reply.send(set_status(state, status));
        }
        Request::Status { reply } => {
            let _heard = reply.send(state.subscribe());
        }
        Request::Adopt { reply, .. } => {
            let _heard = reply.send(Err(Refusal::new(Kind::WrongState, "that process does not exist")));
        }
    }
}
