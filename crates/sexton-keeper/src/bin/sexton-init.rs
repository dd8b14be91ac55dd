//! PID 1 of a container, and the keeper of `sexton serve`: see the library of this package.

// Checks of all targets build every program with a test harness too, which needs std.
#![cfg_attr(not(test), no_std, no_main)]

#[cfg(not(test))]
sexton_sys::program!(sexton_keeper::main);

#[cfg(test)]
fn main() {}
