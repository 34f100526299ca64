"""Runs `crash`."""

from __future__ import annotations

import ctypes
import os
import signal

from app.jobs.context import JobContext
from app.jobs.protocol import MAX_LINE_BYTES
from tests.kinds.schemas.crash import Crash, CrashMetrics


def run(parameters: Crash, context: JobContext) -> CrashMetrics:
    context.phase("crash", 0.5)
    print("last words", flush=True)
    if parameters.mode == "segfault":
        ctypes.string_at(0)
    elif parameters.mode == "sigkill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif parameters.mode == "exit":
        os._exit(3)
    elif parameters.mode == "exit_zero":
        os._exit(0)
    elif parameters.mode == "memory":
        raise MemoryError
    elif parameters.mode == "hog":
        hoard = []
        while True:
            hoard.append(os.urandom(32 * 1024 * 1024))
    return CrashMetrics(filler="x" * (MAX_LINE_BYTES + 1))
