//! Which orphans were told of, and which are being ended: kept in the ledger, so that each is told once whoever dies.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;
use sexton_core::handle::{Handle, OpenHandleError};
use sexton_core::proc::Here;
use sexton_ledger::{EventKind, NewEvent};
use sexton_plan::identity::Identity;

use super::look::{Who, who};

/// The ledger's key.
const KEY: &str = "watch.orphans";
/// The ledger's key of what is being written back.
const WRITING: &str = "watch.writing";

/// Every orphan that was told of and is not known to be gone.
#[derive(Debug, Default)]
pub struct Told {
    rows: BTreeMap<Who, Row>,
    writing: Vec<Writing>,
}

/// A PID that is about to be written back, so that whoever finds the file right knows whether that was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writing {
    /// The watch.
    pub watch: String,
    /// The id.
    pub id: String,
    /// Whose PID.
    pub identity: Identity,
    /// The name of the new file beside the metadata.
    pub beside: String,
    /// Whether what came of it was told, and what is beside is still to be removed.
    #[serde(default)]
    pub is_told: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    watch: String,
    id: String,
    identity: Identity,
    /// Whether a signal to it was about to be sent.
    ending: bool,
}

impl Told {
    /// As the ledger has it.
    pub fn resume(meta: &BTreeMap<String, String>) -> Told {
        let rows: Vec<Row> = meta.get(KEY).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let writing = meta.get(WRITING).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        Told { rows: rows.into_iter().map(|row| (who(&row.identity), row)).collect(), writing }
    }

    /// Notes an orphan; `None` where it is noted already.
    pub fn see(&mut self, watch: &str, id: &str, identity: &Identity) -> Option<NewEvent> {
        if self.rows.contains_key(&who(identity)) {
            return None;
        }
        let (watch, id, identity) = (watch.to_owned(), id.to_owned(), identity.clone());
        let row = Row { watch, id, identity, ending: false };
        let event = fact(EventKind::OrphanSeen, &row.watch, &row.id, &row.identity);
        self.rows.insert(who(&row.identity), row);
        Some(event)
    }

    /// Notes whether an orphan is being ended.
    pub fn note_ending(&mut self, identity: &Identity, ending: bool) {
        if let Some(row) = self.rows.get_mut(&who(identity)) {
            row.ending = ending;
        }
    }

    /// What was about to be written back and may have been, or has left something beside.
    pub fn unfinished(&self) -> Vec<Writing> {
        self.writing.clone()
    }

    /// Notes what is about to be written back.
    pub fn intend(&mut self, writing: Vec<Writing>) {
        self.writing.extend(writing);
    }

    /// Forgets what was to be written back, whatever came of it.
    pub fn written(&mut self, writing: &Writing) {
        self.writing.retain(|known| known.beside != writing.beside);
    }

    /// Notes that something is left of a writing, of which nothing more is to be told.
    pub fn left_beside(&mut self, writing: &Writing) {
        let left = self.writing.iter_mut().find(|known| known.beside == writing.beside);
        left.into_iter().for_each(|known| known.is_told = true);
    }

    /// Whether something may be left of a writing to the metadata of `id`.
    pub fn is_untidy(&self, watch: &str, id: &str) -> bool {
        self.writing.iter().any(|known| known.watch == watch && known.id == id)
    }

    /// Forgets an orphan that is over, and tells so.
    pub fn ended(&mut self, watch: &str, id: &str, identity: &Identity) -> NewEvent {
        self.rows.remove(&who(identity));
        fact(EventKind::OrphanTerminated, watch, id, identity)
    }

    /// Forgets those that are proven gone; tells of those that a worker before this one was ending. `is_held`: some
    /// task of this worker is ending it, and tells itself.
    pub fn prune(&mut self, here: &Here, is_held: impl Fn(&Who) -> bool) -> Pruned {
        let mut pruned = Pruned::default();
        self.rows.retain(|who, row| {
            if is_held(who) {
                return true;
            }
            match Handle::reopen(&row.identity, &[], None, here) {
                Err(OpenHandleError::Gone) => {
                    if row.ending {
                        pruned.events.push(fact(EventKind::OrphanTerminated, &row.watch, &row.id, &row.identity));
                    }
                    pruned.changed = true;
                    false
                }
                Ok(_)
                | Err(
                    OpenHandleError::Unproven
                    | OpenHandleError::OutOfSight
                    | OpenHandleError::Sys(_)
                    | OpenHandleError::Proc(_),
                ) => true,
            }
        });
        pruned
    }

    /// What the ledger is to keep.
    pub fn meta(&self) -> Vec<(String, Option<String>)> {
        let rows: Vec<&Row> = self.rows.values().collect();
        let text = if rows.is_empty() { None } else { serde_json::to_string(&rows).ok() };
        let writing = if self.writing.is_empty() { None } else { serde_json::to_string(&self.writing).ok() };
        vec![(KEY.to_owned(), text), (WRITING.to_owned(), writing)]
    }
}

/// What a pruning found.
#[derive(Debug, Default)]
pub struct Pruned {
    /// Facts that nobody has told.
    pub events: Vec<NewEvent>,
    /// Whether the ledger's rows are not these any more.
    pub changed: bool,
}

/// A fact about a watched process.
pub fn fact(kind: EventKind, watch: &str, id: &str, identity: &Identity) -> NewEvent {
    NewEvent::of_node(kind, json!({ "pid": identity.pid, "id": id, "watch": watch, "identity": identity }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sexton_core::proc;
    use sexton_plan::id::Pid;

    #[test]
    fn an_orphan_whose_start_tick_cannot_be_read_once_is_told_once() {
        let pid = Pid::new(std::process::id().cast_signed()).expect("greater than 1");
        let here = proc::here().expect("here");
        let identity = Identity { pidfs_ino: Some(7), ..Handle::open(pid, &here).expect("alive").identity().clone() };
        let mut told = Told::default();
        assert!(told.see("w", "a", &Identity { start_ticks: None, ..identity.clone() }).is_some());
        // REGRESSION: it was taken for another one.
        assert!(told.see("w", "a", &identity).is_none());
        let other = Identity { pidfs_ino: Some(8), ..identity };
        assert!(told.see("w", "a", &other).is_some(), "the number is another's");
    }

    #[test]
    fn an_orphan_that_a_dead_worker_was_ending_is_told_once_it_is_gone() {
        let here = proc::here().expect("here");
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
        let pid = Pid::new(i32::try_from(child.id()).expect("fits")).expect("pid");
        let identity = Handle::open(pid, &here).expect("alive").identity().clone();
        let mut told = Told::default();
        assert!(told.see("w", "a", &identity).is_some());
        assert!(told.see("w", "a", &identity).is_none(), "once a process");
        told.note_ending(&identity, true);
        let kept = told.meta().into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        let mut resumed = Told::resume(&kept);
        assert!(resumed.see("w", "a", &identity).is_none(), "whoever dies");
        assert!(resumed.prune(&here, |_| false).events.is_empty(), "it lives");
        child.kill().expect("killed");
        child.wait().expect("reaped");
        assert!(resumed.prune(&here, |_| true).events.is_empty(), "somebody else tells");
        let pruned = resumed.prune(&here, |_| false);
        assert_eq!(pruned.events.iter().map(|event| event.kind).collect::<Vec<_>>(), [EventKind::OrphanTerminated]);
        assert!(resumed.prune(&here, |_| false).events.is_empty(), "once");
        assert_eq!(resumed.meta(), [(KEY.to_owned(), None), (WRITING.to_owned(), None)]);
    }
}
