//! The sweep: on a thread of its own, or one look at a time on the host's.

use std::ffi::{CString, c_char, c_int, c_void};
use std::time::Duration;

use sexton_core::reaper::Reaper;
use sexton_core::sweep::{Inactive, ReapedZombie, Sweep, SweepReport, SweepSettings, Sweeper};

use crate::process::pid;
use crate::reaper::{code_and_signal, sexton_reaper};
use crate::{Code, Refused, User, guard, guard_quietly, log, put_text, take_back};

/// What to sweep with; a value that makes no sense is named in the log and replaced by the default.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(non_camel_case_types, reason = "the header's name")]
pub struct sexton_sweep_options {
    /// 1 to sweep.
    pub enabled: i64,
    /// Between two looks; 0 for the default of 1,000.
    pub interval_ms: i64,
    /// How long a zombie is left to an owner; below 0 for the default of 1,000.
    pub grace_ms: i64,
}

/// One zombie that is no more.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(non_camel_case_types, reason = "the header's name")]
pub struct sexton_zombie {
    /// The number it had.
    pub pid: i32,
    /// As in an exit.
    pub code: i32,
    /// As in an exit.
    pub signal: i32,
    /// Its name, valid during the call.
    pub name: *const c_char,
}

/// Who is told of each zombie.
#[allow(non_camel_case_types, reason = "the header's name")]
pub type sexton_on_zombie = Option<unsafe extern "C" fn(zombie: *const sexton_zombie, user: *mut c_void)>;

/// A sweep on a thread of its own.
#[allow(non_camel_case_types, reason = "the header's name")]
pub struct sexton_sweep(Sweep);

/// Looks on the host's own thread.
#[allow(non_camel_case_types, reason = "the header's name")]
pub struct sexton_sweeper {
    sweeper: Result<Sweeper, Inactive>,
    passes: u64,
    reaped: u64,
    waiting: usize,
}

/// The settings of the caller, or those of nobody: off.
///
/// # Safety
/// `options` is null, or options.
unsafe fn settings(options: *const sexton_sweep_options) -> SweepSettings {
    // SAFETY: the caller's promise.
    let Some(options) = (unsafe { options.as_ref() }) else { return SweepSettings::default() };
    let default = SweepSettings::default();
    let millis = |value: i64, name: &str, default: Duration| match u64::try_from(value) {
        Ok(value) => Duration::from_millis(value),
        Err(_) => {
            tracing::warn!(value, "sweep: the {name} is no time; using {default:?}");
            default
        }
    };
    SweepSettings {
        enabled: options.enabled == 1,
        interval: if options.interval_ms == 0 {
            default.interval
        } else {
            millis(options.interval_ms, "interval", default.interval)
        },
        grace: if options.grace_ms == -1 { default.grace } else { millis(options.grace_ms, "grace", default.grace) },
    }
}

/// The reaper to sweep beside, if any.
///
/// # Safety
/// `reaper` is null or one.
unsafe fn beside<'a>(reaper: *const sexton_reaper) -> Option<&'a Reaper> {
    // SAFETY: the caller's promise.
    unsafe { reaper.as_ref() }.map(|reaper| &reaper.reaper)
}

fn tell(zombie: &ReapedZombie, on_zombie: sexton_on_zombie, user: &User) {
    let Some(on_zombie) = on_zombie else { return };
    let name = CString::new(zombie.name.as_str()).unwrap_or_default();
    let (code, signal) = code_and_signal(Some(zombie.status));
    let zombie = sexton_zombie { pid: zombie.pid.as_raw(), code, signal, name: name.as_ptr() };
    // SAFETY: the caller's promise; zombie and name live until the call returns.
    unsafe { on_zombie(&raw const zombie, user.pointer()) };
}

/// Starts sweeping, or says once why not; null only where memory or the library itself fails.
///
/// # Safety
/// `options` and `reaper` are null or what they are called; `on_zombie` may be called on another thread until the
/// sweep is stopped.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_sweep_start(
    options: *const sexton_sweep_options,
    reaper: *const sexton_reaper,
    on_zombie: sexton_on_zombie,
    user: *mut c_void,
) -> *mut sexton_sweep {
    let mut started = std::ptr::null_mut();
    guard_quietly(|| {
        log::install();
        let user = User(user);
        let on_report = move |report: &SweepReport| {
            let user = &user;
            report.reaped.iter().for_each(|zombie| tell(zombie, on_zombie, user));
        };
        // SAFETY: the caller's promise.
        let (settings, reaper) = (unsafe { settings(options) }, unsafe { beside(reaper) });
        started = Box::into_raw(Box::new(sexton_sweep(Sweep::start_with(settings, reaper, on_report))));
    });
    started
}

/// Has it look soon, as when `SIGCHLD` came. Not for a signal handler: it takes a lock.
///
/// # Safety
/// `sweep` is null or one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_sweep_ring(sweep: *const sexton_sweep) {
    guard_quietly(|| {
        // SAFETY: the caller's promise.
        if let Some(sweep) = unsafe { sweep.as_ref() } {
            sweep.0.ring();
        }
    });
}

/// Leaves a child to its owner, however long that takes.
///
/// # Safety
/// `sweep` is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_sweep_spare(sweep: *const sexton_sweep, raw_pid: i32) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { crate::borrowed(sweep) }?.0.spare(pid(raw_pid)?);
        Ok(())
    })
}

