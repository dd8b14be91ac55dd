//! Control groups, by the descriptor of their directory.

use crate::error::SysError;
use crate::fd::{RawFd, write_all};
use crate::file::{self, flags};
use crate::text::Text;

/// Moves the process of that number into the cgroup behind `dir` (`cgroups(7)`). The caller knows that the number is no
/// other's: it is its own child that nobody has reaped, or it holds a pidfd that lives afterwards.
///
/// # Errors
/// `EACCES`; `ESRCH` where there is no such process; `ENODEV` once the cgroup is removed.
pub fn take_in(dir: RawFd, pid: i32) -> Result<(), SysError> {
    let procs = file::open(dir, c"cgroup.procs", flags::WRONLY, 0)?;
    write_all(procs.raw(), Text::new().add(pid).as_bytes())
        .map_err(|error| SysError::about(c"cgroup.procs", pid, error.errno))
}
