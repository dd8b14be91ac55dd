//! Which network slots to make, to hand out and to take down, so that as many are ready as are to be.
//!
//! The unused slots are a function of the others: the lowest numbers that nothing else occupies. So the host looks the
//! same whenever the same instances hold the same slots, whatever happened in between.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use crate::slot::SlotState;

/// What is wanted of the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Unused slots to keep ready.
    pub spare: u32,
    /// Lives that wait for a slot now.
    pub waiting: u32,
    /// Numbers from 0 up to this.
    pub capacity: u32,
}

/// What leads from what there is to what is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Numbers to make, the lowest first.
    pub make: Vec<u32>,
    /// Unused slots to take down.
    pub release: Vec<u32>,
}

/// The way from `rows` to what is wanted, past the numbers in `skipped`, at which something foreign is.
pub fn moves(rows: impl Iterator<Item = (u32, SlotState)>, skipped: &BTreeSet<u32>, wish: Wish) -> Moves {
    let (mut unused, mut occupied) = (BTreeSet::new(), skipped.clone());
    let mut coming = BTreeSet::new();
    for (index, state) in rows {
        match state {
            SlotState::Ready => unused.insert(index),
            SlotState::Making => coming.insert(index),
            SlotState::Held | SlotState::Releasing | SlotState::Quarantined => occupied.insert(index),
        };
    }
    let count = usize::try_from(wish.spare.saturating_add(wish.waiting)).unwrap_or(usize::MAX);
    let wanted: BTreeSet<u32> = (0..wish.capacity).filter(|index| !occupied.contains(index)).take(count).collect();
    Moves {
        make: wanted.iter().copied().filter(|index| !unused.contains(index) && !coming.contains(index)).collect(),
        release: unused.difference(&wanted).copied().collect(),
    }
}

/// The slot to hand out next: the lowest that is ready.
pub fn next(rows: impl Iterator<Item = (u32, SlotState)>) -> Option<u32> {
    rows.filter(|(_, state)| *state == SlotState::Ready).map(|(index, _)| index).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_the_lowest_free_numbers_and_no_more() {
        use SlotState::{Held, Making, Quarantined, Ready, Releasing};
        type Case<'a> = (&'a [(u32, SlotState)], &'a [u32], [u32; 2], &'a [u32], &'a [u32]);
        let cases: &[Case<'_>] = &[
            // What there is, what is foreign, [spare, waiting], to make, to take down.
            (&[], &[], [0, 0], &[], &[]),
            (&[], &[], [2, 0], &[0, 1], &[]),
            (&[], &[], [0, 1], &[0], &[]),
            (&[], &[0], [2, 0], &[1, 2], &[]),
            (&[(0, Held), (1, Ready)], &[], [2, 0], &[2], &[]),
            (&[(1, Ready), (2, Ready)], &[], [2, 0], &[0], &[2]),
            (&[(0, Releasing), (1, Ready)], &[], [1, 0], &[], &[]),
            (&[(0, Quarantined), (1, Ready)], &[], [1, 0], &[], &[]),
            (&[(0, Making), (1, Ready)], &[], [2, 0], &[], &[]),
            (&[(0, Ready), (1, Ready)], &[], [0, 0], &[], &[0, 1]),
            (&[(0, Ready), (3, Ready)], &[], [1, 0], &[], &[3]),
            (&[(0, Held), (1, Held), (2, Held)], &[], [2, 5], &[3], &[]),
            (&[(0, Held), (1, Held), (2, Held), (3, Held)], &[], [2, 5], &[], &[]),
            (&[(7, Ready)], &[], [1, 0], &[0], &[7]),
        ];
        for (there, foreign, [spare, waiting], make, release) in cases {
            let skipped = foreign.iter().copied().collect();
            let wish = Wish { spare: *spare, waiting: *waiting, capacity: 4 };
            let told = moves(there.iter().copied(), &skipped, wish);
            let wanted = Moves { make: make.to_vec(), release: release.to_vec() };
            assert_eq!(told, wanted, "{there:?} {foreign:?} {spare} {waiting}");
        }
    }

    #[test]
    fn what_is_handed_out_is_the_lowest_that_is_ready() {
        let there = [(0, SlotState::Making), (2, SlotState::Ready), (1, SlotState::Held), (3, SlotState::Ready)];
        assert_eq!(next(there.into_iter()), Some(2));
        assert_eq!(next([].into_iter()), None);
    }
}
