//! The reaper of registered children.

use std::ffi::{c_int, c_void};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, UNIX_EPOCH};

use sexton_core::reaper::{Exit, Fate, Reaper, RegisterError, StartReaperError};
use sexton_plan::state::ExitStatus;

use crate::process::{pid, sexton_process};
use crate::{Code, Refused, User, borrowed, guard, guard_quietly, log, put, take_back};

/// A reaper, and the exits that nobody has taken yet.
#[allow(non_camel_case_types, reason = "the header's name")]
pub struct sexton_reaper {
    pub(crate) reaper: Reaper,
    exits: Option<Mutex<mpsc::Receiver<Exit>>>,
}

/// The end of a registered process.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(non_camel_case_types, reason = "the header's name")]
pub struct sexton_exit {
    /// Its number; may name another process by now.
    pub pid: i32,
    /// 0 to 255, or -1 where a signal ended it or nobody knows.
    pub code: i32,
    /// 1 to 64, or 0 where it exited or nobody knows.
    pub signal: i32,
    /// 1 where another owner reaped it.
    pub vanished: i32,
}

/// Counts, and what is there now.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(non_camel_case_types, reason = "the header's name")]
pub struct sexton_reaper_stats {
    /// Registered now.
    pub registered: u64,
    /// … watched by number, for want of a pidfd.
    pub polled: u64,
    /// … ended, and held by a tracer or another owner.
    pub held: u64,
    /// Reaped here.
    pub reaped: u64,
    /// Reaped by another owner.
    pub vanished: u64,
    /// Wake-ups of the thread.
    pub sweeps: u64,
    /// The last one, in milliseconds since 1970; 0 before the first.
    pub last_sweep_ms: u64,
    /// Restarts of the thread.
    pub restarts: u64,
    /// From wake-up to status, all exits together, in microseconds.
    pub latency_total_us: u64,
    /// The longest of them.
    pub latency_max_us: u64,
    /// 1 while the thread lives.
    pub alive: u64,
}

/// Who is told of each exit, on the reaper's thread.
#[allow(non_camel_case_types, reason = "the header's name")]
pub type sexton_on_exit = Option<unsafe extern "C" fn(exit: *const sexton_exit, user: *mut c_void)>;

/// Code and signal of an end, as the header has them.
pub(crate) const fn code_and_signal(status: Option<ExitStatus>) -> (i32, i32) {
    match status {
        Some(ExitStatus::Code(code)) => (code as i32, 0),
        Some(ExitStatus::Signal(signal)) => (-1, signal as i32),
        None => (-1, 0),
    }
}

fn exit_of(exit: &Exit) -> sexton_exit {
    let (code, signal) = code_and_signal(exit.status());
    let vanished = match exit.fate {
        Fate::Reaped(_) => 0,
        Fate::Vanished(_) => 1,
    };
    sexton_exit { pid: exit.pid.as_raw(), code, signal, vanished }
}

/// Starts a reaper; exits go to `on_exit`, or wait for `sexton_reaper_take` where that is null.
///
/// # Safety
/// `out` is a place for a pointer; `on_exit` may be called on another thread until the reaper is stopped.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_reaper_start(
    on_exit: sexton_on_exit,
    user: *mut c_void,
    out: *mut *mut sexton_reaper,
) -> c_int {
    guard(|| {
        log::install();
        let user = User(user);
        let mut builder = Reaper::builder();
        if let Some(on_exit) = on_exit {
            builder = builder.on_exit(move |exit| {
                let exit = exit_of(exit);
                // SAFETY: the caller's promise; the exit lives until the call returns.
                unsafe { on_exit(&raw const exit, user.pointer()) };
            });
        }
        let reaper = builder.start().map_err(|error| {
            let code = match error {
                StartReaperError::Unsupported => Code::Unsupported,
                StartReaperError::Sys(_) | StartReaperError::Thread(_) => Code::Failed,
            };
            Refused::because(code, &error)
        })?;
        let exits = on_exit.is_none().then(|| Mutex::new(reaper.subscribe()));
        // SAFETY: the caller's promise.
        unsafe { put(out, Box::into_raw(Box::new(sexton_reaper { reaper, exits }))) }
    })
}

/// Takes over the reaping of a child of this process.
///
/// # Safety
/// `reaper` is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_reaper_register(reaper: *const sexton_reaper, raw_pid: i32) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let reaper = &unsafe { borrowed(reaper) }?.reaper;
        Ok(reaper.register(pid(raw_pid)?).map(drop)?)
    })
}

/// As [`sexton_reaper_register`], of the process that is held, whatever became of its number.
///
/// # Safety
/// `reaper` and `process` are what they are called.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_reaper_register_process(
    reaper: *const sexton_reaper,
    process: *const sexton_process,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let reaper = &unsafe { borrowed(reaper) }?.reaper;
        // SAFETY: the caller's promise.
        let process = unsafe { borrowed(process) }?;
        Ok(reaper.register_handle(&process.0).map(drop)?)
    })
}

impl From<RegisterError> for Refused {
    fn from(error: RegisterError) -> Refused {
        let code = match &error {
            RegisterError::Gone(_) => Code::Gone,
            RegisterError::NotAChild { .. } => Code::NotAChild,
            RegisterError::Stopped => Code::Stopped,
            RegisterError::Thread(_) | RegisterError::Sys { .. } => Code::Failed,
        };
        Refused::because(code, &error)
    }
}

/// The oldest exit that nobody has taken, waiting for one at most `timeout_ms`.
///
/// # Safety
/// `reaper` is one, `out` is a place for an exit.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_reaper_take(
    reaper: *const sexton_reaper,
    timeout_ms: u32,
    out: *mut sexton_exit,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let exits = unsafe { borrowed(reaper) }?.exits.as_ref();
        let exits = exits.ok_or_else(|| Refused(Code::BadArgument, "this reaper has a callback".to_owned()))?;
        let exits = exits.lock().unwrap_or_else(PoisonError::into_inner);
        match exits.recv_timeout(Duration::from_millis(timeout_ms.into())) {
            // SAFETY: the caller's promise.
            Ok(exit) => unsafe { put(out, exit_of(&exit)) },
            Err(_) => Err(Refused(Code::NothingYet, "no exit".to_owned())),
        }
    })
}

/// Counts, and what is there now.
///
/// # Safety
/// `reaper` is one, `out` is a place for them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_reaper_read_stats(
    reaper: *const sexton_reaper,
    out: *mut sexton_reaper_stats,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let stats = unsafe { borrowed(reaper) }?.reaper.stats();
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let since_1970 = stats.last_sweep.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let told = sexton_reaper_stats {
            registered: stats.registered as u64,
            polled: stats.polled as u64,
            held: stats.held as u64,
            reaped: stats.reaped,
            vanished: stats.vanished,
            sweeps: stats.sweeps,
            last_sweep_ms: since_1970.map_or(0, |at| micros(at) / 1_000),
            restarts: stats.restarts,
            latency_total_us: micros(stats.latency_total),
            latency_max_us: micros(stats.latency_max),
            alive: stats.alive.into(),
        };
        // SAFETY: the caller's promise.
        unsafe { put(out, told) }
    })
}

/// Stops a reaper and gives it back.
///
/// # Safety
/// `reaper` is null, or one that nobody uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_reaper_stop(reaper: *mut sexton_reaper) {
    // SAFETY: the caller's promise.
    guard_quietly(|| drop(unsafe { take_back(reaper) }));
}
