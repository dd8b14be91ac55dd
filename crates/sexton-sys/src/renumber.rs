//! For tests: children with a number of one's choice, so that the reuse of a PID needs no luck.

use crate::arch::{nr, syscall};
use crate::error::SysError;
use crate::fd::{Fd, opened};

const SIGCHLD: u64 = 17;
const CLONE_PIDFD: u64 = 0x1000;

/// Makes a child with exactly the PID `pid` in the caller's PID namespace, which only waits to be killed
/// (`clone3(2)`, `set_tid`, Linux 5.5). Its number is free again as soon as it has been reaped.
///
/// # Errors
/// `EEXIST` where the number is taken, `EPERM` without `CAP_SYS_ADMIN`.
pub fn child_with_pid(pid: i32) -> Result<Fd, SysError> {
    let mut pidfd: i32 = -1;
    let (pidfd_at, pid_at) = ((&raw mut pidfd) as u64, (&raw const pid) as u64);
    // `struct clone_args` (`clone(2)`): without a stack of its own the child goes on here, on a copy.
    let args: [u64; 11] = [CLONE_PIDFD, pidfd_at, 0, 0, SIGCHLD, 0, 0, 0, pid_at, 1, 0];
    // SAFETY: the kernel reads eleven words and one number, and writes one descriptor; the child shares no memory and
    // does nothing but system calls.
    let cloned = unsafe { syscall(nr::CLONE3, [args.as_ptr() as usize, size_of_val(&args)]) };
    match cloned.map_err(|errno| SysError::about(c"clone3", pid, errno))? {
        0 => wait_to_be_killed(),
        _ => Ok(opened(pidfd.cast_unsigned() as usize)),
    }
}

fn wait_to_be_killed() -> ! {
    loop {
        // SAFETY: nothing to poll and no time-out; touches no memory.
        let _interrupted = unsafe { syscall(nr::PPOLL, [0, 0, 0, 0, 0]) };
    }
}
