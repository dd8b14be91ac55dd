//! Who has a state or a run directory: a daemon holds a lock of the directory itself as long as it lives, and no lock file
//! is written.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How long the lock may take to come free: a child that a dead worker had not released yet holds copies of its
/// descriptors until it has seen that nobody will, which takes a busy host a while.
const PATIENCE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(5);

/// Holds the directory `dir` for a daemon as long as that is open; `false` where another daemon does.
///
/// # Errors
/// As `flock(2)`.
///
/// # Blocking
/// For half a second.
pub fn hold(dir: &File) -> io::Result<bool> {
    lock_within(PATIENCE, || dir.try_lock())
}

/// Whether a daemon holds `state_dir`, or something that a dead one left does for longer than that may last.
pub(crate) fn stays_held(state_dir: &Path) -> io::Result<bool> {
    let dir = File::open(state_dir)?;
    Ok(!lock_within(PATIENCE, || dir.try_lock_shared())?)
}

/// Whether a daemon holds `state_dir` at this moment. RACE: one that begins in it finds the lock taken, and tries again.
pub(crate) fn is_held(state_dir: &Path) -> io::Result<bool> {
    let dir = File::open(state_dir)?;
    Ok(!lock_within(Duration::ZERO, || dir.try_lock_shared())?)
}

fn lock_within(patience: Duration, lock: impl Fn() -> Result<(), TryLockError>) -> io::Result<bool> {
    let mut waited = Duration::ZERO;
    loop {
        match lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) if waited >= patience => return Ok(false),
            Err(TryLockError::WouldBlock) => thread::sleep(PAUSE),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        waited += PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_comes_free_in_a_moment_is_waited_for_and_nothing_else() {
        let tries = Cell::new(0);
        let held_until = |last: u32| {
            tries.set(0);
            lock_within(PATIENCE, || {
                tries.set(tries.get() + 1);
                if tries.get() < last { Err(TryLockError::WouldBlock) } else { Ok(()) }
            })
        };
        assert!(held_until(3).unwrap());
        assert_eq!(tries.get(), 3);
        assert!(!held_until(u32::MAX).unwrap(), "a daemon's");
        assert!(lock_within(Duration::ZERO, || Err(TryLockError::WouldBlock)).is_ok_and(|locked| !locked));
    }
}
