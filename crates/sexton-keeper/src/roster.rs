//! Which processes the worker answers for, so that the exits of those it leaves behind are kept for its successor.

use sexton_sys::file::{self, AT_FDCWD, flags};
use sexton_sys::text::Text;
use sexton_sys::{Errno, SysError, pidfd};

use crate::pidmap::PidMap;
use crate::wire::HeldProcess;

/// BOUND: held processes at once; more than a node of this kind can run. One that does not fit loses only the
/// keeper's witness to its exit: the worker's pin still has the code.
const BOUND: usize = 65_536;

/// The processes that the worker holds.
#[derive(Debug)]
pub(crate) struct Roster(PidMap);

/// Whether a child of ours is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is this one.
    Held(HeldProcess),
    /// Nobody holds it.
    Nobody,
    /// Its number is held, and what it is could not be read.
    Unread,
}

impl Roster {
    /// An empty roster.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Roster, SysError> {
        PidMap::new(BOUND).map(Roster)
    }

    /// Adds `held`, once; `false` where the roster is full.
    pub(crate) fn hold(&mut self, held: HeldProcess) -> bool {
        self.0.values_of(held.pid).any(|ino| ino == held.ino) || self.0.insert(held.pid, held.ino)
    }

    /// Removes `held`.
    pub(crate) fn release(&mut self, held: HeldProcess) {
        self.0.remove(held.pid, held.ino);
    }

    /// Who holds `pid`, which is an unreaped child of this process, so that its number cannot change its owner.
    ///
    /// A process that was held with nothing to know it by is known by its number alone. A stranger can have that number
    /// only if the worker died between reaping the process and saying so.
    pub(crate) fn claim_on(&self, pid: u32) -> Claim {
        let mut seen = None;
        for ino in self.0.values_of(pid) {
            if ino == 0 || seen == Some(ino) {
                return Claim::Held(HeldProcess { pid, ino });
            }
            if seen.is_none() {
                let Ok(told) = told_of(pid, ino) else {
                    return Claim::Unread;
                };
                if told == ino {
                    return Claim::Held(HeldProcess { pid, ino });
                }
                seen = Some(told);
            }
        }
        Claim::Nobody
    }
}

/// What tells `pid` from others of its number: of the kind that `held` is.
fn told_of(pid: u32, held: u64) -> Result<u64, SysError> {
    if held & HeldProcess::TICKS != 0 {
        return start_ticks_of(pid).map(|ticks| ticks | HeldProcess::TICKS);
    }
    let fd = pidfd::open(pid.cast_signed())?;
    pidfd::inode(fd.raw())
}

/// When `pid` was started, in clock ticks since the boot (`proc_pid_stat(5)`, field 22).
fn start_ticks_of(pid: u32) -> Result<u64, SysError> {
    let file = file::open(AT_FDCWD, Text::new().add("/proc/").add(pid).add("/stat").as_c_str(), flags::RDONLY, 0)?;
    let mut space = [0; 512];
    let len = sexton_sys::fd::read(file.raw(), &mut space)?;
    // The name, which may hold anything, is the second field; behind its parenthesis the third begins.
    let text = space.get(..len).unwrap_or_default().rsplit(|&byte| byte == b')').next().unwrap_or_default();
    let ticks = text.split(|&byte| byte == b' ').nth(20).and_then(|digits| str::from_utf8(digits).ok()?.parse().ok());
    ticks.ok_or(SysError::of(c"read", Errno::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_known_by_its_inode_or_its_start_and_not_by_its_number() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id();
        for kind in [0, HeldProcess::TICKS] {
            let ino = told_of(pid, kind).unwrap();
            assert_eq!(ino & HeldProcess::TICKS, kind);
            let mut roster = Roster::new().unwrap();
            assert_eq!(roster.claim_on(pid), Claim::Nobody);
            for stale in [ino + 1, ino + 2] {
                assert!(roster.hold(HeldProcess { pid, ino: stale }));
            }
            assert_eq!(roster.claim_on(pid), Claim::Nobody, "an earlier process of that number is another one");
            let held = HeldProcess { pid, ino };
            assert!(roster.hold(held) && roster.hold(held));
            assert_eq!(roster.claim_on(pid), Claim::Held(held));
            roster.release(held);
            assert_eq!(roster.claim_on(pid), Claim::Nobody, "it is in the roster once, however often it was held");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_held_with_nothing_to_know_it_by_is_known_by_its_number() {
        let mut roster = Roster::new().unwrap();
        let held = HeldProcess { pid: 7, ino: 0 };
        roster.hold(held);
        assert_eq!(roster.claim_on(7), Claim::Held(held));
    }

    #[test]
    fn what_cannot_be_read_is_not_somebody_else() {
        let mut roster = Roster::new().unwrap();
        // No process has this number, so its pidfd cannot be opened.
        roster.hold(HeldProcess { pid: u32::try_from(i32::MAX).unwrap(), ino: 5 });
        assert_eq!(roster.claim_on(u32::try_from(i32::MAX).unwrap()), Claim::Unread);
    }
}
