//! Whether `serve` may start. A refusal changes no file: what is looked at is not written, and what had to be made to
//! look is removed again.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use sexton_core::proc;
use sexton_keeper::LOCKS;
use sexton_ledger::OpenError;

use super::listeners::check_tcp;
use super::made::Made;
use super::{Refused, exit};
use crate::api;
use crate::chain::chain;
use crate::config::Settings;
use crate::lacking::lacking;

/// The open directories whose locks last as long as the daemon: that of state, and that of sockets and pins.
pub type Held = [Option<File>; LOCKS];

/// BOUND: how many refused starts one after the other may take a directory from under this one.
const TRIES: u32 = 16;

/// Checks everything that can be checked before there is a worker; gives what holds the state and the run directory,
/// and what the worker is to take back where it refuses.
///
/// # Errors
/// With the exit code of the contract.
pub(super) fn run(settings: &Settings) -> Result<(Held, Made), Refused> {
    let (mut held, mut made) = (Held::default(), Made::default());
    let checked = check(settings, &mut held, &mut made);
    if checked.is_err() {
        // While what is held still is.
        made.take_back();
    }
    checked.map(|()| (held, made))
}

fn check(settings: &Settings, held: &mut Held, made: &mut Made) -> Result<(), Refused> {
    lacking().map_or(Ok(()), |lacking| Err(Refused::new(exit::UNAVAILABLE, format!("the host lacks {lacking}"))))?;
    hold(settings, held, made)?;
    check_ledger(&settings.state_dir)?;
    check_writable(&settings.state_dir)?;
    let socket = settings.listen_path();
    check_socket(&socket)?;
    check_socket(&api::serve::fresh(&socket))?;
    check_tcp(settings)?;
    check_writable(&settings.run_dir)?;
    // It is made for nobody: usually it is the run directory.
    let place = socket.parent().unwrap_or(Path::new("/"));
    fs::read_dir(place).map_err(|error| Refused::cannot("make the socket in", place, &error))?;
    check_writable(place)?;
    made.expect(settings);
    made.subtree(&settings.cgroup)
}

/// Holds the state and the run directory for this daemon, before anything is made in them.
fn hold(settings: &Settings, held: &mut Held, made: &mut Made) -> Result<(), Refused> {
    let (state, run) = (&settings.state_dir, &settings.run_dir);
    let taken = |which: &str, path: &Path| format!("another daemon holds the {which} directory `{}`", path.display());
    let dir = match take(state, made, sexton_ledger::hold)? {
        (dir, Ok(true)) => dir,
        (_, Ok(false)) => return Err(Refused::new(exit::LOCKED, taken("state", state))),
        (_, Err(error)) => return Err(Refused::new(exit::UNAVAILABLE, error.to_string())),
    };
    let state_id = id(&dir);
    *held = [Some(dir), None];
    // A lock belongs to who has opened what is locked, and one directory may be both.
    let hold_run = |dir: &File| if id(dir) == state_id { Ok(true) } else { sexton_ledger::hold(dir) };
    match take(run, made, hold_run)? {
        (dir, Ok(true)) => held[1] = Some(dir),
        (_, Ok(false)) => return Err(Refused::new(exit::CANT_CREATE, taken("run", run))),
        // A file system without locks: the socket alone tells of another daemon.
        (_, Err(_)) => {}
    }
    Ok(())
}

/// Makes what is missing of the directory `path`, and asks `hold` for it: for the directory itself, and no lock file is
/// written. What another daemon holds is not taken back, whoever has made it.
fn take(
    path: &Path,
    made: &mut Made,
    hold: impl Fn(&File) -> io::Result<bool>,
) -> Result<(File, io::Result<bool>), Refused> {
    let before = made.directories();
    for _ in 0..TRIES {
        made.directory(path)?;
        let dir = File::open(path).map_err(|error| Refused::cannot("open", path, &error))?;
        let held = hold(&dir);
        if matches!(held, Ok(false)) {
            made.keep_directories(before);
        }
        // RACE: another start, refused meanwhile, may have taken back what it had made and held until then.
        if id(&dir).is_some_and(|held| File::open(path).ok().and_then(|there| id(&there)) == Some(held)) {
            return Ok((dir, held));
        }
    }
    Err(Refused::new(exit::CANT_CREATE, format!("`{}` is removed again and again", path.display())))
}

/// Which directory it is.
fn id(dir: &File) -> Option<(u64, u64)> {
    dir.metadata().ok().map(|found| (found.dev(), found.ino()))
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
            Err(Refused::cannot("write in", dir, &error))
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
        Err(error) => Err(Refused::cannot("use the socket", path, &error)),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_is_held_is_what_is_found_at_the_path() {
        let top = std::env::temp_dir().join(format!("sexton-test-{}-taken", std::process::id()));
        let (path, mut made, asked) = (top.join("run"), Made::default(), Cell::new(0));
        let hold = |dir: &File| {
            asked.set(asked.get() + 1);
            if asked.get() == 1 {
                // As a start does that is refused while this one waits for it.
                fs::remove_dir(&path)?;
            }
            sexton_ledger::hold(dir)
        };
        let (dir, held) = take(&path, &mut made, hold).expect("taken");
        assert!(held.expect("asked"));
        assert_eq!(id(&dir), id(&File::open(&path).expect("there")));
        assert_eq!(asked.get(), 2);
        // Another start finds it held, and takes nothing back.
        let mut others = Made::default();
        let (_, held) = take(&path, &mut others, sexton_ledger::hold).expect("looked at");
        assert!(!held.expect("asked"));
        others.take_back();
        assert!(path.exists());
        made.take_back();
        assert!(!top.exists());
    }
}
