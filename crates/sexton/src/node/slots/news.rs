//! What comes back from the thread that works on the network.

use std::collections::BTreeMap;

use sexton_plan::slot::Seen;

use super::Review;
use crate::net::{Made, NetError, Released};
use crate::refusal::Refusal;

/// Why a slot was not made.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum NotMade {
    /// Its row could not be recorded, so nothing was tried.
    #[error("{}", .0.detail)]
    Unrecorded(Refusal),
    /// The network refused.
    #[error(transparent)]
    Net(NetError),
}

/// What comes back from a turn.
#[derive(Debug)]
pub(super) enum News {
    /// Slots were taken down and made.
    Turned { released: Vec<(u32, Result<Released, NetError>)>, made: Vec<(u32, Result<Made, NotMade>)> },
    /// Slots were looked at, for these reviews.
    Looked(Vec<Review>, BTreeMap<u32, Seen>),
    /// Slots in use were repaired.
    Repaired(Vec<(u32, Result<(), NetError>)>),
    /// A table that slots shared was taken down.
    Dismantled(String, Result<Released, NetError>),
}
