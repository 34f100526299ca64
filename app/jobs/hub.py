"""Tells those who wait in this process that something happened to a job. What happened is in the record store."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from app.storage.records import JobRef


class Hub:
    """Notification only: a message may be missed when another process did it, so waiters look again by themselves."""

    def __init__(self) -> None:
        self._waiting: defaultdict[JobRef, set[asyncio.Event]] = defaultdict(set)

    @contextmanager
    def listening(self, ref: JobRef) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job changed; the listener clears it."""
        event = asyncio.Event()
        self._waiting[ref].add(event)
        try:
            yield event
        finally:
            self._waiting[ref].discard(event)
            if not self._waiting[ref]:
                del self._waiting[ref]

    def notify(self, ref: JobRef) -> None:
        for event in self._waiting.get(ref, ()):
            event.set()


async def wait_for_event(event: asyncio.Event, timeout_sec: float) -> bool:
    """Whether the event was set within the time; it is cleared.

    Not by `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes together with the event.
    """
    waiter = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({waiter}, timeout=timeout_sec)
    finally:
        waiter.cancel()
    was_set = event.is_set()
    event.clear()
    return was_set
