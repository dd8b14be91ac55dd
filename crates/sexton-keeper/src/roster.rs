//! Which processes the worker answers for, so that the exits of those it leaves behind are kept for its successor.

use sexton_sys::{SysError, pidfd};

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
    /// A process that was held without an inode, on a kernel that has none, is known by its number alone. A stranger
    /// can have that number only if the worker died between reaping the process and saying so.
    pub(crate) fn claim_on(&self, pid: u32) -> Claim {
        let mut seen = None;
        for ino in self.0.values_of(pid) {
            if ino == 0 || seen == Some(ino) {
                return Claim::Held(HeldProcess { pid, ino });
            }
            if seen.is_none() {
                let Ok(told) = inode_of(pid) else {
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

/// The inode of the pidfd of `pid`.
fn inode_of(pid: u32) -> Result<u64, SysError> {
    let fd = pidfd::open(pid.cast_signed())?;
    pidfd::inode(fd.raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_known_by_its_inode_and_not_by_its_number() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id();
        let ino = inode_of(pid).unwrap();
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
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_held_without_an_inode_is_known_by_its_number() {
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
