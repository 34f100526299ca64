"""The outbox of callbacks, as functions of one SQLite connection within the caller's transaction."""

from __future__ import annotations

import sqlite3

from app.storage.records import DeliveryAttempt, JobRef, Outbound


def insert(c: sqlite3.Connection, callback: Outbound) -> None:
    c.execute(
        "INSERT OR IGNORE INTO callbacks VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            callback.webhook_id,
            callback.ref.pid,
            callback.ref.oid,
            callback.url,
            callback.body,
            callback.state,
            callback.next_attempt_at,
            callback.attempts,
        ),
    )


def take_due(c: sqlite3.Connection, now: float, hold_sec: float, limit: int) -> list[Outbound]:
    """Pending callbacks that are due, at most one of a job (its oldest), held against other takers."""
    rows = c.execute(
        "SELECT * FROM callbacks AS later WHERE state = 'pending' AND next_attempt_at <= ? AND NOT EXISTS ("
        "  SELECT 1 FROM callbacks AS earlier WHERE earlier.pid = later.pid AND earlier.oid = later.oid"
        "  AND earlier.state = 'pending' AND earlier.rowid < later.rowid"
        ") ORDER BY next_attempt_at LIMIT ?",
        (now, limit),
    ).fetchall()
    for row in rows:
        c.execute("UPDATE callbacks SET next_attempt_at = ? WHERE webhook_id = ?", (now + hold_sec, row["webhook_id"]))
    return [_outbound(row) for row in rows]


def next_due(c: sqlite3.Connection) -> float | None:
    when = c.execute("SELECT min(next_attempt_at) FROM callbacks WHERE state = 'pending'").fetchone()[0]
    return float(when) if when is not None else None


def record(c: sqlite3.Connection, attempt: DeliveryAttempt, state: str, next_attempt_at: float | None) -> None:
    # Two deliveries may cross (a replay while one is under way); both count.
    last = c.execute("SELECT max(number) FROM deliveries WHERE webhook_id = ?", (attempt.webhook_id,)).fetchone()[0]
    number = max(attempt.number, (last or 0) + 1)
    c.execute(
        "INSERT INTO deliveries VALUES (?, ?, ?, ?, ?, ?)",
        (attempt.webhook_id, number, attempt.at, attempt.duration_ms, attempt.http_status, attempt.outcome),
    )
    c.execute(
        "UPDATE callbacks SET state = ?, next_attempt_at = ?, attempts = attempts + 1 WHERE webhook_id = ?",
        (state, next_attempt_at, attempt.webhook_id),
    )


def of_job(c: sqlite3.Connection, ref: JobRef) -> list[tuple[Outbound, list[DeliveryAttempt]]]:
    found = c.execute("SELECT * FROM callbacks WHERE pid = ? AND oid = ? ORDER BY rowid", (ref.pid, ref.oid)).fetchall()
    deliveries = "SELECT * FROM deliveries WHERE webhook_id = ? ORDER BY number"
    return [
        (_outbound(row), [DeliveryAttempt(*delivery) for delivery in c.execute(deliveries, (row["webhook_id"],))])
        for row in found
    ]


def replay(c: sqlite3.Connection, ref: JobRef, now: float) -> int:
    return c.execute(
        "UPDATE callbacks SET state = 'pending', next_attempt_at = ?, attempts = 0 WHERE pid = ? AND oid = ?",
        (now, ref.pid, ref.oid),
    ).rowcount


def _outbound(row: sqlite3.Row) -> Outbound:
    return Outbound(
        row["webhook_id"],
        JobRef(row["pid"], row["oid"]),
        row["url"],
        row["body"],
        row["state"],
        row["next_attempt_at"],
        row["attempts"],
    )
