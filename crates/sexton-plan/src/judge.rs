//! What to make of one recorded instance after one look at the kernel: the one place that decides it, at every start
//! of the worker and at every reconcile.

use crate::state::State;

/// What the look found of the recorded main process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessSeen {
    /// No process had been recorded.
    NotRecorded,
    /// It lives (or is a zombie), and is proven to be the recorded one.
    Same,
    /// It is proven gone.
    Gone,
    /// Neither is proven, or it could not be read.
    Unproven,
}

/// What the look found of the domain of a process that it cannot see itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainSeen {
    /// Something lives in the very domain that was made for it.
    Populated,
    /// Nothing does, or it is removed.
    Empty,
    /// It has none, or it could not be read.
    Unknown,
}

/// What is known of another PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceSeen {
    /// Its first process has ended, and so have all others.
    Ended,
    /// Nothing.
    Unknown,
}

/// What to make of a recorded process that may live out of sight, in another PID namespace of this boot. Its domain is
/// seen from everywhere: what lives there is not gone, and cannot be told apart; where nothing does, it has ended, as
/// with a restarted container. Without a domain only the end of that namespace tells.
pub const fn out_of_sight(domain: DomainSeen, namespace: NamespaceSeen) -> ProcessSeen {
    match (domain, namespace) {
        (DomainSeen::Empty, _) | (DomainSeen::Unknown, NamespaceSeen::Ended) => ProcessSeen::Gone,
        (DomainSeen::Populated, _) | (DomainSeen::Unknown, NamespaceSeen::Unknown) => ProcessSeen::Unproven,
    }
}

/// What a started child left on its mark before `execve`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkSeen {
    /// There is no mark.
    Absent,
    /// It could not be read.
    Unread,
    /// It was never released: it ran nothing and never will.
    Waiting,
    /// It was released and went on to `execve`.
    Released,
    /// It was released, and something was refused before its program ran.
    Refused,
}

/// What a claim says, as far as it decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The recorded state.
    pub state: State,
    /// Whether a stop was accepted and is not finished.
    pub stop_ordered: bool,
    /// Whether the main process's exit is recorded.
    pub exit_known: bool,
    /// Whether something acquired is not yet given back.
    pub holds_resources: bool,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same process lives: watch it.
    Adopt,
    /// Carry the stop to its end, or clear away what the main process left.
    FinishStop,
    /// It never ran: give back what was acquired.
    RollBack,
    /// It is gone: learn how it ended, and give back what it held.
    Close,
    /// Terminal, with something left to give back.
    Release,
    /// Neither ours nor gone for certain: keep hands off.
    LeaveUnverified,
    /// Nothing to do.
    Rest,
}

/// Judges one instance.
pub fn judge(claimed: Claimed, process: ProcessSeen, mark: MarkSeen) -> Verdict {
    match claimed.state {
        // What is doubted may have been doubted as it started.
        State::Starting | State::Unverified => judge_starting(claimed, process, mark),
        State::Running | State::Stopping | State::Stuck => judge_live(claimed, process),
        State::Exited | State::Failed | State::Lost if claimed.holds_resources => Verdict::Release,
        State::Exited | State::Failed | State::Lost => Verdict::Rest,
    }
}

/// A start that was interrupted. What was never released, or refused before its program ran, never ran.
fn judge_starting(claimed: Claimed, process: ProcessSeen, mark: MarkSeen) -> Verdict {
    match (mark, process) {
        (_, ProcessSeen::NotRecorded) | (MarkSeen::Waiting | MarkSeen::Refused, _) => Verdict::RollBack,
        // How what never ran has ended is no exit.
        (MarkSeen::Unread, _) if !claimed.exit_known => Verdict::LeaveUnverified,
        (MarkSeen::Absent | MarkSeen::Unread | MarkSeen::Released, _) => judge_live(claimed, process),
    }
}

