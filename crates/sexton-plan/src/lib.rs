//! Decisions about processes in custody, and nothing else.
//!
//! This crate cannot read a clock, a file or a variable: it is `no_std`, so whoever calls it hands in what was
//! seen and gets back what to do. The same input gives the same answer, always.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod check;
pub mod claim;
pub mod gate;
pub mod id;
pub mod identity;
pub mod judge;
pub mod kill;
pub mod ladder;
pub mod plan;
pub mod pool;
pub mod restart;
pub mod slot;
pub mod state;
pub mod world;
