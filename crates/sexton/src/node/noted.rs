//! Orders that are answered while the ledger takes no record, and exits that nothing else keeps then: a note beside the
//! ledger keeps each of them, until it is recorded, for a worker that follows a crash.
//!
//! Notes lie in the run directory, which is most often not on the disk that is full. Where one cannot be written either,
//! the order is carried out all the same, and a crash takes it back.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sexton_ledger::entry::{Entry, Exit, StopOrder};
use sexton_plan::id::Incarnation;
use tokio::sync::oneshot;

use super::host::{Host, Paths};
use super::request::Caller;

/// What was ordered, and by whom; or what has happened.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Note {
    /// The end of one life.
    Stop {
        /// Which.
        life: Incarnation,
        /// How.
        order: StopOrder,
        /// Who asked.
        #[serde(flatten)]
        caller: Caller,
    },
    /// A drain of the node.
    Drain {
        /// As the ledger keeps it.
        facts: BTreeMap<String, Option<String>>,
        /// Who asked.
        #[serde(flatten)]
        caller: Caller,
    },
    /// How the main process of one life ended.
    Exit {
        /// Which.
        life: Incarnation,
        /// How.
        exit: Exit,
    },
}

/// One that is written, until its record is durable.
#[derive(Debug)]
pub struct Kept(PathBuf);

impl Kept {
    /// What it keeps is durable.
    pub fn remove(self) {
        // What is left here is removed by the next worker.
        let _gone = fs::remove_file(self.0);
    }
}

/// The notes that an earlier worker has left, oldest first.
#[derive(Debug, Default)]
pub struct Noted(Vec<(Note, Kept)>);

/// Keeps `note` until its record is `durable`.
pub fn keep_until(host: &Host, note: &Note, durable: oneshot::Receiver<()>) {
    if let Some(kept) = keep(host, note) {
        remove_when(vec![kept], durable);
    }
}

/// Keeps `note`; `None` where it cannot be written.
pub fn keep(host: &Host, note: &Note) -> Option<Kept> {
    // Names in the order of time.
    let path = host.paths.orders().join(sexton_ledger::new_incarnation().as_str());
    match write(&host.paths, &path, note) {
        Ok(()) => Some(Kept(path)),
        Err(error) => {
            // It may have been begun.
            let _gone = fs::remove_file(path);
            tracing::error!(?note, %error, "not noted: a crash takes it back");
            None
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

/// Removes them once what they keep is `durable`; nobody says so where this worker ends before.
fn remove_when(kept: Vec<Kept>, durable: oneshot::Receiver<()>) {
    tokio::spawn(async move {
        if durable.await.is_ok() {
            kept.into_iter().for_each(Kept::remove);
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
                Ok(Ok(note)) => noted.0.push((note, Kept(path))),
                Ok(Err(_)) => drop(fs::remove_file(path)),
                Err(error) => tracing::error!(path = %path.display(), %error, "noted order not read"),
            }
        }
        noted
    }

    /// What was ordered of the life of `entry` and is not recorded, and by whom. Each order has taken in those before it.
    pub fn of(&self, entry: &Entry) -> Vec<(StopOrder, Caller)> {
        let of_it = |note: &Note| match note {
            Note::Stop { life, order, caller } if *life == entry.incarnation => Some((order.clone(), caller.clone())),
            Note::Stop { .. } | Note::Drain { .. } | Note::Exit { .. } => None,
        };
        let orders: Vec<(StopOrder, Caller)> = self.notes().filter_map(of_it).collect();
        // Recorded in the last moment, as is what came before it.
        let recorded = orders.iter().rposition(|(order, _)| entry.stop.as_ref() == Some(order));
        orders.into_iter().skip(recorded.map_or(0, |last| last + 1)).collect()
    }

    /// The drains that were ordered, as the ledger would have them, and by whom.
    pub fn drains(&self) -> impl Iterator<Item = (&BTreeMap<String, Option<String>>, &Caller)> {
        self.notes().filter_map(|note| match note {
            Note::Drain { facts, caller } => Some((facts, caller)),
            Note::Stop { .. } | Note::Exit { .. } => None,
        })
    }

    /// How the main process of the life of `entry` ended, where that was told.
    pub fn exit_of(&self, entry: &Entry) -> Option<Exit> {
        self.notes().find_map(|note| match note {
            Note::Exit { life, exit } if *life == entry.incarnation => Some(*exit),
            Note::Exit { .. } | Note::Stop { .. } | Note::Drain { .. } => None,
        })
    }

    /// Forgets them once what they say is recorded, `durable`. Those of lives that are none of this ledger's say nothing;
    /// beside one that is `fresh`, they may be all that is left of what the old one was to be told, and stay.
    pub fn forget(self, fresh: bool, durable: oneshot::Receiver<()>) {
        let is_recorded = |note: &Note| !fresh || matches!(note, Note::Drain { .. });
        let recorded = self.0.into_iter().filter(|(note, _)| is_recorded(note));
        remove_when(recorded.map(|(_, kept)| kept).collect(), durable);
    }

    fn notes(&self) -> impl Iterator<Item = &Note> {
        self.0.iter().map(|(note, _)| note)
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
        let note = |seconds| Note::Stop {
            life: life.clone(),
            order: StopOrder { force: false, grace: Duration::from_secs(seconds), remove: false, reason: None },
            caller: Caller { by: "unix".to_owned(), uid: Some(0) },
        };
        for seconds in [1, 2, 3] {
            write(&paths, &paths.orders().join(sexton_ledger::new_incarnation().as_str()), &note(seconds))
                .expect("written");
        }
        fs::write(paths.orders().join("cut"), "{\"life\":").expect("written");
        let noted = Noted::read(&paths);
        let told = |note: &Note| match note {
            Note::Stop { order, caller, .. } => Some((order.grace.as_secs(), caller.uid)),
            Note::Drain { .. } | Note::Exit { .. } => None,
        };
        let told: Vec<_> = noted.notes().filter_map(told).collect();
        let expected = vec![(1, Some(0)), (2, Some(0)), (3, Some(0))];
        assert_eq!((told, fs::read_dir(paths.orders()).expect("there").count()), (expected, 3));
        fs::remove_dir_all(paths.orders()).expect("removed");
        fs::remove_dir(run_dir).expect("empty");
    }
}
