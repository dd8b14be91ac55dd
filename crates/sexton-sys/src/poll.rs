//! Waiting for descriptors: `poll` for a few, `epoll` for many, and a descriptor to wake a waiting thread by.

use core::time::Duration;

use crate::arch::{nr, syscall};
use crate::error::{Errno, SysError};
use crate::fd::{Fd, RawFd, opened, read, word, write};
use crate::time::Timespec;

/// What to wait for, and what came (`poll(2)`; the same bits in `epoll(7)`).
#[allow(missing_docs, reason = "named as in poll(2)")]
pub mod events {
    pub const IN: i16 = 0x001;
    pub const PRI: i16 = 0x002;
    pub const OUT: i16 = 0x004;
    pub const ERR: i16 = 0x008;
    pub const HUP: i16 = 0x010;
    pub const NVAL: i16 = 0x020;
}

/// One descriptor to wait for (`struct pollfd`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PollFd {
    fd: RawFd,
    wanted: i16,
    came: i16,
}

impl PollFd {
    /// Waits for `wanted` on `fd`; ERR, HUP and NVAL come unasked.
    pub const fn new(fd: RawFd, wanted: i16) -> PollFd {
        PollFd { fd, wanted, came: 0 }
    }

    /// A slot that the kernel skips.
    pub const fn unused() -> PollFd {
        PollFd { fd: -1, wanted: 0, came: 0 }
    }

    /// What came in the last `poll`.
    pub const fn came(&self) -> i16 {
        self.came
    }

    /// Whether one of `events` came in the last `poll`.
    pub const fn has(&self, events: i16) -> bool {
        self.came & events != 0
    }
}

/// Waits until one of `fds` is ready or `timeout` has passed, without one for as long as it takes; tells how many are
/// ready. A signal handler that ran counts as a wait that ended early.
///
/// # Errors
/// `ENOMEM`, `EINVAL` for more descriptors than the process may have.
pub fn poll(fds: &mut [PollFd], timeout: Option<Duration>) -> Result<usize, SysError> {
    let timeout = timeout.map(Timespec::of);
    let timeout = timeout.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    let args = [fds.as_mut_ptr() as usize, fds.len(), timeout as usize, 0, 0];
    // SAFETY: the kernel writes the `came` of each slot and reads one timespec, which it may also overwrite: it is a
    // local copy.
    match unsafe { syscall(nr::PPOLL, args) } {
        Err(Errno::EINTR) => {
            fds.iter_mut().for_each(|fd| fd.came = 0);
            Ok(0)
        }
        ret => ret.map_err(|errno| SysError::of(c"ppoll", errno)),
    }
}

/// Writes `bytes` as far as they are taken without waiting; whether all were.
pub fn offer(fd: RawFd, mut bytes: &[u8]) -> bool {
    /// What a pipe takes at once that is ready for anything (`PIPE_BUF`, `pipe(7)`).
    const AT_ONCE: usize = 4096;
    let is_ready = || {
        let mut ready = [PollFd::new(fd, events::OUT)];
        poll(&mut ready, Some(Duration::ZERO)).is_ok() && ready.iter().any(|fd| fd.has(events::OUT))
    };
    while !bytes.is_empty() {
        let next = bytes.get(..AT_ONCE).unwrap_or(bytes);
        let taken = if is_ready() { write(fd, next).unwrap_or(0) } else { 0 };
        match bytes.get(taken..) {
            Some(rest) if taken > 0 => bytes = rest,
            Some(_) | None => return false,
        }
    }
    true
}

/// What an `Epoll` tells: `struct epoll_event`, which x86-64 packs.
#[cfg_attr(target_arch = "x86_64", repr(C, packed))]
#[cfg_attr(not(target_arch = "x86_64"), repr(C))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Event {
    bits: u32,
    token: u64,
}

impl Event {
    /// An empty slot.
    pub const EMPTY: Event = Event { bits: 0, token: 0 };

    /// The token that the descriptor was added with.
    pub const fn token(&self) -> u64 {
        self.token
    }

    /// Whether one of `events` came.
    pub fn has(&self, events: i16) -> bool {
        self.bits & u32::from(events.cast_unsigned()) != 0
    }
}

/// How long a descriptor stays armed in an `Epoll`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// As long as it is ready.
    Level,
    /// Told once, then `rearm` is needed.
    OneShot,
}

/// A set of descriptors to wait for.
#[derive(Debug)]
pub struct Epoll(Fd);

