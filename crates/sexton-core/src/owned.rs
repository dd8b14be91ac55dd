//! The one door between the descriptors of `sexton-sys`, which knows no std, and those of std.

use std::os::fd::{FromRawFd, OwnedFd};

/// Hands `fd` over to std.
#[allow(unsafe_code, reason = "std's only way to take a descriptor over; the one unsafe line outside `sexton-sys`")]
pub fn into_std(fd: sexton_sys::Fd) -> OwnedFd {
    let raw = fd.into_raw();
    // SAFETY: `Fd` owned `raw` alone and has just given it away.
    unsafe { OwnedFd::from_raw_fd(raw) }
}
