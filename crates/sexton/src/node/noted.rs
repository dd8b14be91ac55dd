//! Orders that are answered while the ledger takes no record: a note beside the ledger keeps each of them, until it is
//! recorded, for a worker that follows a crash.
//!
//! Notes lie in the run directory, which is most often not on the disk that is full. Where one cannot be written either,
//! the order is carried out all the same, and a crash takes it back.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sexton_ledger::entry::{Entry, StopOrder};
use sexton_plan::id::Incarnation;
use tokio::sync::oneshot;

use super::host::{Host, Paths};
use super::request::Caller;

/// What was ordered, of which life, and by whom.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    life: Incarnation,
    order: StopOrder,
    by: String,
    uid: Option<u32>,
}

/// The notes that an earlier worker has left, oldest first.
#[derive(Debug, Default)]
pub struct Noted {
    notes: Vec<Note>,
    paths: Vec<PathBuf>,
}

/// Keeps `order` to the life of `entry` until its record is `durable`.
pub fn keep(host: &Host, entry: &Entry, order: StopOrder, caller: &Caller, durable: oneshot::Receiver<()>) {
    let note = Note { life: entry.incarnation.clone(), order, by: caller.by.clone(), uid: caller.uid };
    // Names in the order of time.
    let path = host.paths.orders().join(sexton_ledger::new_incarnation().as_str());
    match write(&host.paths, &path, &note) {
        Ok(()) => remove_when(vec![path], durable),
        Err(error) => {
            // It may have been begun.
            let _gone = fs::remove_file(path);
            tracing::error!(name = %entry.name, %error, "order not noted: a crash takes it back");
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
        let notes: Vec<&Note> = self.notes.iter().filter(|note| note.life == entry.incarnation).collect();
        // Recorded in the last moment, as is what came before it.
        let recorded =
            notes.iter().rposition(|note| entry.stop.as_ref() == Some(&note.order)).map_or(0, |last| last + 1);
        let ordered = |note: &&Note| (note.order.clone(), Caller { uid: note.uid, by: note.by.clone() });
        notes.iter().skip(recorded).map(ordered).collect()
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
            life: life.clone(),
            order: StopOrder { force: false, grace: Duration::from_secs(seconds), remove: false, reason: None },
            by: "unix".to_owned(),
            uid: Some(0),
        };
        for seconds in [1, 2, 3] {
            write(&paths, &paths.orders().join(sexton_ledger::new_incarnation().as_str()), &note(seconds))
                .expect("written");
        }
        fs::write(paths.orders().join("cut"), "{\"life\":").expect("written");
        let noted = Noted::read(&paths);
        let graces: Vec<u64> = noted.notes.iter().map(|note| note.order.grace.as_secs()).collect();
        assert_eq!((graces, fs::read_dir(paths.orders()).expect("there").count()), (vec![1, 2, 3], 3));
        fs::remove_dir_all(paths.orders()).expect("removed");
        fs::remove_dir(run_dir).expect("empty");
    }
}
