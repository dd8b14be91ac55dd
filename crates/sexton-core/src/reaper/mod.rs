//! Collects the exits of registered children, and of no one else's.
//!
//! ```text
//!   register ──► pidfd in an epoll set ──► one thread ──► waitid(P_PIDFD, WNOHANG) ──► Exit: slot, channels, callback
//!                (no pidfd: its number,                     │
//!                 asked every 250 ms)                       └─► ECHILD: vanished; the kernel's own record of its code
//! ```
//!
//! Any daemon can use it beside `std::process`, an async runtime or libuv: a child that was not registered here is
//! never waited for, so its owner gets its status. Registration is one-way: a process leaves when it has been reaped
//! or has vanished, whatever is dropped meanwhile. The thread sleeps until something ends.
//!
//! ```no_run
//! # use sexton_core::reaper::Reaper;
//! # use sexton_plan::id::Pid;
//! # fn f(pid: Pid) -> Result<(), Box<dyn std::error::Error>> {
//! let reaper = Reaper::start()?;
//! let child = reaper.register(pid)?;
//! println!("{:?}", child.wait(None));
//! # Ok(())
//! # }
//! ```

mod registry;
mod worker;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use sexton_plan::id::Pid;
use sexton_plan::state::ExitStatus;

use crate::handle::Handle;
use crate::proc::{self, ReadProcError};
use crate::sync::{Condvar, Mutex, MutexGuard, mpsc};
use crate::sys::{Errno, Fd, SysError, file, pidfd, wait};
use registry::{Registry, Watch};
use worker::Shared;

pub(crate) use worker::leave_signals_to_the_host;

/// How a registered process left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The reaper reaped it.
    Reaped(ExitStatus),
    /// Another owner reaped it, or it was discarded with `SIGCHLD` ignored; how it ended, where the kernel kept that
    /// (Linux 6.15).
    Vanished(Option<ExitStatus>),
}

/// The end of a registered process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The number it had; may name another process by now.
    pub pid: Pid,
    /// How it left.
    pub fate: Fate,
    /// When that was noticed.
    pub at: SystemTime,
}

impl Exit {
    /// How it ended, whoever reaped it; `None` where nobody can know.
    pub const fn status(&self) -> Option<ExitStatus> {
        match self.fate {
            Fate::Reaped(status) => Some(status),
            Fate::Vanished(status) => status,
        }
    }
}

/// Counts since the start, and what is there now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReaperStats {
    /// Processes registered now.
    pub registered: usize,
    /// … of which so many are watched by number, every 250 ms, for want of a pidfd.
    pub polled: usize,
    /// … of which so many have ended, and a tracer or another owner holds their status.
    pub held: usize,
    /// Processes reaped here.
    pub reaped: u64,
    /// Processes that another owner reaped.
    pub vanished: u64,
    /// Turns of the thread: each is one wake-up.
    pub sweeps: u64,
    /// When the last one was.
    pub last_sweep: Option<SystemTime>,
    /// Whether the thread lives.
    pub alive: bool,
    /// How often it has been restarted.
    pub restarts: u64,
    /// From wake-up to collected status: all exits together, and the longest.
    pub latency_total: Duration,
    /// The longest of them.
    pub latency_max: Duration,
}

/// Why there is no reaper.
#[derive(Debug, thiserror::Error)]
pub enum StartReaperError {
    /// This build or this system cannot.
    #[error("this build or system cannot reap")]
    Unsupported,
    /// The kernel refused a descriptor.
    #[error("could not open the reaper's descriptors")]
    Sys(#[source] SysError),
    /// There is no thread to be had.
    #[error("could not start the reaper's thread")]
    Thread(#[source] io::Error),
}

/// Why a process was not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// No such process: it never was, or was reaped before.
    #[error("process {0} does not exist")]
    Gone(Pid),
    /// Only a parent can reap.
    #[error("process {pid} is not a child of this process but of {}", Parent(*.ppid))]
    NotAChild {
        /// The process.
        pid: Pid,
        /// Its parent, where that is known.
        ppid: Option<i32>,
    },
    /// It has been stopped, or belongs to the process that this one was forked from.
    #[error("the reaper is not running")]
    Stopped,
    /// The thread had died, and there is none to be had.
    #[error("could not restart the reaper's thread")]
    Thread(#[source] io::Error),
    /// The kernel refused to say.
    #[error("could not register process {pid}")]
    Sys {
        /// The process.
        pid: Pid,
        /// Why.
        source: SysError,
    },
}

/// A parent in an error message.
struct Parent(Option<i32>);

impl std::fmt::Display for Parent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(ppid) => ppid.fmt(f),
            None => f.write_str("another one"),
        }
    }
}

