//! Processes held by identity.

use std::ffi::{c_char, c_int};
use std::os::fd::AsRawFd;

use sexton_core::handle::{Handle, Life, OpenHandleError};
use sexton_core::proc::{self, Here};
use sexton_plan::id::Pid;
use sexton_plan::identity::Identity;

use crate::{Code, Refused, borrowed, guard, guard_quietly, put, put_text, take_back, text};

/// A hold on one process.
#[allow(non_camel_case_types, reason = "the header's name")]
pub struct sexton_process(pub(crate) Handle);

impl From<OpenHandleError> for Refused {
    fn from(error: OpenHandleError) -> Refused {
        let code = match &error {
            OpenHandleError::Gone => Code::Gone,
            OpenHandleError::Unproven | OpenHandleError::OutOfSight => Code::Unproven,
            OpenHandleError::Sys(error) if error.errno.0 == ENOSYS => Code::Unsupported,
            OpenHandleError::Sys(_) | OpenHandleError::Proc(_) => Code::Failed,
        };
        Refused::because(code, &error)
    }
}

/// `ENOSYS`, the number that a build or a kernel without the call answers.
const ENOSYS: i32 = 38;

/// A PID from outside.
pub(crate) fn pid(raw: i32) -> Result<Pid, Refused> {
    Pid::new(raw).ok_or_else(|| Refused(Code::BadArgument, format!("{raw} is no PID that may be looked at")))
}

fn here() -> Result<Here, Refused> {
    proc::here().map_err(|error| Refused::because(Code::Failed, &error))
}

/// Holds whatever process `raw_pid` names now.
///
/// # Safety
/// `out` is a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_open(raw_pid: i32, out: *mut *mut sexton_process) -> c_int {
    guard(|| {
        let handle = Handle::open(pid(raw_pid)?, &here()?)?;
        // SAFETY: the caller's promise.
        unsafe { put(out, Box::into_raw(Box::new(sexton_process(handle)))) }
    })
}

/// Holds exactly the process that `identity` names, or none.
///
/// # Safety
/// `identity` is a text, `out` is a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_reopen(identity: *const c_char, out: *mut *mut sexton_process) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let handle = reopen(unsafe { text(identity) }?)?;
        // SAFETY: the caller's promise.
        unsafe { put(out, Box::into_raw(Box::new(sexton_process(handle)))) }
    })
}

/// Whether the process that `identity` names is there and has not ended.
///
/// # Safety
/// `identity` is a text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_verify(identity: *const c_char) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let handle = reopen(unsafe { text(identity) }?)?;
        match handle.life().map_err(|error| Refused::because(Code::Failed, &error))? {
            Life::Alive => Ok(()),
            Life::Zombie(_) | Life::Reaped(_) => Err(Refused(Code::Gone, "the process has ended".to_owned())),
        }
    })
}

fn reopen(identity: &str) -> Result<Handle, Refused> {
    let refused = || Refused(Code::BadArgument, "not an identity as `sexton_identity` writes it".to_owned());
    let (identity, handle) = parse(identity).ok_or_else(refused)?;
    Ok(Handle::reopen(&identity, &handle, None, &here()?)?)
}

/// Writes the storable identity of a process.
///
/// # Safety
/// `process` is one, `buffer` has room for `room` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_identity(process: *const sexton_process, buffer: *mut c_char, room: usize) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let handle = &unsafe { borrowed(process) }?.0;
        // SAFETY: the caller's promise.
        unsafe { put_text(buffer, room, &print(handle.identity(), &handle.to_bytes())) }
    })
}

/// Signals this process and no other.
///
/// # Safety
/// `process` is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_signal(process: *const sexton_process, signal: c_int) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let handle = &unsafe { borrowed(process) }?.0;
        let signal = u8::try_from(signal).ok().filter(|signal| *signal <= 64);
        let signal = signal.ok_or_else(|| Refused(Code::BadArgument, "a signal is 0 to 64".to_owned()))?;
        match handle.signal(signal) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Refused(Code::Gone, "the process is gone".to_owned())),
            Err(error) => Err(Refused::because(Code::Failed, &error)),
        }
    })
}

/// The pidfd, readable when the process has ended; stays the library's.
///
/// # Safety
/// `process` is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_pidfd(process: *const sexton_process) -> c_int {
    let mut pidfd = -1;
    let code = guard(|| {
        // SAFETY: the caller's promise.
        pidfd = unsafe { borrowed(process) }?.0.as_raw_fd();
        Ok(())
    });
    if code == Code::Ok as c_int { pidfd } else { code }
}

/// Lets go of a process; it lives on.
///
/// # Safety
/// `process` is null, or one that nobody uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sexton_close(process: *mut sexton_process) {
    // SAFETY: the caller's promise.
    guard_quietly(|| drop(unsafe { take_back(process) }));
}

/// The storable form: words of `key=value`, what is unknown left out.
fn print(identity: &Identity, handle: &[u8]) -> String {
    let mut text = format!("sexton1 boot_id={} pid_ns={} pid={}", identity.boot_id, identity.pid_ns, identity.pid);
    for (key, value) in [("start_ticks", identity.start_ticks), ("pidfs_ino", identity.pidfs_ino)] {
        if let Some(value) = value {
            text.push_str(&format!(" {key}={value}"));
        }
    }
    if identity.boottime_offset != 0 {
        text.push_str(&format!(" boottime_offset={}", identity.boottime_offset));
    }
    if !handle.is_empty() {
        text.push_str(" handle=");
        handle.iter().for_each(|byte| text.push_str(&format!("{byte:02x}")));
    }
    text
}

fn parse(text: &str) -> Option<(Identity, Vec<u8>)> {
    let words = text.strip_prefix("sexton1 ")?;
    let value = |key: &str| words.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    let number = |key: &str| value(key).map(str::parse::<u64>).transpose().ok();
    let identity = Identity {
        pid: Pid::new(value("pid")?.parse().ok()?)?,
        pidfs_ino: number("pidfs_ino")?,
        start_ticks: number("start_ticks")?,
        boottime_offset: value("boottime_offset").map_or(Ok(0), str::parse).ok()?,
        boot_id: value("boot_id")?.parse().ok()?,
        pid_ns: number("pid_ns")??,
    };
    Some((identity, from_hex(value("handle").unwrap_or_default())?))
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    rest.is_empty().then(|| pairs.iter().map(byte).collect()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_back_as_what_it_was() {
        let identity = Identity {
            pid: Pid::new(4711).unwrap(),
            pidfs_ino: Some(u64::MAX),
            start_ticks: None,
            boottime_offset: -5,
            boot_id: "0f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff".parse().unwrap(),
            pid_ns: 4_026_531_836,
        };
        let text = print(&identity, &[0, 255, 16]);
        assert_eq!(parse(&text), Some((identity, vec![0, 255, 16])));
        for wrong in ["", "sexton1 ", "sexton1 pid=1", &text.replace("4711", "0"), &text.replace("00ff10", "0")] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
