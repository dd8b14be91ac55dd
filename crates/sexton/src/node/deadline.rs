//! When a graceful drain turns into a forced one: a time of day, which people read, and beside it the same moment by the
//! clock of the boot, which nobody sets. A worker that takes over a drain waits by the latter.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use sexton_core::proc::Here;
use sexton_plan::id::BootId;

use super::clock::now;

const AT: &str = "node.deadline";
const MOMENT: &str = "node.deadline_moment";

/// A deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// By the wall clock as it was when it was set.
    pub at: Timestamp,
    /// By the clock of the boot in which it was set; `None` where that was not recorded.
    moment: Option<Moment>,
}

/// A moment of one boot, in nanoseconds of the host's `CLOCK_BOOTTIME`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Moment {
    boot_id: BootId,
    nanos: i128,
}

/// Both clocks at once.
#[derive(Clone, Debug)]
pub struct Clocks {
    wall: Timestamp,
    boot: Moment,
}

impl Clocks {
    /// What they show now.
    pub fn read(here: &Here) -> Clocks {
        let since_boot = nanos(sexton_sys::time::boottime()) - i128::from(here.boottime_offset);
        Clocks { wall: now(), boot: Moment { boot_id: here.boot_id.clone(), nanos: since_boot } }
    }
}

impl Deadline {
    /// The one that has come when `span` has passed; `None` where there is no such time.
    pub fn after(span: Duration, clocks: Clocks) -> Option<Deadline> {
        let Clocks { wall, boot } = clocks;
        let moment = Moment { nanos: boot.nanos.saturating_add(nanos(span)), ..boot };
        Some(Deadline { at: wall.checked_add(span).ok()?, moment: Some(moment) })
    }

    /// What is left of it.
    pub fn left(&self, clocks: &Clocks) -> Duration {
        match self.moment.as_ref().filter(|moment| moment.boot_id == clocks.boot.boot_id) {
            Some(moment) => {
                let left = u64::try_from((moment.nanos - clocks.boot.nanos).max(0)).unwrap_or(u64::MAX);
                Duration::from_nanos(left)
            }
            // Another boot counts anew: only the time of day goes on.
            None => Duration::try_from(self.at.duration_since(clocks.wall)).unwrap_or_default(),
        }
    }

    /// As it was recorded.
    pub fn resume(meta: &BTreeMap<String, String>) -> Option<Deadline> {
        let at = meta.get(AT)?.parse().ok()?;
        let moment = meta.get(MOMENT).and_then(|text| {
            let (boot_id, nanos) = text.split_once(' ')?;
            Some(Moment { boot_id: boot_id.parse().ok()?, nanos: nanos.parse().ok()? })
        });
        Some(Deadline { at, moment })
    }

    /// What is recorded of it; of none, that there is none.
    pub fn meta(deadline: Option<&Deadline>) -> [(String, Option<String>); 2] {
        let moment = deadline.and_then(|deadline| deadline.moment.as_ref());
        [
            (AT.to_owned(), deadline.map(|deadline| deadline.at.to_string())),
            (MOMENT.to_owned(), moment.map(|moment| format!("{} {}", moment.boot_id, moment.nanos))),
        ]
    }
}

fn nanos(span: Duration) -> i128 {
    i128::try_from(span.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: &str = "0f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff";

    fn clocks(wall: &str, boot_id: &str, seconds: u64) -> Clocks {
        let boot = Moment { boot_id: boot_id.parse().expect("a boot"), nanos: nanos(Duration::from_secs(seconds)) };
        Clocks { wall: wall.parse().expect("a time"), boot }
    }

    /// As the next worker finds it.
    fn recorded(deadline: &Deadline) -> Option<Deadline> {
        let meta = Deadline::meta(Some(deadline)).into_iter().filter_map(|(key, value)| Some((key, value?)));
        Deadline::resume(&meta.collect())
    }

    #[test]
    fn a_clock_that_is_set_moves_no_deadline() {
        let set = Deadline::after(Duration::from_secs(600), clocks("2026-01-02T03:00:00Z", BOOT, 50)).expect("a time");
        assert_eq!(set.at, "2026-01-02T03:10:00Z".parse().expect("a time"));
        let later = recorded(&set).expect("a deadline");
        assert_eq!(later, set);
        for wall in ["2026-01-02T03:01:40Z", "2025-01-02T03:01:40Z", "2027-01-02T03:01:40Z"] {
            assert_eq!(later.left(&clocks(wall, BOOT, 150)), Duration::from_secs(500), "{wall}");
            assert_eq!(later.left(&clocks(wall, BOOT, 650)), Duration::ZERO, "{wall}");
            assert_eq!(later.left(&clocks(wall, BOOT, 9_000)), Duration::ZERO, "{wall}");
        }
    }

    #[test]
    fn another_boot_goes_by_the_time_of_day_and_so_does_what_an_older_version_recorded() {
        let set = Deadline::after(Duration::from_secs(600), clocks("2026-01-02T03:00:00Z", BOOT, 50)).expect("a time");
        let other = clocks("2026-01-02T03:09:00Z", "1f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff", 650);
        assert_eq!(set.left(&other), Duration::from_secs(60));
        let older = [(AT.to_owned(), set.at.to_string())].into_iter().collect();
        let older = Deadline::resume(&older).expect("a deadline");
        assert_eq!(older.left(&clocks("2026-01-02T03:09:00Z", BOOT, 650)), Duration::from_secs(60));
        assert_eq!(Deadline::resume(&BTreeMap::new()), None);
        assert_eq!(Deadline::after(Duration::MAX, other), None);
    }
}
