//! The ledger's versions: how each is made from the one before, and what its tables must look like.

use rusqlite::Connection;

/// What leads from each version to the next; the version is `PRAGMA user_version`, from 1.
///
/// INVARIANT: a step that was released never changes, for [`schema_of`] tells damage by it.
const STEPS: &[&str] = &[include_str!("../migrations/0001-first.sql"), include_str!("../migrations/0002-slots.sql")];

/// "SXTN", so that `file` can tell what it is; not looked at, for a version from the future says more.
const APPLICATION_ID: i64 = 0x5358_544e;

/// The newest version that this program knows.
pub(crate) const KNOWN: i64 = 2;
const _: () = assert!(STEPS.len() == 2, "as many steps as versions");

/// The version of the database, 0 for an empty one.
pub(crate) fn version(conn: &Connection) -> rusqlite::Result<i64> {
    conn.query_row("PRAGMA user_version", (), |row| row.get(0))
}

/// Brings the database to version [`KNOWN`]; to be called inside a transaction.
pub(crate) fn migrate(conn: &Connection) -> rusqlite::Result<()> {
    migrate_to(conn, KNOWN)
}

fn migrate_to(conn: &Connection, target: i64) -> rusqlite::Result<()> {
    let found = version(conn)?;
    for (number, step) in (1..=target).zip(STEPS) {
        if number > found {
            conn.execute_batch(step)?;
            conn.pragma_update(None, "user_version", number)?;
        }
    }
    if found == 0 {
        conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    Ok(())
}

/// A table or index: its name, and the statement that made it.
pub(crate) type Object = (String, String);

/// What a database of version `version` consists of, by name.
pub(crate) fn schema_of(version: i64) -> rusqlite::Result<Vec<Object>> {
    let conn = Connection::open_in_memory()?;
    migrate_to(&conn, version)?;
    schema(&conn)
}

/// What this database consists of, by name, without what SQLite adds by itself.
pub(crate) fn schema(conn: &Connection) -> rusqlite::Result<Vec<Object>> {
    let sql =
        "SELECT name, coalesce(sql, '') FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name";
    conn.prepare(sql)?.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrating_twice_changes_nothing() {
        let conn = Connection::open_in_memory().unwrap();
        assert_eq!(version(&conn).unwrap(), 0);
        migrate(&conn).unwrap();
        let before = schema(&conn).unwrap();
        migrate(&conn).unwrap();
        assert_eq!(version(&conn).unwrap(), KNOWN);
        assert_eq!(schema(&conn).unwrap(), before);
        assert_eq!(before, schema_of(KNOWN).unwrap());
    }
}
