//! Rows in and out of their tables, each with its checksum; the only module that names columns.

mod slot;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use sexton_plan::id::{BootId, Name, NodeId};

use crate::batch::{Batch, Committed, RequestRecord};
use crate::checksum::Sum;
use crate::entry::Entry;
use crate::event::{Event, NewEvent};

pub(crate) use slot::{free_all_slots, free_slot, put_slot, read_slots};

/// How long the answer to an `Idempotency-Key` is kept.
pub const REQUESTS_KEPT_FOR: std::time::Duration = std::time::Duration::from_secs(24 * 3_600);

/// Events that are always kept; of 50,000 more the oldest go.
pub const EVENTS_KEPT: u64 = 1_000_000;
const EVENTS: Kept = Kept { always: EVENTS_KEPT, at_most: EVENTS_KEPT + 50_000 };

/// How many of the newest are kept.
#[derive(Clone, Copy)]
struct Kept {
    always: u64,
    at_most: u64,
}

/// Rows that one transaction prunes at most, so that no commit waits long for it.
const PRUNED_AT_ONCE: u64 = 500;

/// Why a row could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// What the disk gives back is not what was written.
    #[error("the ledger is damaged: {0}")]
    Damaged(String),
    /// SQLite could not read.
    #[error("could not read the ledger")]
    Sqlite(#[source] rusqlite::Error),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> ReadError {
        if tells_damage(&error) { ReadError::Damaged(error.to_string()) } else { ReadError::Sqlite(error) }
    }
}

/// Whether SQLite, or the type of a column, says that the file is not what was written.
pub(crate) fn tells_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    let of_a_column = matches!(
        error,
        rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..)
    );
    of_a_column || matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// What every event is stamped with.
#[derive(Clone, Debug)]
pub(crate) struct Stamp {
    pub(crate) boot_id: BootId,
    pub(crate) node: NodeId,
    pub(crate) now: fn() -> Timestamp,
}

impl Stamp {
    /// The event that `event`, recorded at `at` as number `seq`, is listed as.
    pub(crate) fn listed(&self, (seq, at): (u64, Timestamp), event: NewEvent) -> Event {
        let NewEvent { instance, incarnation, kind, data, once: _ } = event;
        let (boot_id, node) = (self.boot_id.clone(), self.node.clone());
        Event { seq, at, boot_id, node, instance, incarnation, kind, data }
    }
}

fn json_error(error: serde_json::Error) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}

fn nanoseconds(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX)
}

fn timestamp(nanoseconds: i64) -> Option<Timestamp> {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).ok()
}

/// Column `at` as text, or the conversion error that [`tells_damage`].
fn text<'r>(row: &'r Row<'_>, at: usize) -> rusqlite::Result<&'r str> {
    let value = row.get_ref(at)?;
    let kind = value.data_type();
    value.as_str().map_err(|error| rusqlite::Error::FromSqlConversionFailure(at, kind, Box::new(error)))
}

fn text_or_null<'r>(row: &'r Row<'_>, at: usize) -> rusqlite::Result<Option<&'r str>> {
    match row.get_ref(at)? {
        ValueRef::Null => Ok(None),
        ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Text(_) | ValueRef::Blob(_) => text(row, at).map(Some),
    }
}

// ---- meta ----

fn meta_sum(key: &str, value: &str) -> i64 {
    Sum::of("meta").text(key).text(value).finish()
}

/// Writes, or with `None` deletes, one small fact.
pub(crate) fn put_meta(conn: &Connection, key: &str, value: Option<&str>) -> rusqlite::Result<()> {
    match value {
        Some(value) => conn
            .prepare_cached(
                "INSERT INTO meta (key, value, sum) VALUES (?1, ?2, ?3)
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value, sum = excluded.sum",
            )?
            .execute(params![key, value, meta_sum(key, value)]),
        None => conn.prepare_cached("DELETE FROM meta WHERE key = ?1")?.execute(params![key]),
    }?;
    Ok(())
}

/// All small facts, checked.
pub(crate) fn read_meta(conn: &Connection) -> Result<BTreeMap<String, String>, ReadError> {
    let mut statement = conn.prepare("SELECT key, value, sum FROM meta")?;
    let mut rows = statement.query(())?;
    let mut meta = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let (key, value) = (text(row, 0)?, text(row, 1)?);
        if row.get::<_, i64>(2)? != meta_sum(key, value) {
            return Err(ReadError::Damaged(format!(
                "the value of `{}` does not match its checksum",
                key.escape_default()
            )));
        }
        meta.insert(key.to_owned(), value.to_owned());
    }
    Ok(meta)
}

