//! The stop ladder: which step follows which, whatever is being stopped.
//!
//! ```text
//!   Ask ◄─► Grace ──► Kill ──► Watch ──► Stuck
//!    └────────┴─────────┴────────┴─────────┴──► Done   (as soon as nothing lives)
//! ```

use core::time::Duration;

/// Where a stop stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// Take the next step of asking: a word in the runtime's own language, or a signal with SIGCONT, thawed.
    Ask,
    /// Wait for the step, or the grace, to pass.
    Grace,
    /// `cgroup.kill`, and SIGKILL by pidfd to each one that it missed.
    Kill,
    /// Wait for what was killed to be gone; kill what appeared meanwhile.
    Watch,
    /// The kernel does not end it: say so, and look again.
    Stuck,
    /// Nothing lives.
    Done,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// The step was carried out.
    Carried,
    /// Its time is over, and something lives.
    TimeOver,
    /// SIGKILL was asked for.
    Forced,
    /// Nothing lives.
    Empty,
    /// The time of one step of asking is over, and another one follows.
    StepOver,
}

/// How long after SIGKILL something may live before it is called stuck.
pub const STUCK_AFTER: Duration = Duration::from_millis(4_500);
/// How often the stuck are looked at again.
pub const STUCK_LOOK: Duration = Duration::from_millis(900);

const RUNGS: [Rung; 6] = [Rung::Ask, Rung::Grace, Rung::Kill, Rung::Watch, Rung::Stuck, Rung::Done];

/// The rung that follows, by rung (row) and happening (column: carried, time over, forced, empty, step over).
const TABLE: [[Rung; 5]; 6] = {
    use Rung::{Ask, Done, Grace, Kill, Stuck, Watch};
    [
        /* Ask   */ [Grace, Grace, Kill, Done, Ask],
        /* Grace */ [Grace, Kill, Kill, Done, Ask],
        /* Kill  */ [Watch, Stuck, Watch, Done, Watch],
        /* Watch */ [Kill, Stuck, Watch, Done, Kill],
        /* Stuck */ [Stuck, Kill, Stuck, Done, Kill],
        /* Done  */ [Done, Done, Done, Done, Done],
    ]
};

impl Rung {
    /// The first rung of a stop.
    pub const fn first(force: bool) -> Rung {
        if force { Rung::Kill } else { Rung::Ask }
    }

    /// The rung after `happening`.
    pub fn next(self, happening: Happening) -> Rung {
        let row = RUNGS.iter().position(|rung| *rung == self).and_then(|row| TABLE.get(row));
        row.and_then(|row| row.get(happening as usize)).copied().unwrap_or(Rung::Kill)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rung_ends_when_nothing_lives() {
        for rung in RUNGS {
            assert_eq!(rung.next(Happening::Empty), Rung::Done, "{rung:?}");
        }
    }

    #[test]
    fn a_forced_stop_never_asks_again() {
        let mut rung = Rung::first(true);
        for happening in [Happening::Carried, Happening::TimeOver, Happening::Carried, Happening::TimeOver] {
            assert!(!matches!(rung, Rung::Ask | Rung::Grace), "{rung:?}");
            rung = rung.next(happening);
        }
        for rung in [Rung::Ask, Rung::Grace] {
            assert_eq!(rung.next(Happening::Forced), Rung::Kill);
        }
    }

    #[test]
    fn a_polite_stop_asks_waits_and_kills() {
        let asked = Rung::first(false);
        assert_eq!(asked, Rung::Ask);
        assert_eq!(asked.next(Happening::Carried), Rung::Grace);
        assert_eq!(Rung::Grace.next(Happening::StepOver), Rung::Ask, "another step follows");
        assert_eq!(Rung::Grace.next(Happening::TimeOver), Rung::Kill);
        assert_eq!(Rung::Kill.next(Happening::Carried), Rung::Watch);
        assert_eq!(Rung::Watch.next(Happening::TimeOver), Rung::Stuck);
        assert_eq!(Rung::Stuck.next(Happening::TimeOver), Rung::Kill, "the stuck are tried again");
    }
}
