"""Records as the contract suites make them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from app.storage.records import Event, JobRecord, JobRef, Move, Outbound, RecordStore

T = TypeVar("T")
LEASE_SEC = 60.0


async def together(work: Iterable[Awaitable[T]]) -> list[T]:
    return list(await asyncio.gather(*work))


def draft(pid: str = "P0001", uid: str = "0001", action: str = "echo", slot: str = "cpu", **fields: Any) -> JobRecord:
    made = JobRecord(uid, pid, "", action, action, {"kind": action}, slot, time.time())
    return replace(made, **fields)


async def accepted(records: RecordStore, *arguments: Any, **fields: Any) -> JobRecord:
    job, replayed = await records.accept(draft(*arguments, **fields))
    assert not replayed
    return job


async def claimed(records: RecordStore, owner: str = "me", **fields: Any) -> JobRecord:
    """A job that `owner` holds; the only one that was free."""
    job = await accepted(records, **fields)
    (mine,) = await records.claim(owner, time.time() + LEASE_SEC, job.slot, {job.action}, 10)
    assert mine.ref == job.ref
    return mine


async def running(records: RecordStore, **fields: Any) -> JobRecord:
    job = await claimed(records, **fields)
    moved = await records.move(job.ref, Move("running", job.claim, {"started_at": time.time(), "attempt": 1}))
    assert moved is not None
    return moved


async def in_status(records: RecordStore, status: str, **fields: Any) -> JobRecord:
    """A job with a status; whoever holds it holds it under its `claim`."""
    if status == "queued":
        return await claimed(records, **fields)
    job = await running(records, **fields)
    if status == "running":
        return job
    ended = await records.move(job.ref, Move(status, job.claim, {"finished_at": time.time()}))
    assert ended is not None
    return ended


def state(status: str) -> Event:
    return Event("state", {"status": status}, time.time())


def callback(ref: JobRef, number: int = 1, due: float = 0.0) -> Outbound:
    return Outbound(f"msg_{ref}_{number}", ref, "http://receiver.test/", '{"type":"job.completed"}', "pending", due)
