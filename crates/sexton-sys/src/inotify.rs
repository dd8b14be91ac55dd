//! Notices of changed files (`inotify(7)`).

use core::ffi::CStr;

use crate::arch::{nr, syscall};
use crate::error::SysError;
use crate::fd::{Fd, RawFd, opened, word};

/// What to be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// The next write to a file, and nothing after it.
    NextWrite,
    /// Every write to a file, and its removal.
    Writes,
    /// Files that appear in a directory or leave it.
    Names,
}

/// What a notice tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// What is watched has changed.
    Changed,
    /// The watch is over: it was for one notice, or the file is gone.
    Over,
}

/// A queue of notices; readable when there is one. Does not block.
#[derive(Debug)]
pub struct Inotify(Fd);

impl Inotify {
    /// An empty queue.
    ///
    /// # Errors
    /// `EMFILE` beyond `fs.inotify.max_user_instances`.
    pub fn new() -> Result<Inotify, SysError> {
        const IN_NONBLOCK_CLOEXEC: i32 = 0o4_000 | 0o2_000_000;
        // SAFETY: touches no memory.
        let fd = unsafe { syscall(nr::INOTIFY_INIT1, [word(IN_NONBLOCK_CLOEXEC)]) };
        fd.map(|fd| Inotify(opened(fd))).map_err(|errno| SysError::of(c"inotify_init1", errno))
    }

    /// The descriptor, for polling.
    pub const fn raw(&self) -> RawFd {
        self.0.raw()
    }

    /// Watches `path`; tells the number by which notices name it. A file watched already keeps its number.
    ///
    /// # Errors
    /// `ENOENT`, `ENOSPC` beyond `fs.inotify.max_user_watches`.
    pub fn watch(&self, path: &CStr, interest: Interest) -> Result<i32, SysError> {
        const IN_MODIFY: usize = 0x2;
        const IN_NAMES: usize = 0x40 | 0x80 | 0x100 | 0x200;
        const IN_DELETE_SELF: usize = 0x400;
        const IN_ONESHOT: usize = 0x8000_0000;
        let mask = match interest {
            Interest::NextWrite => IN_MODIFY | IN_ONESHOT,
            Interest::Writes => IN_MODIFY | IN_DELETE_SELF,
            Interest::Names => IN_NAMES | IN_DELETE_SELF,
        };
        // SAFETY: the kernel reads one string up to its NUL.
        let wd = unsafe { syscall(nr::INOTIFY_ADD_WATCH, [word(self.raw()), path.as_ptr() as usize, mask]) };
        wd.map(|wd| wd as i32).map_err(|errno| SysError::of(c"inotify_add_watch", errno))
    }

    /// Takes what notices are there, and calls `each` with the number of every one, and whether it tells of a change
    /// or that the watch is over.
    ///
    /// # Errors
    /// `EAGAIN` where there is none.
    pub fn take(&self, mut each: impl FnMut(i32, Notice)) -> Result<(), SysError> {
        const IN_IGNORED: u32 = 0x8000;
        const HEAD: usize = 16;
        let mut buffer = [0u8; 4096];
        let len = crate::fd::read(self.raw(), &mut buffer)?;
        let mut rest = buffer.get(..len).unwrap_or_default();
        // `struct inotify_event`: wd, mask, cookie and the length of the name behind it, 4 bytes each.
        while let Some((head, tail)) = rest.split_first_chunk::<HEAD>() {
            let [a, b, c, d, e, f, g, h, _, _, _, _, i, j, k, l] = *head;
            let over = u32::from_ne_bytes([e, f, g, h]) & IN_IGNORED != 0;
            each(i32::from_ne_bytes([a, b, c, d]), if over { Notice::Over } else { Notice::Changed });
            let name = u32::from_ne_bytes([i, j, k, l]) as usize;
            rest = tail.get(name..).unwrap_or_default();
        }
        Ok(())
    }
}
