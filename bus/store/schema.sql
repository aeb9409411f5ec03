-- The broker's database, version 4. One connection, WAL, on a local disk. The core is the index: no secondary
-- indexes (uuid keys, a row per event and per attempt, and indexes cost 95 microseconds of CPU a task; this costs 20).
-- The numbers of states are those of states.py; the CHECKs say its law again, so that a bug cannot write an impossible row.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value
) WITHOUT ROWID;

-- `revisions` of its plan, after the first: [key, digest, sha256 of the one before, at, by, reason] of each, NULL where there are none.
CREATE TABLE batches (
    no         INTEGER PRIMARY KEY,
    id         TEXT NOT NULL,
    key        TEXT NOT NULL,
    kind       TEXT NOT NULL CHECK (kind IN ('client', 'calls', 'plan')),
    name       TEXT NOT NULL,
    state      INTEGER NOT NULL CHECK (state BETWEEN 0 AND 4),
    priority   INTEGER NOT NULL,
    mirror     INTEGER NOT NULL,
    closed     INTEGER NOT NULL,
    cancelled  INTEGER NOT NULL,
    created_at REAL NOT NULL,
    ended_at   REAL NOT NULL,
    seq        INTEGER NOT NULL,
    error      TEXT,
    plan       BLOB,
    revisions  BLOB,
    CHECK ((state >= 2) = (ended_at > 0))
);

CREATE TABLE tasks (
    no            INTEGER PRIMARY KEY,
    batch         INTEGER NOT NULL,
    key           TEXT NOT NULL,
    state         INTEGER NOT NULL CHECK (state BETWEEN 0 AND 9),
    seq           INTEGER NOT NULL,
    priority      INTEGER NOT NULL,
    hold          INTEGER NOT NULL,
    ending        INTEGER NOT NULL CHECK (ending IN (0, 1, 2)),
    attempt       INTEGER NOT NULL CHECK (attempt >= 0),
    n_task        INTEGER NOT NULL,
    n_crash       INTEGER NOT NULL,
    n_infra       INTEGER NOT NULL,
    inc           INTEGER NOT NULL,
    tok           INTEGER NOT NULL,
    session       TEXT NOT NULL,
    worker        TEXT,
    leased_at     REAL NOT NULL,
    started_at    REAL NOT NULL,
    not_before_at REAL NOT NULL,
    deadline_at   REAL NOT NULL,
    created_at    REAL NOT NULL,
    ended_at      REAL NOT NULL,
    owner         TEXT NOT NULL,
    parent        INTEGER NOT NULL,
    error         TEXT,
    spec          BLOB NOT NULL,
    payload       BLOB NOT NULL,
    result        BLOB,
    ref           TEXT,
    ref_bytes     INTEGER,
    revised       INTEGER NOT NULL DEFAULT 0 CHECK (revised BETWEEN 0 AND 7),
    CHECK ((state >= 5) = (ended_at > 0)),      -- terminal exactly when it has ended
    CHECK (state <> 2 OR (tok > 0 AND inc > 0)) -- LEASED exactly under a token
);

-- An attempt that did not end well; the one that did stands in the task's row.
CREATE TABLE attempts (
    task       INTEGER NOT NULL,
    n          INTEGER NOT NULL,
    worker     TEXT,
    started_at REAL NOT NULL,
    ended_at   REAL NOT NULL,
    class      TEXT NOT NULL CHECK (class IN ('task', 'crash', 'infra', 'definition')),
    error      TEXT,
    PRIMARY KEY (task, n)
) WITHOUT ROWID;

-- What was found of a result that was judged, an attempt a row: `value` is shown, `sample` is what was judged.
CREATE TABLE evaluations (
    task    INTEGER NOT NULL,
    n       INTEGER NOT NULL,
    verdict TEXT NOT NULL CHECK (verdict IN ('accept', 'reject', 'dead')),
    at      REAL NOT NULL,
    value   BLOB NOT NULL,
    sample  BLOB NOT NULL,
    PRIMARY KEY (task, n)
) WITHOUT ROWID;

CREATE TABLE facts (
    scope TEXT NOT NULL,
    key   TEXT NOT NULL,
    rev   INTEGER NOT NULL CHECK (rev > 0),
    epoch INTEGER NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (scope, key)
) WITHOUT ROWID;

-- One row a commit: events seq_first .. seq_first + n - 1, msgpack. `tail`: tail.py; that of a commit without events
-- is in meta, which costs such a commit a page more.
CREATE TABLE events (
    seq_first INTEGER PRIMARY KEY,
    n         INTEGER NOT NULL CHECK (n > 0),
    blob      BLOB NOT NULL,
    tail      BLOB
);
