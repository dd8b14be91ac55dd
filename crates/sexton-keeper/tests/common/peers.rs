//! The programs whose place `sexton-init` takes, and what each documents.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::common::INIT;

/// Signals that nobody can forward, for they tell of a fault in init itself, or cannot be caught.
const NEVER_FORWARDED: [u8; 10] = [4, 5, 6, 7, 8, 9, 11, 17, 19, 31];

/// Which program is under test.
#[allow(clippy::enum_variant_names, reason = "that is what it is called")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    Sexton,
    Tini,
    DumbInit,
    Catatonit,
}

use Init::{Catatonit, DumbInit, Sexton, Tini};

impl Init {
    pub fn path(self) -> PathBuf {
        match self {
            Sexton => PathBuf::from(INIT),
            Tini => PathBuf::from("/usr/bin/tini"),
            DumbInit => PathBuf::from("/usr/bin/dumb-init"),
            Catatonit => PathBuf::from("/usr/bin/catatonit"),
        }
    }

    /// The command line of a run with `flags`, the program that runs to be added.
    pub fn command(self, flags: &[&str]) -> Command {
        let mut command = Command::new(self.path());
        command.args(flags).arg("--").stdin(Stdio::null()).env_remove("TINI_SUBREAPER");
        command
    }

    pub fn shell(self, flags: &[&str], script: &str) -> Command {
        let mut command = self.command(flags);
        command.args(["sh", "-c", script]);
        command
    }

    /// Whether the program documents that it passes this signal on as it is.
    pub fn forwards(self, signal: u8) -> bool {
        !NEVER_FORWARDED.contains(&signal)
            && match self {
                // They ignore what the terminal sends to a background group; 32 and 33 belong to the C library, here of
                // the witness, which cannot block them.
                Sexton | Tini => !matches!(signal, 21 | 22 | 32 | 33),
                // It knows the classic ones, and turns the terminal's stops into STOP.
                DumbInit => signal < 32 && !(20..=22).contains(&signal),
                Catatonit => matches!(signal, 1 | 2 | 3 | 10 | 12 | 15 | 28),
            }
    }
}

/// Those of `wanted` that are there.
pub fn installed(wanted: &[Init]) -> Vec<Init> {
    let (there, missing): (Vec<Init>, Vec<Init>) = wanted.iter().partition(|init| init.path().exists());
    for init in missing {
        eprintln!("SKIPPED: {init:?} is not installed");
    }
    there
}

pub const ALL: [Init; 4] = [Sexton, Tini, DumbInit, Catatonit];
pub const TINI_LIKE: [Init; 2] = [Sexton, Tini];
