//! What an operator asks of a ledger, with or without a daemon beside: everything as text, whether it is sound, a copy.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use serde::Serialize;
use serde_json::json;
use sexton_plan::id::BootId;

use crate::look::{self, Look, OpenError, Sight};
use crate::migrate;
use crate::rows::{self, ReadError};
use crate::whereabouts::ROOM;

/// Why a ledger could not be dumped, verified or copied.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is no ledger.
    #[error("there is no ledger")]
    Absent,
    /// It could not be opened, or is damaged.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The output could not be written.
    #[error("could not write the output")]
    Write(#[source] io::Error),
    /// The file to copy to exists already.
    #[error("the file to copy to exists already")]
    Exists,
}

impl From<ReadError> for ExportError {
    fn from(error: ReadError) -> ExportError {
        ExportError::Open(error.into())
    }
}

impl From<rusqlite::Error> for ExportError {
    fn from(error: rusqlite::Error) -> ExportError {
        ExportError::Open(error.into())
    }
}

fn look(state_dir: &Path, boot_id: Option<&BootId>) -> Result<Look, ExportError> {
    match look::look(state_dir, boot_id)? {
        Sight::Sound(look) => Ok(*look),
        Sight::Absent => Err(ExportError::Absent),
    }
}

/// Writes everything, one JSON object a line: `{"meta": …}`, `{"entry": …}`, `{"slot": …}`, `{"request": …}`, `{"event": …}`.
///
/// Nothing is redacted: the environment of instances is in it.
///
/// # Errors
/// [`ExportError`]; damage in the event log ends the dump where it is.
pub fn dump(state_dir: &Path, output: &mut dyn Write) -> Result<(), ExportError> {
    let look = look(state_dir, None)?;
    let conn = &look.conn;
    // One snapshot, whatever is written meanwhile.
    conn.execute_batch("BEGIN")?;
    write_line(output, &json!({"meta": {"version": migrate::version(conn)?, "values": told_meta(conn)?}}))?;
    for entry in rows::read_entries(conn)? {
        // Not by way of a `Value`, in which what an owner keeps may be another value.
        write_line(output, &BTreeMap::from([("entry", entry)]))?;
    }
    for slot in rows::read_slots(conn)? {
        write_line(output, &json!({"slot": slot}))?;
    }
    let mut result = Ok(());
    rows::walk_requests(conn, |request| {
        if result.is_ok() {
            result = request.map_err(ExportError::from).and_then(|request| {
                let answer = request.answer.as_ref().map(|(status, body)| json!({"status": status, "body": body}));
                write_line(
                    output,
                    &json!({"request": {"key": request.key, "name": request.name, "incarnation": request.incarnation,
                        "answer": answer, "at": request.at}}),
                )
            });
        }
    })?;
    result?;
    let mut result = Ok(());
    rows::walk_events(conn, 0, |event| {
        result = event.map_err(ExportError::from).and_then(|event| write_line(output, &json!({"event": event})));
        result.is_ok()
    })?;
    result?;
    output.flush().map_err(ExportError::Write)
}

fn told_meta(conn: &Connection) -> Result<BTreeMap<String, String>, ReadError> {
    let mut meta = rows::read_meta(conn)?;
    meta.retain(|key, _| !key.starts_with(ROOM));
    Ok(meta)
}

fn write_line(output: &mut dyn Write, line: &impl Serialize) -> Result<(), ExportError> {
    let line = serde_json::to_string(line).map_err(|error| ExportError::Write(error.into()))?;
    writeln!(output, "{line}").map_err(ExportError::Write)
}

/// What [`verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Instances in the ledger.
    pub entries: u64,
    /// Network slots.
    pub slots: u64,
    /// Kept answers.
    pub requests: u64,
    /// Events in the log.
    pub events: u64,
    /// The oldest event's number, if there is one.
    pub first_seq: Option<u64>,
    /// The newest event's number, 0 where there has never been one.
    pub last_seq: u64,
    /// What is wrong, a sentence each; empty for a sound ledger. No more than [`PROBLEMS_TOLD`].
    pub problems: Vec<String>,
}

/// Problems that one report tells; the rest adds nothing.
pub const PROBLEMS_TOLD: usize = 100;