// ---- entry ----

/// Rows from which on a second thread pays for itself.
const MANY: usize = 1_000;

const ENTRY_COLUMNS: &str = "name, incarnation, state, node, body, sum";

/// Inserts `entry`, or replaces the row of its name.
pub(crate) fn put_entry(conn: &Connection, entry: &Entry) -> rusqlite::Result<()> {
    let body = serde_json::to_string(entry).map_err(json_error)?;
    let (name, incarnation) = (entry.name.as_str(), entry.incarnation.as_str());
    let (state, node) = (entry.state.as_str(), entry.node.as_str());
    let sum = Sum::of("entry").text(name).text(incarnation).text(state).text(node).text(&body).finish();
    conn.prepare_cached(
        "INSERT INTO entry (name, incarnation, state, node, body, sum) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (name) DO UPDATE SET incarnation = excluded.incarnation, state = excluded.state,
             node = excluded.node, body = excluded.body, sum = excluded.sum",
    )?
    .execute(params![name, incarnation, state, node, body, sum])?;
    Ok(())
}

/// Deletes the row of `name`, if there is one.
pub(crate) fn remove_entry(conn: &Connection, name: &Name) -> rusqlite::Result<()> {
    conn.prepare_cached("DELETE FROM entry WHERE name = ?1")?.execute(params![name.as_str()])?;
    Ok(())
}

/// Checks the row's sum and gives its body.
fn entry_body<'r>(row: &'r Row<'_>) -> Result<&'r str, ReadError> {
    let name = text(row, 0)?;
    let (incarnation, state, node, body) = (text(row, 1)?, text(row, 2)?, text(row, 3)?, text(row, 4)?);
    let sum = Sum::of("entry").text(name).text(incarnation).text(state).text(node).text(body).finish();
    if row.get::<_, i64>(5)? != sum {
        let name = name.escape_default();
        return Err(ReadError::Damaged(format!("the row of instance `{name}` does not match its checksum")));
    }
    Ok(body)
}

fn entry(row: &Row<'_>) -> Result<Entry, ReadError> {
    understand(entry_body(row)?)
}

fn understand(body: &str) -> Result<Entry, ReadError> {
    serde_json::from_str(body)
        .map_err(|error| ReadError::Damaged(format!("the row of an instance cannot be understood: {error}")))
}

/// All rows, checked, by name.
pub(crate) fn read_entries(conn: &Connection) -> Result<Vec<Entry>, ReadError> {
    read_entries_beside(conn, || ()).map(|(entries, ())| entries)
}

/// As [`read_entries`]; `work` is done beside what takes most of the time, and what it gives is given too.
pub(crate) fn read_entries_beside<T>(
    conn: &Connection,
    work: impl FnOnce() -> T,
) -> Result<(Vec<Entry>, T), ReadError> {
    let mut statement = conn.prepare(&format!("SELECT {ENTRY_COLUMNS} FROM entry"))?;
    let mut rows = statement.query(())?;
    let mut bodies = Vec::new();
    while let Some(row) = rows.next()? {
        bodies.push(entry_body(row)?.to_owned());
    }
    let (mut entries, worked) = understand_all(&bodies, work)?;
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok((entries, worked))
}

/// Understands `bodies`, where there are many on a second thread too: that is most of the time that opening takes.
fn understand_all<T>(bodies: &[String], work: impl FnOnce() -> T) -> Result<(Vec<Entry>, T), ReadError> {
    let all = |bodies: &[String]| bodies.iter().map(|body| understand(body)).collect::<Result<Vec<Entry>, ReadError>>();
    if bodies.len() < MANY {
        return Ok((all(bodies)?, work()));
    }
    let rest = Mutex::new(bodies.chunks(MANY / 10));
    let next = || rest.lock().unwrap_or_else(PoisonError::into_inner).next();
    let take_turns = || std::iter::from_fn(next).map(all).collect::<Result<Vec<_>, ReadError>>();
    std::thread::scope(|scope| {
        let other = scope.spawn(take_turns);
        let worked = work();
        let mut parts = take_turns()?;
        // INVARIANT: `understand` does not panic.
        parts.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        Ok((parts.into_iter().flatten().collect(), worked))
    })
}