/// How to watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Watching {
    /// By pidfd where there are any.
    #[default]
    Pidfd,
    /// By number, every 250 ms, as on a kernel without pidfds.
    Poll,
}

type Callback = Box<dyn Fn(&Exit) + Send + Sync>;

/// What a reaper is started with.
#[derive(Default)]
pub struct Builder {
    watching: Watching,
    callback: Option<Callback>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("watching", &self.watching).finish_non_exhaustive()
    }
}

impl Builder {
    /// How to watch; for hosts whose sandbox forbids pidfds half-way, and for tests.
    #[must_use]
    pub fn watching(mut self, watching: Watching) -> Builder {
        self.watching = watching;
        self
    }

    /// Calls `callback` for each exit, on the reaper's thread: it must not block, for other exits wait meanwhile. A
    /// panic in it ends that thread, and another takes its place; that one exit is not told again.
    #[must_use]
    pub fn on_exit(mut self, callback: impl Fn(&Exit) + Send + Sync + 'static) -> Builder {
        self.callback = Some(Box::new(callback));
        self
    }

    /// Starts the reaper.
    ///
    /// # Errors
    /// No descriptor or thread to be had, or no kernel that knows how.
    pub fn start(self) -> Result<Reaper, StartReaperError> {
        let shared = Shared::new(self.watching, self.callback).map_err(|error| match error.errno {
            Errno::ENOSYS => StartReaperError::Unsupported,
            _ => StartReaperError::Sys(error),
        })?;
        let shared = Arc::new(shared);
        worker::start(&shared).map_err(StartReaperError::Thread)?;
        Ok(Reaper { shared })
    }
}

/// Collects the exits of registered children on a thread of its own. Stops when it is dropped.
#[derive(Debug)]
pub struct Reaper {
    shared: Arc<Shared>,
}

