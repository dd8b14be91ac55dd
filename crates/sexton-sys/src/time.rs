//! The clocks that the kernel is asked for.

use core::time::Duration;

use crate::arch::{nr, syscall};

/// `struct timespec`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Timespec {
    seconds: i64,
    nanos: i64,
}

impl Timespec {
    /// The kernel's form of `duration`; one too long for it means the longest there is.
    pub(crate) fn of(duration: Duration) -> Timespec {
        let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        Timespec { seconds, nanos: duration.subsec_nanos().into() }
    }
}

/// Time since some fixed moment of this boot (`CLOCK_MONOTONIC`): for intervals, it never steps.
pub fn monotonic() -> Duration {
    read_clock(1)
}

/// Time since 1970 (`CLOCK_REALTIME`): for records that people read, it may step.
pub fn realtime() -> Duration {
    read_clock(0)
}

/// Time since boot, suspended time included (`CLOCK_BOOTTIME`): what start ticks in `/proc` are counted in.
pub fn boottime() -> Duration {
    read_clock(7)
}

/// What this thread has taken of a CPU (`CLOCK_THREAD_CPUTIME_ID`): for costs, which others on the machine do not
/// lengthen.
pub fn thread_cpu() -> Duration {
    read_clock(3)
}

/// Reads clock `id`; all ids used exist on every kernel, so there is no error to tell.
fn read_clock(id: usize) -> Duration {
    let mut now = Timespec::default();
    // SAFETY: the kernel writes one timespec into `now`.
    let _always = unsafe { syscall(nr::CLOCK_GETTIME, [id, &raw mut now as usize]) };
    let nanos = u32::try_from(now.nanos).unwrap_or(0);
    Duration::new(u64::try_from(now.seconds).unwrap_or(0), nanos)
}
