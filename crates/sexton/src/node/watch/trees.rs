//! Which directory a tree of metadata is: the mount point of a disk that is not mounted is an empty directory, in which
//! everybody's metadata is missing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sexton_plan::id::BootId;

/// The ledger's key.
const KEY: &str = "watch.trees";

/// A directory: its device and inode.
type Directory = (u64, u64);

/// Where metadata was found last, by tree. Kept in the ledger as long as the host is up: a worker that begins knows it.
#[derive(Debug)]
pub struct Trees {
    boot_id: BootId,
    found: Mutex<BTreeMap<String, Directory>>,
}

/// As the ledger has them. A device may have another number after a boot.
#[derive(Deserialize, Serialize)]
struct Kept {
    boot_id: BootId,
    found: BTreeMap<String, Directory>,
}

impl Trees {
    /// As the ledger has them.
    pub fn resume(meta: &BTreeMap<String, String>, boot_id: &BootId) -> Trees {
        let kept = meta.get(KEY).and_then(|text| serde_json::from_str::<Kept>(text).ok());
        let kept = kept.filter(|kept| kept.boot_id == *boot_id);
        Trees { boot_id: boot_id.clone(), found: Mutex::new(kept.map(|kept| kept.found).unwrap_or_default()) }
    }

    /// What the ledger is to keep.
    pub fn meta(&self) -> (String, Option<String>) {
        let kept = Kept { boot_id: self.boot_id.clone(), found: self.found().clone() };
        (KEY.to_owned(), if kept.found.is_empty() { None } else { serde_json::to_string(&kept).ok() })
    }

    fn found(&self) -> MutexGuard<'_, BTreeMap<String, Directory>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory that `tree` is now; `None` where there is none, or it cannot be looked at.
    pub fn directory(tree: &str) -> Option<Directory> {
        fs::metadata(tree).ok().map(|about| (about.dev(), about.ino()))
    }

    /// Keeps in mind that metadata was found in `tree`, which was `directory` before.
    pub fn held(&self, tree: &str, directory: Option<Directory>) {
        // RACE: what was mounted or moved meanwhile says nothing.
        let Some(directory) = directory.filter(|before| Trees::directory(tree) == Some(*before)) else { return };
        self.found().insert(tree.to_owned(), directory);
    }

    /// Whether metadata that is missing from `tree`, which was `directory` before, may be missing with all the rest: it
    /// is not the directory in which metadata was found.
    pub fn is_another(&self, tree: &str, directory: Option<Directory>) -> bool {
        let is_known = |known: &Directory| [directory, Trees::directory(tree)].iter().all(|seen| *seen == Some(*known));
        self.found().get(tree).is_some_and(|known| !is_known(known))
    }
}
