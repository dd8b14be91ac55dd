-- One network slot: `body` is the whole row as JSON. A number that is in no row is nobody's.
CREATE TABLE slot (
    number INTEGER PRIMARY KEY,
    body TEXT NOT NULL,
    sum INTEGER NOT NULL
);
