//! Network slots, the kernel's side: namespaces, links, addresses, routes, and rules of the one nft table.
//!
//! Blocking, and for one thread of its own. Decides nothing about instances and keeps no record: everything is found
//! again by the names of [`Scheme`] and proven by marks that the kernel keeps.

mod scheme;

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

pub use scheme::{Scheme, Slot};

/// The network of one daemon. Makes nothing until it is told to.
#[derive(Debug)]
pub struct Net {
    scheme: Scheme,
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

/// What was found of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// All of it.
    Whole,
    /// Nothing at all of its link, its entry and its rules.
    Absent,
    /// Some of it.
    Damaged(Vec<What>),
    /// Something that is not ours bears its name or address; says what.
    Foreign(String),
}

/// A part of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Its entry below `/run/netns`.
    Namespace,
    /// Its veth pair, or the pair is down or leads elsewhere.
    Link,
    /// The host's address on it.
    Address,
    /// Its element, or the rules of the table.
    Rule,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            What::Namespace => "namespace",
            What::Link => "link",
            What::Address => "address",
            What::Rule => "rule",
        })
    }
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
    /// The network that `scheme` describes.
    pub fn open(scheme: Scheme) -> Net {
        Net { scheme }
    }

    /// Makes slots, and what they share if that is missing: each whole, or nothing of it.
    ///
    /// # Blocking
    /// A millisecond or so a slot.
    pub fn make(&mut self, slots: &[Slot]) -> Vec<Result<Made, NetError>> {
        let _ = &self.scheme;
        slots.iter().map(|_| Err(NetError::Unsupported("network slots".to_owned()))).collect()
    }

    /// Takes slots down, whatever is left of them. Nothing of a tenant survives, for its namespace is destroyed.
    ///
    /// `Busy` says that everything was taken down and somebody still holds the namespace; asked again later it tells
    /// when it is free.
    pub fn release(&mut self, slots: &[Slot]) -> Vec<Result<Released, NetError>> {
        slots.iter().map(|_| Ok(Released::WasGone)).collect()
    }

    /// Looks at all of `slots` at once.
    ///
    /// # Errors
    /// The kernel could not be asked: nothing is known.
    pub fn observe(&mut self, slots: &[Slot]) -> Result<Vec<Seen>, NetError> {
        Ok(slots.iter().map(|_| Seen::Absent).collect())
    }

    /// Puts back what is missing of a slot. `holder` is the network namespace of the process that lives in it, opened
    /// through its handle: with that even the slot's entry can be put back.
    ///
    /// # Errors
    /// As [`Net::make`]; `Failed` where the namespace itself is not to be found.
    pub fn repair(&mut self, _slot: &Slot, _holder: Option<BorrowedFd<'_>>) -> Result<(), NetError> {
        Err(NetError::Unsupported("network slots".to_owned()))
    }

    /// Takes down what the slots share, the table included. Only for when no slot is left.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn dismantle(&mut self) -> Result<Released, NetError> {
        Ok(Released::WasGone)
    }
}

/// Opens the namespace of a made slot, for a child to enter.
///
/// # Errors
/// It is missing, or what bears its name is not ours.
pub fn open_netns(_slot: &Slot) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}
