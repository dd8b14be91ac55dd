//! Zombies that reparented here and that nobody holds: they are left to others for a grace, and then reaped.

use core::time::Duration;

use sexton_sys::file::{self, AT_FDCWD, flags};
use sexton_sys::text::Text;
use sexton_sys::{SysError, wait};

use crate::pidmap::PidMap;
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
    /// When the next sweep begins, while somebody waits.
    due: Option<Duration>,
    /// Where the present sweep goes on in the next turn.
    position: Option<u32>,
    /// Reaped by the present sweep.
    reaping: Swept,
    /// Reaped by earlier ones, and not yet told.
    untold: Swept,
}

/// Whether a zombie under grace is still nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is: reap it.
    Reap,
    /// It is held after all: leave it, it is recorded elsewhere.
    Held,
    /// Not known: wait on.
    Unread,
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
            due: None,
            position: None,
            reaping: Swept::default(),
            untold: Swept::default(),
        })
    }

    /// Sets when zombies are swept; whether those that were let alone so far are looked for is the caller's affair.
    pub(crate) fn set_policy(&mut self, policy: SweepPolicy, now: Duration) {
        self.policy = policy;
        self.due = (policy.enabled && self.waiting.len() > 0).then_some(now);
    }

    /// Whether zombie `pid` is under grace.
    pub(crate) fn has(&self, pid: u32) -> bool {
        self.waiting.contains(pid)
    }

    /// Takes zombie `pid`, which nobody holds, under grace; `true` where it was reaped at once.
    pub(crate) fn take(&mut self, pid: u32, now: Duration, at_once: bool) -> bool {
        if !self.policy.enabled || self.has(pid) && !at_once {
            return false;
        }
        if at_once || !self.waiting.insert(pid, nanos(now)) {
            let reaped = self.reap(pid);
            self.finish_sweep();
            return reaped;
        }
        let due = now.saturating_add(Duration::from_millis(self.policy.interval_ms.into()));
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
        false
    }

    /// How long until there is something to do; `None` where nothing is.
    pub(crate) fn pause(&self, now: Duration) -> Option<Duration> {
        if self.position.is_some() {
            return Some(Duration::ZERO);
        }
        self.due.map(|due| due.saturating_sub(now))
    }

    /// Begins or goes on with a sweep if it is time to; `fate` is asked about everyone whose grace is over. Tells
    /// whether somebody turned out to be held.
    pub(crate) fn run_if_due(&mut self, now: Duration, fate: impl Fn(u32) -> Fate) -> bool {
        if self.pause(now) != Some(Duration::ZERO) {
            return false;
        }
        let mut held = false;
        let mut position = self.position.take().unwrap_or(0);
        for _ in 0..A_TURN {
            let Some((pid, since, next)) = self.waiting.next_from(position) else {
                self.finish_sweep();
                let next = now.saturating_add(Duration::from_millis(self.policy.interval_ms.max(1).into()));
                self.due = (self.waiting.len() > 0).then_some(next);
                return held;
            };
            position = next;
            if nanos(now).saturating_sub(since) >= u64::from(self.policy.grace_ms) * 1_000_000 {
                let fate = fate(pid);
                held |= fate == Fate::Held;
                self.decide(pid, since, fate);
            }
        }
        self.position = Some(position);
        held
    }

    fn decide(&mut self, pid: u32, since: u64, fate: Fate) {
        match fate {
            Fate::Reap => {
                self.reap(pid);
            }
            Fate::Held => {}
            Fate::Unread => return,
        }
        self.waiting.remove(pid, since);
    }

    /// Reaps `pid`, and notes its name first.
    fn reap(&mut self, pid: u32) -> bool {
        let comm = if self.reaping.has_room() { comm_of(pid) } else { [0; 16] };
        let reaped = matches!(wait::reap(pid), Ok(Some(_)));
        if reaped {
            self.reaping.add(Zombie { pid, comm });
        }
        reaped
    }

    /// Adds what this sweep reaped to what is to be told.
    fn finish_sweep(&mut self) {
        let done = core::mem::take(&mut self.reaping);
        let named = done.named().len();
        done.named().iter().for_each(|&zombie| self.untold.add(zombie));
        let unnamed = done.count.saturating_sub(u32::try_from(named).unwrap_or(u32::MAX));
        self.untold.count = self.untold.count.saturating_add(unnamed);
    }

    /// What is to be told, where there is something.
    pub(crate) fn untold(&self) -> Option<&Swept> {
        (self.untold.count > 0).then_some(&self.untold)
    }

    /// It has been told.
    pub(crate) fn told(&mut self) {
        self.untold = Swept::default();
    }
}

/// A moment as a number that fits the map.
fn nanos(moment: Duration) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX)
}

/// The name of zombie `pid`; zeroes where it cannot be read, for it is only there to be shown.
fn comm_of(pid: u32) -> [u8; 16] {
    let mut comm = [0; 16];
    if let Some(path) = Text::new().add("/proc/").add(pid).add("/comm").as_c_str()
        && let Ok(file) = file::open(AT_FDCWD, path, flags::RDONLY, 0)
    {
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

    const SECOND: Duration = Duration::from_secs(1);

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
        assert!(sweep.pause(SECOND).is_none(), "nothing wakes a keeper without zombies");
        assert!(!sweep.take(pid, SECOND, false) && sweep.has(pid));
        assert_eq!(sweep.pause(SECOND), Some(SECOND));
        sweep.run_if_due(SECOND * 19 / 10, |_| Fate::Reap);
        assert!(sweep.has(pid) && wait::peek(pid).unwrap().is_some());
        sweep.run_if_due(SECOND * 2, |_| Fate::Reap);
        assert!(!sweep.has(pid) && wait::peek(pid).is_err());
        let told = *sweep.untold().unwrap();
        assert_eq!((told.count, told.named()[0].pid, told.named()[0].comm()), (1, pid, &b"true"[..]));
        sweep.told();
        assert!(sweep.untold().is_none() && sweep.pause(SECOND * 2).is_none());
    }

    #[test]
    fn one_that_is_held_after_all_is_left_and_one_that_is_not_known_waits() {
        let mut sweep = Sweep::new().unwrap();
        let pid = zombie();
        sweep.take(pid, SECOND, false);
        assert!(!sweep.run_if_due(SECOND * 3, |_| Fate::Unread));
        assert!(sweep.has(pid));
        assert!(sweep.run_if_due(SECOND * 5, |_| Fate::Held));
        assert!(!sweep.has(pid) && sweep.untold().is_none());
        assert!(wait::reap(pid).unwrap().is_some());
    }

    #[test]
    fn nothing_is_swept_where_it_is_switched_off() {
        let mut sweep = Sweep::new().unwrap();
        sweep.set_policy(SweepPolicy { enabled: false, ..SweepPolicy::default() }, SECOND);
        let pid = zombie();
        assert!(!sweep.take(pid, SECOND, true) && !sweep.has(pid) && sweep.pause(SECOND).is_none());
        assert!(wait::reap(pid).unwrap().is_some());
    }

    #[test]
    fn one_that_hides_others_goes_at_once() {
        let mut sweep = Sweep::new().unwrap();
        let pid = zombie();
        assert!(sweep.take(pid, SECOND, true));
        assert_eq!(sweep.untold().map(|told| told.count), Some(1));
    }
}
