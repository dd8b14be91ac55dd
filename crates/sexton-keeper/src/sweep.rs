//! Zombies that reparented here and that nobody holds: they are left to others for a grace, and then reaped.

use sexton_sys::file::{self, AT_FDCWD, flags};
use sexton_sys::text::Text;
use sexton_sys::{SysError, wait};

use crate::clock::Time;
use crate::pidmap::PidMap;
use crate::roster::Claim;
use crate::wire::{SweepPolicy, Swept, Zombie};

/// BOUND: zombies under grace; one more is reaped at once, for a full PID table is worse than a grace cut short.
const BOUND: usize = 65_536;
/// BOUND: zombies that one turn looks at, so that signals and the worker are not kept waiting.
const A_TURN: u32 = 1024;

/// The zombies under grace, and what is to be told of those reaped.
#[derive(Debug)]
pub(crate) struct Sweep {
    /// PIDs, and when each was found, in nanoseconds of the monotonic clock.
    waiting: PidMap,
    policy: SweepPolicy,
    /// When the next sweep begins.
    due: Time,
    /// Where the present sweep goes on in the next turn.
    position: Option<u32>,
    /// Reaped, and not yet told.
    untold: Swept,
}

impl Sweep {
    /// Nobody waits.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Sweep, SysError> {
        Ok(Sweep {
            waiting: PidMap::new(BOUND)?,
            policy: SweepPolicy::default(),
            due: Time::NEVER,
            position: None,
            untold: Swept::NOBODY,
        })
    }

    /// Sets when zombies are swept; whether those that were let alone so far are looked for is the caller's affair.
    pub(crate) fn set_policy(&mut self, policy: SweepPolicy, now: Time) {
        self.policy = policy;
        self.due = if policy.enabled && self.waiting.len() > 0 { now } else { Time::NEVER };
    }

    /// Whether zombie `pid` is under grace.
    pub(crate) fn has(&self, pid: u32) -> bool {
        self.waiting.contains(pid)
    }

    /// Takes zombie `pid`, which nobody holds, under grace; `true` where it was reaped at once.
    pub(crate) fn take(&mut self, pid: u32, now: Time, at_once: bool) -> bool {
        if !self.policy.enabled || self.has(pid) && !at_once {
            return false;
        }
        if at_once || !self.waiting.insert(pid, now.nanos()) {
            return self.reap(pid);
        }
        self.due = self.due.min(now + Time::millis(self.policy.interval_ms));
        false
    }

    /// When there is something to do.
    pub(crate) fn due(&self) -> Time {
        if self.position.is_some() { Time::ZERO } else { self.due }
    }

    /// Begins or goes on with a sweep if it is time to; `claim_on` is asked about everyone whose grace is over. Tells
    /// whether somebody turned out to be held, who is then left, for it is recorded elsewhere.
    pub(crate) fn run_if_due(&mut self, now: Time, claim_on: impl Fn(u32) -> Claim) -> bool {
        if self.due() > now {
            return false;
        }
        let mut held = false;
        let mut position = self.position.take().unwrap_or(0);
        for _ in 0..A_TURN {
            let Some((pid, since, next)) = self.waiting.next_from(position) else {
                let next = now + Time::millis(self.policy.interval_ms.max(1));
                self.due = if self.waiting.len() > 0 { next } else { Time::NEVER };
                return held;
            };
            position = next;
            if now - Time::from_nanos(since) < Time::millis(self.policy.grace_ms) {
                continue;
            }
            match claim_on(pid) {
                Claim::Unread => {}
                Claim::Held(_) => {
                    held = true;
                    self.forget(pid);
                }
                Claim::Nobody => {
                    self.reap(pid);
                }
            }
        }
        self.position = Some(position);
        held
    }

    /// Takes `pid` from under its grace: from its reaping on, the number may be a worker's.
    pub(crate) fn forget(&mut self, pid: u32) {
        let since = self.waiting.values_of(pid).next();
        since.into_iter().for_each(|since| self.waiting.remove(pid, since));
    }

    /// Reaps `pid`, and notes its name first.
    fn reap(&mut self, pid: u32) -> bool {
        self.forget(pid);
        let comm = if self.untold.has_room() { comm_of(pid) } else { [0; 16] };
        let reaped = matches!(wait::reap(pid), Ok(Some(_)));
        if reaped {
            self.untold.add(Zombie { pid, comm });
        }
        reaped
    }

    /// What is to be told, where there is something; a sweep is told once it is over.
    pub(crate) fn untold(&self) -> Option<&Swept> {
        (self.untold.count > 0 && self.position.is_none()).then_some(&self.untold)
    }

    /// It has been told.
    pub(crate) fn told(&mut self) {
        self.untold = Swept::NOBODY;
    }
}