/// Writes what it is doing, as JSON.
///
/// # Safety
/// `sweep` is one, `buffer` has room for `room` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_sweep_status(sweep: *const sexton_sweep, buffer: *mut c_char, room: usize) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let status = unsafe { crate::borrowed(sweep) }?.0.status();
        let text = json(status.inactive.as_ref(), status.passes, status.reaped, status.waiting);
        // SAFETY: the caller's promise.
        unsafe { put_text(buffer, room, &text) }
    })
}

/// Stops a sweep and gives it back.
///
/// # Safety
/// `sweep` is null, or one that nobody uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_sweep_stop(sweep: *mut sexton_sweep) {
    // SAFETY: the caller's promise.
    guard_quietly(|| drop(unsafe { take_back(sweep) }));
}

/// Gets ready to look on the host's own thread, or says once why not; null only where memory or the library fails.
///
/// # Safety
/// `options` and `reaper` are null or what they are called.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_sweeper_new(
    options: *const sexton_sweep_options,
    reaper: *const sexton_reaper,
) -> *mut sexton_sweeper {
    let mut made = std::ptr::null_mut();
    guard_quietly(|| {
        log::install();
        // SAFETY: the caller's promise.
        let (settings, reaper) = (unsafe { settings(options) }, unsafe { beside(reaper) });
        let sweeper = Sweeper::new(settings, reaper);
        match &sweeper {
            Err(reason) if *reason != Inactive::Disabled => tracing::warn!(%reason, "not sweeping"),
            Ok(_) | Err(_) => {}
        }
        made = Box::into_raw(Box::new(sexton_sweeper { sweeper, passes: 0, reaped: 0, waiting: 0 }));
    });
    made
}

/// Leaves a child to its owner, however long that takes.
///
/// # Safety
/// `sweeper` is one, used by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_sweeper_spare(sweeper: *mut sexton_sweeper, raw_pid: i32) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let sweeper = unsafe { sweeper.as_mut() }.ok_or_else(Refused::null)?;
        let pid = pid(raw_pid)?;
        if let Ok(active) = &mut sweeper.sweeper {
            active.spare(pid);
        }
        Ok(())
    })
}

/// One look: how many zombies it reaped, or a refusal below 0.
///
/// # Safety
/// `sweeper` is one, used by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_sweeper_pass(
    sweeper: *mut sexton_sweeper,
    on_zombie: sexton_on_zombie,
    user: *mut c_void,
) -> c_int {
    let mut count = 0;
    let code = guard(|| {
        // SAFETY: the caller's promise.
        let sweeper = unsafe { sweeper.as_mut() }.ok_or_else(Refused::null)?;
        let report = match &mut sweeper.sweeper {
            Ok(active) => active.pass().map_err(|error| Refused::because(Code::Failed, &error))?,
            Err(_) => return Ok(()),
        };
        sweeper.passes += 1;
        sweeper.reaped += report.reaped.len() as u64;
        sweeper.waiting = report.waiting;
        count = c_int::try_from(report.reaped.len()).unwrap_or(c_int::MAX);
        let user = User(user);
        report.reaped.iter().for_each(|zombie| tell(zombie, on_zombie, &user));
        Ok(())
    });
    if code == Code::Ok as c_int { count } else { code }
}

/// Writes what it has done, as JSON.
///
/// # Safety
/// `sweeper` is one, `buffer` has room for `room` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_sweeper_status(
    sweeper: *const sexton_sweeper,
    buffer: *mut c_char,
    room: usize,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let sweeper = unsafe { crate::borrowed(sweeper) }?;
        let text = json(sweeper.sweeper.as_ref().err(), sweeper.passes, sweeper.reaped, sweeper.waiting);
        // SAFETY: the caller's promise.
        unsafe { put_text(buffer, room, &text) }
    })
}

/// Gives a sweeper back.
///
/// # Safety
/// `sweeper` is null, or one that nobody uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_sweeper_free(sweeper: *mut sexton_sweeper) {
    // SAFETY: the caller's promise.
    guard_quietly(|| drop(unsafe { take_back(sweeper) }));
}

fn json(inactive: Option<&Inactive>, passes: u64, reaped: u64, waiting: usize) -> String {
    let reason = inactive.map_or("null".to_owned(), |reason| quoted(&reason.to_string()));
    let active = inactive.is_none();
    format!(r#"{{"active":{active},"reason":{reason},"passes":{passes},"reaped":{reaped},"waiting":{waiting}}}"#)
}

fn quoted(text: &str) -> String {
    let mut json = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => json.extend(['\\', letter]),
            letter if letter.is_control() => json.push_str(&format!("\\u{:04x}", u32::from(letter))),
            letter => json.push(letter),
        }
    }
    json.push('"');
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_json_whatever_it_says() {
        let reason = Inactive::Proc("\"a\\b\n".to_owned());
        let text = json(Some(&reason), 1, 2, 3);
        let reason = r#""/proc is not usable: \"a\\b\u000a""#;
        assert_eq!(text, format!(r#"{{"active":false,"reason":{reason},"passes":1,"reaped":2,"waiting":3}}"#));
    }
}
