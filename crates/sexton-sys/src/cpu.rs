//! On which CPUs a thread runs.

use core::mem::size_of_val;

use crate::arch::{nr, syscall};
use crate::error::SysError;

/// BOUND: CPUs that are told apart; a kernel built for more refuses.
const MOST: usize = 8_192;
const WORD: usize = u64::BITS as usize;

/// A set of CPUs.
#[derive(Clone, Debug)]
pub struct Cpus([u64; MOST / WORD]);

impl Cpus {
    /// Those that the calling thread may run on.
    ///
    /// # Errors
    /// As `sched_getaffinity(2)`.
    pub fn of_thread() -> Result<Cpus, SysError> {
        let mut set = Cpus([0; MOST / WORD]);
        let args = [0, size_of_val(&set.0), set.0.as_mut_ptr() as usize];
        // SAFETY: the kernel writes at most as many bytes as the array has.
        let ret = unsafe { syscall(nr::SCHED_GETAFFINITY, args) };
        ret.map_err(|errno| SysError::of(c"sched_getaffinity", errno))?;
        Ok(set)
    }

    /// Each of them alone.
    pub fn each(&self) -> impl Iterator<Item = Cpus> + '_ {
        self.0.iter().enumerate().flat_map(|(at, word)| {
            let bits = (0..u64::BITS).map(|bit| 1_u64 << bit).filter(move |bit| word & bit != 0);
            bits.map(move |bit| {
                let mut alone = Cpus([0; MOST / WORD]);
                alone.0.iter_mut().skip(at).take(1).for_each(|word| *word = bit);
                alone
            })
        })
    }

    /// Has the calling thread run on these alone.
    ///
    /// # Errors
    /// As `sched_setaffinity(2)`: `EINVAL` where it may run on none of them.
    pub fn bind_thread(&self) -> Result<(), SysError> {
        let args = [0, size_of_val(&self.0), self.0.as_ptr() as usize];
        // SAFETY: the kernel reads as many bytes as the array has.
        let ret = unsafe { syscall(nr::SCHED_SETAFFINITY, args) };
        ret.map(|_| ()).map_err(|errno| SysError::of(c"sched_setaffinity", errno))
    }
}
