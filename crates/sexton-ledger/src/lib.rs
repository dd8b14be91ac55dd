//! The ledger: what Sexton promised, written before the kernel is touched.

#![forbid(unsafe_code)]

pub mod duration;
pub mod entry;
