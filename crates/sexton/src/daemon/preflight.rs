//! Whether `serve` may start. A refusal changes no file: what is looked at is not written, and what had to be made to
//! look is removed again.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sexton_core::domain::{DomainError, Subtree};
use sexton_core::proc;
use sexton_ledger::OpenError;

use super::listeners::check_tcp;
use super::{Refused, exit};
use crate::api;
use crate::chain::chain;
use crate::config::Settings;
use crate::lacking::lacking;

/// Checks everything that can be checked before there is a worker; gives the lock of the state directory.
///
/// # Errors
/// With the exit code of the contract.
pub fn run(settings: &Settings) -> Result<File, Refused> {
    let mut made = Made::default();
    let checked = check(settings, &mut made);
    if checked.is_err() {
        made.take_back();
    }
    checked
}

fn check(settings: &Settings, made: &mut Made) -> Result<File, Refused> {
    lacking().map_or(Ok(()), |lacking| Err(Refused::new(exit::UNAVAILABLE, format!("the host lacks {lacking}"))))?;
    made.directory(&settings.state_dir)?;
    let lock = lock(&settings.state_dir)?;
    check_ledger(&settings.state_dir)?;
    check_writable(&settings.state_dir)?;
    let socket = settings.listen_path();
    check_socket(&socket)?;
    check_socket(&api::serve::fresh(&socket))?;
    check_tcp(settings)?;
    made.directory(&settings.run_dir)?;
    check_writable(&settings.run_dir)?;
    // It is made for nobody: usually it is the run directory.
    let place = socket.parent().unwrap_or(Path::new("/"));
    fs::read_dir(place).map_err(|error| cannot("make the socket in", place, &error))?;
    check_writable(place)?;
    made.subtree(&settings.cgroup)?;
    Ok(lock)
}

/// Holds the state directory for this daemon, through the directory itself: no lock file is written.
fn lock(state_dir: &Path) -> Result<File, Refused> {
    let dir = File::open(state_dir).map_err(|error| cannot("open", state_dir, &error))?;
    match sexton_ledger::hold(&dir) {
        Ok(true) => Ok(dir),
        Ok(false) => {
            let why = format!("another daemon holds the state directory `{}`", state_dir.display());
            Err(Refused::new(exit::LOCKED, why))
        }
        Err(error) => Err(Refused::new(exit::UNAVAILABLE, error.to_string())),
    }
}

/// Whether this program may open the ledger; it is only read.
///
/// # Errors
/// Newer, damaged, locked or not permitted.
pub fn check_ledger(state_dir: &Path) -> Result<(), Refused> {
    let here = proc::here().map_err(|error| Refused::new(exit::UNAVAILABLE, format!("`/proc` is needed: {error}")))?;
    sexton_ledger::check(state_dir, &here.boot_id).map_err(|error| ledger_refused(&error))
}

/// Whether files can be made in a directory: asked with one that has no name, so that nothing changes.
fn check_writable(dir: &Path) -> Result<(), Refused> {
    use sexton_sys::file::flags;
    let probe = fs::OpenOptions::new().write(true).custom_flags(flags::TMPFILE).open(dir);
    match probe {
        // Any other answer is about files without a name, or a full disk, which is no reason not to start.
        Err(error) if matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) => {
            Err(cannot("write in", dir, &error))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The exit code of a ledger that cannot be opened.
pub fn ledger_refused(error: &OpenError) -> Refused {
    let code = match error {
        OpenError::Newer { .. } => exit::NEWER,
        OpenError::Damaged(_) => exit::DAMAGED,
        OpenError::NotPermitted(_) => exit::NOT_PERMITTED,
        OpenError::Locked => exit::LOCKED,
        OpenError::CannotCreate(_) | OpenError::Io(_) => exit::CANT_CREATE,
    };
    Refused::new(code, chain(error))
}

/// Whether somebody answers at our socket. A file that nobody answers at was left by a daemon that died.
fn check_socket(path: &Path) -> Result<(), Refused> {
    match api::serve::is_listened_at(path) {
        Ok(true) => {
            let why = format!("another daemon answers at `{}`", path.display());
            Err(Refused::new(exit::CANT_CREATE, why))
        }
        Ok(false) => match fs::symlink_metadata(path) {
            Ok(about) if !std::os::unix::fs::FileTypeExt::is_socket(&about.file_type()) => {
                Err(Refused::new(exit::CANT_CREATE, format!("`{}` is there and is no socket", path.display())))
            }
            Ok(_) | Err(_) => Ok(()),
        },
        Err(error) => Err(cannot("use the socket", path, &error)),
    }
}

fn cannot(act: &str, path: &Path, error: &io::Error) -> Refused {
    let denied = error.kind() == io::ErrorKind::PermissionDenied;
    let code = if denied { exit::NOT_PERMITTED } else { exit::CANT_CREATE };
    Refused::new(code, format!("could not {act} `{}`: {error}", path.display()))
}

/// What was made on the way, to be taken back by a refusal.
#[derive(Debug, Default)]
struct Made {
    directories: Vec<PathBuf>,
    subtree: Option<Subtree>,
}

impl Made {
    /// Makes what is missing of a directory.
    fn directory(&mut self, path: &Path) -> Result<(), Refused> {
        let missing: Vec<PathBuf> =
            path.ancestors().take_while(|ancestor| !ancestor.exists()).map(Path::to_path_buf).collect();
        for dir in missing.into_iter().rev() {
            fs::DirBuilder::new().mode(0o755).create(&dir).map_err(|error| cannot("make", &dir, &error))?;
            self.directories.push(dir);
        }
        if path.is_dir() {
            return Ok(());
        }
        Err(Refused::new(exit::CANT_CREATE, format!("`{}` is no directory", path.display())))
    }

    fn subtree(&mut self, path: &str) -> Result<(), Refused> {
        let subtree = match Subtree::find(path) {
            Ok(subtree) => subtree,
            // Instances are then killed by pidfd alone.
            Err(DomainError::NoCgroup2) => return Ok(()),
            Err(error) => return Err(Refused::new(exit::UNAVAILABLE, chain(&error))),
        };
        let is_new = !subtree.exists();
        subtree.make().map_err(|error| Refused::new(exit::CANT_CREATE, chain(&error)))?;
        self.subtree = is_new.then_some(subtree);
        Ok(())
    }

    fn take_back(&self) {
        if let Some(subtree) = &self.subtree {
            let _gone = subtree.remove();
        }
        for dir in self.directories.iter().rev() {
            let _gone = fs::remove_dir(dir);
        }
    }
}
