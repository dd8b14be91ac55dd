//! Unix sockets that carry messages and a descriptor each, and who is at the other end.

use crate::arch::{nr, syscall};
use crate::error::{Errno, SysError};
use crate::fd::{Fd, RawFd, word};

const AF_UNIX: usize = 1;
const SOCK_SEQPACKET: usize = 5;
const SOCK_CLOEXEC: usize = 0o2_000_000;
const SOCK_NONBLOCK: usize = 0o4_000;
const SOL_SOCKET: usize = 1;
const MSG_DONTWAIT: usize = 0x40;
const MSG_NOSIGNAL: usize = 0x4000;
const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
const MSG_TRUNC: i32 = 0x20;
const MSG_CTRUNC: i32 = 0x8;

/// A control message of one descriptor: `struct cmsghdr` and what it carries.
#[repr(C)]
#[derive(Default)]
struct Control {
    len: usize,
    level: i32,
    kind: i32,
    fd: i32,
}

/// The length of a control message of one descriptor. The struct is padded to more, where a second one would fit.
const CONTROL_LEN: usize = 20;
const SCM_RIGHTS: i32 = 1;

#[repr(C)]
struct IoVec {
    base: usize,
    len: usize,
}

/// `struct msghdr`.
#[repr(C)]
struct Message {
    name: usize,
    name_len: u32,
    parts: usize,
    part_count: usize,
    control: usize,
    control_len: usize,
    flags: i32,
}

/// The two ends of a connection that keeps message boundaries; neither blocks.
///
/// # Errors
/// `EMFILE`, `ENFILE`, `ENOMEM`.
pub fn message_pair() -> Result<(Fd, Fd), SysError> {
    let mut ends = [0_i32; 2];
    let kind = SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK;
    // SAFETY: the kernel writes two descriptors into `ends`.
    let ret = unsafe { syscall(nr::SOCKETPAIR, [AF_UNIX, kind, 0, ends.as_mut_ptr() as usize]) };
    ret.map_err(|errno| SysError::of(c"socketpair", errno))?;
    let [a, b] = ends;
    Ok((Fd::from_raw(a), Fd::from_raw(b)))
}

/// Sends one message, with a descriptor that stays the sender's own; never blocks and never raises SIGPIPE.
///
/// # Errors
/// `EAGAIN` where the socket is full, `EPIPE` or `ECONNRESET` where nobody is at the other end, `EMSGSIZE`;
/// `ETOOMANYREFS` for too many descriptors in flight.
pub fn send(socket: RawFd, bytes: &[u8], fd: Option<RawFd>) -> Result<(), SysError> {
    let part = IoVec { base: bytes.as_ptr() as usize, len: bytes.len() };
    let mut control = Control { len: CONTROL_LEN, level: SOL_SOCKET as i32, kind: SCM_RIGHTS, fd: fd.unwrap_or(-1) };
    let mut message = message_of(&part, &mut control);
    if fd.is_none() {
        message.control_len = 0;
    }
    loop {
        let args = [word(socket), &raw const message as usize, MSG_DONTWAIT | MSG_NOSIGNAL];
        // SAFETY: the kernel reads the message, its one part and its control bytes, all of which live here.
        match unsafe { syscall(nr::SENDMSG, args) } {
            Err(Errno::EINTR) => {}
            ret => return ret.map(|_| ()).map_err(|errno| SysError::about(c"sendmsg", socket, errno)),
        }
    }
}

/// A header over one part and a control message.
fn message_of(part: &IoVec, control: &mut Control) -> Message {
    let parts = core::ptr::from_ref(part) as usize;
    let control = core::ptr::from_mut(control) as usize;
    Message { name: 0, name_len: 0, parts, part_count: 1, control, control_len: CONTROL_LEN, flags: 0 }
}

/// A message that was received.
#[derive(Debug)]
pub struct Received {
    /// Its length; 0 means that the other end is closed (no message of ours is empty).
    pub len: usize,
    /// The descriptor that came with it, close-on-exec.
    pub fd: Option<Fd>,
    /// Whether bytes or descriptors were lost for want of room.
    pub cut: bool,
}

/// Receives one message into `buffer` without blocking.
///
/// # Errors
/// `EAGAIN` where there is none, `ECONNRESET`.
pub fn receive(socket: RawFd, buffer: &mut [u8]) -> Result<Received, SysError> {
    let part = IoVec { base: buffer.as_mut_ptr() as usize, len: buffer.len() };
    let mut control = Control::default();
    let mut message = message_of(&part, &mut control);
    loop {
        let args = [word(socket), &raw mut message as usize, MSG_DONTWAIT | MSG_CMSG_CLOEXEC];
        // SAFETY: the kernel writes into the message, `buffer` and `control`, within the lengths that are told.
        match unsafe { syscall(nr::RECVMSG, args) } {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(SysError::about(c"recvmsg", socket, errno)),
            Ok(len) => {
                let cut = message.flags & (MSG_TRUNC | MSG_CTRUNC) != 0;
                // No other kind of control message was asked for, and there is room for one descriptor.
                let came = control.kind == SCM_RIGHTS && control.len >= CONTROL_LEN;
                return Ok(Received { len, fd: came.then(|| Fd::from_raw(control.fd)), cut });
            }
        }
    }
}

