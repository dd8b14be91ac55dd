//! How soon a dead worker is replaced.

use crate::clock::Time;

/// The first and the longest delay of a restart.
const DELAY: Time = Time::millis(100);
const LONGEST_DELAY: Time = Time::millis(2000);

/// When the next worker is started.
#[derive(Debug)]
pub(crate) struct Starts {
    /// Workers started so far.
    pub(crate) count: u64,
    /// Deaths since one was ready.
    pub(crate) failures: u32,
    /// When the next one is started; `Time::NEVER` while one is alive.
    pub(crate) at: Time,
}

impl Starts {
    /// The first is started at once.
    pub(crate) const fn new() -> Starts {
        Starts { count: 0, failures: 0, at: Time::ZERO }
    }

    /// Plans the next start: at once, then after a delay that doubles.
    pub(crate) fn plan(&mut self, now: Time) -> Time {
        let delay = match self.failures.checked_sub(1) {
            None => Time::ZERO,
            Some(doublings) => (DELAY * (1 << doublings.min(10))).min(LONGEST_DELAY),
        };
        self.failures = self.failures.saturating_add(1);
        self.at = now + delay;
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_worker_is_replaced_at_once_and_then_ever_later() {
        let mut starts = Starts::new();
        let delays: std::vec::Vec<Time> = (0..9).map(|_| starts.plan(Time::ZERO)).collect();
        assert_eq!(delays, [0, 100, 200, 400, 800, 1600, 2000, 2000, 2000].map(Time::millis));
        starts.failures = u32::MAX;
        assert_eq!(starts.plan(Time::ZERO), LONGEST_DELAY);
        starts.failures = 0;
        assert_eq!(starts.plan(Time::ZERO), Time::ZERO);
    }
}
