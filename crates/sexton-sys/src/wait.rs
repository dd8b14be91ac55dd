//! Exit statuses of children.
//!
//! Every wait here names one child and returns at once. The exception is `peek_any`, for a process all of whose
//! children are its own to reap.

use crate::arch::{nr, syscall};
use crate::error::{Errno, SysError};
use crate::fd::{RawFd, word};
use crate::signal::Signal;

const P_ALL: usize = 0;
const P_PID: usize = 1;
const P_PIDFD: usize = 3;
const WNOHANG: usize = 1;
const WEXITED: usize = 4;
const WNOWAIT: usize = 0x0100_0000;
/// Children of any kind, also those that end without `SIGCHLD`. Only for one that the caller names by its pidfd: such a
/// child always has an owner, so nobody who looks for orphans is to see it.
const WALL: usize = 0x4000_0000;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It exited by itself, with this code.
    Exited(u8),
    /// A signal killed it.
    Killed {
        /// Which.
        signal: Signal,
        /// Whether it left a core.
        core: bool,
    },
}

impl Ended {
    /// The wait status as `wait(2)` encodes it.
    pub fn raw(self) -> i32 {
        match self {
            Ended::Exited(code) => i32::from(code) << 8,
            Ended::Killed { signal, core } => i32::from(signal.number()) | if core { 0x80 } else { 0 },
        }
    }

    /// Reads a wait status; `None` for one that tells no end (stopped, continued).
    pub fn from_raw(status: i32) -> Option<Ended> {
        let [low, high, ..] = status.to_le_bytes();
        match low & 0x7f {
            0 => Some(Ended::Exited(high)),
            0x7f => None,
            number => Some(Ended::Killed { signal: Signal::new(number)?, core: low & 0x80 != 0 }),
        }
    }

    /// The code that a shell shows: 128 and the signal where one killed it.
    pub fn shell_code(self) -> u8 {
        match self {
            Ended::Exited(code) => code,
            Ended::Killed { signal, core: _ } => 128 + signal.number(),
        }
    }
}

/// How child `pid` ended, leaving it to be reaped; `None` while it lives, or while its tracer holds it.
///
/// # Errors
/// `ECHILD` where it is no child of this process.
pub fn peek(pid: u32) -> Result<Option<Ended>, SysError> {
    Ok(waitid(P_PID, pid as usize, WNOHANG | WNOWAIT)?.map(|(_, ended)| ended))
}

/// Reaps child `pid`: how it ended, `None` while it lives, or while its tracer holds it.
///
/// # Errors
/// `ECHILD` where it is no child of this process.
pub fn reap(pid: u32) -> Result<Option<Ended>, SysError> {
    Ok(waitid(P_PID, pid as usize, WNOHANG)?.map(|(_, ended)| ended))
}

/// How the child behind `pidfd` ended, leaving it to be reaped.
///
/// # Errors
/// `ECHILD` where it is no child of this process.
///
/// # Kernel
/// 5.4; `EINVAL` before that.
pub fn peek_pidfd(pidfd: RawFd) -> Result<Option<Ended>, SysError> {
    Ok(waitid(P_PIDFD, word(pidfd), WNOHANG | WNOWAIT | WALL)?.map(|(_, ended)| ended))
}

/// Reaps the child behind `pidfd`.
///
/// # Errors
/// `ECHILD` where it is no child of this process, or has been reaped.
///
/// # Kernel
/// 5.4; `EINVAL` before that.
pub fn reap_pidfd(pidfd: RawFd) -> Result<Option<Ended>, SysError> {
    Ok(waitid(P_PIDFD, word(pidfd), WNOHANG | WALL)?.map(|(_, ended)| ended))
}

/// Some child that has ended, leaving it to be reaped: `None` where none has.
///
/// It walks every child (1.1 ms at 10,000), and names children of other parts of the program too: only for a process
/// that is the reaper of all of them.
///
/// # Errors
/// `ECHILD` where there are no children at all.
pub fn peek_any() -> Result<Option<(u32, Ended)>, SysError> {
    waitid(P_ALL, 0, WNOHANG | WNOWAIT)
}

