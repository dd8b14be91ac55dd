//! The daemon from outside to inside: `serve` checks that it may start, becomes the keeper, and the keeper starts the
//! worker, which is this program again.

mod closers;
mod listeners;
mod made;
mod notify;
mod preflight;
pub mod succession;
mod watches;
mod work;

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sexton_keeper::link::{KEEPER_FD_VARIABLE, PHASE_VARIABLE};
use sexton_keeper::{KeeperConfig, LOCKS};
use sexton_sys::fd::RawFd;
use sexton_sys::signal::{self, Disposition, Signal};
use sexton_sys::strings::{Slot, Strings};

use self::made::Made;
use crate::chain::chain;
use crate::config::{self, Flags, ResolveError};

/// Why `serve` does not start: its exit code, and the sentence.
#[derive(Debug)]
pub struct Refused {
    /// As the contract has it.
    pub code: u8,
    /// For whoever started it.
    pub why: String,
}

impl Refused {
    fn new(code: u8, why: impl Into<String>) -> Refused {
        Refused { code, why: why.into() }
    }

    fn cannot(act: &str, path: &Path, error: &io::Error) -> Refused {
        let denied = error.kind() == io::ErrorKind::PermissionDenied;
        let code = if denied { exit::NOT_PERMITTED } else { exit::CANT_CREATE };
        Refused::new(code, format!("could not {act} `{}`: {error}", path.display()))
    }
}

/// Exit codes of `serve`.
pub mod exit {
    /// A shutdown that drains has ended, and something that would not end is left to the next start.
    pub const LEFT: u8 = 5;
    /// Usage or configuration.
    pub const USAGE: u8 = 64;
    /// The host lacks something required.
    pub const UNAVAILABLE: u8 = 69;
    /// A directory, socket or cgroup cannot be made, or another daemon's socket answers there.
    pub const CANT_CREATE: u8 = 73;
    /// Another daemon holds this state directory.
    pub const LOCKED: u8 = 75;
    /// The ledger is newer than this program.
    pub const NEWER: u8 = 76;
    /// Not permitted.
    pub const NOT_PERMITTED: u8 = 77;
    /// The ledger is damaged.
    pub const DAMAGED: u8 = 78;
}

/// What holds the locks of the state and the run directory.
type LockFds = [Option<RawFd>; LOCKS];

/// The first descriptor that is neither stdin, stdout nor stderr.
const FIRST_OWN: RawFd = 3;

/// Runs the node daemon: as the keeper, or as the worker where a keeper started this process.
///
/// # Errors
/// It may not start, or may not go on.
pub fn serve(flags: &Flags) -> Result<u8, Refused> {
    // A limit on the size of files is then an error of the write, like a full disk, and not our end: not even of the
    // first line of a log that has come to the limit.
    signal::set_disposition(Signal::XFSZ, Disposition::Ignore)
        .map_err(|error| Refused::new(exit::UNAVAILABLE, error.to_string()))?;
    let settings = config::resolve(flags).map_err(|error| {
        let is_of_the_host = matches!(error, ResolveError::Delegation(_));
        Refused::new(if is_of_the_host { exit::UNAVAILABLE } else { exit::USAGE }, chain(&error))
    })?;
    if let Some((link, prepare)) = under_keeper() {
        return work::run(settings, link, prepare);
    }
    // What the caller left open is not the daemon's, and closed now, for where there is no `sexton-init` this process
    // stays. Where it cannot be it stays open, and workloads get none of it anyway.
    let _closed = sexton_sys::file::close_from(FIRST_OWN);
    // Nor is what it would let others do, or keep from us.
    sexton_sys::process::set_umask(0o022);
    let (held, made) = preflight::run(&settings)?;
    let lock_fds = held.each_ref().map(|dir| dir.as_ref().map(AsRawFd::as_raw_fd));
    become_keeper(&settings.run_dir, lock_fds, &made).inspect_err(|_| made.take_back())
}

/// The descriptor of the keeper that started this process, and whether it is a candidate beside its predecessor.
fn under_keeper() -> Option<(RawFd, bool)> {
    let link = std::env::var(KEEPER_FD_VARIABLE).ok()?.parse().ok()?;
    let prepare = std::env::var(PHASE_VARIABLE).is_ok_and(|phase| phase == "prepare");
    Some((link, prepare))
}

/// Becomes the keeper: `sexton-init` where it lies beside this program, else the same loop in this process.
fn become_keeper(run_dir: &Path, lock_fds: LockFds, made: &Made) -> Result<u8, Refused> {
    let this = this_program()?;
    let mut worker: Vec<OsString> = std::env::args_os().collect();
    // By its place, as a later one is found.
    worker.first_mut().into_iter().for_each(|name| *name = this.clone().into());
    let init = this.with_file_name("sexton-init");
    if init.is_file() {
        return Err(exec_keeper(&init, run_dir, lock_fds, made, &worker));
    }
    let c_path = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap_or_default();
    let (program, run_dir) = (c_path(&this), c_path(run_dir));
    let args: Vec<CString> = worker.iter().map(|arg| CString::new(arg.as_bytes()).unwrap_or_default()).collect();
    let env: Vec<CString> = std::env::vars_os()
        .filter(|(key, _)| key != made::VARIABLE)
        .chain([(made::VARIABLE.into(), made.to_variable().into())])
        .filter_map(|(key, value)| variable(&key, &value))
        .collect();
    let (args, env) = (slots(&args), slots(&env));
    let config = Strings::new(&args).zip(Strings::new(&env)).map(|(args, env)| KeeperConfig {
        program: &program,
        args,
        env,
        run_dir: &run_dir,
        lock_fds,
    });
    let config = config.ok_or_else(|| Refused::new(exit::UNAVAILABLE, "no command line"))?;
    Ok(u8::try_from(sexton_keeper::run(&config)).unwrap_or(1))
}

/// The strings as the kernel wants them, with their end.
fn slots(strings: &[CString]) -> Vec<Slot<'_>> {
    strings.iter().map(|string| Slot::of(string)).chain([Slot::END]).collect()
}

fn variable(key: &OsString, value: &OsString) -> Option<CString> {
    CString::new([key.as_bytes(), b"=", value.as_bytes()].concat()).ok()
}

/// Where this program lies, so that a later one at the same place is an upgrade.
fn this_program() -> Result<PathBuf, Refused> {
    let path = std::env::current_exe().map_err(|error| Refused::new(exit::UNAVAILABLE, error.to_string()))?;
    // An executable replaced since shows as ` (deleted)`; the place is what counts.
    let text = path.as_os_str().as_bytes();
    let place = text.strip_suffix(b" (deleted)").unwrap_or(text);
    Ok(PathBuf::from(std::ffi::OsStr::from_bytes(place)))
}

/// Replaces this process by the keeper; returns only if that was refused.
#[allow(clippy::disallowed_types, reason = "replaces this very process; nothing is started beside it")]
fn exec_keeper(init: &Path, run_dir: &Path, lock_fds: LockFds, made: &Made, worker: &[OsString]) -> Refused {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(init);
    command.arg("--keeper").arg("--run-dir").arg(run_dir);
    for lock in lock_fds.into_iter().flatten() {
        // The lock must outlive this program's image.
        if let Err(error) = sexton_sys::file::set_close_on_exec(lock, false) {
            return Refused::new(exit::UNAVAILABLE, error.to_string());
        }
        command.arg("--lock-fd").arg(lock.to_string());
    }
    command.arg("--").args(worker).env(made::VARIABLE, made.to_variable());
    let error = command.exec();
    Refused::new(exit::UNAVAILABLE, format!("could not run `{}`: {error}", init.display()))
}