/// Who connected to a unix socket, as the kernel recorded it then.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The process, 0 where it is outside this PID namespace.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// Who connected to `socket`.
///
/// # Errors
/// As `getsockopt(2)` with `SO_PEERCRED`.
pub fn peer(socket: RawFd) -> Result<Peer, SysError> {
    const SO_PEERCRED: usize = 17;
    let mut peer = Peer::default();
    option(socket, SO_PEERCRED, (&raw mut peer).cast(), size_of::<Peer>())?;
    Ok(peer)
}

/// Bytes, with the kernel's own about them, that were sent and that the other end has not received yet.
///
/// # Source
/// `unix(7)`, `SIOCOUTQ`.
///
/// # Errors
/// `EBADF`, `ENOTTY` for what is no socket.
pub fn unreceived(socket: RawFd) -> Result<u32, SysError> {
    const SIOCOUTQ: usize = 0x5411;
    let mut bytes = 0_i32;
    // SAFETY: the kernel writes one `int`.
    let told = unsafe { syscall(nr::IOCTL, [word(socket), SIOCOUTQ, &raw mut bytes as usize]) };
    told.map(|_| bytes.cast_unsigned()).map_err(|errno| SysError::about(c"ioctl", socket, errno))
}

/// A pidfd of who connected to `socket`, also when that process has ended.
///
/// # Errors
/// `ENOPROTOOPT` before 6.5; `EINVAL` or `ESRCH` for a dead peer before 6.16.
pub fn peer_pidfd(socket: RawFd) -> Result<Fd, SysError> {
    const SO_PEERPIDFD: usize = 77;
    let mut pidfd = -1_i32;
    option(socket, SO_PEERPIDFD, (&raw mut pidfd).cast(), size_of::<i32>())?;
    Ok(Fd::from_raw(pidfd))
}

/// `getsockopt(2)` of the socket level, of at most `len` bytes at `value`, which the caller owns.
fn option(socket: RawFd, name: usize, value: *mut u8, len: usize) -> Result<(), SysError> {
    let mut len = len as u32;
    let args = [word(socket), SOL_SOCKET, name, value as usize, &raw mut len as usize];
    // SAFETY: the kernel writes at most `len` bytes to `value`; both callers hand a local of that size.
    let ret = unsafe { syscall(nr::GETSOCKOPT, args) };
    ret.map(|_| ()).map_err(|errno| SysError::about(c"getsockopt", socket, errno))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::poll::EventFd;

    #[test]
    fn a_message_arrives_whole_with_its_descriptor() {
        let (a, b) = message_pair().unwrap();
        let bell = EventFd::new().unwrap();
        send(a.raw(), b"one", Some(bell.raw())).unwrap();
        send(a.raw(), b"none", None).unwrap();
        assert!(unreceived(a.raw()).unwrap() > 0);
        let mut buffer = [0_u8; 64];
        let got = receive(b.raw(), &mut buffer).unwrap();
        assert_eq!((&buffer[..got.len], got.cut), (&b"one"[..], false));
        crate::fd::write(got.fd.unwrap().raw(), &1_u64.to_ne_bytes()).unwrap();
        assert!(bell.clear(), "the descriptor is the bell");
        let got = receive(b.raw(), &mut buffer).unwrap();
        assert_eq!((&buffer[..got.len], got.fd), (&b"none"[..], None));
        assert_eq!(receive(b.raw(), &mut buffer).unwrap_err().errno, Errno::EAGAIN);
        assert_eq!(unreceived(a.raw()).unwrap(), 0);
    }

    #[test]
    fn a_closed_end_is_told_on_both_ways() {
        let (a, b) = message_pair().unwrap();
        drop(a);
        assert_eq!(receive(b.raw(), &mut [0; 8]).unwrap().len, 0);
        assert_eq!(send(b.raw(), b"x", None).unwrap_err().errno, Errno::EPIPE);
    }

    #[test]
    fn what_does_not_fit_is_cut_and_told() {
        let (a, b) = message_pair().unwrap();
        send(a.raw(), b"longer", None).unwrap();
        let got = receive(b.raw(), &mut [0; 3]).unwrap();
        assert_eq!((got.len, got.cut), (3, true));
    }

    #[test]
    fn the_peer_of_a_pair_is_this_process() {
        let (a, _b) = message_pair().unwrap();
        assert_eq!(peer(a.raw()).unwrap().pid, i32::try_from(std::process::id()).unwrap());
    }
}
