//! Extended attributes: the tag that a workload cannot write, who may connect to a socket, and what other owners gave
//! their files.

use core::ffi::CStr;

use crate::arch::{nr, syscall};
use crate::error::{Errno, SysError};
use crate::fd::{RawFd, word};

/// Sets attribute `name` of what `fd` refers to (`fsetxattr(2)`).
///
/// # Errors
/// `EPERM` for `trusted.*` without `CAP_SYS_ADMIN`, `EOPNOTSUPP` where the file system keeps none.
pub fn set(fd: RawFd, name: &CStr, value: &[u8]) -> Result<(), SysError> {
    set_with(fd, name, value, 0)
}

/// As [`set`], where there is none of that name yet: of two who do so at once one is refused (`XATTR_CREATE`).
///
/// # Errors
/// `EEXIST`, and as [`set`].
pub fn create(fd: RawFd, name: &CStr, value: &[u8]) -> Result<(), SysError> {
    const CREATE: usize = 1;
    set_with(fd, name, value, CREATE)
}

fn set_with(fd: RawFd, name: &CStr, value: &[u8], flags: usize) -> Result<(), SysError> {
    let args = [word(fd), name.as_ptr() as usize, value.as_ptr() as usize, value.len(), flags];
    // SAFETY: the kernel reads the name up to its NUL and `len` bytes of the value.
    let set = unsafe { syscall(nr::FSETXATTR, args) };
    set.map(|_| ()).map_err(|errno| SysError::about(c"fsetxattr", fd, errno))
}

/// Sets attribute `name` of the file at `path` (`setxattr(2)`): a socket cannot be opened.
///
/// # Errors
/// `EPERM` where the file is another user's, `EOPNOTSUPP` where the file system keeps none.
pub fn set_at(path: &CStr, name: &CStr, value: &[u8]) -> Result<(), SysError> {
    let args = [path.as_ptr() as usize, name.as_ptr() as usize, value.as_ptr() as usize, value.len(), 0];
    // SAFETY: the kernel reads path and name up to their NUL and `len` bytes of the value.
    let set = unsafe { syscall(nr::SETXATTR, args) };
    set.map(|_| ()).map_err(|errno| SysError::of(c"setxattr", errno))
}

/// Reads attribute `name` into `buffer`; `None` where it was never set. (pidfs answers 0 bytes for that, others
/// `ENODATA`.)
///
/// # Errors
/// `ERANGE` where the buffer is too small, `EOPNOTSUPP`.
pub fn read<'b>(fd: RawFd, name: &CStr, buffer: &'b mut [u8]) -> Result<Option<&'b [u8]>, SysError> {
    let args = [word(fd), name.as_ptr() as usize, buffer.as_mut_ptr() as usize, buffer.len()];
    // SAFETY: the kernel writes at most `len` bytes into `buffer`.
    match unsafe { syscall(nr::FGETXATTR, args) } {
        Ok(0) | Err(Errno::ENODATA) => Ok(None),
        Ok(len) => Ok(buffer.get(..len)),
        Err(errno) => Err(SysError::about(c"fgetxattr", fd, errno)),
    }
}

/// Lists the names of all attributes that the kernel shows of what `fd` refers to, by means of `buffer`
/// (`flistxattr(2)`).
///
/// # Errors
/// `ERANGE` where the buffer is too small, `EOPNOTSUPP` where the file system keeps none.
pub fn list(fd: RawFd, buffer: &mut [u8]) -> Result<impl Iterator<Item = &CStr>, SysError> {
    let args = [word(fd), buffer.as_mut_ptr() as usize, buffer.len()];
    // SAFETY: the kernel writes at most `len` bytes into `buffer`.
    let listed = unsafe { syscall(nr::FLISTXATTR, args) };
    let len = listed.map_err(|errno| SysError::about(c"flistxattr", fd, errno))?;
    let names = buffer.get(..len).unwrap_or_default().split_inclusive(|byte| *byte == 0);
    Ok(names.filter_map(|name| CStr::from_bytes_with_nul(name).ok()))
}

/// Removes attribute `name` of what `fd` refers to (`fremovexattr(2)`).
///
/// # Errors
/// `EPERM`, `EACCES`; `ENODATA` where there is none.
pub fn remove(fd: RawFd, name: &CStr) -> Result<(), SysError> {
    // SAFETY: the kernel reads the name up to its NUL.
    let removed = unsafe { syscall(nr::FREMOVEXATTR, [word(fd), name.as_ptr() as usize]) };
    removed.map(|_| ()).map_err(|errno| SysError::about(c"fremovexattr", fd, errno))
}
