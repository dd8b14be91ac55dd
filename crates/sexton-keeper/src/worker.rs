//! One worker process: how it is started, and what is known of it.

use core::ffi::CStr;

use sexton_sys::file::{self, AT_FDCWD, flags};
use sexton_sys::process::{Child, Group, Program, SignalState, Spawn, spawn};
use sexton_sys::signal::Signal;
use sexton_sys::socket::message_pair;
use sexton_sys::strings::Strings;
use sexton_sys::text::Text;
use sexton_sys::wait::Ended;
use sexton_sys::{Fd, RawFd, SysError};

use crate::connection::Connection;

/// How workers are started.
#[derive(Clone, Copy, Debug)]
pub struct KeeperConfig<'a> {
    /// Absolute path of the worker's program; opened again at every HUP.
    pub program: &'a CStr,
    /// The worker's command line, `argv[0]` included.
    pub args: Strings<'a>,
    /// The environment; `SEXTON_KEEPER_FD` and `SEXTON_PHASE` are added to it.
    pub env: Strings<'a>,
    /// Directory of `keeper.status` and `exits`; may be made later, by the worker.
    pub run_dir: &'a CStr,
    /// Open descriptors that hold the locks of the daemon's directories; workers inherit them, so that the locks last
    /// until the last of them has ended.
    pub lock_fds: [Option<RawFd>; LOCKS],
}

/// BOUND: the state directory and the run directory.
pub const LOCKS: usize = 2;

/// How far a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It checks what it can beside its predecessor.
    Preparing,
    /// It has checked, and waits for its predecessor to end.
    Prepared,
    /// It may do everything, and is not ready yet.
    Starting,
    /// It serves.
    Ready,
}

/// A worker that has not been reaped.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) child: Child,
    pub(crate) connection: Connection,
    pub(crate) phase: Phase,
}

/// The program of a worker: held open, so that it can be started again when its file has been replaced.
#[derive(Debug)]
pub(crate) struct Image(Fd);

impl Image {
    /// The program that is at `path` now.
    ///
    /// # Errors
    /// As `openat(2)`.
    pub(crate) fn open(path: &CStr) -> Result<Image, SysError> {
        file::open(AT_FDCWD, path, flags::PATH, 0).map(Image)
    }
}

impl Worker {
    /// Starts `image`, as a candidate that is to prepare, or to run.
    ///
    /// # Errors
    /// The call that failed; `execve` where the file is no program.
    pub(crate) fn start(
        config: &KeeperConfig<'_>,
        image: &Image,
        signals: SignalState,
        phase: Phase,
    ) -> Result<Worker, SysError> {
        let (ours, theirs) = message_pair()?;
        let null = file::open(AT_FDCWD, c"/dev/null", flags::RDWR, 0).ok();
        let mut link = Text::new();
        let link = link.add("SEXTON_KEEPER_FD=").add(theirs.raw()).as_c_str();
        let phase_name = if phase == Phase::Preparing { c"SEXTON_PHASE=prepare" } else { c"SEXTON_PHASE=run" };
        let [state, run] = config.lock_fds.map(|fd| fd.unwrap_or(theirs.raw()));
        let child = spawn(&Spawn {
            program: Program::Open(image.0.raw()),
            args: config.args,
            left_out: None,
            env: config.env,
            env_added: &[phase_name, link],
            signals,
            // The terminal's Ctrl-C is for the keeper, who passes it on as a shutdown.
            group: Group::Own,
            // A worker never stays alone; it loses nothing by it that a crash would not lose.
            parent_death: Some(Signal::KILL),
            stdin: null.as_ref().map(Fd::raw),
            kept: &[theirs.raw(), state, run],
        })?;
        let connection = Connection::new(ours, phase != Phase::Preparing);
        Ok(Worker { child, connection, phase })
    }

    /// Ends it, as our own unreaped child. It cannot refuse, and is found ended like any other.
    pub(crate) fn kill(&self) {
        let _ended_already = self.child.signal(Signal::KILL);
    }

    /// Lets it go on where somebody has stopped it, so that it hears what it is told.
    pub(crate) fn wake(&self) {
        let _ended_already = self.child.signal(Signal::CONT);
    }

    /// Lets a prepared candidate start.
    pub(crate) fn released(mut self) -> Worker {
        self.phase = Phase::Starting;
        self.connection.release();
        self
    }

    /// How it ended, where it has; it stays unreaped.
    pub(crate) fn end(&self) -> Option<Ended> {
        self.child.peek().ok().flatten()
    }
}
