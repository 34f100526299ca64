"""Busy processes that are no descendants of ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

FOR_LONG = "import time; until = time.monotonic() + 30\nwhile time.monotonic() < until: pass"


@contextmanager
def strangers(count: int) -> Iterator[None]:
    """Each keeps a core busy: the shell that started them has ended."""
    script = f"'{sys.executable}' -c '{FOR_LONG}' >/dev/null 2>&1 & echo $!;" * count
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    pids = [int(pid) for pid in done.stdout.split()]
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
