-- Every row ends with `sum`, a checksum over its other columns (src/checksum.rs).
CREATE TABLE meta (
    key TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL,
    sum INTEGER NOT NULL
) WITHOUT ROWID;

-- One instance: `body` is the whole entry as JSON, the columns before it repeat what SQL asks for.
CREATE TABLE entry (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    incarnation TEXT NOT NULL,
    state TEXT NOT NULL,
    node TEXT NOT NULL,
    body TEXT NOT NULL,
    sum INTEGER NOT NULL
);

-- `at` is in nanoseconds since 1970. `once` is 1 for a fact that can be true only once in a life, else NULL.
CREATE TABLE event (
    seq INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    node TEXT NOT NULL,
    instance TEXT,
    incarnation TEXT,
    kind TEXT NOT NULL,
    data TEXT NOT NULL,
    once INTEGER,
    sum INTEGER NOT NULL
);
CREATE UNIQUE INDEX event_once ON event (incarnation, kind) WHERE once = 1;

-- Answers kept for an Idempotency-Key; `id` grows with time, so that the oldest are found without an index.
CREATE TABLE request (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    fingerprint INTEGER NOT NULL,
    name TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    status INTEGER,
    answer TEXT,
    at INTEGER NOT NULL,
    sum INTEGER NOT NULL
);
