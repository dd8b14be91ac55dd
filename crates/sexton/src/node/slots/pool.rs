//! Which slots to make, to hand out and to take down. Pure: it is given what there is and says what to do.
//!
//! The unused slots are a function of the others: the lowest numbers that nothing else occupies. So the host looks the
//! same whenever the same instances hold the same slots, whatever happened in between.

use std::collections::BTreeSet;

use sexton_ledger::slot::{SlotRow, SlotState};

/// What is wanted of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
pub fn moves<'a>(rows: impl Iterator<Item = &'a SlotRow>, skipped: &BTreeSet<u32>, wish: Wish) -> Moves {
    let (mut unused, mut occupied) = (BTreeSet::new(), skipped.clone());
    let mut coming = BTreeSet::new();
    for row in rows {
        match row.state {
            SlotState::Ready => unused.insert(row.index),
            SlotState::Making => coming.insert(row.index),
            SlotState::Held | SlotState::Releasing | SlotState::Quarantined => occupied.insert(row.index),
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
pub fn next<'a>(rows: impl Iterator<Item = &'a SlotRow>) -> Option<u32> {
    rows.filter(|row| row.state == SlotState::Ready).map(|row| row.index).min()
}

/// What becomes of a recorded slot at a start of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it is: a life claims it, or it is unused and may serve on.
    Keep,
    /// To be taken down: nobody claims it, or nobody knows how far its making came.
    Release,
}

/// Judges a recorded slot. `is_claimed`: the life that holds it is on the list and has not given it back.
pub fn judge(row: &SlotRow, is_claimed: bool) -> Verdict {
    match row.state {
        SlotState::Ready => Verdict::Keep,
        SlotState::Held | SlotState::Releasing | SlotState::Quarantined if is_claimed => Verdict::Keep,
        SlotState::Making | SlotState::Held | SlotState::Releasing | SlotState::Quarantined => Verdict::Release,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn rows(states: &[(u32, SlotState)]) -> Vec<SlotRow> {
        let row = |&(index, state)| SlotRow { index, state, holder: None, ns_ino: None, place: Value::Null };
        states.iter().map(row).collect()
    }

    fn moved(states: &[(u32, SlotState)], skipped: &[u32], spare: u32, waiting: u32) -> (Vec<u32>, Vec<u32>) {
        let skipped = skipped.iter().copied().collect();
        let moves = moves(rows(states).iter(), &skipped, Wish { spare, waiting, capacity: 4 });
        (moves.make, moves.release)
    }

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
            let told = moved(there, foreign, *spare, *waiting);
            assert_eq!(told, (make.to_vec(), release.to_vec()), "{there:?} {foreign:?} {spare} {waiting}");
        }
    }

    #[test]
    fn what_is_handed_out_is_the_lowest_that_is_ready() {
        let there = rows(&[(0, SlotState::Making), (2, SlotState::Ready), (1, SlotState::Held), (3, SlotState::Ready)]);
        assert_eq!(next(there.iter()), Some(2));
        assert_eq!(next([].iter()), None);
    }

    #[test]
    fn a_recorded_slot_is_kept_only_where_it_is_known_to_be_whole_and_somebody_s_or_unused() {
        for row in rows(&SlotState::ALL.iter().map(|state| (0, *state)).collect::<Vec<_>>()) {
            let claimed = judge(&row, true);
            let unclaimed = judge(&row, false);
            assert_eq!(claimed == Verdict::Release, row.state == SlotState::Making, "{}", row.state);
            assert_eq!(unclaimed == Verdict::Keep, row.state == SlotState::Ready, "{}", row.state);
        }
    }
}