/// The rows of `node` that are not terminal, checked, by name.
pub(crate) fn read_live_entries(conn: &Connection, node: &NodeId) -> Result<Vec<Entry>, ReadError> {
    let mut statement = conn.prepare(&format!(
        "SELECT {ENTRY_COLUMNS} FROM entry
         WHERE node = ?1 AND state NOT IN ('exited', 'failed', 'lost') ORDER BY name"
    ))?;
    let mut rows = statement.query(params![node.as_str()])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        entries.push(entry(row)?);
    }
    Ok(entries)
}

/// The row of `name`, checked.
pub(crate) fn read_entry(conn: &Connection, name: &Name) -> Result<Option<Entry>, ReadError> {
    let mut statement = conn.prepare_cached(&format!("SELECT {ENTRY_COLUMNS} FROM entry WHERE name = ?1"))?;
    let mut rows = statement.query(params![name.as_str()])?;
    rows.next()?.map(entry).transpose()
}

// ---- event ----

const EVENT_COLUMNS: &str = "seq, at, boot_id, node, instance, incarnation, kind, data, once, sum";

/// Appends `event` as number `seq`; false where it had been recorded before.
fn put_event(
    conn: &Connection,
    stamp: &Stamp,
    (seq, at): (u64, Timestamp),
    event: &NewEvent,
) -> rusqlite::Result<bool> {
    let (seq, at) = (i64::try_from(seq).unwrap_or(i64::MAX), nanoseconds(at));
    let (boot_id, node, kind) = (stamp.boot_id.as_str(), stamp.node.as_str(), event.kind.as_str());
    let instance = event.instance.as_ref().map(Name::as_str);
    let incarnation = event.incarnation.as_ref().map(|incarnation| incarnation.as_str());
    let data = serde_json::to_string(&event.data).map_err(json_error)?;
    let once = event.once.then_some(1i64);
    let sum = Sum::of("event").int(seq).int(at).text(boot_id).text(node).text_or_null(instance);
    let sum = sum.text_or_null(incarnation).text(kind).text(&data).int_or_null(once).finish();
    let written = conn
        .prepare_cached(
            "INSERT INTO event (seq, at, boot_id, node, instance, incarnation, kind, data, once, sum)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
             ON CONFLICT (incarnation, kind) WHERE once = 1 DO NOTHING",
        )?
        .execute(params![seq, at, boot_id, node, instance, incarnation, kind, data, once, sum])?;
    Ok(written == 1)
}

/// The newest event's number, 0 where there has never been one.
pub(crate) fn last_seq(conn: &Connection) -> rusqlite::Result<u64> {
    let last: Option<i64> = conn.prepare_cached("SELECT max(seq) FROM event")?.query_row((), |row| row.get(0))?;
    Ok(last.map_or(0, i64::cast_unsigned))
}

/// The oldest event's number, if there is one.
pub(crate) fn first_seq(conn: &Connection) -> rusqlite::Result<Option<u64>> {
    let first: Option<i64> = conn.prepare_cached("SELECT min(seq) FROM event")?.query_row((), |row| row.get(0))?;
    Ok(first.map(i64::cast_unsigned))
}

/// Deletes a few of the oldest events where there are more than enough; `added` were appended just now.
fn prune_events(conn: &Connection, kept: Kept, last: u64, added: u64) -> rusqlite::Result<()> {
    let Some(first) = first_seq(conn)? else { return Ok(()) };
    let count = last + 1 - first;
    if count <= kept.at_most {
        return Ok(());
    }
    let step = (added + PRUNED_AT_ONCE).min(count - kept.always);
    let below = i64::try_from(first + step).unwrap_or(i64::MAX);
    conn.prepare_cached("DELETE FROM event WHERE seq < ?1")?.execute(params![below])?;
    Ok(())
}

