//! Why an incarnation never ran, and whose fault that is.

use std::error::Error;
use std::io;

use sexton_core::spawn::NeverRan;
use sexton_ledger::entry::Entry;
use sexton_sys::{Errno, SysError};

use crate::chain::chain;
use crate::refusal::{Kind, Refusal};

/// What passes when something else ends or is freed: there is no room on the disk, for a process, a cgroup, memory or a
/// descriptor. A file system turns read-only when its disk fails.
const LACKING: [Errno; 7] =
    [Errno::EAGAIN, Errno::ENOMEM, Errno::ENFILE, Errno::EMFILE, Errno::ENOSPC, Errno::EDQUOT, Errno::EROFS];

/// Why an incarnation never ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unstarted {
    /// In words.
    pub reason: String,
    /// Whose fault it is: that of what was asked, or of the host, which had no room for it.
    pub kind: Kind,
    /// Whether its program ran all the same, and was ended for that nobody could be told: whoever asks for it again asks
    /// for a second run.
    pub ran: bool,
}

impl Unstarted {
    /// What was asked cannot be run.
    pub fn asked(reason: impl Into<String>) -> Unstarted {
        Unstarted { reason: reason.into(), kind: Kind::ExecFailed, ran: false }
    }

    /// The host refused something, perhaps for lack of room.
    pub fn refused(error: &(dyn Error + 'static)) -> Unstarted {
        let kind = if is_lack(error) { Kind::NodeFull } else { Kind::ExecFailed };
        Unstarted { reason: chain(error), kind, ran: false }
    }

    /// What the daemon itself needs for it cannot be had: that is never the fault of what was asked.
    pub fn failed(error: &(dyn Error + 'static)) -> Unstarted {
        let why = Unstarted::refused(error);
        if why.passes() { why } else { Unstarted { kind: Kind::Internal, ..why } }
    }

    /// Whether the same may be begun another time.
    pub fn passes(&self) -> bool {
        self.kind != Kind::ExecFailed
    }

    /// Whether whoever asked is told to ask again (503), for it has not run: then nothing of this try is kept, neither
    /// its name nor its answer.
    pub fn is_to_be_asked_again(&self) -> bool {
        self.kind.status() == 503 && !self.ran
    }
}

impl From<Refusal> for Unstarted {
    /// What was refused on the way, before its program ran.
    fn from(refusal: Refusal) -> Unstarted {
        Unstarted { reason: refusal.detail, kind: refusal.kind, ran: false }
    }
}

/// The sentence for whoever asked for a start that failed.
pub fn not_started(entry: &Entry) -> String {
    format!("`{}` was not started: {}", entry.name, entry.reason.as_deref().unwrap_or_default())
}

/// Whether an error, or what caused it, is a lack.
pub(super) fn is_lack(error: &(dyn Error + 'static)) -> bool {
    let of_file = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error).map(Errno);
    let of_call = error.downcast_ref::<SysError>().map(|error| error.errno);
    let of_child = error.downcast_ref::<NeverRan>().map(|error| error.0.errno);
    match of_file.or(of_call).or(of_child) {
        Some(errno) => LACKING.contains(&errno),
        None => error.source().is_some_and(is_lack),
    }
}
