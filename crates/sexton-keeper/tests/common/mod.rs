//! What the tests of both uses of `sexton-init` share.

#![allow(dead_code, reason = "each test program uses its part")]

use std::time::{Duration, Instant};

use sexton_sys::pidfd;

/// The program under test.
pub const INIT: &str = env!("CARGO_BIN_EXE_sexton-init");

/// Looks again and again until `look` finds something; panics with `what` when it does not within 20 s.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "it never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends `signal` to a process that the test started and has not reaped.
pub fn send(pid: u32, signal: u8) {
    let fd = pidfd::open(i32::try_from(pid).unwrap()).unwrap();
    pidfd::send_signal(fd.raw(), signal.into()).unwrap();
}

/// Field `number` of `/proc/PID/stat`, counted from 1 as in `proc(5)`; `None` once it is gone.
pub fn stat(pid: u32, number: usize) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = &text[text.rfind(')')? + 2..];
    rest.split(' ').nth(number - 3).map(str::to_owned)
}

/// Whether the process is there and no zombie.
pub fn is_alive(pid: u32) -> bool {
    stat(pid, 3).is_some_and(|state| state != "Z" && state != "X")
}
