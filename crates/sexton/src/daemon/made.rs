//! What a start makes that was not there before: a refusal takes it back, that of its first worker too, which knows of it by
//! its environment. It is looked for before anything is made.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sexton_core::domain::{DomainError, Subtree};
use sexton_core::pin::PinBoard;

use super::{Refused, exit};
use crate::chain::chain;
use crate::config::Settings;
use crate::node::host::Paths;
use crate::node::limits;

/// Names it to the workers.
pub(super) const VARIABLE: &str = "SEXTON_MADE";

/// What is made, each in the order of its making.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Made {
    /// Directories that have been made, and those that the worker will make.
    directories: Vec<OsString>,
    /// Files of a ledger that there was not.
    files: Vec<OsString>,
    /// The run directory in which there were no pins.
    pins: Option<OsString>,
    /// The cgroup, as `--cgroup` has it.
    cgroup: Option<String>,
}

impl Made {
    /// What the start made to which this worker belongs.
    pub(super) fn of_the_start() -> Made {
        std::env::var(VARIABLE).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    /// As [`Made::of_the_start`] reads it.
    pub(super) fn to_variable(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Makes what is missing of a directory.
    pub(super) fn directory(&mut self, path: &Path) -> Result<(), Refused> {
        let missing: Vec<PathBuf> =
            path.ancestors().take_while(|ancestor| !ancestor.exists()).map(Path::to_path_buf).collect();
        for dir in missing.into_iter().rev() {
            match fs::DirBuilder::new().mode(0o755).create(&dir) {
                Ok(()) => self.directories.push(dir.into()),
                // RACE: another start has made it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
                Err(error) => return Err(Refused::cannot("make", &dir, &error)),
            }
        }
        if path.is_dir() {
            return Ok(());
        }
        Err(Refused::new(exit::CANT_CREATE, format!("`{}` is no directory", path.display())))
    }

    /// How many directories it is by now.
    pub(super) fn directories(&self) -> usize {
        self.directories.len()
    }

    /// Leaves all directories but the first `count` to whoever has them.
    pub(super) fn keep_directories(&mut self, count: usize) {
        self.directories.truncate(count);
    }

    /// Makes the cgroup, where it is missing.
    pub(super) fn subtree(&mut self, path: &str) -> Result<(), Refused> {
        let subtree = match Subtree::find(path) {
            Ok(subtree) => subtree,
            // Instances are then killed by pidfd alone, and only v1 has places of ours.
            Err(DomainError::NoCgroup2) => {
                self.cgroup = Some(path.to_owned());
                return Ok(());
            }
            Err(error) => return Err(Refused::new(exit::UNAVAILABLE, chain(&error))),
        };
        self.cgroup = (!subtree.exists()).then(|| path.to_owned());
        subtree.make().map_err(|error| Refused::new(exit::CANT_CREATE, chain(&error)))
    }

    /// Notes what the worker will have to make in the directories that are held.
    pub(super) fn expect(&mut self, settings: &Settings) {
        let paths = Paths { state_dir: settings.state_dir.clone(), run_dir: settings.run_dir.clone() };
        let is_missing =
            |path: &PathBuf| fs::symlink_metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
        let dirs = [paths.all_logs(), paths.marks()].into_iter().filter(is_missing);
        self.directories.extend(dirs.map(OsString::from));
        // Beside a database its other files are whoever's has it open.
        let ledger = sexton_ledger::files(&paths.state_dir);
        if ledger.first().is_some_and(is_missing) {
            self.files.extend(ledger.into_iter().filter(is_missing).map(OsString::from));
        }
        self.pins = is_missing(&PinBoard::place(&paths.run_dir)).then(|| paths.run_dir.into());
    }

    /// Removes what is there of it. A directory in which something else lies by now stays.
    pub(super) fn take_back(&self) {
        if let Some(run_dir) = &self.pins {
            let _gone = PinBoard::remove_from(Path::new(run_dir));
        }
        for file in &self.files {
            let _gone = fs::remove_file(file);
        }
        for dir in self.directories.iter().rev() {
            let _gone = fs::remove_dir(dir);
        }
        if let Some(cgroup) = &self.cgroup {
            let _gone = Subtree::find(cgroup).and_then(|subtree| subtree.remove());
            limits::remove_v1(cgroup);
        }
    }
}
