"""The handle by which the dispatcher holds a job that is on its way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from app.jobs.outcome import Stop
from app.storage.records import JobRecord

T = TypeVar("T")


class Stopped(Exception):
    """The job was to end before its process had started."""


@dataclass
class Control:
    """The handle by which the dispatcher holds a claimed job."""

    job: JobRecord
    reason: Stop | None = None
    given_up: bool = False
    """The service must go, or the job is another's: no store is waited for any more."""
    following: bool = False
    """Waits for another job's result: takes no slot and no place in the claim window."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    on_follow: Callable[[], None] = lambda: None
    """Called when the job makes room for others by following."""

    def stop(self, reason: Stop) -> None:
        self.given_up |= reason in {Stop.DRAIN, Stop.DISOWNED}
        if self.reason is None:
            self.reason = reason
            self.stopping.set()

    async def unless_stopped(self, work: Awaitable[T]) -> T:
        """The work's result. Raises Stopped, with the work cancelled, if the job is to end first."""
        task, stopping = asyncio.ensure_future(work), asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if self.stopping.is_set():
                raise Stopped
            return task.result()
        finally:
            stopping.cancel()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
