//! HUP: the worker is replaced by the program now on disk, and comes back if that one is no good.
//!
//! ```text
//!            HUP                     Prepared              predecessor ended            Ready
//!   Idle ──────────► Preparing ──────────────► Retiring ──────────────────► Proving ──────────► Idle, new program
//!                     │ ends, or 10 s           │ candidate ends            │ ends, or 30 s
//!                     ▼                         ▼                           ▼
//!                    Idle, old worker          old program is started       old program is started
//! ```

use sexton_sys::SysError;
use sexton_sys::process::{Child, SignalState};
use sexton_sys::wait::Ended;

use crate::clock::Time;
use crate::worker::{Image, KeeperConfig, Phase, Worker};

/// BOUND: a candidate that has said nothing by then is ended.
const PREPARE: Time = Time::millis(10_000);
/// BOUND: a predecessor that has not ended by then is ended.
const RETIRE: Time = Time::millis(5_000);
/// BOUND: a released candidate that is not ready by then is ended.
const PROVE: Time = Time::millis(30_000);

/// A replacement, and how far it is.
#[derive(Debug)]
pub(crate) struct Swap {
    stage: Stage,
    /// Until when the stage may last.
    until: Time,
    /// The worker that is to be, until it becomes the worker.
    candidate: Option<Worker>,
    /// What it runs, until it has shown that it is any good.
    image: Option<Image>,
}

/// How far a replacement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// None is going on.
    Idle,
    /// The candidate checks, the old worker serves.
    Preparing,
    /// The candidate waits, the old worker ends.
    Retiring,
    /// The candidate has become the worker, but has not shown that it is any good.
    Proving,
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
    /// The worker is to be ended.
    KillWorker,
    /// It is over, and the old program stays; the candidate is to be reaped, where it has not ended yet.
    Failed(Outcome, Option<Child>),
}

impl Swap {
    /// None is going on.
    pub(crate) const IDLE: Swap = Swap { stage: Stage::Idle, until: Time::NEVER, candidate: None, image: None };

    /// Opens the program on disk and starts it as a candidate.
    ///
    /// # Errors
    /// Why it could not be started.
    pub(crate) fn begin(config: &KeeperConfig<'_>, signals: SignalState, now: Time) -> Result<Swap, SysError> {
        let image = Image::open(config.program)?;
        let worker = Worker::start(config, &image, signals, Phase::Preparing)?;
        Ok(Swap { stage: Stage::Preparing, until: now + PREPARE, candidate: Some(worker), image: Some(image) })
    }

    /// Whether none is going on.
    pub(crate) fn is_idle(&self) -> bool {
        self.stage == Stage::Idle
    }

    /// Whether a candidate will take the place of a worker that ends now.
    pub(crate) fn has_candidate(&self) -> bool {
        self.candidate.is_some()
    }

    /// Whether the old worker is to retire.
    pub(crate) fn is_retiring(&self) -> bool {
        self.stage == Stage::Retiring
    }

    /// The candidate, until it becomes the worker.
    pub(crate) fn candidate(&self) -> Option<&Worker> {
        self.candidate.as_ref()
    }

    /// The candidate, until it becomes the worker.
    pub(crate) fn candidate_mut(&mut self) -> Option<&mut Worker> {
        self.candidate.as_mut()
    }

    /// When something is overdue.
    pub(crate) fn due(&self) -> Time {
        self.until
    }

    /// Looks at the candidate and the clock, and goes a step further where it can.
    pub(crate) fn advance(&mut self, now: Time) -> Next {
        if let Some(candidate) = self.candidate.take_if(|candidate| candidate.end().is_some()) {
            *self = Swap::IDLE;
            return match candidate.child.reap() {
                Ok(ended) => Next::Failed(Outcome::EndedEarly(ended), None),
                Err(child) => Next::Failed(Outcome::Silent, Some(child)),
            };
        }
        let is_prepared = self.candidate.as_ref().is_some_and(|candidate| candidate.phase == Phase::Prepared);
        let overdue = self.until <= now;
        match self.stage {
            Stage::Preparing if is_prepared => {
                self.stage = Stage::Retiring;
                self.until = now + RETIRE;
            }
            Stage::Preparing if overdue => return Next::Failed(Outcome::Silent, self.abandon()),
            Stage::Retiring | Stage::Proving if overdue => {
                // Once is enough; it is looked at again when the worker has been found ended.
                self.until = Time::NEVER;
                return Next::KillWorker;
            }
            Stage::Idle | Stage::Preparing | Stage::Retiring | Stage::Proving => {}
        }
        Next::Wait
    }

    /// Makes the prepared candidate the worker, now that its predecessor has ended.
    pub(crate) fn promote(&mut self, now: Time) -> Option<Worker> {
        if self.stage != Stage::Retiring {
            return None;
        }
        self.stage = Stage::Proving;
        self.until = now + PROVE;
        self.candidate.take().map(Worker::released)
    }

    /// The program that has shown that it is good, where the worker that is ready now was on trial.
    pub(crate) fn prove(&mut self) -> Option<Image> {
        if self.stage != Stage::Proving {
            return None;
        }
        core::mem::replace(self, Swap::IDLE).image
    }

    /// Gives the replacement up; the candidate is ended, and to be reaped.
    pub(crate) fn abandon(&mut self) -> Option<Child> {
        let candidate = core::mem::replace(self, Swap::IDLE).candidate?;
        candidate.kill();
        Some(candidate.child)
    }
}
