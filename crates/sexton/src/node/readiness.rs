//! Descriptors watched by the runtime.

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches the descriptor that `inner` owns, for as long as `inner` lives.
///
/// # Errors
/// The kernel refused, as for a descriptor that cannot be polled.
#[allow(
    deprecated,
    reason = "the newer call asks for `AsFd`, which needs unsafe code to implement over a raw number; every type watched \
              here owns its descriptor, which is what that call is there to make sure of"
)]
pub fn watch<T: AsRawFd>(inner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(inner, interest)
}