fn event(row: &Row<'_>) -> Result<Event, ReadError> {
    let (seq, at): (i64, i64) = (row.get(0)?, row.get(1)?);
    let (boot_id, node, kind, data) = (text(row, 2)?, text(row, 3)?, text(row, 6)?, text(row, 7)?);
    let (instance, incarnation) = (text_or_null(row, 4)?, text_or_null(row, 5)?);
    let sum = Sum::of("event").int(seq).int(at).text(boot_id).text(node).text_or_null(instance);
    let sum = sum.text_or_null(incarnation).text(kind).text(data).int_or_null(row.get(8)?).finish();
    if row.get::<_, i64>(9)? != sum {
        return Err(ReadError::Damaged(format!("event {seq} does not match its checksum")));
    }
    let strange = || ReadError::Damaged(format!("event {seq} cannot be understood"));
    Ok(Event {
        seq: seq.cast_unsigned(),
        at: timestamp(at).ok_or_else(strange)?,
        boot_id: boot_id.parse().map_err(|_| strange())?,
        node: node.parse().map_err(|_| strange())?,
        instance: instance.map(str::parse).transpose().map_err(|_| strange())?,
        incarnation: incarnation.map(str::parse).transpose().map_err(|_| strange())?,
        kind: kind.parse().map_err(|_| strange())?,
        data: serde_json::from_str(data).map_err(|_| strange())?,
    })
}

/// Gives every event after number `after`, oldest first and checked, to `each` until that returns false.
pub(crate) fn walk_events(
    conn: &Connection,
    after: u64,
    mut each: impl FnMut(Result<Event, ReadError>) -> bool,
) -> Result<(), ReadError> {
    let sql = format!("SELECT {EVENT_COLUMNS} FROM event WHERE seq > ?1 ORDER BY seq");
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query(params![i64::try_from(after).unwrap_or(i64::MAX)])?;
    while let Some(row) = rows.next()? {
        if !each(event(row)) {
            break;
        }
    }
    Ok(())
}

// ---- request ----

const REQUEST_COLUMNS: &str = "key, fingerprint, name, incarnation, status, answer, at, sum";

fn put_request(conn: &Connection, request: &RequestRecord) -> rusqlite::Result<()> {
    let (key, fingerprint) = (request.key.as_str(), request.fingerprint.cast_signed());
    let (name, incarnation) = (request.name.as_str(), request.incarnation.as_str());
    let status = request.answer.as_ref().map(|(status, _)| i64::from(*status));
    let answer = request.answer.as_ref().map(|(_, body)| body.as_str());
    let at = nanoseconds(request.at);
    let sum = Sum::of("request").text(key).int(fingerprint).text(name).text(incarnation);
    let sum = sum.int_or_null(status).text_or_null(answer).int(at).finish();
    conn.prepare_cached(
        "INSERT INTO request (key, fingerprint, name, incarnation, status, answer, at, sum)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (key) DO UPDATE SET fingerprint = excluded.fingerprint, name = excluded.name,
             incarnation = excluded.incarnation, status = excluded.status, answer = excluded.answer,
             at = excluded.at, sum = excluded.sum",
    )?
    .execute(params![key, fingerprint, name, incarnation, status, answer, at, sum])?;
    Ok(())
}

fn request(row: &Row<'_>) -> Result<RequestRecord, ReadError> {
    let (key, name, incarnation) = (text(row, 0)?, text(row, 2)?, text(row, 3)?);
    let (fingerprint, at): (i64, i64) = (row.get(1)?, row.get(6)?);
    let (status, answer): (Option<i64>, _) = (row.get(4)?, text_or_null(row, 5)?);
    let sum = Sum::of("request").text(key).int(fingerprint).text(name).text(incarnation);
    let sum = sum.int_or_null(status).text_or_null(answer).int(at).finish();
    if row.get::<_, i64>(7)? != sum {
        let key = key.escape_default();
        return Err(ReadError::Damaged(format!("the answer kept for key `{key}` does not match its checksum")));
    }
    let strange =
        || ReadError::Damaged(format!("the answer kept for key `{}` cannot be understood", key.escape_default()));
    let status = status.map(u16::try_from).transpose().map_err(|_| strange())?;
    Ok(RequestRecord {
        key: key.to_owned(),
        fingerprint: fingerprint.cast_unsigned(),
        name: name.parse().map_err(|_| strange())?,
        incarnation: incarnation.parse().map_err(|_| strange())?,
        answer: status.zip(answer.map(str::to_owned)),
        at: timestamp(at).ok_or_else(strange)?,
    })
}

/// What is known about the request with this key, checked.
pub(crate) fn read_request(conn: &Connection, key: &str) -> Result<Option<RequestRecord>, ReadError> {
    let sql = format!("SELECT {REQUEST_COLUMNS} FROM request WHERE key = ?1");
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query(params![key])?;
    rows.next()?.map(request).transpose()
}

