"""One SQLite connection in a thread of its own, with group commit: waiting writers share one fsync."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from app.errors import ServiceError, StoreFull, StoreUnavailable

T = TypeVar("T")
MAX_BATCH = 64
BUSY_TIMEOUT_SEC = 10.0


@dataclass
class _Task:
    function: Callable[[sqlite3.Connection], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class SqliteWorker:
    """Runs functions of a connection, in the order they came, each in a savepoint of a shared transaction.

    A result is handed out only after the commit, so that what was answered is durable. `readonly` workers open
    deferred transactions, which WAL lets run beside the writer.
    """

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self._path = path
        self._begin = "BEGIN DEFERRED" if readonly else "BEGIN IMMEDIATE"
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._work, name=f"sqlite-{'read' if readonly else 'write'}", daemon=True
        )
        self._closed = False

    def start(self) -> None:
        self._thread.start()

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise StoreUnavailable("the record store is closed", hint="the service is stopping; ask again in a moment")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._tasks.put(_Task(function, loop, future))
        return await future

    def stop(self) -> None:
        """Ends after what was already asked for."""
        self._closed = True
        self._tasks.put(None)
        self._thread.join()

    def _work(self) -> None:
        connection: sqlite3.Connection | None = None
        over = False
        while not over:
            batch, over = self._next_batch()
            try:
                connection = connection or connect(self._path)
                outcomes = self._transact(connection, batch)
            except sqlite3.Error as error:  # the commit itself failed: nothing of this batch happened
                outcomes = [(False, _translated(error))] * len(batch)
                if connection is not None:
                    connection.close()
                    connection = None
            self._answer(batch, outcomes)
        if connection is not None:
            connection.close()

    def _next_batch(self) -> tuple[list[_Task], bool]:
        """Waits for a task and takes those behind it along; whether the worker is to stop after them."""
        batch: list[_Task] = []
        task = self._tasks.get()
        while task is not None:
            batch.append(task)
            if len(batch) == MAX_BATCH:
                return batch, False
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _transact(self, connection: sqlite3.Connection, batch: list[_Task]) -> list[tuple[bool, Any]]:
        outcomes: list[tuple[bool, Any]] = []
        connection.execute(self._begin)
        for task in batch:
            connection.execute("SAVEPOINT task")
            try:
                outcomes.append((True, task.function(connection)))
            except Exception as error:  # noqa: BLE001 - handed to the one who asked
                connection.execute("ROLLBACK TO task")
                outcomes.append((False, _translated(error)))
            connection.execute("RELEASE task")
        connection.execute("COMMIT")
        return outcomes

    @staticmethod
    def _answer(batch: list[_Task], outcomes: list[tuple[bool, Any]]) -> None:
        for task, (succeeded, value) in zip(batch, outcomes, strict=True):
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
                task.loop.call_soon_threadsafe(_settle, task.future, succeeded, value)


def _settle(future: asyncio.Future[Any], succeeded: bool, value: Any) -> None:
    if future.cancelled():
        return
    if succeeded:
        future.set_result(value)
    else:
        future.set_exception(value)


def connect(path: Path, *, busy_timeout_sec: float = BUSY_TIMEOUT_SEC) -> sqlite3.Connection:
    """A connection in WAL mode whose commits are on the disk when they return."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=busy_timeout_sec, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    try:
        _use_wal(connection)
        for pragma in ("synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY"):
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """Waits by itself while another process does the same to a new file: SQLite's own time-out does not hold here."""
    deadline = time.monotonic() + BUSY_TIMEOUT_SEC
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _translated(error: Exception) -> Exception:
    """SQLite's errors as ours; a broken rule of the schema stays what it is: our bug."""
    if isinstance(error, ServiceError) or not isinstance(error, sqlite3.Error):
        return error
    if "full" in str(error):
        return StoreFull("the record store's disk is full", hint="free space where DATABASE_PATH lies")
    if isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError)):
        return error
    return StoreUnavailable(
        "the record store cannot be used",
        received=f"SQLite says: {error}",
        hint="check that the folder of DATABASE_PATH exists, is writable and is not on a network file system",
    )
