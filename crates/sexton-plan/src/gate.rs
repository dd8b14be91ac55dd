//! The node's status: which word may follow which.
//!
//! ```text
//!   standby ◄──► healthy ◄──► unhealthy ◄──► standby
//!      └────────────┴──────────────┴──► draining      (left by a new daemon alone, once drained)
//! ```
//!
//! `standby` and `unhealthy` are words for whoever places work. The node itself refuses work only while it drains.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::state::UnknownWord;

/// What a node is for those who place work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// Kept in reserve.
    Standby,
    /// Takes work.
    #[default]
    Healthy,
    /// Something is wrong with it.
    Unhealthy,
    /// Takes no work, and is being emptied.
    Draining,
}

/// What a wish for a status comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is another one from now on.
    Becomes,
    /// It is so already.
    Stays,
    /// A drain is not reversed.
    Refused,
}

/// What follows, by present status (row) and wish (column: standby, healthy, unhealthy, draining).
const TABLE: [[Turn; 4]; 4] = {
    use Turn::{Becomes, Refused, Stays};
    [
        /* standby   */ [Stays, Becomes, Becomes, Becomes],
        /* healthy   */ [Becomes, Stays, Becomes, Becomes],
        /* unhealthy */ [Becomes, Becomes, Stays, Becomes],
        /* draining  */ [Refused, Refused, Refused, Stays],
    ]
};

impl NodeStatus {
    /// Every status, in the order of the table.
    pub const ALL: [NodeStatus; 4] =
        [NodeStatus::Standby, NodeStatus::Healthy, NodeStatus::Unhealthy, NodeStatus::Draining];

    /// The word used outside.
    pub const fn as_str(self) -> &'static str {
        match self {
            NodeStatus::Standby => "standby",
            NodeStatus::Healthy => "healthy",
            NodeStatus::Unhealthy => "unhealthy",
            NodeStatus::Draining => "draining",
        }
    }

    /// What the wish for `wanted` comes to.
    pub fn turn(self, wanted: NodeStatus) -> Turn {
        let cell = TABLE.get(self as usize).and_then(|row| row.get(wanted as usize));
        cell.copied().unwrap_or(Turn::Refused)
    }

    /// With which status a daemon begins whose predecessors left this one, `drained` or not: a drain goes on, save under
    /// a new keeper once it is over.
    pub const fn at_start(self, drained: bool, new_keeper: bool) -> NodeStatus {
        if matches!(self, NodeStatus::Draining) && drained && new_keeper { NodeStatus::Healthy } else { self }
    }
}

impl fmt::Display for NodeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl core::str::FromStr for NodeStatus {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<NodeStatus, UnknownWord> {
        NodeStatus::ALL.into_iter().find(|status| status.as_str() == text).ok_or(UnknownWord)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_statuses_is_decided() {
        for from in NodeStatus::ALL {
            for wanted in NodeStatus::ALL {
                let expected = match (from, wanted) {
                    (from, wanted) if from == wanted => Turn::Stays,
                    (NodeStatus::Draining, _) => Turn::Refused,
                    (_, _) => Turn::Becomes,
                };
                assert_eq!(from.turn(wanted), expected, "{from} to {wanted}");
            }
        }
    }

    #[test]
    fn no_way_leads_out_of_draining() {
        // However many wishes are made, one after another.
        for first in NodeStatus::ALL {
            for second in NodeStatus::ALL {
                let mut status = NodeStatus::Draining;
                for wanted in [first, second] {
                    if status.turn(wanted) == Turn::Becomes {
                        status = wanted;
                    }
                }
                assert_eq!(status, NodeStatus::Draining, "by way of {first} and {second}");
            }
        }
    }

    #[test]
    fn draining_is_left_by_a_new_keeper_after_drained_alone() {
        for status in NodeStatus::ALL {
            for (drained, new_keeper) in [(false, false), (false, true), (true, false), (true, true)] {
                let left = status == NodeStatus::Draining && drained && new_keeper;
                let expected = if left { NodeStatus::Healthy } else { status };
                assert_eq!(status.at_start(drained, new_keeper), expected, "{status} {drained} {new_keeper}");
            }
        }
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        for status in NodeStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
        assert_eq!("Draining".parse::<NodeStatus>(), Err(UnknownWord));
    }
}
