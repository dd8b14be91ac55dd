//! Which directory a tree of metadata is: the mount point of a disk that is not mounted is an empty directory, in which
//! everybody's metadata is missing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

/// A directory: its device and inode.
type Directory = (u64, u64);

/// Where metadata was found last, by tree. Kept as long as the worker lives.
#[derive(Debug, Default)]
pub struct Trees(Mutex<BTreeMap<String, Directory>>);

impl Trees {
    /// The directory that `tree` is now; `None` where there is none, or it cannot be looked at.
    pub fn directory(tree: &str) -> Option<Directory> {
        fs::metadata(tree).ok().map(|about| (about.dev(), about.ino()))
    }

    /// Keeps in mind that metadata was found in `tree`, which was `directory` before.
    pub fn held(&self, tree: &str, directory: Option<Directory>) {
        // RACE: what was mounted or moved meanwhile says nothing.
        let Some(directory) = directory.filter(|before| Trees::directory(tree) == Some(*before)) else { return };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(tree.to_owned(), directory);
    }

    /// Whether metadata that is missing from `tree`, which was `directory` before, may be missing with all the rest: it
    /// is not the directory in which metadata was found.
    pub fn is_another(&self, tree: &str, directory: Option<Directory>) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = |known: &Directory| [directory, Trees::directory(tree)].iter().all(|seen| *seen == Some(*known));
        known.get(tree).is_some_and(|known| !is_known(known))
    }
}
