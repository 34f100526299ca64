"""The tables of the SQLite record store."""

from __future__ import annotations

SCHEMA_VERSION = 1

# Every combination of the list's filters has an index that ends in `seq`, so that a page costs the same whether a
# user has a thousand jobs or a hundred thousand.
_LIST_INDEXES = "".join(
    f"CREATE INDEX IF NOT EXISTS jobs_by_{'_'.join(('uid', *columns))} ON jobs ({', '.join(('uid', *columns, 'seq'))});"
    for columns in (
        (),
        ("pid",),
        ("status",),
        ("action",),
        ("pid", "status"),
        ("pid", "action"),
        ("status", "action"),
        ("pid", "status", "action"),
    )
)

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS oids (
    pid TEXT NOT NULL, number INTEGER NOT NULL, uid TEXT NOT NULL, PRIMARY KEY (pid, number)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    uid TEXT NOT NULL, pid TEXT NOT NULL, oid TEXT NOT NULL,
    action TEXT NOT NULL, kind TEXT NOT NULL, parameters TEXT NOT NULL, slot TEXT NOT NULL,
    created_at REAL NOT NULL, output_name TEXT, callback_url TEXT, force INTEGER NOT NULL, retry_of TEXT,
    status TEXT NOT NULL, phase TEXT, progress REAL NOT NULL, attempt INTEGER NOT NULL,
    owner TEXT, claim INTEGER NOT NULL, lease_until REAL, child_pid INTEGER, child_started INTEGER,
    cancel_requested INTEGER NOT NULL, fingerprint TEXT, cached_from TEXT,
    started_at REAL, finished_at REAL, metrics TEXT, artifact_files TEXT, error TEXT,
    UNIQUE (pid, oid)
);
{_LIST_INDEXES}
CREATE INDEX IF NOT EXISTS jobs_free ON jobs (slot, seq) WHERE status = 'queued' AND owner IS NULL;
CREATE INDEX IF NOT EXISTS jobs_owned ON jobs (owner) WHERE owner IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_open ON jobs (status, slot) WHERE status IN ('queued', 'running');
CREATE INDEX IF NOT EXISTS jobs_done ON jobs (fingerprint, seq) WHERE status = 'completed' AND cached_from IS NULL;

CREATE TABLE IF NOT EXISTS events (
    pid TEXT NOT NULL, oid TEXT NOT NULL, number INTEGER NOT NULL,
    type TEXT NOT NULL, data TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (pid, oid, number)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS idempotency_keys (
    uid TEXT NOT NULL, key TEXT NOT NULL, body_sha256 TEXT NOT NULL,
    pid TEXT NOT NULL, oid TEXT NOT NULL, created_at REAL NOT NULL, PRIMARY KEY (uid, key)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS leads (
    fingerprint TEXT PRIMARY KEY, pid TEXT NOT NULL, oid TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS callbacks (
    webhook_id TEXT PRIMARY KEY, pid TEXT NOT NULL, oid TEXT NOT NULL, url TEXT NOT NULL, body TEXT NOT NULL,
    state TEXT NOT NULL, next_attempt_at REAL, attempts INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS callbacks_due ON callbacks (next_attempt_at) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS callbacks_of_job ON callbacks (pid, oid);

CREATE TABLE IF NOT EXISTS deliveries (
    webhook_id TEXT NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL, duration_ms REAL NOT NULL,
    http_status INTEGER, outcome TEXT NOT NULL, PRIMARY KEY (webhook_id, number)
) WITHOUT ROWID;
"""
