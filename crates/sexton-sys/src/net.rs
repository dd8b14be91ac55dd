//! Network namespaces, netlink sockets and TAPs.

use core::ffi::CStr;

use crate::arch::{nr, syscall};
use crate::error::{Errno, SysError};
use crate::fd::{Fd, RawFd, opened, word};
use crate::file::{self, flags};

const CLONE_NEWNET: usize = 0x4000_0000;

/// Which of the kernel's families a netlink socket talks to (`netlink(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, routes, numbers of namespaces (`rtnetlink(7)`).
    Route = 0,
    /// Packet filter.
    Netfilter = 12,
}

/// Takes the calling thread, and no other of its process, into a new network namespace (`unshare(2)`).
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`, `ENOSPC` at the limit of `/proc/sys/user/max_net_namespaces`.
pub fn unshare() -> Result<(), SysError> {
    // SAFETY: changes which network this thread sees; no memory is touched.
    let unshared = unsafe { syscall(nr::UNSHARE, [CLONE_NEWNET, 0, 0, 0, 0, 0]) };
    unshared.map(|_| ()).map_err(|errno| SysError::of("unshare", errno))
}

/// Takes the calling thread, and no other of its process, into the network namespace behind `fd` (`setns(2)`).
///
/// # Errors
/// `EINVAL` for another kind of descriptor, `EPERM` without `CAP_SYS_ADMIN`.
pub fn enter(fd: RawFd) -> Result<(), SysError> {
    // SAFETY: changes which network this thread sees; no memory is touched.
    let entered = unsafe { syscall(nr::SETNS, [word(fd), CLONE_NEWNET, 0, 0, 0, 0]) };
    entered.map(|_| ()).map_err(|errno| SysError::about("setns", fd.into(), errno))
}

/// A netlink socket of the calling thread's namespace, whose errors come without the request and with the kernel's
/// own words, and whose dumps are filtered as asked. Written to, it talks to the kernel.
///
/// # Errors
/// `EPROTONOSUPPORT` where the kernel lacks the family, `EMFILE`, `ENFILE`.
pub fn netlink(family: Family) -> Result<Fd, SysError> {
    const AF_NETLINK: usize = 16;
    const SOCK_RAW_CLOEXEC: usize = 3 | 0o2_000_000;
    const SOL_NETLINK: usize = 270;
    const CAP_ACK_EXT_ACK_STRICT: [usize; 3] = [10, 11, 12];
    // SAFETY: makes a descriptor; no memory is touched.
    let made = unsafe { syscall(nr::SOCKET, [AF_NETLINK, SOCK_RAW_CLOEXEC, family as usize, 0, 0, 0]) };
    let socket = made.map(opened).map_err(|errno| SysError::of("socket", errno))?;
    for option in CAP_ACK_EXT_ACK_STRICT {
        let on: i32 = 1;
        let args = [word(socket.raw()), SOL_NETLINK, option, &raw const on as usize, size_of::<i32>(), 0];
        // SAFETY: the kernel reads four bytes. KERNEL(4.20): without one of these, errors say less and dumps more.
        let _set = unsafe { syscall(nr::SETSOCKOPT, args) };
    }
    Ok(socket)
}

/// Makes TAP `name` in the calling thread's namespace; it stays until the namespace ends. It belongs to the caller's
/// user (`/dev/net/tun`).
///
/// # Errors
/// `ENOENT` or `ENODEV` where the kernel has no such device, `EBUSY` for a name in use, `EINVAL` for one that is too
/// long.
pub fn make_tap(name: &CStr) -> Result<(), SysError> {
    const TUNSETIFF: usize = 0x4004_54ca;
    const TUNSETPERSIST: usize = 0x4004_54cb;
    const IFF_TAP_NO_PI: u16 = 0x0002 | 0x1000;
    /// `struct ifreq`: a name, and a union of 24 bytes that begins with the flags.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }
    let mut request = Request { name: [0; 16], flags: IFF_TAP_NO_PI, rest: [0; 22] };
    let bytes = name.to_bytes();
    match request.name.get_mut(..bytes.len()) {
        Some(place) if bytes.len() < 16 => place.copy_from_slice(bytes),
        Some(_) | None => return Err(SysError::of("ioctl", Errno::EINVAL)),
    }
    let tun = file::open(file::AT_FDCWD, c"/dev/net/tun", flags::RDWR, 0)?;
    let at = &raw mut request as usize;
    // SAFETY: the kernel reads and writes one `struct ifreq`, which is 40 bytes.
    let named = unsafe { syscall(nr::IOCTL, [word(tun.raw()), TUNSETIFF, at, 0, 0, 0]) };
    named.map_err(|errno| SysError::of("ioctl(TUNSETIFF)", errno))?;
    // SAFETY: sets a flag; no memory is touched.
    let kept = unsafe { syscall(nr::IOCTL, [word(tun.raw()), TUNSETPERSIST, 1, 0, 0, 0]) };
    kept.map(|_| ()).map_err(|errno| SysError::of("ioctl(TUNSETPERSIST)", errno))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn a_thread_that_leaves_its_network_takes_no_other_along() {
        let here = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let before = here();
        let (inside, back) = std::thread::spawn(move || {
            let home = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
            if unshare().is_err() {
                return (None, None);
            }
            let inside = here();
            enter(std::os::fd::AsRawFd::as_raw_fd(&home)).unwrap();
            (Some(inside), Some(here()))
        })
        .join()
        .unwrap();
        assert_eq!(here(), before);
        if let (Some(inside), Some(back)) = (inside, back) {
            assert_ne!(inside, before);
            assert_eq!(back, before);
        }
    }

    #[test]
    fn a_request_is_answered() {
        let socket = netlink(Family::Route).unwrap();
        // RTM_GETLINK of link 1: header of 16 bytes, `struct ifinfomsg` of 16.
        let request: [u32; 8] = [32, 18 | 1 << 16, 7, 0, 0, 1, 0, 0];
        let bytes: std::vec::Vec<u8> = request.iter().flat_map(|word| word.to_ne_bytes()).collect();
        crate::fd::write_all(socket.raw(), &bytes).unwrap();
        let mut answer = [0_u8; 8192];
        let len = crate::fd::read(socket.raw(), &mut answer).unwrap();
        assert!(len > 32 && answer[8] == 7, "an answer to request 7");
    }
}
