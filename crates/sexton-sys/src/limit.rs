//! How many descriptors this process may hold.

use crate::arch::{nr, syscall};
use crate::error::SysError;

const RLIMIT_NOFILE: usize = 7;

/// Soft and hard `RLIMIT_NOFILE` of this process (`prlimit(2)`).
///
/// # Errors
/// Never on a kernel that has the call.
pub fn open_files() -> Result<[u64; 2], SysError> {
    let mut limits = [0u64; 2];
    // SAFETY: the kernel writes one `struct rlimit64`, two words, into `limits`.
    let told = unsafe { syscall(nr::PRLIMIT64, [0, RLIMIT_NOFILE, 0, limits.as_mut_ptr() as usize, 0, 0]) };
    told.map(|_| limits).map_err(|errno| SysError::of("prlimit64", errno))
}

/// Sets both limits; the hard one can only be raised by root.
///
/// # Errors
/// `EPERM`.
pub fn set_open_files(limits: [u64; 2]) -> Result<(), SysError> {
    // SAFETY: the kernel reads one `struct rlimit64`, two words, from `limits`.
    let set = unsafe { syscall(nr::PRLIMIT64, [0, RLIMIT_NOFILE, limits.as_ptr() as usize, 0, 0, 0]) };
    set.map(|_| ()).map_err(|errno| SysError::of("prlimit64", errno))
}