impl Epoll {
    /// An empty set.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new() -> Result<Epoll, SysError> {
        const EPOLL_CLOEXEC: usize = 0o2_000_000;
        // SAFETY: touches no memory.
        let ret = unsafe { syscall(nr::EPOLL_CREATE1, [EPOLL_CLOEXEC]) };
        ret.map(|fd| Epoll(opened(fd))).map_err(|errno| SysError::of(c"epoll_create1", errno))
    }

    /// The number: readable when one of the set is ready.
    pub const fn raw(&self) -> RawFd {
        self.0.raw()
    }

    /// Waits for `wanted` on `fd`, to be told by `token`.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`: `EEXIST`, `ENOSPC`, `ENOMEM`.
    pub fn add(&self, fd: RawFd, wanted: i16, trigger: Trigger, token: u64) -> Result<(), SysError> {
        self.control(1, fd, wanted, trigger, token)
    }

    /// Waits anew, after a `OneShot` was told or for something else.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`: `ENOENT`.
    pub fn rearm(&self, fd: RawFd, wanted: i16, trigger: Trigger, token: u64) -> Result<(), SysError> {
        self.control(3, fd, wanted, trigger, token)
    }

    /// Takes `fd` out. Must be done before it is closed: a copy in another process would keep it in the set.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`: `ENOENT`.
    pub fn remove(&self, fd: RawFd) -> Result<(), SysError> {
        self.control(2, fd, 0, Trigger::Level, 0)
    }

    fn control(&self, op: usize, fd: RawFd, wanted: i16, trigger: Trigger, token: u64) -> Result<(), SysError> {
        const EPOLLONESHOT: u32 = 1 << 30;
        let bits = u32::from(wanted.cast_unsigned()) | if trigger == Trigger::OneShot { EPOLLONESHOT } else { 0 };
        let event = Event { bits, token };
        // SAFETY: the kernel reads one event.
        let ret = unsafe { syscall(nr::EPOLL_CTL, [word(self.0.raw()), op, word(fd), &raw const event as usize]) };
        ret.map(|_| ()).map_err(|errno| SysError::about(c"epoll_ctl", fd, errno))
    }

    /// Waits until one of the set is ready or `timeout` has passed; the events that came, none when interrupted.
    ///
    /// # Errors
    /// `EBADF`, `EINVAL` for an empty `space`.
    pub fn wait<'a>(&self, space: &'a mut [Event], timeout: Option<Duration>) -> Result<&'a [Event], SysError> {
        // Rounded up, so that a wait never ends before its time and then spins.
        let millis =
            timeout.map_or(-1, |timeout| i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX));
        let args = [word(self.0.raw()), space.as_mut_ptr() as usize, space.len(), word(millis), 0, 8];
        // SAFETY: the kernel writes at most `len` events into `space`; no signal mask is given.
        match unsafe { syscall(nr::EPOLL_PWAIT, args) } {
            Err(Errno::EINTR) => Ok(&[]),
            Err(errno) => Err(SysError::of(c"epoll_pwait", errno)),
            Ok(count) => Ok(space.get(..count).unwrap_or_default()),
        }
    }
}

/// A counter that wakes who polls it (`eventfd(2)`).
#[derive(Debug)]
pub struct EventFd(Fd);

impl EventFd {
    /// One that is not set.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new() -> Result<EventFd, SysError> {
        const NONBLOCK_CLOEXEC: usize = 0o2_004_000;
        // SAFETY: touches no memory.
        let ret = unsafe { syscall(nr::EVENTFD2, [0, NONBLOCK_CLOEXEC]) };
        ret.map(|fd| EventFd(opened(fd))).map_err(|errno| SysError::of(c"eventfd2", errno))
    }

    /// The number: readable while it is set.
    pub const fn raw(&self) -> RawFd {
        self.0.raw()
    }

    /// Sets it. One that is set to the brim stays so, which is all that matters.
    pub fn set(&self) {
        let _full = write(self.0.raw(), &1_u64.to_ne_bytes());
    }

    /// Clears it; tells whether it was set.
    pub fn clear(&self) -> bool {
        read(self.0.raw(), &mut [0_u8; 8]).is_ok()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn what_is_ready_is_told_and_what_is_not_is_waited_for() {
        let bell = EventFd::new().unwrap();
        let mut fds = [PollFd::new(bell.raw(), events::IN), PollFd::unused()];
        assert_eq!(poll(&mut fds, Some(Duration::from_millis(1))), Ok(0));
        bell.set();
        assert_eq!(poll(&mut fds, None), Ok(1));
        assert!(fds[0].has(events::IN));
        assert!(bell.clear());
        assert!(!bell.clear());
    }

    #[test]
    fn a_one_shot_is_told_once_until_it_is_rearmed() {
        let bell = EventFd::new().unwrap();
        let set = Epoll::new().unwrap();
        set.add(bell.raw(), events::IN, Trigger::OneShot, 42).unwrap();
        bell.set();
        let mut space = [Event::EMPTY; 4];
        let came = set.wait(&mut space, None).unwrap();
        assert_eq!((came.len(), came[0].token(), came[0].has(events::IN)), (1, 42, true));
        assert!(set.wait(&mut space, Some(Duration::ZERO)).unwrap().is_empty());
        set.rearm(bell.raw(), events::IN, Trigger::OneShot, 43).unwrap();
        assert_eq!(set.wait(&mut space, None).unwrap()[0].token(), 43);
        set.remove(bell.raw()).unwrap();
        assert_eq!(set.remove(bell.raw()).unwrap_err().errno, Errno::ENOENT);
    }
}
