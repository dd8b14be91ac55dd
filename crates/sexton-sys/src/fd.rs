//! An owned descriptor, and what can be done with any descriptor.

use crate::arch::{nr, syscall};
use crate::error::{Errno, SysError};

/// A raw descriptor, borrowed for one call; its owner keeps it open meanwhile.
pub type RawFd = i32;

/// A descriptor that is closed when this is dropped.
#[derive(Debug, PartialEq, Eq)]
pub struct Fd(RawFd);

impl Fd {
    /// Takes ownership of a descriptor that the kernel has just returned, or that was inherited under this number.
    ///
    /// Whoever calls this owns `raw`, and nobody else does: it will be closed once.
    pub const fn from_raw(raw: RawFd) -> Fd {
        Fd(raw)
    }

    /// The number, for a call or a message; stays owned here.
    pub const fn raw(&self) -> RawFd {
        self.0
    }

    /// Gives ownership away.
    pub fn into_raw(self) -> RawFd {
        core::mem::ManuallyDrop::new(self).raw()
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        close(self.0);
    }
}

/// Closes `fd`; errors mean that it is closed all the same (`close(2)`).
fn close(fd: RawFd) {
    // SAFETY: closes a number that the caller owns; touches no memory.
    let _closed = unsafe { syscall(nr::CLOSE, [word(fd)]) };
}

/// A descriptor or a flag word as a register: sign-extended, as the kernel's `int` wants it.
pub(crate) const fn word(value: i32) -> usize {
    (value as isize).cast_unsigned()
}

/// A new descriptor out of a call's result.
pub(crate) fn opened(ret: usize) -> Fd {
    // A descriptor is below 2^31 by the kernel's own limit (`NR_OPEN`).
    Fd(ret as i32)
}

/// Reads at the descriptor's position into `buffer`; 0 is the end. Repeats on `EINTR`.
///
/// # Errors
/// As `read(2)`; `EAGAIN` where the descriptor does not block.
pub fn read(fd: RawFd, buffer: &mut [u8]) -> Result<usize, SysError> {
    loop {
        // SAFETY: the kernel writes at most `len` bytes into `buffer`.
        let ret = unsafe { syscall(nr::READ, [word(fd), buffer.as_mut_ptr() as usize, buffer.len()]) };
        match ret {
            Err(Errno::EINTR) => {}
            ret => return ret.map_err(|errno| SysError::about(c"read", fd, errno)),
        }
    }
}

/// Writes what the kernel takes of `bytes`. Repeats on `EINTR`.
///
/// # Errors
/// As `write(2)`.
pub fn write(fd: RawFd, bytes: &[u8]) -> Result<usize, SysError> {
    loop {
        // SAFETY: the kernel reads at most `len` bytes of `bytes`.
        let ret = unsafe { syscall(nr::WRITE, [word(fd), bytes.as_ptr() as usize, bytes.len()]) };
        match ret {
            Err(Errno::EINTR) => {}
            ret => return ret.map_err(|errno| SysError::about(c"write", fd, errno)),
        }
    }
}

/// Writes all of `bytes`.
///
/// # Errors
/// As `write(2)`; `EIO` where the kernel takes nothing.
pub fn write_all(fd: RawFd, mut bytes: &[u8]) -> Result<(), SysError> {
    while !bytes.is_empty() {
        let written = write(fd, bytes)?;
        bytes = match bytes.get(written..) {
            Some(rest) if written > 0 => rest,
            Some(_) | None => return Err(SysError::about(c"write", fd, Errno::EIO)),
        };
    }
    Ok(())
}
