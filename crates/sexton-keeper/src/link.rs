//! The worker's end of the connection to its keeper.

use sexton_sys::socket::{receive, send, unreceived};
use sexton_sys::{Errno, Fd, RawFd, SysError, file};

use crate::wire::{MAX_MESSAGE, Malformed, StoreName, ToKeeper, ToWorker};

/// Names the inherited descriptor of the connection.
pub const KEEPER_FD_VARIABLE: &str = "SEXTON_KEEPER_FD";
/// `prepare` for a candidate that runs beside its predecessor, `run` for any other worker.
pub const PHASE_VARIABLE: &str = "SEXTON_PHASE";

/// What came from the keeper.
#[derive(Debug)]
pub struct FromKeeper {
    /// The message; `None` for one of a later version, to be passed over.
    pub message: Option<ToWorker>,
    /// The descriptor that came with a `Stored`.
    pub fd: Option<Fd>,
}

/// Why nothing came from the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkError {
    /// Nothing is there yet; wait until the descriptor is readable.
    Empty,
    /// The keeper has ended: so must the worker.
    Closed,
    /// What came is no message.
    Malformed,
    /// The kernel refused.
    Refused(SysError),
}

impl core::fmt::Display for LinkError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            LinkError::Empty => f.write_str("no message from the keeper yet"),
            LinkError::Closed => f.write_str("the keeper has ended"),
            LinkError::Malformed => core::fmt::Display::fmt(&Malformed, f),
            LinkError::Refused(error) => core::fmt::Display::fmt(error, f),
        }
    }
}

impl core::error::Error for LinkError {}

/// The worker's end. Nothing here blocks; a daemon polls `raw` for its runtime.
#[derive(Debug)]
pub struct KeeperLink(Fd);

impl KeeperLink {
    /// Takes over the descriptor that `SEXTON_KEEPER_FD` names, and hides it from children.
    ///
    /// # Errors
    /// `EBADF` where it is not open.
    pub fn inherit(fd: RawFd) -> Result<KeeperLink, SysError> {
        file::set_close_on_exec(fd, true)?;
        Ok(KeeperLink(Fd::from_raw(fd)))
    }

    /// The descriptor, for polling.
    pub const fn raw(&self) -> RawFd {
        self.0.raw()
    }

    /// Sends `message`.
    ///
    /// # Errors
    /// `EAGAIN` where the keeper is behind: wait until the descriptor is writable and send it again, in order.
    /// `EPIPE` where it has ended.
    pub fn send(&self, message: &ToKeeper) -> Result<(), SysError> {
        self.send_with(message, None)
    }

    /// Has the keeper hold a copy of `fd`, for the next worker.
    ///
    /// # Errors
    /// As `send`; `ETOOMANYREFS` for too many descriptors under way.
    pub fn store(&self, name: StoreName, fd: RawFd) -> Result<(), SysError> {
        self.send_with(&ToKeeper::Store(name), Some(fd))
    }

    fn send_with(&self, message: &ToKeeper, fd: Option<RawFd>) -> Result<(), SysError> {
        let mut packet = [0; MAX_MESSAGE];
        let len = message.encode(&mut packet);
        send(self.0.raw(), packet.get(..len).unwrap_or_default(), fd)
    }

    /// Whether the keeper, of whatever version, has taken in all that was sent.
    ///
    /// # Errors
    /// As [`unreceived`].
    pub fn is_heard(&self) -> Result<bool, SysError> {
        unreceived(self.0.raw()).map(|bytes| bytes == 0)
    }

    /// Takes one message.
    ///
    /// # Errors
    /// `Empty` where there is none yet.
    pub fn receive(&self) -> Result<FromKeeper, LinkError> {
        let mut packet = [0; MAX_MESSAGE];
        let received = match receive(self.0.raw(), &mut packet) {
            Ok(received) if received.len == 0 => return Err(LinkError::Closed),
            Ok(received) => received,
            Err(error) if error.errno == Errno::EAGAIN => return Err(LinkError::Empty),
            Err(error) if error.errno == Errno::ECONNRESET => return Err(LinkError::Closed),
            Err(error) => return Err(LinkError::Refused(error)),
        };
        let bytes = packet.get(..received.len).unwrap_or_default();
        let message = ToWorker::decode(bytes).map_err(|Malformed| LinkError::Malformed)?;
        Ok(FromKeeper { message, fd: received.fd })
    }
}
