//! The system calls of Sexton, without std and without libc.
//!
//! All unsafe code of the project is here (and in the bindings' C ABI); every other crate forbids it. Nothing in
//! this crate allocates or touches thread-local storage, so the keeper can be a program without a C library, and a
//! child that shares its parent's memory can use it until `execve`.

#![no_std]
#![allow(unsafe_code, reason = "this crate is where the project's unsafe code lives")]

mod arch;
pub mod clone;
mod error;
pub mod fd;
pub mod mount;
pub mod pidfd;
pub mod xattr;

pub use error::{Errno, SysError};
pub use fd::{Fd, RawFd};
