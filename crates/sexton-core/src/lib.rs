//! Custody of processes as a library: which process it is, how it is made, how it ends, and what it left.
//!
//! Synchronous, without a runtime of its own. Every process is held by a [`handle::Handle`], never by a number.
//!
//! Elsewhere than on Linux, and in a build with `--cfg sexton_stub`, it compiles all the same and each call answers that
//! it is unsupported, so that a program for several systems can embed it.

#![forbid(unsafe_code)]

mod cgroup2;
pub mod cgroup_dir;
pub mod delegation;
pub mod domain;
pub mod features;
pub mod gate;
pub mod handle;
pub mod look;
pub mod pin;
pub mod proc;
pub mod reaper;
pub mod spawn;
pub mod sweep;
pub mod tree;

/// What the reaper's thread and its callers are made of; the model checker has its own.
mod sync {
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, atomic, mpsc};
    pub(crate) use std::thread;
}

/// The kernel; the model checker has its own.
use sexton_sys as sys;

/// Ends the calling process as `kill -9` would, through a pidfd on itself; for fault tests.
pub fn kill_self() -> ! {
    let me = i32::try_from(std::process::id()).unwrap_or_default();
    loop {
        let _never_returns = sexton_sys::pidfd::open(me).and_then(|fd| sexton_sys::pidfd::send_signal(fd.raw(), 9));
    }
}