impl Reaper {
    /// A reaper with the defaults.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn start() -> Result<Reaper, StartReaperError> {
        Builder::default().start()
    }

    /// A reaper with a say in how.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Takes over the reaping of child `pid`. Registering it twice is registering it once.
    ///
    /// The number must be the caller's own knowledge of a child that nobody has reaped: it is proven to be a child
    /// now, and held by a pidfd from then on.
    ///
    /// # Errors
    /// It is gone, or no child of this process; the reaper is stopped.
    ///
    /// # Blocking
    /// Never.
    pub fn register(&self, pid: Pid) -> Result<Registration, RegisterError> {
        self.register_by(pid, || false, || pidfd::open(pid.as_raw()))
    }

    /// Takes over the reaping of the child behind `handle`, through a descriptor of its own.
    ///
    /// # Errors
    /// As [`Reaper::register`].
    ///
    /// # Blocking
    /// Never.
    pub fn register_handle(&self, handle: &Handle) -> Result<Registration, RegisterError> {
        let is_reaped = || pidfd::send_signal(handle.as_raw_fd(), 0).is_err_and(|error| error.errno == Errno::ESRCH);
        self.register_by(handle.identity().pid, is_reaped, || file::duplicate(handle.as_raw_fd()))
    }

    fn register_by(
        &self,
        pid: Pid,
        is_reaped: impl FnOnce() -> bool,
        open: impl FnOnce() -> Result<Fd, SysError>,
    ) -> Result<Registration, RegisterError> {
        worker::ensure(&self.shared)?;
        // One lock from the first look to the last step, so that two callers register one child once.
        let mut registry = self.shared.registry();
        // RACE: asked under that lock. Whoever has the number afterwards cannot have been registered under it before.
        if is_reaped() {
            return Err(RegisterError::Gone(pid));
        }
        if let Some(slot) = registry.registered(pid, &self.shared.epoll) {
            return Ok(Registration { pid, slot });
        }
        let fd = match registry.watching {
            Watching::Pidfd => open(),
            Watching::Poll => Err(SysError::of(c"pidfd_open", Errno::ENOSYS)),
        };
        let watch = match fd.and_then(proven_child) {
            Ok(fd) => Watch::Pidfd(fd),
            Err(error) if error.errno == Errno::ESRCH => return Err(RegisterError::Gone(pid)),
            Err(error) if error.errno == Errno::ECHILD => return Err(not_a_child(pid)),
            Err(error) => {
                let watch = watch_by_number(pid, &mut registry)?;
                registry.warn_of_polling(pid, &error);
                watch
            }
        };
        let slot = registry.add(pid, watch, &self.shared.epoll);
        let is_polled = registry.polled() > 0;
        drop(registry);
        if is_polled {
            // The thread may be asleep without a time to wake at.
            self.shared.bell.set();
        }
        Ok(Registration { pid, slot })
    }

    /// Whether a registered process has this number, so that nobody else may reap it.
    pub fn holds(&self, pid: Pid) -> bool {
        self.shared.registry().holds(pid)
    }

    /// The same question for somebody else's thread.
    pub(crate) fn registered(&self) -> Holds {
        Holds(Arc::clone(&self.shared))
    }

    /// Every exit from now on, until the receiver is dropped. It holds as many as nobody has taken, and ends behind
    /// them once the reaper is stopped.
    pub fn subscribe(&self) -> mpsc::Receiver<Exit> {
        self.shared.subscribe()
    }

    /// Counts, and whether all is well. A thread that died is restarted by this.
    pub fn stats(&self) -> ReaperStats {
        // A thread that cannot be had shows as not alive.
        let alive = worker::ensure(&self.shared).is_ok();
        self.shared.stats(alive)
    }

    /// Whether the thread takes a turn within `limit`: false where it is stuck in a callback, or gone.
    ///
    /// # Blocking
    /// `limit` at most.
    pub fn answers_within(&self, limit: Duration) -> bool {
        worker::ensure(&self.shared).is_ok() && self.shared.turns_within(limit)
    }

    /// Stops the thread. What is registered stays unreaped, for whoever waits for it by other means; who waits at a
    /// [`Registration`] or for a subscription is told that nobody will know.
    ///
    /// # Blocking
    /// For the turn that the thread is in: well under 10 ms, unless a callback takes longer.
    pub fn stop(&self) {
        worker::stop(&self.shared);
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whether a process is registered; answers also when the reaper has been stopped.
#[derive(Debug)]
pub(crate) struct Holds(Arc<Shared>);

impl Holds {
    pub fn holds(&self, pid: Pid) -> bool {
        self.0.registry().holds(pid)
    }
}

/// A registered process. Dropping this does not unregister it.
#[derive(Clone, Debug)]
pub struct Registration {
    pid: Pid,
    slot: Arc<Slot>,
}

impl Registration {
    /// The number it was registered under.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its end, if it has come.
    pub fn try_exit(&self) -> Option<Exit> {
        self.slot.lock().exit
    }

    /// Waits for its end, at most for `timeout`; without one, until it ends or the reaper is stopped, which tells
    /// nobody any more: `None` then too.
    ///
    /// # Blocking
    /// As said.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<Exit> {
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut told = self.slot.lock();
        while told.exit.is_none() && !told.is_abandoned {
            told = match end.map(|end| end.saturating_duration_since(Instant::now())) {
                None => self.slot.changed.wait(told).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return None,
                Some(left) => self.slot.changed.wait_timeout(told, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        told.exit
    }
}

/// Where the end of one process is put down for whoever registered it.
#[derive(Debug, Default)]
struct Slot {
    told: Mutex<Told>,
    changed: Condvar,
}

/// What is known of its end.
#[derive(Debug, Default)]
struct Told {
    exit: Option<Exit>,
    /// Nobody is there any more who would tell.
    is_abandoned: bool,
}

impl Slot {
    /// A lock that a panic poisoned guards two values, each written whole.
    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self, exit: Exit) {
        self.lock().exit = Some(exit);
        self.changed.notify_all();
    }

    fn abandon(&self) {
        self.lock().is_abandoned = true;
        self.changed.notify_all();
    }
}

/// Passes a pidfd on if it is a child's, which only a wait can tell; leaves the child as it is.
fn proven_child(fd: Fd) -> Result<Fd, SysError> {
    wait::peek_pidfd(fd.raw()).map(|_| fd)
}

/// A watch by number, for a child without a pidfd: too many open files, or a system without them.
fn watch_by_number(pid: Pid, registry: &mut Registry) -> Result<Watch, RegisterError> {
    match wait::peek(pid.as_raw().cast_unsigned()) {
        Ok(_) => Ok(registry.by_number(pid)),
        Err(error) if error.errno == Errno::ECHILD => Err(not_a_child(pid)),
        Err(source) => Err(RegisterError::Sys { pid, source }),
    }
}

fn not_a_child(pid: Pid) -> RegisterError {
    match proc::stat(pid) {
        Ok(stat) => RegisterError::NotAChild { pid, ppid: Some(stat.ppid) },
        Err(ReadProcError::Gone(_)) => RegisterError::Gone(pid),
        Err(ReadProcError::Unreadable { .. } | ReadProcError::Malformed { .. }) => {
            RegisterError::NotAChild { pid, ppid: None }
        }
    }
}
