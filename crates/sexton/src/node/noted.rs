//! Orders that are answered while the ledger takes no record: a note beside the ledger keeps each of them, until it is
//! recorded, for a worker that follows a crash.
//!
//! Notes lie in the run directory, which is most often not on the disk that is full. Where one cannot be written either,
//! the order is carried out all the same, and a crash takes it back.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sexton_ledger::entry::{Entry, StopOrder};
use sexton_plan::id::Incarnation;
use tokio::sync::oneshot;

use super::host::{Host, Paths};
use super::request::Caller;

/// What was ordered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Ordered {
    /// The end of one life.
    Stop {
        /// Which.
        life: Incarnation,
        /// How.
        order: StopOrder,
    },
    /// A drain of the node.
    Drain {
        /// As the ledger keeps it.
        facts: BTreeMap<String, Option<String>>,
    },
}

/// What was ordered, and by whom.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    #[serde(flatten)]
    ordered: Ordered,
    by: String,
    uid: Option<u32>,
}

impl Note {
    fn caller(&self) -> Caller {
        Caller { uid: self.uid, by: self.by.clone() }
    }
}

/// The notes that an earlier worker has left, oldest first.
#[derive(Debug, Default)]
pub struct Noted {
    notes: Vec<Note>,
    paths: Vec<PathBuf>,
}

/// Keeps what was `ordered` until its record is `durable`.
pub fn keep(host: &Host, ordered: Ordered, caller: &Caller, durable: oneshot::Receiver<()>) {
    let note = Note { ordered, by: caller.by.clone(), uid: caller.uid };
    // Names in the order of time.
    let path = host.paths.orders().join(sexton_ledger::new_incarnation().as_str());
    match write(&host.paths, &path, &note) {
        Ok(()) => remove_when(vec![path], durable),
        Err(error) => {
            // It may have been begun.
            let _gone = fs::remove_file(path);
            tracing::error!(order = ?note.ordered, %error, "order not noted: a crash takes it back");
        }
    }
}

fn write(paths: &Paths, path: &PathBuf, note: &Note) -> io::Result<()> {
    let text = serde_json::to_vec(note)?;
    match fs::write(path, &text) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(paths.orders())?;
            fs::write(path, &text)
        }
        written => written,
    }
}

/// Removes the notes at `paths` once what they keep is `durable`; nobody says so where this worker ends before.
fn remove_when(paths: Vec<PathBuf>, durable: oneshot::Receiver<()>) {
    tokio::spawn(async move {
        if durable.await.is_ok() {
            paths.iter().for_each(|path| drop(fs::remove_file(path)));
        }
    });
}

impl Noted {
    /// Reads them, and removes what was not written whole: that was never answered.
    pub fn read(paths: &Paths) -> Noted {
        let mut noted = Noted::default();
        let files = fs::read_dir(paths.orders()).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = files.map(|file| file.path()).collect();
        files.sort_unstable();
        for path in files {
            match fs::read(&path).map(|text| serde_json::from_slice(&text)) {
                Ok(Ok(note)) => {
                    noted.notes.push(note);
                    noted.paths.push(path);
                }
                Ok(Err(_)) => drop(fs::remove_file(path)),
                Err(error) => tracing::error!(path = %path.display(), %error, "noted order not read"),
            }
        }
        noted
    }

    /// What was ordered of the life of `entry` and is not recorded, and by whom. Each order has taken in those before it.
    pub fn of(&self, entry: &Entry) -> Vec<(StopOrder, Caller)> {
        let of_it = |note: &Note| match &note.ordered {
            Ordered::Stop { life, order } if *life == entry.incarnation => Some((order.clone(), note.caller())),
            Ordered::Stop { .. } | Ordered::Drain { .. } => None,
        };
        let orders: Vec<(StopOrder, Caller)> = self.notes.iter().filter_map(of_it).collect();
        // Recorded in the last moment, as is what came before it.
        let recorded = orders.iter().rposition(|(order, _)| entry.stop.as_ref() == Some(order));
        orders.into_iter().skip(recorded.map_or(0, |last| last + 1)).collect()
    }

    /// The drains that were ordered, as the ledger would have them, and by whom.
    pub fn drains(&self) -> impl Iterator<Item = (&BTreeMap<String, Option<String>>, Caller)> {
        self.notes.iter().filter_map(|note| match &note.ordered {
            Ordered::Drain { facts } => Some((facts, note.caller())),
            Ordered::Stop { .. } => None,
        })
    }

    /// Forgets them once what they say is recorded, `durable`. Those of lives that are none of this ledger's say nothing.
    pub fn forget(self, durable: oneshot::Receiver<()>) {
        remove_when(self.paths, durable);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_written_whole_is_read_in_its_order_and_nothing_else_stays() {
        let run_dir = std::env::temp_dir().join(format!("sexton-noted-{}", std::process::id()));
        let paths = Paths { state_dir: run_dir.clone(), run_dir: run_dir.clone() };
        let life = sexton_ledger::new_incarnation();
        let note = |seconds| Note {
            ordered: Ordered::Stop {
                life: life.clone(),
                order: StopOrder { force: false, grace: Duration::from_secs(seconds), remove: false, reason: None },
            },
            by: "unix".to_owned(),
            uid: Some(0),
        };
        for seconds in [1, 2, 3] {
            write(&paths, &paths.orders().join(sexton_ledger::new_incarnation().as_str()), &note(seconds))
                .expect("written");
        }
        fs::write(paths.orders().join("cut"), "{\"life\":").expect("written");
        let noted = Noted::read(&paths);
        let grace = |note: &Note| match &note.ordered {
            Ordered::Stop { order, .. } => Some(order.grace.as_secs()),
            Ordered::Drain { .. } => None,
        };
        let graces: Vec<u64> = noted.notes.iter().filter_map(grace).collect();
        assert_eq!((graces, fs::read_dir(paths.orders()).expect("there").count()), (vec![1, 2, 3], 3));
        fs::remove_dir_all(paths.orders()).expect("removed");
        fs::remove_dir(run_dir).expect("empty");
    }
}
