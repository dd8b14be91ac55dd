//! Network namespaces, netlink sockets, links from inside, and TAPs.

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
    let unshared = unsafe { syscall(nr::UNSHARE, [CLONE_NEWNET]) };
    unshared.map(|_| ()).map_err(|errno| SysError::of(c"unshare", errno))
}

/// Takes the calling thread, and no other of its process, into the network namespace behind `fd` (`setns(2)`).
///
/// # Errors
/// `EINVAL` for another kind of descriptor, `EPERM` without `CAP_SYS_ADMIN`.
pub fn enter(fd: RawFd) -> Result<(), SysError> {
    // SAFETY: changes which network this thread sees; no memory is touched.
    let entered = unsafe { syscall(nr::SETNS, [word(fd), CLONE_NEWNET]) };
    entered.map(|_| ()).map_err(|errno| SysError::about(c"setns", fd, errno))
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
    let made = unsafe { syscall(nr::SOCKET, [AF_NETLINK, SOCK_RAW_CLOEXEC, family as usize]) };
    let socket = made.map(opened).map_err(|errno| SysError::of(c"socket", errno))?;
    for option in CAP_ACK_EXT_ACK_STRICT {
        let on: i32 = 1;
        let args = [word(socket.raw()), SOL_NETLINK, option, &raw const on as usize, size_of::<i32>()];
        // SAFETY: the kernel reads four bytes. KERNEL(4.20): without one of these, errors say less and dumps more.
        let _set = unsafe { syscall(nr::SETSOCKOPT, args) };
    }
    Ok(socket)
}

/// `struct ifreq` of `netdevice(7)`: a link's name, and a union of 24 bytes.
#[repr(C)]
struct Request {
    name: [u8; IFNAMSIZ],
    what: [u8; 24],
}

const IFNAMSIZ: usize = 16;

impl Request {
    fn new<const N: usize>(name: &CStr, what: [u8; N]) -> Result<Request, SysError> {
        Ok(Request { name: padded(name.to_bytes_with_nul())?, what: padded(&what)? })
    }
}

/// `bytes`, and zeros behind them.
fn padded<const N: usize>(bytes: &[u8]) -> Result<[u8; N], SysError> {
    let mut all = [0; N];
    let place = all.get_mut(..bytes.len()).ok_or(SysError::of(c"ioctl", Errno::EINVAL))?;
    place.copy_from_slice(bytes);
    Ok(all)
}