/// Waits, as long as it takes, until child `pid` has ended, and reaps it.
///
/// # Errors
/// `ECHILD` where it is no child of this process.
pub(crate) fn reap_ending(pid: u32) -> Result<Option<Ended>, SysError> {
    Ok(waitid(P_PID, pid as usize, 0)?.map(|(_, ended)| ended))
}

/// `waitid(2)` for exits.
fn waitid(kind: usize, id: usize, options: usize) -> Result<Option<(u32, Ended)>, SysError> {
    let mut info = [0_i32; 32];
    let args = [kind, id, info.as_mut_ptr() as usize, WEXITED | options, 0];
    loop {
        // SAFETY: the kernel writes one siginfo of 128 bytes.
        match unsafe { syscall(nr::WAITID, args) } {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(SysError::about(c"waitid", id as i32, errno)),
            Ok(_) => return Ok(ended(&info)),
        }
    }
}

/// Who ended and how, from a `siginfo_t`: the code is its third word, PID and status are its fifth and seventh.
fn ended(info: &[i32; 32]) -> Option<(u32, Ended)> {
    const CLD_EXITED: i32 = 1;
    const CLD_KILLED: i32 = 2;
    const CLD_DUMPED: i32 = 3;
    let [_, _, code, _, pid, _, status, ..] = *info;
    let pid = u32::try_from(pid).ok().filter(|&pid| pid != 0)?;
    let low = status.to_le_bytes()[0];
    let ended = match code {
        CLD_EXITED => Ended::Exited(low),
        CLD_KILLED | CLD_DUMPED => Ended::Killed { signal: Signal::new(low)?, core: code == CLD_DUMPED },
        _ => return None,
    };
    Some((pid, ended))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn a_wait_status_reads_back_as_what_it_was() {
        let mut all = std::vec::Vec::new();
        all.extend((0..=255).map(Ended::Exited));
        for number in (1..=64).filter_map(Signal::new) {
            all.push(Ended::Killed { signal: number, core: false });
            all.push(Ended::Killed { signal: number, core: true });
        }
        for ended in all {
            assert_eq!(Ended::from_raw(ended.raw()), Some(ended));
        }
        assert_eq!(Ended::from_raw(0x137f), None);
    }

    #[test]
    #[allow(clippy::zombie_processes, reason = "it is reaped by what is tested")]
    fn a_child_is_peeked_at_and_then_reaped_once() {
        let child = std::process::Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        while peek(child.id()).unwrap().is_none() {
            std::thread::yield_now();
        }
        assert_eq!(peek(child.id()), Ok(Some(Ended::Exited(7))));
        assert_eq!(reap(child.id()), Ok(Some(Ended::Exited(7))));
        assert_eq!(reap(child.id()).unwrap_err().errno, Errno::ECHILD);
    }

    #[test]
    fn a_child_that_ends_without_a_signal_is_waited_for_by_its_pidfd_alone() {
        const CLONE_PIDFD: usize = 0x1000;
        let mut pidfd = -1_i32;
        // SAFETY: a fork without an exit signal; the kernel writes one int, and the child makes one system call.
        let pid = unsafe { syscall(nr::CLONE, [CLONE_PIDFD, 0, &raw mut pidfd as usize, 0, 0]) }.unwrap();
        if pid == 0 {
            crate::process::exit(7);
        }
        let pidfd = crate::fd::Fd::from_raw(pidfd);
        while peek_pidfd(pidfd.raw()).unwrap().is_none() {
            std::thread::yield_now();
        }
        assert_eq!(peek(pid as u32).unwrap_err().errno, Errno::ECHILD, "nobody comes upon it");
        assert_eq!(peek_pidfd(pidfd.raw()), Ok(Some(Ended::Exited(7))));
        assert_eq!(reap_pidfd(pidfd.raw()), Ok(Some(Ended::Exited(7))));
        assert_eq!(reap_pidfd(pidfd.raw()).unwrap_err().errno, Errno::ECHILD);
    }
}
