"""Starts a job's process, listens to it, and makes sure that nothing of it is left.

Two ways to start (`JOB_START_METHOD`): `forkserver` forks a child off a server that has the heavy libraries loaded
(milliseconds), `exec` starts a cold interpreter (seconds) for vendor libraries that dislike forks. Both get a scrubbed
environment: no secret of the service, Ultralytics offline.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Protocol

import anyio.to_thread

from app.jobs import child, procfs, protocol
from app.library_variables import FIXED_VARIABLES

StartMethod = Literal["forkserver", "exec"]

KEPT_VARIABLES = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "USER", "GIT_SHA")
KEPT_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "XDG_", "PYTHON", "COVERAGE_", "SSL_CERT_")
DRAIN_SEC = 1.0
"""How long the pipe may stay open after the process has ended, held by something that left the group."""


def child_environment() -> dict[str, str]:
    """What a job's process may know of the service's environment."""
    kept = {
        name: value for name, value in os.environ.items() if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)
    }
    return {**kept, **FIXED_VARIABLES}


class _Process(Protocol):
    """A started process, whichever way it was started. `sentinel` is a descriptor that is readable once it ended."""

    @property
    def pid(self) -> int: ...
    @property
    def sentinel(self) -> int: ...
    def exit_code(self) -> int | None: ...
    def close(self) -> None: ...


class _Forked:
    def __init__(self, process: multiprocessing.process.BaseProcess, lock: threading.Lock) -> None:
        self._process = process
        # Starting a process polls all others, and an exit code can be read only once.
        self._lock = lock
        self.pid: int = process.pid or 0
        self.sentinel: int = process.sentinel

    def exit_code(self) -> int | None:
        with self._lock:
            self._process.join(timeout=1)
            return self._process.exitcode

    def close(self) -> None:
        with self._lock, contextlib.suppress(ValueError):  # still running: its sentinel is closed with the object
            self._process.close()


class _Executed:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid: int = process.pid
        self.sentinel: int = os.pidfd_open(process.pid)

    def exit_code(self) -> int | None:
        return self._process.wait(timeout=1)

    def close(self) -> None:
        os.close(self.sentinel)


@dataclass(frozen=True)
class Exit:
    """How a process ended. `lost` means that nobody can say: the fork server died under it.

    `garbled` means that it sent something that is no message, and was ended for it.
    """

    code: int | None
    lost: bool = False
    garbled: bool = False


class Launcher:
    """Starts job processes; one for the whole service."""

    def __init__(self, method: StartMethod) -> None:
        self.method: StartMethod = method
        self._lock = threading.Lock()
        self._context = multiprocessing.get_context("forkserver")
        if method == "forkserver":
            self._context.set_forkserver_preload(["app.jobs.preload"])

    def warm(self) -> None:
        """Starts the fork server, so that its imports run before the first job comes."""
        if self.method == "forkserver":
            with self._lock, _scrubbed_environment():
                forkserver.ensure_running()

    async def start(self, spec: protocol.JobSpec) -> ChildProcess:
        process, reader = await anyio.to_thread.run_sync(lambda: self._start(spec.save()))
        return await ChildProcess.attached(process, reader, spec.mark)

    def _start(self, spec_path: Path) -> tuple[_Process, int]:
        reader, writer = os.pipe()
        try:
            with self._lock:
                if self.method == "exec":
                    return self._exec(spec_path, writer), reader
                return self._fork(spec_path, writer), reader
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)

    def _fork(self, spec_path: Path, writer: int) -> _Process:
        # The server may have died since: it is started again here, and must not inherit our environment.
        with _scrubbed_environment():
            forkserver.ensure_running()
        pipe = Connection(os.dup(writer), readable=False)
        process = self._context.Process(target=child.main, args=(str(spec_path), pipe), daemon=True)
        try:
            process.start()
        finally:
            pipe.close()
        return _Forked(process, self._lock)

    @staticmethod
    def _exec(spec_path: Path, writer: int) -> _Process:
        command = [sys.executable, "-m", "app.jobs.child", str(spec_path), str(writer), str(os.getpid())]
        return _Executed(
            subprocess.Popen(
                command,
                env=child_environment() | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                pass_fds=(writer,),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        )


@contextlib.contextmanager
def _scrubbed_environment() -> Iterator[None]:
    """This process's environment as a child may see it; for the moment in which a fork server is started."""
    kept = dict(os.environ)
    scrubbed = child_environment()
    try:
        os.environ.clear()
        os.environ.update(scrubbed)
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


class ChildProcess:
    """A running job process: its messages, its end, and the way to end it early."""

    def __init__(
        self, process: _Process, stream: asyncio.StreamReader, transport: asyncio.BaseTransport, mark: str
    ) -> None:
        self._process = process
        self._mark = mark
        self._stream = stream
        self._transport = transport
        self._ended = asyncio.Event()
        self._leads_group = False
        self.pid = process.pid
        self.started = procfs.start_ticks(process.pid)
        loop = asyncio.get_running_loop()
        loop.add_reader(process.sentinel, self._on_end, loop, process.sentinel)

    @classmethod
    async def attached(cls, process: _Process, reader: int, mark: str) -> ChildProcess:
        loop = asyncio.get_running_loop()
        stream = asyncio.StreamReader(limit=protocol.MAX_LINE_BYTES)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reader, "rb", buffering=0)
        )
        return cls(process, stream, transport, mark)

    def _on_end(self, loop: asyncio.AbstractEventLoop, sentinel: int) -> None:
        loop.remove_reader(sentinel)
        self._ended.set()

    async def listen(self, on_message: Callable[[dict[str, Any]], None]) -> Exit:
        """Hands over every message until the process is over and all of its group is gone.

        A line that is no message ends the process: it can no longer be understood.
        """
        reading = asyncio.ensure_future(self._read(on_message))
        ended = asyncio.ensure_future(self._ended.wait())
        await asyncio.wait({reading, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not self._ended.is_set():  # the pipe closed first; the process should follow at once
            await asyncio.wait({ended}, timeout=DRAIN_SEC)
        await anyio.to_thread.run_sync(self._end_family)
        await ended
        await asyncio.wait({reading}, timeout=DRAIN_SEC)
        garbled = reading.done() and reading.exception() is not None
        reading.cancel()
        self._transport.close()
        return replace(await anyio.to_thread.run_sync(self._reap), garbled=garbled)

    async def _read(self, on_message: Callable[[dict[str, Any]], None]) -> None:
        while line := await self._stream.readline():
            message = protocol.decode(line)
            if message["type"] == "ready":
                self._leads_group = True
            on_message(message)

    def _reap(self) -> Exit:
        code = self._process.exit_code()
        self._process.close()
        # multiprocessing says 255 where its server vanished and the code with it.
        return Exit(code, lost=isinstance(self._process, _Forked) and code == 255)

    async def stop(self, grace_sec: float) -> None:
        """SIGTERM, a grace time, SIGKILL: to the whole group."""
        self._signal_group(signal.SIGTERM)
        ended = asyncio.ensure_future(self._ended.wait())
        await asyncio.wait({ended}, timeout=grace_sec)
        ended.cancel()
        await anyio.to_thread.run_sync(self._end_family)

    def _signal_group(self, signal_number: int) -> None:
        procfs.kill_group(self.pid, signal_number)
        if not self._leads_group and not self._ended.is_set():  # not yet in a group of its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal_number)

    def _end_family(self) -> None:
        """SIGKILL to the group at once, then to what has left it."""
        self._signal_group(signal.SIGKILL)
        procfs.end_family(self.pid, self.started, self._mark)
