//! Why a command did not succeed: exit code, sentence, and what to do next.

use std::io;

use serde_json::Value;

use super::member::Member as _;
use crate::refusal::Kind;

/// Exit codes of the CLI.
pub mod exit {
    /// Done.
    pub const DONE: u8 = 0;
    /// Failed.
    pub const FAILED: u8 = 1;
    /// Usage, or a bad name.
    pub const USAGE: u8 = 2;
    /// Not found.
    pub const NOT_FOUND: u8 = 3;
    /// Refused in this state.
    pub const REFUSED: u8 = 4;
    /// Stuck or partly done.
    pub const STUCK: u8 = 5;
    /// The daemon is not reachable.
    pub const UNREACHABLE: u8 = 6;
    /// Timed out, and nothing is stuck.
    pub const TIMED_OUT: u8 = 7;
    /// Usage or configuration, for `serve`.
    pub const SERVE_USAGE: u8 = 64;
    /// What a shell shows of a program whose reader went away.
    pub const BROKEN_PIPE: u8 = 141;
}

/// A command that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: u8,
    /// What is told on stderr; nothing where there is nothing to tell.
    pub message: Option<String>,
    /// What to do next.
    pub hint: Option<String>,
    /// The stable code, where the daemon refused.
    pub kind: Option<Kind>,
}

impl Failure {
    /// Ends with `exit` and says `message`.
    pub fn new(exit: u8, message: impl Into<String>) -> Failure {
        Failure { exit, message: Some(message.into()), hint: None, kind: None }
    }

    /// Ends with `exit` and says nothing, for everything is said.
    pub const fn silent(exit: u8) -> Failure {
        Failure { exit, message: None, hint: None, kind: None }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// Stdout took no more. A reader that has what it wanted is no failure to talk of.
    pub fn of_stdout(error: &io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure::silent(exit::DONE);
        }
        Failure::new(exit::FAILED, format!("could not write the output: {error}"))
    }

    /// The daemon refused with `status` and `body`.
    pub fn of_answer(status: u16, body: &Value) -> Failure {
        let code = body.at("code").as_str().unwrap_or_default();
        let kind = Kind::ALL.iter().copied().find(|kind| kind.code() == code);
        let detail = body.at("detail").as_str().or(body.at("title").as_str());
        let message = match detail {
            Some(detail) => detail.to_owned(),
            None => format!("the daemon answered {status}"),
        };
        let exit = kind.map_or_else(|| exit_of_status(status), Kind::exit);
        Failure { exit, message: Some(message), hint: Some(hint_of(kind, exit).to_owned()), kind }
    }

    /// Puts `name` in front, where several are at stake.
    #[must_use]
    pub fn about(mut self, name: &str) -> Failure {
        self.message = self.message.map(|message| format!("{name}: {message}"));
        self
    }
}

/// For a code that this program does not know, as of a newer daemon.
fn exit_of_status(status: u16) -> u8 {
    match status {
        404 => exit::NOT_FOUND,
        408 => exit::TIMED_OUT,
        409 => exit::REFUSED,
        401 | 403 => exit::FAILED,
        400..=499 => exit::USAGE,
        _ => exit::FAILED,
    }
}

fn hint_of(kind: Option<Kind>, exit: u8) -> &'static str {
    match kind {
        Some(Kind::NotFound) => "`sexton ps -a` lists what there is",
        Some(Kind::NameInUse) => "take another name, or free this one with `sexton rm NAME` (`--force` stops it first)",
        Some(Kind::WrongState) => "`sexton show NAME` tells the state and why",
        Some(Kind::NodeDraining) => "`sexton node` tells how far the drain is; a new `sexton serve` takes work again",
        Some(Kind::NodeFull) => "end something first; `sexton ps` lists what runs",
        Some(Kind::NoSlot) => "`sexton slots` lists them, and `sexton doctor` tells what they need",
        Some(Kind::LedgerUnwritable) => "make room on the disk of the state directory; `sexton doctor` tells more",
        Some(Kind::ExecFailed) => "check that the program exists, is executable, and that its user and directory do",
        Some(Kind::KeyReused) => "ask again with a key of its own",
        Some(Kind::Unauthenticated | Kind::Forbidden) => {
            "ask as root or the daemon's user, or be given a role in `[[access]]`"
        }
        Some(Kind::NotReady | Kind::RequestTimeout | Kind::TooManyConnections) => "try again in a moment",
        Some(Kind::Internal) => "the daemon's log tells more",
        Some(
            Kind::BadArgument
            | Kind::MethodNotAllowed
            | Kind::TooLarge
            | Kind::UriTooLong
            | Kind::UnsupportedMediaType
            | Kind::HeadersTooLarge,
        ) => "`sexton help COMMAND` shows what is allowed",
        None if exit == exit::NOT_FOUND => "`sexton ps -a` lists what there is",
        None => "the daemon may be of another version; `sexton doctor` tells more",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_refusal_has_the_exit_code_of_the_table() {
        for kind in Kind::ALL {
            let failure = Failure::of_answer(kind.status(), &json!({"code": kind.code(), "detail": "so it is"}));
            assert_eq!((failure.exit, failure.message.as_deref()), (kind.exit(), Some("so it is")));
            assert!(failure.hint.is_some());
        }
    }

    #[test]
    fn an_unknown_code_is_judged_by_its_status() {
        for (status, exit) in [(404, 3), (409, 4), (400, 2), (500, 1), (503, 1), (408, 7), (403, 1)] {
            assert_eq!(Failure::of_answer(status, &json!({"code": "newer"})).exit, exit, "{status}");
        }
    }

    #[test]
    fn a_reader_that_went_away_is_no_news() {
        let failure = Failure::of_stdout(&io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((failure.exit, failure.message), (0, None));
    }
}
