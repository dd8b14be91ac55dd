//! The words for where an instance is in its life, and how a life ended.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// Every value, in the order of their declaration.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The word used outside.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<$name, UnknownWord> {
                $name::ALL.iter().copied().find(|word| word.as_str() == text).ok_or(UnknownWord)
            }
        }
    };
}

/// A word that is none of the words allowed there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not one of the words allowed here")]
pub struct UnknownWord;

words! {
    /// Where an instance is in its life.
    State {
        /// The intent is durable, resources are being acquired.
        Starting = "starting",
        /// The main process is alive and proven ours.
        Running = "running",
        /// Asked to end, or the main process has ended; processes or resources remain.
        Stopping = "stopping",
        /// SIGKILL was delivered and something still lives.
        Stuck = "stuck",
        /// The recorded process can be proven neither ours nor gone.
        Unverified = "unverified",
        /// Gone, and its exit is known.
        Exited = "exited",
        /// Never ran; everything acquired was given back.
        Failed = "failed",
        /// Gone, and nobody can know how.
        Lost = "lost",
    }
}

impl State {
    /// Whether nothing but `start` and `rm` leads on from here.
    pub const fn is_terminal(self) -> bool {
        matches!(self, State::Exited | State::Failed | State::Lost)
    }
}

words! {
    /// Why nobody can know how an instance ended.
    LostReason {
        /// The machine was booted anew.
        Reboot = "reboot",
        /// The process is gone and every source of its exit is silent.
        Vanished = "vanished",
        /// Its PID names another process now.
        PidReused = "pid_reused",
        /// Same boot, another PID namespace.
        ContainerRestart = "container_restart",
    }
}

words! {
    /// Who told an exit status, best first.
    ExitSource {
        /// The worker waited for its own child.
        Wait = "wait",
        /// The keeper's durable record.
        Keeper = "keeper",
        /// `PIDFD_GET_INFO` of a held pidfd.
        Pidfd = "pidfd",
        /// `PIDFD_GET_INFO` of a pinned pidfd.
        Pin = "pin",
        /// The zombie's `/proc/PID/stat`.
        Proc = "proc",
    }
}

words! {
    /// What follows the end of an incarnation.
    Restart {
        /// Nothing.
        Never = "never",
        /// A new incarnation after a code other than 0, or a signal.
        OnFailure = "on-failure",
        /// A new incarnation whatever the end, also after `lost`.
        Always = "always",
    }
}

/// How a process ended, as `wait(2)` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExitStatus {
    /// It called `exit` with this code.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
}

impl ExitStatus {
    /// From the raw status word of `wait(2)` and `PIDFD_GET_INFO`; `None` for a word that tells no end.
    pub const fn from_wait_word(word: i32) -> Option<ExitStatus> {
        let [low, high, ..] = word.to_le_bytes();
        match low & 0x7f {
            0 => Some(ExitStatus::Code(high)),
            0x7f => None,
            signal => Some(ExitStatus::Signal(signal)),
        }
    }

    /// Whether a program calls this success.
    pub const fn is_success(self) -> bool {
        matches!(self, ExitStatus::Code(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_words_give_code_or_signal_and_nothing_else() {
        for code in 0..=255u8 {
            assert_eq!(ExitStatus::from_wait_word(i32::from(code) << 8), Some(ExitStatus::Code(code)));
        }
        assert_eq!(ExitStatus::from_wait_word(9), Some(ExitStatus::Signal(9)));
        assert_eq!(ExitStatus::from_wait_word(9 | 0x80), Some(ExitStatus::Signal(9)), "with a core dump");
        assert_eq!(ExitStatus::from_wait_word(0x137f), None, "stopped is not ended");
    }

    #[test]
    fn every_state_reads_back() {
        for state in State::ALL {
            assert_eq!(state.as_str().parse::<State>(), Ok(*state));
        }
        assert!("gone".parse::<State>().is_err());
    }
}
