//! `ledger`: reading the ledger, with or without a daemon beside.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use sexton_core::proc;
use sexton_ledger::{ExportError, OpenError};

use super::failure::{Failure, exit};
use super::member::Member as _;
use super::{Context, out};
use crate::chain::chain;

/// `sexton ledger`.
#[derive(Debug, Args)]
pub struct LedgerArgs {
    #[command(subcommand)]
    verb: LedgerVerb,
}

#[derive(Debug, Subcommand)]
enum LedgerVerb {
    /// Print everything, one JSON object a line; nothing is redacted.
    Dump,
    /// Check every row, and the numbers of the events.
    Verify,
    /// Copy it as it is now to a new file.
    Backup {
        /// The file, which must not exist.
        file: PathBuf,
    },
}

/// Reads the ledger.
pub fn run(context: &Context, args: &LedgerArgs) -> Result<u8, Failure> {
    let state_dir = &context.settings.state_dir;
    match &args.verb {
        LedgerVerb::Dump => dump(context),
        LedgerVerb::Verify => verify(context),
        LedgerVerb::Backup { file } => {
            sexton_ledger::backup(state_dir, file).map_err(|error| failure(&error))?;
            let told = json!({"file": file.display().to_string()});
            context.out.document(&told, |told| format!("{}\n", out::escape(&out::word(told.at("file")))))?;
            Ok(exit::DONE)
        }
    }
}

fn dump(context: &Context) -> Result<u8, Failure> {
    let mut lines = out::JsonLines::default();
    match sexton_ledger::dump(&context.settings.state_dir, &mut lines) {
        Ok(()) => Ok(exit::DONE),
        Err(ExportError::Write(error)) => Err(Failure::of_stdout(&error)),
        Err(error) => Err(failure(&error)),
    }
}

fn verify(context: &Context) -> Result<u8, Failure> {
    // Without `/proc` it can still be said whether what is there is sound.
    let boot_id = proc::here().ok().map(|here| here.boot_id);
    let report =
        sexton_ledger::verify(&context.settings.state_dir, boot_id.as_ref()).map_err(|error| failure(&error))?;
    let told = json!({
        "sound": report.problems.is_empty(), "entries": report.entries, "slots": report.slots, "requests": report.requests,
        "events": report.events, "first_seq": report.first_seq, "last_seq": report.last_seq,
        "problems": report.problems,
    });
    context.out.document(&told, text)?;
    if report.problems.is_empty() {
        return Ok(exit::DONE);
    }
    Err(Failure::new(exit::FAILED, format!("the ledger is damaged: {} problems", report.problems.len()))
        .hint("stop the daemon, keep the file, and go on from a backup"))
}

fn text(told: &Value) -> String {
    let problems = told.at("problems").as_array().into_iter().flatten();
    let problems: String = problems.map(|problem| format!("problem: {}\n", out::escape(&out::word(problem)))).collect();
    let sound = if told.at("sound") == true { "sound" } else { "damaged" };
    format!(
        "{sound}: {} instances, {} slots, {} requests, {} events\n{problems}",
        told.at("entries"),
        told.at("slots"),
        told.at("requests"),
        told.at("events")
    )
}

/// A ledger that cannot be read.
pub fn failure(error: &ExportError) -> Failure {
    match error {
        ExportError::Absent => Failure::new(exit::NOT_FOUND, chain(error)).hint("`--state-dir` says where it is"),
        ExportError::Exists => Failure::new(exit::REFUSED, chain(error)).hint("name a file that does not exist yet"),
        ExportError::Write(_) => {
            Failure::new(exit::FAILED, chain(error)).hint("check the directory, and the room in it")
        }
        ExportError::Open(error) => open_failure(error),
    }
}

/// A ledger that cannot be opened.
pub fn open_failure(error: &OpenError) -> Failure {
    let hint = match error {
        OpenError::Newer { .. } => "use the program that made it, or a later one",
        OpenError::Damaged(_) => "keep the file, and go on from a backup",
        OpenError::Locked => "try again when the other program is done",
        OpenError::NotPermitted(_) => "ask as root or the daemon's user",
        OpenError::CannotCreate(_) | OpenError::Io(_) => "check the state directory and its disk",
    };
    Failure::new(exit::FAILED, chain(error)).hint(hint)
}
