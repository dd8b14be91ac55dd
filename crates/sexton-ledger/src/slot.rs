//! What one row about a network slot says.

use core::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sexton_plan::id::{Incarnation, Name};

/// One network slot as the ledger has it. While there is a row, the kernel may hold something of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlotRow {
    /// Its number, from 0.
    pub index: u32,
    /// Where it is between wish and gone.
    pub state: SlotState,
    /// Whose it is.
    pub holder: Option<Holder>,
    /// Inode of its network namespace in nsfs, once it was made.
    pub ns_ino: Option<u64>,
    /// Every name and address that it was made with, as whoever makes slots wrote it: what it is taken down by, though
    /// the configuration, or the way of naming, has changed since.
    pub place: Value,
}

/// The life that a slot was given to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The instance.
    pub name: Name,
    /// Its life.
    pub incarnation: Incarnation,
}

/// Where a slot is between wish and gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotState {
    /// Recorded, perhaps not made yet.
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
