//! Why an incarnation never ran, whose fault that is, and how its start is undone.

use std::error::Error;
use std::io;
use std::sync::Arc;

use sexton_core::spawn::NeverRan;
use sexton_ledger::entry::Entry;
use sexton_plan::ladder::Rung;
use sexton_sys::{Errno, SysError};

use super::crash::crash_point;
use super::fate::Fate;
use super::life::{Life, Next, RollBack};
use super::process::Zombie;
use super::request::Stop;
use super::start::not_started;
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

impl Life {
    /// Ends what a start that never ran has made, and gives back what it took.
    pub(super) async fn roll_back(&mut self, roll_back: RollBack) -> Next {
        let RollBack { why, process, reply } = roll_back;
        let kind = why.kind;
        // Nothing bore its name before it was asked for, and whoever asked is to ask again.
        let is_withdrawn = self.is_new && why.is_to_be_asked_again();
        crash_point!("rollback.begun");
        let domain = self.open_domain().await;
        self.climb(Rung::Kill, process.as_ref(), domain.as_ref()).await;
        if let Some(process) = &process {
            // Reaped, so that no zombie stays; a status of what never ran means nothing.
            let _status = process.ended(Zombie::Reaped).await;
        }
        crash_point!("rollback.empty");
        if is_withdrawn {
            // Also where something cannot be given back at once: it goes as soon as that is.
            let order = self.with_order(&Stop { force: true, grace: None }, None, true);
            self.entry = Arc::new(Entry { stop: Some(order), ..(*self.entry).clone() });
        }
        let mut next = self.settle(Fate::NeverRan(why), domain, None).await;
        let refusal = Refusal::new(kind, not_started(&self.entry));
        if is_withdrawn && self.entry.resources.is_empty() {
            self.remove(Vec::new()).await;
            next = Next::Withdrawn(refusal.clone());
        }
        if let Some(reply) = reply {
            let _heard = reply.send(Err(refusal));
        }
        next
    }
}

/// Whether an error, or what caused it, is a lack.
fn is_lack(error: &(dyn Error + 'static)) -> bool {
    let of_file = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error).map(Errno);
    let of_call = error.downcast_ref::<SysError>().map(|error| error.errno);
    let of_child = error.downcast_ref::<NeverRan>().map(|error| error.0.errno);
    match of_file.or(of_call).or(of_child) {
        Some(errno) => LACKING.contains(&errno),
        None => error.source().is_some_and(is_lack),
    }
}
