//! What the owner of the slots is asked for, and what comes back from its thread.

use std::sync::Arc;

use sexton_ledger::entry::Entry;

use super::Reply;
use crate::net::{Made, NetError, Released, Seen};
use crate::refusal::Refusal;

/// The pass that is asked for.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// The instances, until they were looked at.
    pub(super) entries: Option<Vec<Arc<Entry>>>,
    /// Who waits for its end.
    pub(super) replies: Vec<Reply<()>>,
}

/// Why a slot was not made.
#[derive(Clone, Debug)]
pub(super) enum NotMade {
    /// Its row could not be recorded, so nothing was tried.
    Unrecorded(Refusal),
    /// The network refused.
    Net(NetError),
}

/// What comes back from a turn.
#[derive(Debug)]
pub(super) enum News {
    /// Slots were taken down and made.
    Turned { released: Vec<(u32, Result<Released, NetError>)>, made: Vec<(u32, Result<Made, NotMade>)> },
    /// Slots were looked at, and repaired.
    Looked(Outlook),
    /// What slots share was taken down.
    Dismantled(Result<Released, NetError>),
}

/// What a look found, and what became of what was missing.
#[derive(Debug)]
pub(super) struct Outlook {
    pub(super) seen: Vec<(u32, Seen)>,
    pub(super) repaired: Vec<(u32, Result<(), NetError>)>,
}
