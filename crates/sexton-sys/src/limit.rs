//! How many descriptors this process may hold.

use crate::arch::{nr, syscall};
use crate::error::SysError;
use crate::fd::{RawFd, opened, word};

const RLIMIT_NOFILE: usize = 7;

/// Soft and hard `RLIMIT_NOFILE` of this process (`prlimit(2)`).
///
/// # Errors
/// Never on a kernel that has the call.
pub fn open_files() -> Result<[u64; 2], SysError> {
    let mut limits = [0u64; 2];
    // SAFETY: the kernel writes one `struct rlimit64`, two words, into `limits`.
    let told = unsafe { syscall(nr::PRLIMIT64, [0, RLIMIT_NOFILE, 0, limits.as_mut_ptr() as usize]) };
    told.map(|_| limits).map_err(|errno| SysError::of(c"prlimit64", errno))
}

/// Sets both limits; the hard one can only be raised by root.
///
/// # Errors
/// `EPERM`.
pub fn set_open_files(limits: [u64; 2]) -> Result<(), SysError> {
    // SAFETY: the kernel reads one `struct rlimit64`, two words, from `limits`.
    let set = unsafe { syscall(nr::PRLIMIT64, [0, RLIMIT_NOFILE, limits.as_ptr() as usize, 0]) };
    set.map(|_| ()).map_err(|errno| SysError::of(c"prlimit64", errno))
}

/// Has the kernel lay out this process's table of descriptors for numbers below `count` at once; `fd` is any that is open.
///
/// KERNEL: the table grows by doubling, and in a process with threads each time waits for a grace period of RCU, some
/// 10 ms (`expand_fdtable` in `fs/file.c`). So this is for a process that has no threads yet.
///
/// # Errors
/// `EINVAL` where the soft limit is lower, `EMFILE` where nothing is free below it, `EBADF`.
pub fn make_room(fd: RawFd, count: u32) -> Result<(), SysError> {
    const F_DUPFD_CLOEXEC: usize = 1030;
    let last = count.saturating_sub(1) as usize;
    // SAFETY: takes numbers alone.
    let ret = unsafe { syscall(nr::FCNTL, [word(fd), F_DUPFD_CLOEXEC, last]) };
    ret.map(opened).map(drop).map_err(|errno| SysError::about(c"fcntl", fd, errno))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::os::fd::AsRawFd as _;

    #[test]
    fn room_is_laid_out_and_nothing_stays_open() {
        let fd_size = || {
            let status = std::fs::read_to_string("/proc/self/status").expect("status");
            let line = status.lines().find_map(|line| line.strip_prefix("FDSize:")).expect("FDSize");
            line.trim().parse::<u32>().expect("a number")
        };
        let null = std::fs::File::open("/dev/null").expect("null");
        let [_, hard] = open_files().expect("limits");
        set_open_files([hard, hard]).expect("raised");
        let wanted = 2 * fd_size();
        make_room(null.as_raw_fd(), wanted).expect("room");
        assert!(fd_size() >= wanted);
        assert!(!std::path::Path::new("/proc/self/fd").join(std::format!("{}", wanted - 1)).exists());
    }
}
