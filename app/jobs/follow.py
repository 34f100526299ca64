"""Following a job: its recorded events and its log lines as one stream that can be taken up again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.to_thread

from app.errors import NotFound
from app.jobs.hub import wait_for_event
from app.jobs.protocol import LOG_NAME
from app.jobs.service import Jobs
from app.jobs.workspace import unless_link
from app.schemas.common import FINAL_STATUSES
from app.storage.artifacts import job_prefix
from app.storage.records import JobRecord

EVENT_ID = r"^([0-9]{1,17}\.[0-9]{1,17})?$"
"""How far a client has come, `number.bytes`; empty is the beginning."""

LOOK_SEC = 0.25
"""How often a running job's log is looked at."""

MAX_LOG_BYTES = 256 * 1024
"""Log sent in one event at most; a job that floods its log does not flood its followers' memory."""


@dataclass(frozen=True)
class Followed:
    """One event of the stream. `id` holds how far events and log have been sent: `number.bytes`."""

    type: str
    data: dict[str, Any]
    id: str


async def follow(use: Jobs, job: JobRecord, last_event_id: str | None) -> AsyncIterator[Followed]:
    """States, progress and log lines from the beginning, or from after `last_event_id`, until the job has ended."""
    number, offset = map(int, (last_event_id or "0.0").split("."))
    with use.hub.listening(job.ref) as changed:
        while True:
            current = await use.records.get(job.ref)
            over = current is None or current.status in FINAL_STATUSES
            events = await use.records.events(job.ref, after=number)
            async for lines, read_to in _log_lines(use, current or job, offset):
                offset = read_to
                yield Followed("log", {"lines": lines}, f"{number}.{offset}")
            for event in events:
                number = event.number
                yield Followed(event.type, {**event.data, "at": event.at}, f"{number}.{offset}")
            if over and not events:
                return
            if not over:
                await wait_for_event(changed, LOOK_SEC)


async def _log_lines(use: Jobs, job: JobRecord, offset: int) -> AsyncIterator[tuple[list[str], int]]:
    """Whole lines after `offset`, with the offset behind them; of an ended job also a last line without its end."""
    while True:
        data = await _log_bytes(use, job, offset)
        end = data.rfind(b"\n") + 1
        if not end and data and (job.status in FINAL_STATUSES or len(data) >= MAX_LOG_BYTES):
            end = len(data)
        if not end:
            return
        offset += end
        yield data[:end].decode("utf-8", "replace").splitlines(), offset


async def _log_bytes(use: Jobs, job: JobRecord, offset: int) -> bytes:
    if job.status in FINAL_STATUSES:
        data = bytearray()
        with suppress(NotFound):  # a job that never started has none
            async with aclosing(use.artifacts.read(job_prefix(job.pid, job.oid) + LOG_NAME, offset)) as chunks:
                async for chunk in chunks:
                    data += chunk
                    if len(data) >= MAX_LOG_BYTES:
                        break
        return bytes(data[:MAX_LOG_BYTES])
    return await anyio.to_thread.run_sync(_tail, use.workspace.log(job), offset)


def _tail(path: Path, offset: int) -> bytes:
    try:
        with open(path, "rb", opener=unless_link) as log:
            log.seek(offset)
            return log.read(MAX_LOG_BYTES)
    except OSError:
        return b""


async def log_chunks(use: Jobs, job: JobRecord) -> AsyncIterator[bytes]:
    """A job's log as it is now, to its end should the job end meanwhile; empty where nothing was written yet."""
    offset = 0
    while True:
        if data := await _log_bytes(use, job, offset):
            offset += len(data)
            yield data
            continue
        now = await use.records.get(job.ref)
        if now is None or job.status in FINAL_STATUSES or now.status not in FINAL_STATUSES:
            return
        job = now  # its work folder is gone, and the rest of the log is an artifact
