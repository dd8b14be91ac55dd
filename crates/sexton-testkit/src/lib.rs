//! Test helpers: a ground of one's own, daemons on it that can be killed at will, and a client that is not ours.
//!
//! What a test starts lies in one directory and one cgroup named by a run id, so that tests never meet, and dropping
//! the [`Ground`] leaves the host as it was. Nothing is signalled except through a pidfd that was proven to be of
//! a process that this test, or a daemon of its own, has started.

#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, clippy::missing_panics_doc, reason = "a test helper tells and panics; that is its use")]

mod alone;
mod client;
mod daemon;
mod ground;
mod held;
mod host;
mod numbers;
pub mod skip;

use std::time::{Duration, Instant};

pub use alone::{alone, pidfds_can_be_mounted};
pub use client::{Client, Connection, Response};
pub use daemon::Daemon;
pub use ground::{Ground, crash_bin_dir};
pub use held::Held;
pub use host::{HostSnapshot, cgroup2, host_snapshot, mounts_below, processes_in};
pub use numbers::with_own_numbers;

/// How long anything that is bound to happen may take on a machine that is busy with other tests.
pub const SOON: Duration = Duration::from_secs(30);

/// Looks until `look` is content, and tells what it then gave; an `Err` is what is still in the way.
///
/// # Panics
/// After `limit`, with what was in the way last.
pub fn eventually<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    const PAUSE: Duration = Duration::from_millis(3);
    let began = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(why) if began.elapsed() > limit => panic!("{what}: not within {limit:?}: {why}"),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// The beginning of a line of the shell behind which a program and its arguments stand: to that program the kernel refuses
/// what `refused` says, as older ones and the filters of sandboxes do (`refusing.py`).
pub fn refusing(refused: &[&str]) -> String {
    let words = refused.iter().map(|refused| format!("'{refused}' ")).collect::<String>();
    format!("exec python3 '{}/src/refusing.py' {words}--", env!("CARGO_MANIFEST_DIR"))
}

/// Ends the test because this machine cannot run it, and says so where it is counted.
///
/// `skip!(package "qemu-system-x86")` is for what can be installed: under `CI=true` that is a failure.
/// `skip!("no cgroup2")` is for what a machine is or is not.
#[macro_export]
macro_rules! skip {
    (package $name:literal) => {{
        $crate::skip::missing_package($name);
        return;
    }};
    ($($reason:tt)*) => {{
        $crate::skip::announce(&format!($($reason)*));
        return;
    }};
}
