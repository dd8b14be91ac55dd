//! Whether the ledger's files are still where they were opened.
//!
//! A file that was deleted, or moved away, takes every write and keeps none of them for the next worker: what is not
//! where it will be looked for is not durable.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::look::Files;

/// One file, as it was when it was opened.
struct Fixed {
    path: PathBuf,
    device: u64,
    ino: u64,
}

impl Fixed {
    fn of(path: &Path) -> io::Result<Fixed> {
        let found = fs::metadata(path)?;
        Ok(Fixed { path: path.to_path_buf(), device: found.dev(), ino: found.ino() })
    }

    fn check(&self) -> Result<(), String> {
        match fs::metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == (self.device, self.ino) => Ok(()),
            Ok(_) => Err(format!("`{}` is another file than the one that is open", self.path.display())),
            Err(error) => Err(format!("`{}` is not where it was opened: {error}", self.path.display())),
        }
    }
}

/// Where the database and its log lie while they are open: SQLite replaces neither as long as somebody has them open.
pub(crate) struct Place {
    db: Fixed,
    wal: Fixed,
}

impl Place {
    /// The place of files that are open.
    pub(crate) fn of(files: &Files) -> io::Result<Place> {
        Ok(Place { db: Fixed::of(&files.db)?, wal: Fixed::of(&files.wal)? })
    }

    /// Tells what is not where it was.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.db.check()?;
        self.wal.check()
    }
}
