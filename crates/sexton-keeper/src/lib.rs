//! The small parent of other processes, in two uses of one program, `sexton-init`.
//!
//! As an image's entry point it runs one command, forwards signals to it, reaps whatever reparents to it, and ends as
//! the command did ([`init`]). As the keeper it does the same for the daemon's worker, and besides outlives it: it
//! holds the worker's listeners, records the exits of processes that the worker left behind, and replaces the worker
//! when it dies or is upgraded ([`turn`]).
//!
//! It has one thread and one loop, needs no allocator, and works without std and without a C library, because it must
//! still work when nothing else does. It never waits for or signals a process by number unless that process is its own
//! unreaped child.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

use sexton_sys::entry::Start;

mod args;
mod children;
mod init;
pub mod link;
mod text;
pub mod wire;

/// What `sexton-init` does; tells its exit code.
pub fn main(start: Start) -> i32 {
    init::run(start)
}
