//! Custody of processes as a library: which process it is, how it is made, how it ends, and what it left.
//!
//! Synchronous, without a runtime of its own. Every process is held by a [`handle::Handle`], never by a number.

#![forbid(unsafe_code)]

pub mod domain;
pub mod features;
pub mod handle;
pub mod pin;
pub mod proc;
pub mod spawn;