/// `struct sockaddr_in` without a port.
fn inet(address: [u8; 4]) -> [u8; 16] {
    const AF_INET: u16 = 2;
    let ([f, g], [a, b, c, d]) = (AF_INET.to_ne_bytes(), address);
    [f, g, 0, 0, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// The links of the namespace in which it was opened, for who sets them up from inside (`netdevice(7)`).
///
/// An inet socket, which lets go of its namespace when it is closed. A netlink socket can do the same and more, but the
/// kernel has it hold its namespace for an RCU grace period longer: 15 ms, in which a namespace that nobody needs any
/// more cannot end.
#[derive(Debug)]
pub struct Links(Fd);

impl Links {
    /// Those of the calling thread's namespace.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn open() -> Result<Links, SysError> {
        const AF_INET: usize = 2;
        // Of the kinds that exist everywhere, the one that is given back at once on older kernels too.
        const SOCK_STREAM_CLOEXEC: usize = 1 | 0o2_000_000;
        // SAFETY: makes a descriptor; no memory is touched.
        let made = unsafe { syscall(nr::SOCKET, [AF_INET, SOCK_STREAM_CLOEXEC, 0]) };
        made.map(|fd| Links(opened(fd))).map_err(|errno| SysError::of(c"socket", errno))
    }

    /// Brings link `name` up; fine where it is.
    ///
    /// # Errors
    /// `ENODEV` where there is none, `EPERM` without `CAP_NET_ADMIN`, as for everything below.
    pub fn set_up(&self, name: &CStr) -> Result<(), SysError> {
        const SIOCGIFFLAGS: usize = 0x8913;
        const SIOCSIFFLAGS: usize = 0x8914;
        const IFF_UP: u8 = 1;
        let mut request = Request::new(name, [])?;
        self.ask(c"ioctl(SIOCGIFFLAGS)", SIOCGIFFLAGS, &mut request)?;
        // In the machine's order the low byte is the first on all that this is built for.
        let [flags, ..] = &mut request.what;
        *flags |= IFF_UP;
        self.ask(c"ioctl(SIOCSIFFLAGS)", SIOCSIFFLAGS, &mut request)
    }

    /// Gives link `name` the one IPv4 address that it has, with the broadcast address of its network.
    ///
    /// # Errors
    /// `EINVAL` for an address that no link can have.
    pub fn set_address(&self, name: &CStr, address: [u8; 4], mask: [u8; 4]) -> Result<(), SysError> {
        const SIOCSIFADDR: usize = 0x8916;
        const SIOCSIFNETMASK: usize = 0x891c;
        self.ask(c"ioctl(SIOCSIFADDR)", SIOCSIFADDR, &mut Request::new(name, inet(address))?)?;
        self.ask(c"ioctl(SIOCSIFNETMASK)", SIOCSIFNETMASK, &mut Request::new(name, inet(mask))?)
    }

    /// Tells for good at which hardware address `address` is, beyond link `name`, an ethernet link (`arp(7)`).
    ///
    /// # Errors
    /// `ENOBUFS` where the host's table of neighbours is full.
    pub fn set_neighbour(&self, name: &CStr, address: [u8; 4], hardware: [u8; 6]) -> Result<(), SysError> {
        /// `struct arpreq`.
        #[repr(C)]
        struct Neighbour {
            address: [u8; 16],
            hardware: [u8; 16],
            flags: i32,
            mask: [u8; 16],
            link: [u8; IFNAMSIZ],
        }
        const SIOCSARP: usize = 0x8955;
        const ATF_COM_PERM: i32 = 2 | 4;
        const ARPHRD_ETHER: u16 = 1;
        let ([f, g], [a, b, c, d, e, h]) = (ARPHRD_ETHER.to_ne_bytes(), hardware);
        let mut request = Neighbour {
            address: inet(address),
            hardware: padded(&[f, g, a, b, c, d, e, h])?,
            flags: ATF_COM_PERM,
            mask: [0; 16],
            link: padded(name.to_bytes_with_nul())?,
        };
        self.ask(c"ioctl(SIOCSARP)", SIOCSARP, &mut request)
    }

    /// Sends what is for nobody else to `gateway`.
    ///
    /// # Errors
    /// `EEXIST` where this very route is there, `ENETUNREACH` where the gateway is beyond no link that is up.
    pub fn add_default_route(&self, gateway: [u8; 4]) -> Result<(), SysError> {
        /// `struct rtentry`.
        #[repr(C)]
        struct Route {
            pad: u64,
            to: [u8; 16],
            gateway: [u8; 16],
            mask: [u8; 16],
            flags: u16,
            /// Of no meaning here: metric, link, and sizes.
            rest: [u64; 7],
        }
        const SIOCADDRT: usize = 0x890b;
        const RTF_UP_GATEWAY: u16 = 1 | 2;
        let anything = inet([0; 4]);
        let mut request =
            Route { pad: 0, to: anything, gateway: inet(gateway), mask: anything, flags: RTF_UP_GATEWAY, rest: [0; 7] };
        self.ask(c"ioctl(SIOCADDRT)", SIOCADDRT, &mut request)
    }

    /// `request` is the structure that `number` takes.
    fn ask<R>(&self, what: &'static CStr, number: usize, request: &mut R) -> Result<(), SysError> {
        // SAFETY: the kernel reads and writes one structure of the request's own kind, which lives as long as the call.
        let done = unsafe { syscall(nr::IOCTL, [word(self.0.raw()), number, &raw mut *request as usize]) };
        done.map(|_| ()).map_err(|errno| SysError::of(what, errno))
    }
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
    let mut request = Request::new(name, IFF_TAP_NO_PI.to_ne_bytes())?;
    let tun = file::open(file::AT_FDCWD, c"/dev/net/tun", flags::RDWR, 0)?;
    let at = &raw mut request as usize;
    // SAFETY: the kernel reads and writes one `struct ifreq`, which is 40 bytes.
    let named = unsafe { syscall(nr::IOCTL, [word(tun.raw()), TUNSETIFF, at]) };
    named.map_err(|errno| SysError::of(c"ioctl(TUNSETIFF)", errno))?;
    // SAFETY: sets a flag; no memory is touched.
    let kept = unsafe { syscall(nr::IOCTL, [word(tun.raw()), TUNSETPERSIST, 1]) };
    kept.map(|_| ()).map_err(|errno| SysError::of(c"ioctl(TUNSETPERSIST)", errno))
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
