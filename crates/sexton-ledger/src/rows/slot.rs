//! Rows about network slots in and out of their table.

use rusqlite::{Connection, Row, params};

use super::{ReadError, json_error, text};
use crate::checksum::Sum;
use crate::migrate;
use crate::slot::SlotRow;

/// The version that the table came with.
const SINCE: i64 = 2;

fn sum(number: i64, body: &str) -> i64 {
    Sum::of("slot").int(number).text(body).finish()
}

/// Inserts `slot`, or replaces the row of its number.
pub(crate) fn put_slot(conn: &Connection, slot: &SlotRow) -> rusqlite::Result<()> {
    let body = serde_json::to_string(slot).map_err(json_error)?;
    let number = i64::from(slot.index);
    conn.prepare_cached(
        "INSERT INTO slot (number, body, sum) VALUES (?1, ?2, ?3)
         ON CONFLICT (number) DO UPDATE SET body = excluded.body, sum = excluded.sum",
    )?
    .execute(params![number, body, sum(number, &body)])?;
    Ok(())
}

/// Deletes the row of slot `index`, if there is one.
pub(crate) fn free_slot(conn: &Connection, index: u32) -> rusqlite::Result<()> {
    conn.prepare_cached("DELETE FROM slot WHERE number = ?1")?.execute(params![i64::from(index)])?;
    Ok(())
}

/// Deletes every row; a ledger of a version without slots has none.
pub(crate) fn free_all_slots(conn: &Connection) -> rusqlite::Result<()> {
    if migrate::version(conn)? >= SINCE {
        conn.execute("DELETE FROM slot", ())?;
    }
    Ok(())
}

/// All rows, checked, by number; none where the ledger is of a version without slots.
pub(crate) fn read_slots(conn: &Connection) -> Result<Vec<SlotRow>, ReadError> {
    if migrate::version(conn)? < SINCE {
        return Ok(Vec::new());
    }
    let mut statement = conn.prepare("SELECT number, body, sum FROM slot ORDER BY number")?;
    let mut rows = statement.query(())?;
    let mut slots = Vec::new();
    while let Some(row) = rows.next()? {
        slots.push(slot(row)?);
    }
    Ok(slots)
}

fn slot(row: &Row<'_>) -> Result<SlotRow, ReadError> {
    let number: i64 = row.get(0)?;
    let body = text(row, 1)?;
    if row.get::<_, i64>(2)? != sum(number, body) {
        return Err(ReadError::Damaged(format!("the row of slot {number} does not match its checksum")));
    }
    serde_json::from_str(body)
        .map_err(|error| ReadError::Damaged(format!("the row of slot {number} cannot be understood: {error}")))
}
