//! What one row about a network slot says.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sexton_plan::slot::{Holder, SlotState};

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
