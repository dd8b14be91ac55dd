//! How soon a dead worker is replaced.

use core::time::Duration;

/// The first and the longest delay of a restart.
const DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// When the next worker is started.
#[derive(Debug, Default)]
pub(crate) struct Starts {
    /// Workers started so far.
    pub(crate) count: u64,
    /// Deaths since one was ready.
    pub(crate) failures: u32,
    /// When the next one is started, where none is alive.
    pub(crate) at: Option<Duration>,
}

impl Starts {
    /// Plans the next start: at once, then after a delay that doubles.
    pub(crate) fn plan(&mut self, now: Duration) -> Duration {
        let delay = match self.failures.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => DELAY.saturating_mul(1 << doublings.min(10)).min(LONGEST_DELAY),
        };
        self.failures = self.failures.saturating_add(1);
        self.at = Some(now.saturating_add(delay));
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_worker_is_replaced_at_once_and_then_ever_later() {
        let mut starts = Starts::default();
        let delays: std::vec::Vec<u128> = (0..9).map(|_| starts.plan(Duration::ZERO).as_millis()).collect();
        assert_eq!(delays, [0, 100, 200, 400, 800, 1600, 2000, 2000, 2000]);
        starts.failures = u32::MAX;
        assert_eq!(starts.plan(Duration::ZERO), LONGEST_DELAY);
        starts.failures = 0;
        assert_eq!(starts.plan(Duration::ZERO), Duration::ZERO);
    }
}
