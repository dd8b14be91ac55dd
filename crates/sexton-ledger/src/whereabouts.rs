//! What the ledger says of itself: whose it is, and during which boot it was last open.

use rusqlite::Connection;
use sexton_plan::id::{BootId, NodeId};

use crate::rows::{self, ReadError};

/// Keys of `meta` that begin so are the ledger's own.
pub(crate) const OWN: &str = "ledger.";
pub(crate) const NODE: &str = "ledger.node";
pub(crate) const BOOT_ID: &str = "ledger.boot_id";
/// Keys that begin so take up room, or try it, and tell nothing.
pub(crate) const ROOM: &str = "ledger.room.";

/// Where and when the ledger was last open.
pub(crate) struct Whereabouts {
    pub(crate) node: Option<NodeId>,
    pub(crate) boot_id: Option<BootId>,
}

impl Whereabouts {
    pub(crate) fn read(conn: &Connection) -> Result<Whereabouts, ReadError> {
        let meta = rows::read_meta(conn)?;
        let strange = |key: &str| ReadError::Damaged(format!("the value of `{key}` cannot be understood"));
        let node = meta.get(NODE).map(|text| text.parse()).transpose().map_err(|_| strange(NODE))?;
        let boot_id = meta.get(BOOT_ID).map(|text| text.parse()).transpose().map_err(|_| strange(BOOT_ID))?;
        Ok(Whereabouts { node, boot_id })
    }
}