/// The requests that were never answered, checked; those that cannot be understood are left out here, and told by
/// whoever asks for them by key.
pub(crate) fn read_unanswered(conn: &Connection) -> Result<Vec<RequestRecord>, ReadError> {
    let mut statement = conn.prepare(&format!("SELECT {REQUEST_COLUMNS} FROM request WHERE status IS NULL"))?;
    let mut rows = statement.query(())?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.extend(request(row));
    }
    Ok(found)
}

/// Gives every kept request, oldest first and checked, to `each`.
pub(crate) fn walk_requests(
    conn: &Connection,
    mut each: impl FnMut(Result<RequestRecord, ReadError>),
) -> Result<(), ReadError> {
    let mut statement = conn.prepare(&format!("SELECT {REQUEST_COLUMNS} FROM request ORDER BY id"))?;
    let mut rows = statement.query(())?;
    while let Some(row) = rows.next()? {
        each(request(row));
    }
    Ok(())
}

/// Deletes a few requests that were first seen longer than [`REQUESTS_KEPT_FOR`] ago.
pub(crate) fn prune_requests(conn: &Connection, now: Timestamp) -> rusqlite::Result<()> {
    let limit = nanoseconds(now.saturating_sub(REQUESTS_KEPT_FOR).unwrap_or(Timestamp::MIN));
    let oldest: Option<i64> = conn
        .prepare_cached("SELECT at FROM request ORDER BY id LIMIT 1")?
        .query_row((), |row| row.get(0))
        .optional()?;
    if oldest.is_some_and(|at| at < limit) {
        conn.prepare_cached(
            "DELETE FROM request WHERE at < ?1 AND id IN (SELECT id FROM request ORDER BY id LIMIT 500)",
        )?
        .execute(params![limit])?;
    }
    Ok(())
}

// ---- batch ----

/// Applies `batch` inside the open transaction and gives what to tell of it; `last` is the newest event's number, kept
/// up.
pub(crate) fn apply(conn: &Connection, stamp: &Stamp, batch: &Batch, last: &mut u64) -> rusqlite::Result<Committed> {
    for entry in &batch.puts {
        put_entry(conn, entry)?;
    }
    for name in &batch.removes {
        remove_entry(conn, name)?;
    }
    for slot in &batch.slots {
        put_slot(conn, slot)?;
    }
    for index in &batch.freed {
        free_slot(conn, *index)?;
    }
    let committed = append_events(conn, stamp, &batch.events, last)?;
    if let Some(request) = &batch.request {
        put_request(conn, request)?;
        prune_requests(conn, committed.at)?;
    }
    for (key, value) in &batch.meta {
        put_meta(conn, key, value.as_deref())?;
    }
    Ok(committed)
}

/// Appends `events` inside the open transaction; as [`apply`].
pub(crate) fn append_events(
    conn: &Connection,
    stamp: &Stamp,
    events: &[NewEvent],
    last: &mut u64,
) -> rusqlite::Result<Committed> {
    let mut seqs = Vec::with_capacity(events.len());
    let (before, at) = (*last, (stamp.now)());
    for event in events {
        let written = put_event(conn, stamp, (*last + 1, at), event)?;
        seqs.push(written.then_some(*last + 1));
        *last += u64::from(written);
    }
    if *last > before {
        prune_events(conn, EVENTS, *last, *last - before)?;
    }
    Ok(Committed { last_seq: *last, at, seqs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventKind;
    use serde_json::Value;

    fn conn() -> (Connection, Stamp) {
        let conn = Connection::open_in_memory().unwrap();
        crate::migrate::migrate(&conn).unwrap();
        let boot_id = "0f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff".parse().unwrap();
        (conn, Stamp { boot_id, node: "here".parse().unwrap(), now: Timestamp::now })
    }

    #[test]
    fn the_oldest_events_go_and_the_newest_always_stay() {
        let (conn, stamp) = conn();
        let kept = Kept { always: 1_000, at_most: 1_100 };
        let mut last = 0;
        for round in 0..400 {
            let events = vec![NewEvent::of_node(EventKind::ApiCalled, Value::Null); 1 + round % 13];
            append_events(&conn, &stamp, &events, &mut last).unwrap();
            prune_events(&conn, kept, last, 13).unwrap();
            let first = first_seq(&conn).unwrap().unwrap();
            let count = last + 1 - first;
            assert!(count <= kept.at_most && (count >= kept.always || first == 1), "{count} left of {last}");
        }
        assert!(first_seq(&conn).unwrap().unwrap() > 1, "something was pruned");
        assert_eq!(last_seq(&conn).unwrap(), last);
    }
}
