"""Records in SQLite: the embedded default. Several service processes of one machine may share the file."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from app.errors import StoreUnavailable
from app.storage import sqlite_callbacks
from app.storage.records import (
    LEGAL_MOVES,
    RELEASED,
    DeliveryAttempt,
    Event,
    IdempotencyKey,
    IdempotencyMismatch,
    JobRecord,
    JobRef,
    Move,
    Outbound,
    oid_of,
)
from app.storage.sqlite_schema import SCHEMA, SCHEMA_VERSION
from app.storage.sqlite_worker import SqliteWorker, connect

T = TypeVar("T")

_JSON_FIELDS = frozenset({"parameters", "metrics", "artifact_files", "error"})
_BOOL_FIELDS = frozenset({"force", "cancel_requested"})


class SqliteRecords:
    """A `RecordStore` in one SQLite file (WAL)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = SqliteWorker(path)
        self._reader = SqliteWorker(path, readonly=True)
        self._at_once: sqlite3.Connection | None = None

    async def start(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(connect(self._path)) as connection:
                _make_schema(connection)
        except (OSError, sqlite3.Error) as error:
            raise StoreUnavailable(
                "the record store cannot be opened",
                received=f"{self._path}: {error}",
                hint="DATABASE_PATH (or WORKSPACE_DIR) must lie in a folder that the service may write",
            ) from error
        self._writer.start()
        self._reader.start()
        self._at_once = connect(self._path, busy_timeout_sec=0)

    async def close(self) -> None:
        self._writer.stop()
        self._reader.stop()
        if self._at_once is not None:
            self._at_once.close()
            self._at_once = None

    async def _look_up(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """A look-up by key, on the event loop: it takes less time than a thread would to wake up.

        Readers wait for nobody in WAL mode; should this one have to after all, a thread waits.
        """
        if self._at_once is not None:
            with contextlib.suppress(sqlite3.OperationalError):
                return function(self._at_once)
        return await self._reader.run(function)

    async def check(self) -> None:
        await self._writer.run(lambda c: c.execute("SELECT 1").fetchone())

    # -- accepting ------------------------------------------------------------------------------------------------
    async def accept(self, draft: JobRecord, key: IdempotencyKey | None = None) -> tuple[JobRecord, bool]:
        def work(c: sqlite3.Connection) -> tuple[JobRecord, bool]:
            earlier = _idempotent_twin(c, key) if key else None
            if earlier is not None:
                return earlier, True
            job = replace(draft, oid=_draw_oid(c, draft.uid, draft.pid).oid)
            row = {name: value for name, value in _to_row(asdict(job)).items() if name != "seq"}
            marks = ", ".join(f":{name}" for name in row)
            c.execute(f"INSERT INTO jobs ({', '.join(row)}) VALUES ({marks})", row)  # noqa: S608
            _append(c, job.ref, Event("state", {"status": "queued"}, job.created_at))
            if key:
                c.execute(
                    "INSERT INTO idempotency_keys VALUES (?, ?, ?, ?, ?, ?)",
                    (key.uid, key.key, key.body_sha256, job.pid, job.oid, job.created_at),
                )
            return _must_get(c, job.ref), False

        return await self._writer.run(work)

    async def draw_upload(self, uid: str, pid: str) -> JobRef:
        return await self._writer.run(lambda c: _draw_oid(c, uid, pid))

    async def owner_of(self, ref: JobRef) -> str | None:
        number = int(ref.oid[1:])
        if oid_of(number) != ref.oid:
            return None

        def work(c: sqlite3.Connection) -> str | None:
            row = c.execute("SELECT uid FROM oids WHERE pid = ? AND number = ?", (ref.pid, number)).fetchone()
            return str(row["uid"]) if row else None

        return await self._look_up(work)

    # -- reading --------------------------------------------------------------------------------------------------
    async def get(self, ref: JobRef) -> JobRecord | None:
        return await self._look_up(lambda c: _get(c, ref))

    async def find(
        self,
        uid: str,
        *,
        pid: str | None = None,
        status: str | None = None,
        action: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> list[JobRecord]:
        wanted = {"uid": uid, "pid": pid, "status": status, "action": action}
        clauses = [f"{name} = :{name}" for name, value in wanted.items() if value is not None]
        if before is not None:
            clauses.append("seq < :before")
        query = f"SELECT * FROM jobs WHERE {' AND '.join(clauses)} ORDER BY seq DESC LIMIT :limit"  # noqa: S608
        values = {**wanted, "before": before, "limit": limit}
        return await self._reader.run(lambda c: [_from_row(row) for row in c.execute(query, values)])

    async def events(self, ref: JobRef, *, after: int = 0, limit: int = 500) -> list[Event]:
        query = "SELECT * FROM events WHERE pid = ? AND oid = ? AND number > ? ORDER BY number LIMIT ?"
        return await self._reader.run(
            lambda c: [
                Event(row["type"], json.loads(row["data"]), row["at"], row["number"])
                for row in c.execute(query, (ref.pid, ref.oid, after, limit))
            ]
        )

    async def counts(self) -> dict[tuple[str, str], int]:
        query = "SELECT status, slot, count(*) AS n FROM jobs WHERE status IN ('queued', 'running') GROUP BY 1, 2"
        return await self._reader.run(lambda c: {(row["status"], row["slot"]): row["n"] for row in c.execute(query)})

    # -- running --------------------------------------------------------------------------------------------------
    async def claim(
        self, owner: str, lease_until: float, slot: str, actions: Collection[str], limit: int
    ) -> list[JobRecord]:
        query = (
            "SELECT seq FROM jobs WHERE status = 'queued' AND owner IS NULL AND slot = ? "
            "AND action IN (SELECT value FROM json_each(?)) ORDER BY seq LIMIT ?"
        )

        def work(c: sqlite3.Connection) -> list[JobRecord]:
            free = c.execute(query, (slot, json.dumps(list(actions)), limit)).fetchall()
            for row in free:
                c.execute(
                    "UPDATE jobs SET owner = ?, lease_until = ?, claim = claim + 1 WHERE seq = ?",
                    (owner, lease_until, row["seq"]),
                )
            return [_from_row(c.execute("SELECT * FROM jobs WHERE seq = ?", tuple(row)).fetchone()) for row in free]

        return await self._writer.run(work)

    async def renew(self, owner: str, lease_until: float) -> dict[JobRef, JobRecord]:
        def work(c: sqlite3.Connection) -> dict[JobRef, JobRecord]:
            c.execute("UPDATE jobs SET lease_until = ? WHERE owner = ?", (lease_until, owner))
            jobs = [_from_row(row) for row in c.execute("SELECT * FROM jobs WHERE owner = ?", (owner,))]
            return {job.ref: job for job in jobs}

        return await self._writer.run(work)

    async def orphans(self, now: float, dead_owners: frozenset[str] = frozenset()) -> list[JobRecord]:
        def work(c: sqlite3.Connection) -> list[JobRecord]:
            query = "SELECT * FROM jobs WHERE owner IS NOT NULL OR status = 'running' ORDER BY seq"
            jobs = [_from_row(row) for row in c.execute(query)]
            return [job for job in jobs if job.owner in dead_owners or (job.lease_until or 0) < now]

        return await self._reader.run(work)

    async def owners(self) -> set[str]:
        query = "SELECT DISTINCT owner FROM jobs WHERE owner IS NOT NULL"
        return await self._reader.run(lambda c: {row["owner"] for row in c.execute(query)})

    async def move(self, ref: JobRef, move: Move) -> JobRecord | None:
        def work(c: sqlite3.Connection) -> JobRecord | None:
            job = _get(c, ref)
            if job is None or move.to not in LEGAL_MOVES[job.status]:
                return None
            if (job.owner is not None or move.claim is not None) and job.claim != move.claim:
                return None
            changes = {**move.changes, "status": move.to}
            if move.to != "running":
                changes = {**changes, **RELEASED, "claim": job.claim + 1}
            _set(c, ref, changes)
            if move.event:
                _append(c, ref, move.event)
            if move.callback:
                sqlite_callbacks.insert(c, move.callback)
            return _must_get(c, ref)

        return await self._writer.run(work)

    async def update(self, ref: JobRef, claim: int, changes: Mapping[str, Any], event: Event | None = None) -> bool:
        def work(c: sqlite3.Connection) -> bool:
            job = _get(c, ref)
            if job is None or job.owner is None or job.claim != claim:
                return False
            if changes:
                released = changes.get("owner", job.owner) is None
                _set(c, ref, {**changes, "claim": job.claim + 1} if released else changes)
            if event:
                _append(c, ref, event)
            return True

        return await self._writer.run(work)

    async def request_cancel(self, ref: JobRef) -> JobRecord | None:
        def work(c: sqlite3.Connection) -> JobRecord | None:
            c.execute(
                "UPDATE jobs SET cancel_requested = 1 WHERE pid = ? AND oid = ? AND status IN ('queued', 'running')",
                (ref.pid, ref.oid),
            )
            job = _get(c, ref)
            return job if job and LEGAL_MOVES[job.status] else None

        return await self._writer.run(work)

    async def lead(self, fingerprint: str, ref: JobRef) -> JobRef:
        def work(c: sqlite3.Connection) -> JobRef:
            c.execute("INSERT OR IGNORE INTO leads VALUES (?, ?, ?)", (fingerprint, ref.pid, ref.oid))
            row = c.execute("SELECT pid, oid FROM leads WHERE fingerprint = ?", (fingerprint,)).fetchone()
            return JobRef(row["pid"], row["oid"])

        return await self._writer.run(work)

    async def unlead(self, fingerprint: str, ref: JobRef) -> None:
        query = "DELETE FROM leads WHERE fingerprint = ? AND pid = ? AND oid = ?"
        await self._writer.run(lambda c: c.execute(query, (fingerprint, ref.pid, ref.oid)).rowcount)

    async def completed_twin(self, fingerprint: str) -> JobRecord | None:
        query = (
            "SELECT * FROM jobs WHERE fingerprint = ? AND status = 'completed' AND cached_from IS NULL "
            "ORDER BY seq DESC LIMIT 1"
        )

        def work(c: sqlite3.Connection) -> JobRecord | None:
            row = c.execute(query, (fingerprint,)).fetchone()
            return _from_row(row) if row else None

        return await self._reader.run(work)

    # -- callbacks ------------------------------------------------------------------------------------------------
    async def due_callbacks(self, now: float, hold_sec: float, limit: int = 50) -> list[Outbound]:
        return await self._writer.run(lambda c: sqlite_callbacks.take_due(c, now, hold_sec, limit))

    async def next_callback_at(self) -> float | None:
        return await self._reader.run(sqlite_callbacks.next_due)

    async def record_delivery(self, attempt: DeliveryAttempt, state: str, next_attempt_at: float | None) -> None:
        await self._writer.run(lambda c: sqlite_callbacks.record(c, attempt, state, next_attempt_at))

    async def callbacks(self, ref: JobRef) -> list[tuple[Outbound, list[DeliveryAttempt]]]:
        return await self._reader.run(lambda c: sqlite_callbacks.of_job(c, ref))

    async def replay_callbacks(self, ref: JobRef, now: float) -> int:
        return await self._writer.run(lambda c: sqlite_callbacks.replay(c, ref, now))

    async def expire(self, before: float) -> None:
        query = "DELETE FROM idempotency_keys WHERE created_at < ?"
        await self._writer.run(lambda c: c.execute(query, (before,)).rowcount)


def _make_schema(c: sqlite3.Connection) -> None:
    found = c.execute("PRAGMA user_version").fetchone()[0]
    if found > SCHEMA_VERSION:
        raise sqlite3.DatabaseError(f"it was made by a newer version of this service (schema {found})")
    c.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def _idempotent_twin(c: sqlite3.Connection, key: IdempotencyKey) -> JobRecord | None:
    row = c.execute("SELECT * FROM idempotency_keys WHERE uid = ? AND key = ?", (key.uid, key.key)).fetchone()
    if row is None:
        return None
    if row["body_sha256"] != key.body_sha256:
        raise IdempotencyMismatch(JobRef(row["pid"], row["oid"]))
    return _must_get(c, JobRef(row["pid"], row["oid"]))


def _draw_oid(c: sqlite3.Connection, uid: str, pid: str) -> JobRef:
    last = c.execute("SELECT max(number) FROM oids WHERE pid = ?", (pid,)).fetchone()[0] or 0
    c.execute("INSERT INTO oids VALUES (?, ?, ?)", (pid, last + 1, uid))
    return JobRef(pid, oid_of(last + 1))


def _get(c: sqlite3.Connection, ref: JobRef) -> JobRecord | None:
    row = c.execute("SELECT * FROM jobs WHERE pid = ? AND oid = ?", (ref.pid, ref.oid)).fetchone()
    return _from_row(row) if row else None


def _must_get(c: sqlite3.Connection, ref: JobRef) -> JobRecord:
    job = _get(c, ref)
    if job is None:
        raise LookupError(f"job {ref} vanished within its own transaction")
    return job


def _set(c: sqlite3.Connection, ref: JobRef, changes: Mapping[str, Any]) -> None:
    row = _to_row(changes)
    marks = ", ".join(f"{name} = :{name}" for name in row)
    c.execute(
        f"UPDATE jobs SET {marks} WHERE pid = :ref_pid AND oid = :ref_oid",  # noqa: S608
        {**row, "ref_pid": ref.pid, "ref_oid": ref.oid},
    )


def _append(c: sqlite3.Connection, ref: JobRef, event: Event) -> None:
    c.execute(
        "INSERT INTO events SELECT ?, ?, coalesce(max(number), 0) + 1, ?, ?, ? FROM events WHERE pid = ? AND oid = ?",
        (ref.pid, ref.oid, event.type, json.dumps(event.data), event.at, ref.pid, ref.oid),
    )


def _to_row(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: json.dumps(value) if name in _JSON_FIELDS and value is not None else value
        for name, value in values.items()
    }


def _from_row(row: sqlite3.Row) -> JobRecord:
    values: dict[str, Any] = dict(row)
    for name in _JSON_FIELDS:
        values[name] = json.loads(values[name]) if values[name] is not None else None
    for name in _BOOL_FIELDS:
        values[name] = bool(values[name])
    values["artifact_files"] = tuple(values["artifact_files"] or ())
    return JobRecord(**values)
