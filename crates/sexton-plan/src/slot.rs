//! What to make of one network slot: the one place that decides it, at every start of the worker and at every
//! reconcile.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{Incarnation, Name};

/// Where a recorded slot is between wish and gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotState {
    /// Claimed, perhaps not made yet.
    Making,
    /// Made, and nobody's.
    Ready,
    /// Made, and given to a life.
    Held,
    /// Being taken down.
    Releasing,
    /// It cannot be taken down yet, for something holds it.
    Quarantined,
}

impl SlotState {
    /// Every state, in the order of a slot's way.
    pub const ALL: &'static [SlotState] =
        &[SlotState::Making, SlotState::Ready, SlotState::Held, SlotState::Releasing, SlotState::Quarantined];

    /// The word used outside.
    pub const fn as_str(self) -> &'static str {
        match self {
            SlotState::Making => "making",
            SlotState::Ready => "ready",
            SlotState::Held => "held",
            SlotState::Releasing => "releasing",
            SlotState::Quarantined => "quarantined",
        }
    }
}

impl fmt::Display for SlotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The life that a slot was given to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The instance.
    pub name: Name,
    /// Its life.
    pub incarnation: Incarnation,
}

/// A part of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its entry below `/run/netns`.
    Namespace,
    /// Its veth pair, or the pair is down or leads elsewhere.
    Link,
    /// The host's address on it.
    Address,
    /// Its element, or the rules of the table.
    Rule,
    /// Forwarding at the uplink, which all slots share.
    Forwarding,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Namespace => "namespace",
            Part::Link => "link",
            Part::Address => "address",
            Part::Rule => "rule",
            Part::Forwarding => "uplink's forwarding",
        })
    }
}

/// What one look found of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// All of it.
    Whole,
    /// Some of it; these parts are missing.
    Damaged(Vec<Part>),
    /// Nothing but its namespace, which somebody is in or holds.
    Bare,
    /// Nothing at all.
    Absent,
    /// Something that is not ours bears its name or address; says what.
    Foreign(String),
    /// It could not be looked at; says why.
    Unread(String),
}

/// Who answers for a recorded slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// A life that is not over.
    Live,
    /// It is being given back: by its life, which is over, or by what was planned before.
    Leaving,
    /// A life that is not among those that were seen: it may be about to claim it.
    Untold,
    /// Nobody.
    Nobody,
}

/// What a row says, as far as it decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotClaim {
    /// The recorded state.
    pub state: SlotState,
    /// Who answers for it.
    pub holding: Holding,
    /// Whether it is as one made now would be.
    pub fits: bool,
}

impl SlotClaim {
    /// Why it is to be taken down however it looks, if it is: nobody answers for it, or it serves nobody.
    pub fn abandoned(self) -> Option<&'static str> {
        match (self.state, self.holding) {
            (SlotState::Making, _) => Some("nobody knows how far its making came"),
            (SlotState::Ready, _) if !self.fits => Some("it is unused, and of another configuration"),
            (SlotState::Held, Holding::Nobody) => Some("no row claims it"),
            (SlotState::Releasing | SlotState::Quarantined, Holding::Nobody | Holding::Untold) => {
                Some("nobody's any more, and not taken down yet")
            }
            (SlotState::Ready, _) | (SlotState::Held, Holding::Live | Holding::Leaving | Holding::Untold) => None,
            (SlotState::Releasing | SlotState::Quarantined, Holding::Live | Holding::Leaving) => None,
        }
    }
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Put back what is missing, for this reason.
    Repair(String),
    /// Take down what is left of it, for this reason.
    Release(String),
    /// Keep hands off, for this reason.
    Leave(String),
    /// Nothing to do.
    Rest,
}

/// Judges one slot; without a row it is a number that was passed by.
pub fn judge(claim: Option<SlotClaim>, seen: &Seen) -> Verdict {
    let Some(claim) = claim else {
        return match seen {
            Seen::Foreign(what) => Verdict::Leave(what.clone()),
            Seen::Unread(why) => unread(why),
            Seen::Whole | Seen::Damaged(_) | Seen::Bare | Seen::Absent => Verdict::Rest,
        };
    };
    match (claim.state, seen) {
        (_, Seen::Unread(why)) => return unread(why),
        (SlotState::Quarantined, Seen::Bare) => {
            return Verdict::Leave("somebody holds its network namespace".to_string());
        }
        (SlotState::Quarantined, Seen::Foreign(what)) => return Verdict::Leave(what.clone()),
        (SlotState::Making | SlotState::Ready | SlotState::Held | SlotState::Releasing, _)
        | (SlotState::Quarantined, _) => {}
    }
    if let Some(why) = claim.abandoned() {
        return Verdict::Release(why.to_string());
    }
    match (claim.state, claim.holding) {
        (SlotState::Ready, _) => judge_unused(seen),
        (SlotState::Held, Holding::Live) => judge_used(seen),
        (SlotState::Held, Holding::Leaving | Holding::Untold | Holding::Nobody)
        | (SlotState::Making | SlotState::Releasing | SlotState::Quarantined, _) => Verdict::Rest,
    }
}

