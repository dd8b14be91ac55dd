//! Network slots, the kernel's side: namespaces, links, addresses, routes, and rules of the one nft table.
//!
//! Blocking, and for one thread of its own. Decides nothing about instances and keeps no record: everything is found
//! again by the names of [`Scheme`] and proven by marks that the kernel keeps.

mod entry;
mod inside;
mod kernel;
mod message;
mod nft;
mod route;
mod scheme;
mod socket;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use entry::Entry;
use kernel::Kernel;
use sexton_plan::slot::Seen;
use sexton_sys::net::Family;
use socket::Netlink;

pub use scheme::{Scheme, Slot};

/// The network of one daemon. Makes nothing until it is told to.
#[derive(Debug)]
pub struct Net {
    scheme: Scheme,
    kernel: Option<Kernel>,
}

/// A slot that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Inode of its namespace, as `/proc/PID/ns/net` of a process inside shows it.
    pub ns_ino: u64,
}

/// Whether there was anything to give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// It is gone now.
    Now,
    /// It was gone before.
    WasGone,
}

/// Why a slot could not be made, given back or seen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// Something that is not ours bears the slot's name or address. It is never touched, and the slot skipped.
    #[error("not ours: {0}")]
    Foreign(String),
    /// Somebody still holds the namespace: a process, a descriptor, a socket, an open TAP.
    #[error("still held: {0}")]
    Busy(String),
    /// The host cannot do it, or does not permit it.
    #[error("not available on this host: {0}")]
    Unsupported(String),
    /// The kernel refused.
    #[error("{0}")]
    Failed(String),
}

impl Net {
    /// The network that `scheme` describes, in the network namespace of the thread that first calls anything else.
    pub fn open(scheme: Scheme) -> Net {
        Net { scheme, kernel: None }
    }

    /// Makes slots, and what they share if that is missing: each whole, or nothing of it. What is left of an earlier
    /// attempt is taken down first. The calling thread's namespace does not change.
    ///
    /// # Blocking
    /// A few milliseconds a slot; up to 5 s where the kernel is still clearing away the slot's last namespace.
    pub fn make(&mut self, slots: &[Slot]) -> Vec<Result<Made, NetError>> {
        if slots.is_empty() {
            // What they share is not looked at for nothing: whoever waits for a release waits for this too.
            return Vec::new();
        }
        let made = self.kernel().and_then(|kernel| kernel::apart(|| kernel.make(slots)));
        made.unwrap_or_else(|error| slots.iter().map(|_| Err(error.clone())).collect())
    }

    /// Takes slots down, whatever is left of them; what is not ours is let alone. Nothing of a tenant survives, for its
    /// namespace is destroyed.
    ///
    /// `Busy` says that everything was taken down and somebody still holds the namespace: a process, a descriptor, a
    /// socket that the kernel is still closing, an open TAP. Asked again later it tells when it is free.
    ///
    /// # Blocking
    /// A few milliseconds a slot; 0.2 s more where one is held.
    pub fn release(&mut self, slots: &[Slot]) -> Vec<Result<Released, NetError>> {
        if slots.is_empty() {
            return Vec::new();
        }
        let released = self.kernel().map(|kernel| kernel.release(slots));
        released.unwrap_or_else(|error| slots.iter().map(|_| Err(error.clone())).collect())
    }

    /// Looks at all of `slots` at once. What is inside a namespace is its tenant's, and not looked at.
    ///
    /// # Errors
    /// The kernel could not be asked: nothing is known.
    ///
    /// # Blocking
    /// Milliseconds for a thousand.
    pub fn observe(&mut self, slots: &[Slot]) -> Result<Vec<Seen>, NetError> {
        self.kernel()?.observe(slots)
    }

    /// As [`Net::observe`], of slots that are in no row: one that somebody lives in is `Foreign`.
    ///
    /// # Errors
    /// The kernel could not be asked: nothing is known.
    pub fn observe_unclaimed(&mut self, slots: &[Slot]) -> Result<Vec<Seen>, NetError> {
        if slots.is_empty() {
            return Ok(Vec::new());
        }
        self.kernel()?.observe_unclaimed(slots)
    }

    /// Puts back what is missing of a slot. `holder` is the network namespace of the process that lives in it, opened
    /// through its handle: with that even the slot's entry can be put back. A new pair is set up inside too.
    ///
    /// # Errors
    /// As [`Net::make`]; `Failed` where the namespace itself is not to be found.
    pub fn repair(&mut self, slot: &Slot, holder: Option<BorrowedFd<'_>>) -> Result<(), NetError> {
        let kernel = self.kernel()?;
        kernel::apart(|| kernel.repair(slot, holder))?
    }

    /// Takes down what slots share: the nft table of that name, the present one or one of a former scheme, forwarding at
    /// the uplink where it was off before, `/run/netns` where a daemon of ours made it and nothing is in it. Only for when
    /// no slot of that table is left.
    ///
    /// # Errors
    /// `Foreign` where somebody else uses it, and the kernel's.
    pub fn dismantle(&mut self, table: &str) -> Result<Released, NetError> {
        self.kernel()?.dismantle(table)
    }

    fn kernel(&mut self) -> Result<&mut Kernel, NetError> {
        let kernel = match self.kernel.take() {
            Some(kernel) => kernel,
            None => Kernel::open(self.scheme.clone())?,
        };
        Ok(self.kernel.insert(kernel))
    }
}

/// Whether this process may make slots at all; changes nothing.
///
/// # Errors
/// `Unsupported` where it may not change namespaces, or not speak to the kernel of links and rules.
pub fn permitted() -> Result<(), NetError> {
    kernel::sockets()?;
    kernel::apart(|| ())
}

/// Opens the namespace of a made slot, for a child to enter.
///
/// # Errors
/// It is missing, or what bears its name is not ours.
pub fn open_netns(slot: &Slot) -> io::Result<OwnedFd> {
    let mut netlink = Netlink::open(Family::Route).map_err(|refused| io::Error::other(refused.to_string()))?;
    match entry::look(&mut netlink, slot).map_err(io::Error::other)? {
        Entry::Ours(namespace) => Ok(namespace.into()),
        Entry::Foreign(stranger) => Err(io::Error::other(stranger)),
        Entry::Missing | Entry::Empty => Err(io::ErrorKind::NotFound.into()),
    }
}
