//! What an owner's metadata says about a watched process.

use alloc::string::String;

use crate::id::Pid;
use crate::identity::Identity;

/// The metadata of one id, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Its file is proven not to exist.
    Missing,
    /// There is something that is no metadata, or cannot be read; why.
    Odd(String),
    /// An object.
    Read {
        /// What stands in the field of the PID.
        pid: Field,
        /// What stands in the field of the start tick, where the watch has one.
        start_ticks: Option<Field>,
        /// Who has the recorded number.
        recorded: Recorded,
    },
}

/// What stands in one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The object has no such member.
    Absent,
    /// This number.
    Number(u64),
    /// Anything else.
    Other,
}

/// Who has the number that metadata records, where it is not the process that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// Nobody, or a stranger.
    Nobody,
    /// A live process of the same runtime that carries the same id.
    Rival(Pid),
    /// A process that could not be read.
    Unread(Pid),
}

impl Claim {
    /// Whether it names exactly the process `identity`; `false` for what names nothing.
    pub fn is_right_for(&self, identity: &Identity) -> bool {
        match self {
            Claim::Missing | Claim::Odd(_) => false,
            Claim::Read { pid, start_ticks, .. } => {
                let number = u64::from(identity.pid.as_raw().unsigned_abs());
                let same_tick = |field: Field| identity.start_ticks.is_none_or(|tick| field == Field::Number(tick));
                *pid == Field::Number(number) && start_ticks.is_none_or(same_tick)
            }
        }
    }
}
