//! A bounded map from PIDs to numbers, in memory that is taken page by page as it fills.

use sexton_sys::SysError;
use sexton_sys::memory::Table;

/// Chains. Few enough that their heads take four pages, enough that a chain stays short.
const CHAINS: u32 = 4096;

/// PIDs with a number each. One PID may be in it several times, with different numbers.
///
/// A place is named by its position plus one, so that the zeroes of fresh memory mean "none".
#[derive(Debug)]
pub(crate) struct PidMap {
    /// The first place of each chain.
    heads: Table<u32>,
    entries: Table<Entry>,
    /// Places ever used, all at the front.
    used: u32,
    /// First place to be used again.
    free: u32,
    len: u32,
}

/// A PID, its number, and the next place in its chain; a free place has no PID.
type Entry = (u32, u64, u32);

impl PidMap {
    /// A map for `bound` entries.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new(bound: usize) -> Result<PidMap, SysError> {
        Ok(PidMap { heads: Table::new(CHAINS as usize)?, entries: Table::new(bound)?, used: 0, free: 0, len: 0 })
    }

    /// How many entries it has.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Adds `pid` with `value`; `false` where it is full, or `pid` is 0.
    pub(crate) fn insert(&mut self, pid: u32, value: u64) -> bool {
        let (fresh, place) = if self.free == 0 { (1, self.used + 1) } else { (0, self.free) };
        let (Some(entry), Some(head)) = (slot(&mut self.entries, place), self.heads.get_mut(chain_of(pid))) else {
            return false;
        };
        if pid == 0 {
            return false;
        }
        self.free = entry.2;
        self.used += fresh;
        self.len += 1;
        *entry = (pid, value, *head);
        *head = place;
        true
    }

    /// The numbers of `pid`.
    pub(crate) fn values_of(&self, pid: u32) -> impl Iterator<Item = u64> {
        let mut place = self.heads.get(chain_of(pid)).copied().unwrap_or(0);
        core::iter::from_fn(move || {
            while place != 0 {
                let (held, value, next) = self.entry(place);
                place = next;
                if held == pid {
                    return Some(value);
                }
            }
            None
        })
    }

    /// Whether `pid` is in it.
    pub(crate) fn contains(&self, pid: u32) -> bool {
        self.values_of(pid).next().is_some()
    }

    /// Removes `pid` with `value`, where it is there.
    pub(crate) fn remove(&mut self, pid: u32, value: u64) {
        let mut before = 0;
        let mut place = self.heads.get(chain_of(pid)).copied().unwrap_or(0);
        while place != 0 {
            let (held, number, next) = self.entry(place);
            if (held, number) == (pid, value) {
                let link = match slot(&mut self.entries, before) {
                    Some((_, _, link)) => Some(link),
                    None => self.heads.get_mut(chain_of(pid)),
                };
                link.into_iter().for_each(|link| *link = next);
                slot(&mut self.entries, place).into_iter().for_each(|entry| *entry = (0, 0, self.free));
                self.free = place;
                self.len -= 1;
                return;
            }
            before = place;
            place = next;
        }
    }

    /// The entry in the first filled place from position `from` on, and the position behind it; for a walk during which
    /// entries may be removed.
    pub(crate) fn next_from(&self, from: u32) -> Option<(u32, u64, u32)> {
        let mut position = from;
        while position < self.used {
            position += 1;
            let (pid, value, _) = self.entry(position);
            if pid != 0 {
                return Some((pid, value, position));
            }
        }
        None
    }

    /// What is in `place`.
    fn entry(&self, place: u32) -> Entry {
        self.entries.get(place as usize - 1).copied().unwrap_or_default()
    }
}

/// The chain that `pid` is in. Neighbours are in neighbouring chains, so that few pages are touched.
fn chain_of(pid: u32) -> usize {
    (pid % CHAINS) as usize
}

/// The entry in `place`; `None` for place 0, which is no place, and behind the last one.
fn slot(entries: &mut [Entry], place: u32) -> Option<&mut Entry> {
    entries.get_mut((place as usize).checked_sub(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    #[test]
    fn it_holds_what_a_set_of_pairs_would_hold() {
        let mut map = PidMap::new(300).unwrap();
        let mut model = BTreeSet::new();
        let mut noise = 88_172_645_463_325_252_u64;
        for _ in 0..20_000 {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            // Few PIDs, some of which share a chain, and few values.
            let pid = u32::try_from(noise % 40).unwrap() * 2048 + 1;
            let value = noise >> 8 & 3;
            if noise >> 20 & 1 == 0 {
                if !model.contains(&(pid, value)) {
                    assert!(map.insert(pid, value));
                    model.insert((pid, value));
                }
            } else {
                map.remove(pid, value);
                model.remove(&(pid, value));
            }
            assert_eq!(map.len() as usize, model.len());
        }
        let mut walked = Vec::new();
        let mut from = 0;
        while let Some((pid, value, next)) = map.next_from(from) {
            assert!(map.contains(pid) && map.values_of(pid).any(|held| held == value));
            walked.push((pid, value));
            from = next;
        }
        walked.sort_unstable();
        assert_eq!(walked, model.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn it_is_full_at_its_bound_and_takes_again_what_was_given_back() {
        let mut map = PidMap::new(4).unwrap();
        assert!((1..=4).all(|pid| map.insert(pid, 9)));
        assert!(!map.insert(5, 9));
        map.remove(2, 9);
        map.remove(2, 9);
        assert!(map.insert(5, 9) && map.contains(5) && !map.contains(2));
        assert!(!map.insert(6, 9), "it is full again");
        map.remove(5, 9);
        assert!(!map.insert(0, 1));
    }
}