impl Report {
    fn note(&mut self, problem: impl ToString) {
        if self.problems.len() < PROBLEMS_TOLD {
            self.problems.push(problem.to_string());
        }
    }
}

/// Checks every row, the numbers of the events, and SQLite's own structures; with `boot_id`, that what was written
/// during this boot is all there, as for a start. Changes nothing.
///
/// # Errors
/// [`ExportError`] where the ledger cannot even be opened; what is wrong inside is in the [`Report`].
pub fn verify(state_dir: &Path, boot_id: Option<&BootId>) -> Result<Report, ExportError> {
    let look = match look(state_dir, boot_id) {
        Ok(look) => look,
        Err(ExportError::Open(OpenError::Damaged(why))) => {
            return Ok(Report { problems: vec![why], ..Report::default() });
        }
        Err(error) => return Err(error),
    };
    let mut report = Report::default();
    match inspect(&look.conn, &mut report) {
        Ok(()) => {}
        Err(ReadError::Damaged(why)) => report.note(why),
        Err(error) => return Err(error.into()),
    }
    Ok(report)
}

fn inspect(conn: &Connection, report: &mut Report) -> Result<(), ReadError> {
    conn.execute_batch("BEGIN")?;
    let mut statement = conn.prepare("PRAGMA integrity_check")?;
    let mut lines = statement.query(())?;
    while let Some(line) = lines.next()? {
        let line: String = line.get(0)?;
        if line != "ok" {
            report.note(line);
        }
    }
    report.entries = u64::try_from(rows::read_entries(conn)?.len()).unwrap_or(u64::MAX);
    report.slots = u64::try_from(rows::read_slots(conn)?.len()).unwrap_or(u64::MAX);
    rows::walk_requests(conn, |request| match request {
        Ok(_) => report.requests += 1,
        Err(error) => report.note(error),
    })?;
    report.first_seq = rows::first_seq(conn)?;
    report.last_seq = rows::last_seq(conn)?;
    let mut expected = report.first_seq.unwrap_or(1);
    rows::walk_events(conn, 0, |event| {
        match event {
            Ok(event) if event.seq != expected => {
                report.note(format!("event {expected} is missing, {} follows", event.seq));
                expected = event.seq;
            }
            Ok(_) => {}
            Err(error) => report.note(error),
        }
        report.events += 1;
        expected += 1;
        true
    })
}

/// Copies the ledger as it is now to the new file `to`, durably; what is written meanwhile is in it whole or not.
///
/// # Errors
/// [`ExportError`]; then there is no file `to`, or the one that was there before.
pub fn backup(state_dir: &Path, to: &Path) -> Result<(), ExportError> {
    let look = look(state_dir, None)?;
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(ExportError::Exists),
        Err(error) => return Err(ExportError::Write(error)),
    }
    let result = copy(&look.conn, to);
    if result.is_err() {
        // The error at hand says more than one about this file could.
        fs::remove_file(to).ok();
    }
    result
}

fn copy(from: &Connection, to: &Path) -> Result<(), ExportError> {
    let of_output = |error: rusqlite::Error| ExportError::Write(io::Error::other(error));
    let mut copy = Connection::open(to).map_err(of_output)?;
    let backup = Backup::new(from, &mut copy)?;
    loop {
        // All in one step, so that a writer cannot make it begin anew.
        match backup.step(-1).map_err(of_output)? {
            StepResult::Done => break,
            StepResult::More => {}
            StepResult::Busy | StepResult::Locked => std::thread::sleep(Duration::from_millis(50)),
            other => return Err(ExportError::Write(io::Error::other(format!("backup ended with {other:?}")))),
        }
    }
    drop(backup);
    copy.close().map_err(|(_, error)| of_output(error))?;
    let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all()).map_err(ExportError::Write);
    sync(to)?;
    match to.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => sync(dir),
        Some(_) | None => sync(Path::new(".")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::whereabouts::NODE;

    #[test]
    fn what_only_takes_up_room_is_not_told() {
        let conn = Connection::open_in_memory().unwrap();
        migrate::migrate(&conn).unwrap();
        rows::put_meta(&conn, NODE, Some("here")).unwrap();
        rows::put_meta(&conn, &format!("{ROOM}filler"), Some("xxx")).unwrap();
        assert_eq!(told_meta(&conn).unwrap().into_keys().collect::<Vec<_>>(), [NODE]);
    }
}