fn judge_live(claimed: Claimed, process: ProcessSeen) -> Verdict {
    let ending = claimed.stop_ordered || claimed.exit_known || matches!(claimed.state, State::Stopping | State::Stuck);
    match process {
        ProcessSeen::Same if ending => Verdict::FinishStop,
        ProcessSeen::Same => Verdict::Adopt,
        ProcessSeen::Gone | ProcessSeen::NotRecorded => Verdict::Close,
        // Its end is known, so whatever has its number now is a stranger; what is left lies in its domain.
        ProcessSeen::Unproven if claimed.exit_known => Verdict::Close,
        ProcessSeen::Unproven => Verdict::LeaveUnverified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESSES: [ProcessSeen; 4] =
        [ProcessSeen::NotRecorded, ProcessSeen::Same, ProcessSeen::Gone, ProcessSeen::Unproven];
    const MARKS: [MarkSeen; 5] =
        [MarkSeen::Absent, MarkSeen::Unread, MarkSeen::Waiting, MarkSeen::Released, MarkSeen::Refused];

    fn claimed(state: State) -> Claimed {
        Claimed { state, stop_ordered: false, exit_known: false, holds_resources: true }
    }

    /// Every combination there is.
    fn all() -> impl Iterator<Item = (Claimed, ProcessSeen, MarkSeen)> {
        let flags = [false, true];
        State::ALL.iter().flat_map(move |state| {
            flags.into_iter().flat_map(move |stop_ordered| {
                flags.into_iter().flat_map(move |exit_known| {
                    PROCESSES.into_iter().flat_map(move |process| {
                        MARKS.into_iter().map(move |mark| {
                            let claimed = Claimed { stop_ordered, exit_known, ..claimed(*state) };
                            (claimed, process, mark)
                        })
                    })
                })
            })
        })
    }

    #[test]
    fn only_a_process_proven_the_same_is_adopted_or_stopped() {
        for (claimed, process, mark) in all() {
            let verdict = judge(claimed, process, mark);
            if matches!(verdict, Verdict::Adopt | Verdict::FinishStop) {
                assert_eq!(process, ProcessSeen::Same, "{claimed:?} {mark:?}");
            }
        }
    }

    #[test]
    fn could_not_read_is_never_gone() {
        for (claimed, _, mark) in all() {
            let is_of_a_start = matches!(claimed.state, State::Starting | State::Unverified);
            let never_ran = is_of_a_start && matches!(mark, MarkSeen::Waiting | MarkSeen::Refused);
            if !claimed.state.is_terminal() && !claimed.exit_known && !never_ran {
                assert_eq!(judge(claimed, ProcessSeen::Unproven, mark), Verdict::LeaveUnverified, "{claimed:?}");
            }
        }
    }

    #[test]
    fn a_start_of_which_the_mark_cannot_be_read_is_not_closed() {
        for state in [State::Starting, State::Unverified] {
            for process in [ProcessSeen::Same, ProcessSeen::Gone, ProcessSeen::Unproven] {
                assert_eq!(judge(claimed(state), process, MarkSeen::Unread), Verdict::LeaveUnverified, "{process:?}");
            }
            assert_eq!(judge(claimed(state), ProcessSeen::Gone, MarkSeen::Waiting), Verdict::RollBack);
            assert_eq!(judge(claimed(state), ProcessSeen::Gone, MarkSeen::Released), Verdict::Close);
        }
    }

    #[test]
    fn what_is_out_of_sight_is_gone_only_where_its_domain_or_its_namespace_proves_it() {
        for (domain, namespace, expected) in [
            (DomainSeen::Empty, NamespaceSeen::Unknown, Verdict::Close),
            (DomainSeen::Populated, NamespaceSeen::Unknown, Verdict::LeaveUnverified),
            (DomainSeen::Populated, NamespaceSeen::Ended, Verdict::LeaveUnverified),
            (DomainSeen::Unknown, NamespaceSeen::Unknown, Verdict::LeaveUnverified),
            (DomainSeen::Unknown, NamespaceSeen::Ended, Verdict::Close),
        ] {
            let seen = out_of_sight(domain, namespace);
            assert_eq!(judge(claimed(State::Running), seen, MarkSeen::Absent), expected, "{domain:?} {namespace:?}");
        }
    }

    #[test]
    fn a_start_whose_child_was_never_released_is_rolled_back() {
        for process in PROCESSES {
            assert_eq!(judge(claimed(State::Starting), process, MarkSeen::Waiting), Verdict::RollBack);
            assert_eq!(judge(claimed(State::Starting), process, MarkSeen::Refused), Verdict::RollBack);
        }
        assert_eq!(
            judge(claimed(State::Starting), ProcessSeen::NotRecorded, MarkSeen::Absent),
            Verdict::RollBack,
            "nothing recorded, nothing ran"
        );
    }

    #[test]
    fn a_start_that_was_released_goes_on() {
        let starting = claimed(State::Starting);
        assert_eq!(judge(starting, ProcessSeen::Same, MarkSeen::Released), Verdict::Adopt);
        assert_eq!(judge(starting, ProcessSeen::Gone, MarkSeen::Released), Verdict::Close);
        let stopped = Claimed { stop_ordered: true, ..starting };
        assert_eq!(judge(stopped, ProcessSeen::Same, MarkSeen::Released), Verdict::FinishStop);
    }

    #[test]
    fn an_accepted_stop_is_carried_to_its_end() {
        for state in [State::Running, State::Stopping, State::Stuck, State::Unverified] {
            let ordered = Claimed { stop_ordered: true, ..claimed(state) };
            assert_eq!(judge(ordered, ProcessSeen::Same, MarkSeen::Absent), Verdict::FinishStop);
            assert_eq!(judge(ordered, ProcessSeen::Gone, MarkSeen::Absent), Verdict::Close);
        }
    }

    #[test]
    fn the_terminal_only_give_back() {
        for state in [State::Exited, State::Failed, State::Lost] {
            for process in PROCESSES {
                assert_eq!(judge(claimed(state), process, MarkSeen::Absent), Verdict::Release);
                let empty = Claimed { holds_resources: false, ..claimed(state) };
                assert_eq!(judge(empty, process, MarkSeen::Absent), Verdict::Rest);
            }
        }
    }
}