/// The name of zombie `pid`; zeroes where it cannot be read, for it is only there to be shown.
fn comm_of(pid: u32) -> [u8; 16] {
    let mut comm = [0; 16];
    let mut path = Text::new();
    let path = path.add("/proc/").add(pid).add("/comm").as_c_str();
    if let Ok(file) = file::open(AT_FDCWD, path, flags::RDONLY, 0) {
        let len = sexton_sys::fd::read(file.raw(), &mut comm).unwrap_or(0);
        // The kernel ends the name with a line feed, which is no part of it.
        if let Some(end) = len.checked_sub(1).and_then(|last| comm.get_mut(last)) {
            *end = 0;
        }
    }
    comm
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::HeldProcess;

    const SECOND: Time = Time::SECOND;

    #[allow(clippy::zombie_processes, reason = "it is reaped by what is tested")]
    fn zombie() -> u32 {
        let child = std::process::Command::new("true").spawn().unwrap();
        while wait::peek(child.id()).unwrap().is_none() {
            std::thread::yield_now();
        }
        child.id()
    }

    #[test]
    fn a_zombie_goes_after_its_grace_and_is_told_by_name() {
        let mut sweep = Sweep::new().unwrap();
        let pid = zombie();
        assert_eq!(sweep.due(), Time::NEVER, "nothing wakes a keeper without zombies");
        assert!(!sweep.take(pid, SECOND, false) && sweep.has(pid));
        assert_eq!(sweep.due(), SECOND * 2);
        sweep.run_if_due(SECOND + Time::millis(900), |_| Claim::Nobody);
        assert!(sweep.has(pid) && wait::peek(pid).unwrap().is_some());
        sweep.run_if_due(SECOND * 2, |_| Claim::Nobody);
        assert!(!sweep.has(pid) && wait::peek(pid).is_err());
        let told = *sweep.untold().unwrap();
        assert_eq!((told.count, told.named()[0].pid, told.named()[0].comm()), (1, pid, &b"true"[..]));
        sweep.told();
        assert!(sweep.untold().is_none() && sweep.due() == Time::NEVER);
    }

    #[test]
    fn one_that_is_held_after_all_is_left_and_one_that_is_not_known_waits() {
        let mut sweep = Sweep::new().unwrap();
        let pid = zombie();
        sweep.take(pid, SECOND, false);
        assert!(!sweep.run_if_due(SECOND * 3, |_| Claim::Unread));
        assert!(sweep.has(pid));
        assert!(sweep.run_if_due(SECOND * 5, |_| Claim::Held(HeldProcess { pid, ino: 0 })));
        assert!(!sweep.has(pid) && sweep.untold().is_none());
        assert!(wait::reap(pid).unwrap().is_some());
    }

    #[test]
    fn nothing_is_swept_where_it_is_switched_off() {
        let mut sweep = Sweep::new().unwrap();
        sweep.set_policy(SweepPolicy { enabled: false, ..SweepPolicy::default() }, SECOND);
        let pid = zombie();
        assert!(!sweep.take(pid, SECOND, true) && !sweep.has(pid) && sweep.due() == Time::NEVER);
        assert!(wait::reap(pid).unwrap().is_some());
    }

    #[test]
    fn one_that_hides_others_goes_at_once_and_is_not_reaped_again() {
        let mut sweep = Sweep::new().unwrap();
        let pid = zombie();
        assert!(!sweep.take(pid, SECOND, false) && sweep.take(pid, SECOND, true));
        assert_eq!(sweep.untold().map(|told| told.count), Some(1));
        // REGRESSION: whoever got the number next was reaped when this grace was over, a worker too.
        assert!(!sweep.has(pid));
    }
}
