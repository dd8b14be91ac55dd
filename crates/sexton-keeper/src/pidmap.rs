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
    heads: Table<u32>,
    nexts: Table<u32>,
    pids: Table<u32>,
    values: Table<u64>,
    /// Places ever used, all at the front.
    used: u32,
    /// First place to be used again.
    free: u32,
    len: u32,
}

/// A place in a `PidMap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place(u32);

impl PidMap {
    /// A map for `bound` entries.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new(bound: usize) -> Result<PidMap, SysError> {
        Ok(PidMap {
            heads: Table::new(CHAINS as usize)?,
            nexts: Table::new(bound)?,
            pids: Table::new(bound)?,
            values: Table::new(bound)?,
            used: 0,
            free: 0,
            len: 0,
        })
    }

    /// How many entries it has.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Adds `pid` with `value`; `false` where it is full, or `pid` is 0.
    pub(crate) fn insert(&mut self, pid: u32, value: u64) -> bool {
        let Some(place) = self.take_place().filter(|_| pid != 0) else {
            return false;
        };
        let chain = chain_of(pid);
        set(&mut self.nexts, place.0 - 1, at(&self.heads, chain));
        set(&mut self.heads, chain, place.0);
        set(&mut self.pids, place.0 - 1, pid);
        set(&mut self.values, place.0 - 1, value);
        self.len += 1;
        true
    }

    /// A place to fill: one given back, or a fresh one.
    fn take_place(&mut self) -> Option<Place> {
        if self.free != 0 {
            let place = Place(self.free);
            self.free = at(&self.nexts, place.0 - 1);
            return Some(place);
        }
        if self.used as usize >= self.pids.len() {
            return None;
        }
        self.used += 1;
        Some(Place(self.used))
    }

    /// The numbers of `pid`.
    pub(crate) fn values_of(&self, pid: u32) -> impl Iterator<Item = u64> {
        let mut place = at(&self.heads, chain_of(pid));
        core::iter::from_fn(move || {
            while place != 0 {
                let index = place - 1;
                place = at(&self.nexts, index);
                if at(&self.pids, index) == pid {
                    return Some(at(&self.values, index));
                }
            }
            None
        })
    }

    /// Whether `pid` is in it.
    pub(crate) fn contains(&self, pid: u32) -> bool {
        self.values_of(pid).next().is_some()
    }

    /// Removes `pid` with `value`; tells whether it was there.
    pub(crate) fn remove(&mut self, pid: u32, value: u64) -> bool {
        let chain = chain_of(pid);
        let mut before = 0;
        let mut place = at(&self.heads, chain);
        while place != 0 {
            let index = place - 1;
            let next = at(&self.nexts, index);
            if at(&self.pids, index) == pid && at(&self.values, index) == value {
                match before {
                    0 => set(&mut self.heads, chain, next),
                    before => set(&mut self.nexts, before - 1, next),
                }
                self.give_back(Place(place));
                return true;
            }
            before = place;
            place = next;
        }
        false
    }

    /// Frees a place that no chain leads to any more.
    fn give_back(&mut self, place: Place) {
        set(&mut self.pids, place.0 - 1, 0);
        set(&mut self.nexts, place.0 - 1, self.free);
        self.free = place.0;
        self.len -= 1;
    }

    /// The entry in the first filled place from `from` on, and the position behind it; for a walk during which
    /// entries may be removed.
    pub(crate) fn next_from(&self, from: u32) -> Option<(u32, u64, u32)> {
        (from..self.used).find_map(|index| match at(&self.pids, index) {
            0 => None,
            pid => Some((pid, at(&self.values, index), index + 1)),
        })
    }
}

/// The chain that `pid` is in. Neighbours are in neighbouring chains, so that few pages are touched.
fn chain_of(pid: u32) -> u32 {
    pid % CHAINS
}

/// The number at `index`; every index here is below the table's length.
fn at<T: Copy + Default>(table: &[T], index: u32) -> T {
    table.get(index as usize).copied().unwrap_or_default()
}

fn set<T>(table: &mut [T], index: u32, value: T) {
    if let Some(slot) = table.get_mut(index as usize) {
        *slot = value;
    }
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
                assert_eq!(map.remove(pid, value), model.remove(&(pid, value)));
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
        assert!(map.remove(2, 9) && !map.remove(2, 9));
        assert!(map.insert(5, 9) && map.contains(5) && !map.contains(2));
        assert!(!map.insert(0, 1));
    }
}
