//! Which process it is: storable evidence, and what two pieces of it prove about each other.

use serde::{Deserialize, Serialize};

use crate::id::{BootId, Pid};

/// How good an identity is as evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strength {
    /// Nothing but a number; proves nothing.
    None,
    /// Boot id, PID and start tick: weak, never enough for a signal without a second witness.
    Starttime,
    /// The 64-bit inode of the pidfd, unique for the boot (Linux 6.9).
    Pidfs,
}

/// Storable evidence of which process it is, true within one boot and one PID namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The number under which the recorder saw the process.
    pub pid: Pid,
    /// Inode of the pidfd (`fstat`), where the kernel has pidfs.
    pub pidfs_ino: Option<u64>,
    /// Start time in clock ticks since boot, field 22 of `/proc/PID/stat` (`proc_pid_stat(5)`), as the recorder's time
    /// namespace counts them.
    pub start_ticks: Option<u64>,
    /// By how many nanoseconds that namespace counts the time since boot ahead of the host (`time_namespaces(7)`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub boottime_offset: i64,
    /// The boot during which all this is meaningful.
    pub boot_id: BootId,
    /// Inode of the PID namespace in which `pid` was seen (`/proc/self/ns/pid`).
    pub pid_ns: u64,
}

fn is_zero(offset: &i64) -> bool {
    *offset == 0
}

/// A clock tick of `/proc`, in nanoseconds: `USER_HZ` is 100 on both machines.
pub const TICK_NANOS: u32 = 10_000_000;

/// What a comparison of two identities proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// One and the same process.
    Same,
    /// Two processes, whatever their numbers.
    Different,
    /// Neither: must not be signalled, must not be called gone.
    Unproven,
}

impl Identity {
    /// How good this evidence is.
    pub fn strength(&self) -> Strength {
        match (self.pidfs_ino, self.start_ticks) {
            (Some(_), _) => Strength::Pidfs,
            (None, Some(_)) => Strength::Starttime,
            (None, None) => Strength::None,
        }
    }

    /// What `self` and `other` prove about each other.
    ///
    /// ```
    /// # use sexton_plan::{identity::*, id::*};
    /// let boot: BootId = "0f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff".parse().unwrap();
    /// let a = Identity {
    ///     pid: Pid::new(410).unwrap(), pidfs_ino: Some(7), start_ticks: Some(9), boottime_offset: 0, boot_id: boot, pid_ns: 1,
    /// };
    /// let b = Identity { pidfs_ino: Some(8), ..a.clone() };
    /// assert_eq!(a.compare(&b), Match::Different, "same number, same tick, another inode");
    /// ```
    pub fn compare(&self, other: &Identity) -> Match {
        if self.boot_id != other.boot_id {
            return Match::Different;
        }
        match (self.pidfs_ino, other.pidfs_ino) {
            (Some(mine), Some(theirs)) if mine == theirs => Match::Same,
            (Some(_), Some(_)) => Match::Different,
            (Some(_), None) | (None, Some(_)) | (None, None) => self.compare_ticks(other),
        }
    }

    /// A start tick can refute; agreeing ticks prove nothing, for a reused PID may carry the same tick.
    fn compare_ticks(&self, other: &Identity) -> Match {
        let comparable = self.pid_ns == other.pid_ns;
        match self.began_with(other) {
            Some(false) if comparable => Match::Different,
            Some(_) | None => Match::Unproven,
        }
    }

    /// Whether both began in one clock tick, as far as two namespaces that count ticks from different moments can tell;
    /// `None` where one of them does not say.
    pub fn began_with(&self, other: &Identity) -> Option<bool> {
        let (mine, theirs) = (self.began()?, other.began()?);
        Some(mine.abs_diff(theirs) < u128::from(TICK_NANOS))
    }

    /// Whether it began before `other`, likewise.
    pub fn began_before(&self, other: &Identity) -> Option<bool> {
        Some(!self.began_with(other)? && self.began()? < other.began()?)
    }

    /// The beginning of its start tick, in nanoseconds since the host's boot.
    fn began(&self) -> Option<i128> {
        Some(i128::from(self.start_ticks?) * i128::from(TICK_NANOS) - i128::from(self.boottime_offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::str::FromStr;

    fn identity(pidfs_ino: Option<u64>, start_ticks: Option<u64>) -> Identity {
        Identity {
            pid: Pid::new(410).expect("greater than 1"),
            pidfs_ino,
            start_ticks,
            boottime_offset: 0,
            boot_id: BootId::from_str("0f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff").expect("a UUID"),
            pid_ns: 4_026_531_836,
        }
    }

    #[test]
    fn the_inode_decides_whatever_the_tick_says() {
        assert_eq!(identity(Some(7), Some(1)).compare(&identity(Some(7), Some(2))), Match::Same);
        assert_eq!(identity(Some(7), Some(1)).compare(&identity(Some(8), Some(1))), Match::Different);
    }

    #[test]
    fn equal_ticks_prove_nothing() {
        assert_eq!(identity(None, Some(1)).compare(&identity(None, Some(1))), Match::Unproven);
        assert_eq!(identity(Some(7), Some(1)).compare(&identity(None, Some(1))), Match::Unproven);
        assert_eq!(identity(None, None).compare(&identity(None, None)), Match::Unproven);
    }

    #[test]
    fn another_tick_or_another_boot_is_another_process() {
        assert_eq!(identity(None, Some(1)).compare(&identity(None, Some(2))), Match::Different);
        let mut later = identity(Some(7), Some(1));
        later.boot_id = BootId::from_str("1f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff").expect("a UUID");
        assert_eq!(identity(Some(7), Some(1)).compare(&later), Match::Different);
    }

    #[test]
    fn ticks_of_two_time_namespaces_are_compared_by_the_moments_that_they_mean() {
        let ahead = |ticks, boottime_offset| Identity { boottime_offset, ..identity(None, Some(ticks)) };
        let here = identity(None, Some(500));
        for (there, same) in [
            (ahead(500, 0), true),
            (ahead(501, 0), false),
            (ahead(700, 2_000_000_000), true),
            (ahead(500, 2_000_000_000), false),
            (ahead(300, -2_000_000_000), true),
            // Half a tick: what began in one of here may have begun in either of two there.
            (ahead(500, 5_000_000), true),
            (ahead(501, 5_000_000), true),
            (ahead(502, 5_000_000), false),
        ] {
            assert_eq!(here.began_with(&there), Some(same), "{there:?}");
            assert_eq!(here.compare(&there), if same { Match::Unproven } else { Match::Different }, "{there:?}");
        }
        assert_eq!(ahead(500, 2_000_000_000).began_before(&here), Some(true));
        assert_eq!(ahead(700, 2_000_000_000).began_before(&here), Some(false));
        assert_eq!(identity(None, None).began_before(&here), None);
    }

    #[test]
    fn ticks_of_two_namespaces_are_not_compared() {
        let mut elsewhere = identity(None, Some(2));
        elsewhere.pid_ns = 1;
        assert_eq!(identity(None, Some(1)).compare(&elsewhere), Match::Unproven);
    }
}
