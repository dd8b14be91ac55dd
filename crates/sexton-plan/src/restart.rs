//! The restart policy: whether a new incarnation follows, and after which pause.

use core::time::Duration;

use crate::state::{Restart, State};

/// The first pause.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(60);
/// A life at least so long makes the count begin anew.
pub const STEADY: Duration = Duration::from_secs(60);

/// How a life ended, as far as the policy asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The terminal state.
    pub state: State,
    /// Whether its exit is a success.
    pub success: bool,
    /// Whether it ended by a stop that was asked for.
    pub stopped: bool,
}

/// Whether `policy` starts a new incarnation after such an end.
pub fn restarts(policy: Restart, ended: Ended) -> bool {
    if ended.stopped {
        return false;
    }
    match (policy, ended.state) {
        (Restart::Never, _) => false,
        (Restart::Always, State::Exited | State::Lost) => true,
        // Of the lost nobody knows that they failed.
        (Restart::OnFailure, State::Exited) => !ended.success,
        // What never ran will not run by being tried again.
        (Restart::Always | Restart::OnFailure, _) => false,
    }
}

/// The pause before restart number `count` (from 0): 100 ms, doubling, at most a minute.
pub fn pause(count: u32) -> Duration {
    FIRST.saturating_mul(1 << count.min(10)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(state: State, success: bool) -> Ended {
        Ended { state, success, stopped: false }
    }

    #[test]
    fn the_policy_is_as_the_contract_has_it() {
        for (policy, success, failure, lost) in [
            (Restart::Never, false, false, false),
            (Restart::OnFailure, false, true, false),
            (Restart::Always, true, true, true),
        ] {
            assert_eq!(restarts(policy, ended(State::Exited, true)), success, "{policy}");
            assert_eq!(restarts(policy, ended(State::Exited, false)), failure, "{policy}");
            assert_eq!(restarts(policy, ended(State::Lost, false)), lost, "{policy}");
            let stopped = Ended { stopped: true, ..ended(State::Exited, false) };
            assert!(!restarts(policy, stopped), "{policy}");
            // What never ran will not run by being tried again.
            assert!(!restarts(policy, ended(State::Failed, false)), "{policy}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_minute() {
        assert_eq!([0, 1, 2].map(pause).map(|pause| pause.as_millis()), [100, 200, 400]);
        assert_eq!(pause(9), Duration::from_millis(51_200));
        assert_eq!([10, 11, u32::MAX].map(pause), [LONGEST; 3]);
    }
}
