//! HUP: the worker is replaced by the program now on disk, and comes back if that one is no good.
//!
//! ```text
//!            HUP                     Prepared              predecessor ended            Ready
//!   Idle ──────────► Preparing ──────────────► Retiring ──────────────────► Proving ──────────► Idle, new program
//!                     │ ends, or 10 s           │ candidate ends            │ ends, or 30 s
//!                     ▼                         ▼                           ▼
//!                    Idle, old worker          old program is started       old program is started
//! ```

use core::time::Duration;

use sexton_sys::SysError;
use sexton_sys::process::{Child, SignalState};
use sexton_sys::wait::Ended;

use crate::worker::{Image, KeeperConfig, Phase, Worker};

/// BOUND: a candidate that has said nothing by then is ended.
const PREPARE: Duration = Duration::from_secs(10);
/// BOUND: a predecessor that has not ended by then is ended.
const RETIRE: Duration = Duration::from_secs(5);
/// BOUND: a released candidate that is not ready by then is ended.
const PROVE: Duration = Duration::from_secs(30);

/// How far a replacement is.
#[derive(Debug)]
pub(crate) enum Swap {
    /// None is going on.
    Idle,
    /// The candidate checks, the old worker serves.
    Preparing(Candidate),
    /// The candidate waits, the old worker ends.
    Retiring(Candidate),
    /// The candidate has become the worker, but has not shown that it is any good.
    Proving {
        /// What it runs.
        image: Image,
        /// Until when it is to be ready.
        until: Duration,
    },
}

/// A worker that is to be.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) worker: Worker,
    image: Image,
    until: Duration,
}

/// How the last replacement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// There was none.
    None,
    /// The program on disk runs.
    Replaced,
    /// It could not be started.
    NotStarted(SysError),
    /// It ended while it prepared, or waited.
    EndedEarly(Ended),
    /// It did not say in time that it was prepared.
    Silent,
    /// It ended, or was not ready in time, and the old program runs again.
    FellBack,
}

/// What follows from a look at the swap.
#[derive(Debug)]
pub(crate) enum Next {
    /// Nothing.
    Wait,
    /// The worker is to be told to retire.
    Retire,
    /// The worker is to be ended.
    KillWorker,
    /// It is over, and the old program stays; the candidate is to be reaped, where it has not ended yet.
    Failed(Outcome, Option<Child>),
}

impl Swap {
    /// Opens the program on disk and starts it as a candidate.
    ///
    /// # Errors
    /// Why it could not be started.
    pub(crate) fn begin(config: &KeeperConfig<'_>, signals: SignalState, now: Duration) -> Result<Swap, SysError> {
        let image = Image::open(config.program)?;
        let worker = Worker::start(config, &image, signals, Phase::Preparing)?;
        Ok(Swap::Preparing(Candidate { worker, image, until: now.saturating_add(PREPARE) }))
    }

    /// Whether none is going on.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self, Swap::Idle)
    }

    /// Whether a candidate will take the place of a worker that ends now.
    pub(crate) fn has_candidate(&self) -> bool {
        self.candidate().is_some()
    }

    /// Whether the old worker is to retire.
    pub(crate) fn is_retiring(&self) -> bool {
        matches!(self, Swap::Retiring(_))
    }

    /// The candidate, until it becomes the worker.
    pub(crate) fn candidate(&self) -> Option<&Worker> {
        match self {
            Swap::Preparing(candidate) | Swap::Retiring(candidate) => Some(&candidate.worker),
            Swap::Idle | Swap::Proving { .. } => None,
        }
    }

    /// The candidate, until it becomes the worker.
    pub(crate) fn candidate_mut(&mut self) -> Option<&mut Worker> {
        match self {
            Swap::Preparing(candidate) | Swap::Retiring(candidate) => Some(&mut candidate.worker),
            Swap::Idle | Swap::Proving { .. } => None,
        }
    }

    /// How long until something is overdue.
    pub(crate) fn pause(&self, now: Duration) -> Option<Duration> {
        let until = match self {
            Swap::Idle => return None,
            Swap::Preparing(candidate) | Swap::Retiring(candidate) => candidate.until,
            Swap::Proving { until, .. } => *until,
        };
        Some(until.saturating_sub(now))
    }

    /// Looks at the candidate and the clock, and goes a step further where it can.
    pub(crate) fn advance(&mut self, now: Duration) -> Next {
        let overdue = self.pause(now) == Some(Duration::ZERO);
        match core::mem::replace(self, Swap::Idle) {
            Swap::Idle => Next::Wait,
            Swap::Preparing(candidate) | Swap::Retiring(candidate) if candidate.worker.end().is_some() => {
                match candidate.worker.child.reap() {
                    Ok(ended) => Next::Failed(Outcome::EndedEarly(ended), None),
                    Err(child) => Next::Failed(Outcome::Silent, Some(child)),
                }
            }
            Swap::Preparing(mut candidate) if candidate.worker.phase == Phase::Prepared => {
                candidate.until = now.saturating_add(RETIRE);
                *self = Swap::Retiring(candidate);
                Next::Retire
            }
            Swap::Preparing(candidate) if overdue => {
                candidate.worker.kill();
                Next::Failed(Outcome::Silent, Some(candidate.worker.child))
            }
            Swap::Retiring(mut candidate) if overdue => {
                // Once is enough; it is looked at again when the worker has been found ended.
                candidate.until = Duration::MAX;
                *self = Swap::Retiring(candidate);
                Next::KillWorker
            }
            Swap::Proving { image, .. } if overdue => {
                *self = Swap::Proving { image, until: Duration::MAX };
                Next::KillWorker
            }
            same @ (Swap::Preparing(_) | Swap::Retiring(_) | Swap::Proving { .. }) => {
                *self = same;
                Next::Wait
            }
        }
    }

    /// Makes the prepared candidate the worker, now that its predecessor has ended.
    pub(crate) fn promote(&mut self, now: Duration) -> Option<Worker> {
        match core::mem::replace(self, Swap::Idle) {
            Swap::Retiring(Candidate { mut worker, image, .. }) => {
                *self = Swap::Proving { image, until: now.saturating_add(PROVE) };
                worker.release();
                Some(worker)
            }
            same @ (Swap::Idle | Swap::Preparing(_) | Swap::Proving { .. }) => {
                *self = same;
                None
            }
        }
    }

    /// The program that has shown that it is good, where the worker that is ready now was on trial.
    pub(crate) fn prove(&mut self) -> Option<Image> {
        match core::mem::replace(self, Swap::Idle) {
            Swap::Proving { image, .. } => Some(image),
            same @ (Swap::Idle | Swap::Preparing(_) | Swap::Retiring(_)) => {
                *self = same;
                None
            }
        }
    }

    /// Gives the replacement up; the candidate is ended, and to be reaped.
    pub(crate) fn abandon(&mut self) -> Option<Child> {
        match core::mem::replace(self, Swap::Idle) {
            Swap::Preparing(candidate) | Swap::Retiring(candidate) => {
                candidate.worker.kill();
                Some(candidate.worker.child)
            }
            Swap::Idle | Swap::Proving { .. } => None,
        }
    }
}