/// One that nobody uses is not mended: what has touched it from outside may have been inside, too.
fn judge_unused(seen: &Seen) -> Verdict {
    match seen {
        Seen::Whole => Verdict::Rest,
        Seen::Damaged(missing) => Verdict::Release(format!("it is unused, and its {} is missing", listed(missing))),
        Seen::Bare | Seen::Absent => Verdict::Release("it is unused, and gone from the host".to_string()),
        // What is ours beside it goes: nobody is to be given such a slot.
        Seen::Foreign(what) => Verdict::Release(format!("it is unused, and something foreign is there: {what}")),
        Seen::Unread(why) => unread(why),
    }
}

fn judge_used(seen: &Seen) -> Verdict {
    match seen {
        Seen::Whole => Verdict::Rest,
        Seen::Damaged(missing) => Verdict::Repair(format!("it is in use, and its {} is missing", listed(missing))),
        Seen::Bare => Verdict::Repair("it is in use, and all but its namespace is missing".to_string()),
        Seen::Absent => Verdict::Leave("its namespace is gone: its instance has left it".to_string()),
        Seen::Foreign(what) => Verdict::Leave(what.clone()),
        Seen::Unread(why) => unread(why),
    }
}

fn unread(why: &str) -> Verdict {
    Verdict::Leave(format!("it could not be read: {why}"))
}

fn listed(parts: &[Part]) -> String {
    parts.iter().map(ToString::to_string).collect::<Vec<String>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    const HOLDINGS: [Holding; 4] = [Holding::Live, Holding::Leaving, Holding::Untold, Holding::Nobody];

    fn sights() -> [Seen; 6] {
        let (what, missing) = ("a bridge".to_string(), vec![Part::Link]);
        [Seen::Whole, Seen::Damaged(missing), Seen::Bare, Seen::Absent, Seen::Foreign(what.clone()), Seen::Unread(what)]
    }

    /// Every combination there is.
    fn all() -> impl Iterator<Item = (SlotClaim, Seen)> {
        let rows = SlotState::ALL.iter().flat_map(|state| {
            let of = |holding| [true, false].map(|fits| SlotClaim { state: *state, holding, fits });
            HOLDINGS.into_iter().flat_map(of)
        });
        rows.flat_map(|claim| sights().into_iter().map(move |seen| (claim, seen)))
    }

    #[test]
    fn only_a_slot_that_a_life_uses_is_repaired_and_only_where_something_of_it_is_left() {
        for (claim, seen) in all() {
            let is_repair = matches!(judge(Some(claim), &seen), Verdict::Repair(_));
            let is_used = claim.state == SlotState::Held && claim.holding == Holding::Live;
            let is_hurt = matches!(seen, Seen::Damaged(_) | Seen::Bare);
            assert_eq!(is_repair, is_used && is_hurt, "{claim:?} {seen:?}");
        }
    }

    #[test]
    fn what_a_life_holds_or_gives_back_is_never_taken_down_under_it() {
        for (claim, seen) in all() {
            let is_somebodys = match claim.state {
                SlotState::Held => claim.holding != Holding::Nobody,
                SlotState::Releasing | SlotState::Quarantined => {
                    matches!(claim.holding, Holding::Live | Holding::Leaving)
                }
                SlotState::Making | SlotState::Ready => false,
            };
            let verdict = judge(Some(claim), &seen);
            assert!(!is_somebodys || !matches!(verdict, Verdict::Release(_)), "{claim:?} {seen:?} {verdict:?}");
        }
    }

    #[test]
    fn what_could_not_be_read_is_let_alone() {
        for (claim, seen) in all().filter(|(_, seen)| matches!(seen, Seen::Unread(_))) {
            assert!(matches!(judge(Some(claim), &seen), Verdict::Leave(_)), "{claim:?}");
        }
        assert!(matches!(judge(None, &Seen::Unread("odd".to_string())), Verdict::Leave(_)));
    }

    #[test]
    fn a_recorded_slot_is_kept_only_where_it_is_known_to_be_whole_and_somebody_s_or_unused() {
        for state in SlotState::ALL {
            let of = |holding| SlotClaim { state: *state, holding, fits: true };
            assert_eq!(of(Holding::Live).abandoned().is_some(), *state == SlotState::Making, "{state}");
            assert_eq!(of(Holding::Nobody).abandoned().is_none(), *state == SlotState::Ready, "{state}");
        }
    }
}
