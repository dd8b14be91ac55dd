//! The system calls of Sexton, without std and without libc.
//!
//! All unsafe code of the project is here (and in the bindings' C ABI); every other crate forbids it. Nothing in
//! this crate allocates or touches thread-local storage, so the keeper can be a program without a C library, and a
//! child that shares its parent's memory can use it until `execve`.

#![no_std]
#![allow(unsafe_code, reason = "this crate is where the project's unsafe code lives")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "a register is read as the type that the kernel says it holds; both machines have 64-bit ones"
)]

mod arch;
pub mod cgroup;
pub mod clone;
pub mod cpu;
pub mod entry;
mod error;
pub mod fd;
pub mod file;
pub mod inotify;
pub mod limit;
pub mod memory;
pub mod mount;
pub mod net;
pub mod pidfd;
pub mod poll;
pub mod process;
pub mod renumber;
pub mod signal;
pub mod socket;
pub mod strings;
pub mod text;
pub mod time;
pub mod wait;
pub mod xattr;

pub use error::{Call, Errno, SysError};
pub use fd::{Fd, RawFd};
