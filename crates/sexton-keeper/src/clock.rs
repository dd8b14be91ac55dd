//! Time as the keeper counts it.

use core::ops::{Add, Mul, Sub};
use core::time::Duration;

use sexton_sys::text::{Show, Text};
use sexton_sys::time;

/// Nanoseconds: a moment of the monotonic clock, or what lies between two. It stops at its ends, and the last moment
/// never comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(u64);

impl Time {
    /// No time, and a moment that has passed.
    pub(crate) const ZERO: Time = Time(0);
    /// A moment that does not come.
    pub(crate) const NEVER: Time = Time(u64::MAX);
    /// A second.
    pub(crate) const SECOND: Time = Time::millis(1000);

    /// So many milliseconds.
    pub(crate) const fn millis(count: u32) -> Time {
        Time(count as u64 * 1_000_000)
    }

    /// The present moment.
    pub(crate) fn now() -> Time {
        Time::of(time::monotonic())
    }

    /// `span`, which no clock of a kernel shows that does not fit.
    pub(crate) fn of(span: Duration) -> Time {
        Time(span.as_secs().saturating_mul(1_000_000_000).saturating_add(span.subsec_nanos().into()))
    }

    /// So many nanoseconds, as they were stored.
    pub(crate) const fn from_nanos(count: u64) -> Time {
        Time(count)
    }

    /// The nanoseconds.
    pub(crate) const fn nanos(self) -> u64 {
        self.0
    }

    /// How long to wait from `now` on for this moment; `None` for as long as it takes.
    pub(crate) fn pause(self, now: Time) -> Option<Duration> {
        (self != Time::NEVER).then(|| Duration::from_nanos((self - now).0))
    }
}

impl Add for Time {
    type Output = Time;

    fn add(self, other: Time) -> Time {
        Time(self.0.saturating_add(other.0))
    }
}

impl Sub for Time {
    type Output = Time;

    fn sub(self, other: Time) -> Time {
        Time(self.0.saturating_sub(other.0))
    }
}

impl Mul<u64> for Time {
    type Output = Time;

    fn mul(self, times: u64) -> Time {
        Time(self.0.saturating_mul(times))
    }
}

/// Whole milliseconds.
impl Show for Time {
    fn show(&self, text: &mut Text) {
        text.add(self.0 / 1_000_000);
    }
}
