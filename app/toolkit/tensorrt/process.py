"""A program that is run in this process's group, read line by line while it runs, and ended with all that it started.

No group or session of its own: the service ends a job by killing the job's whole group, and this must go with it. So at
a time limit its descendants are found by their parents, as the kernel lists them.
"""

from __future__ import annotations

import codecs
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, cast

GRACE_SEC = 5.0
"""Between SIGTERM and SIGKILL."""
QUIET_SEC = 0.2
"""How often a program that prints nothing is asked whether it still runs."""
READ_BYTES = 1 << 16

Born = tuple[int, int]
"""A process: its id, and when it started in the kernel's ticks, because an id may be given again."""


class TimedOut(Exception):
    """The program ran longer than allowed and was ended."""


class NotStarted(Exception):
    """The system could not start the program."""


def run_lines(command: Sequence[str], on_line: Callable[[str], None], *, timeout_sec: float) -> int:
    """Run to the end; both streams merged go to `on_line` line by line. Returns the exit code, below 0 for a signal.

    Raises NotStarted, TimedOut, and what `on_line` raises; nothing of it runs on after that.
    """
    deadline = time.monotonic() + timeout_sec
    with _start(command) as process:
        try:
            for line in _lines(process, deadline):
                on_line(line)
            return process.wait(max(0.0, deadline - time.monotonic()))
        except (TimedOut, subprocess.TimeoutExpired) as error:
            raise TimedOut(f"{command[0]} ran longer than {timeout_sec:g} s") from error
        finally:
            if process.poll() is None:
                end(process)


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
    except OSError as error:
        raise NotStarted(f"{command[0]} could not be started: {error}") from error


def _lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[str]:
    """Until the streams are closed, or the program is over and somebody else holds them open."""
    descriptor = cast("IO[bytes]", process.stdout).fileno()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimedOut
        if select.select([descriptor], [], [], min(left, QUIET_SEC))[0]:
            data = os.read(descriptor, READ_BYTES)
            *lines, rest = (rest + decoder.decode(data, final=not data)).split("\n")
            yield from lines
            if not data:
                break
        elif process.poll() is not None:
            break
    if rest:
        yield rest


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the program and its descendants, and SIGKILL to those that are still there after the grace time."""
    family = [process.pid, *descendants(process.pid)]
    born = [(pid, started) for pid in family if (started := _started(pid)) is not None]
    _signal(born, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SEC
    while time.monotonic() < deadline and (process.poll() is None or _alive(born)):
        time.sleep(0.02)
    born += [(pid, started) for pid in descendants(process.pid) if (started := _started(pid)) is not None]
    _signal(born, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[int]:
    """Children, their children and so on, as they are now."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        fields = _stat(int(path.parent.name))
        if fields is not None:
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = list(children.get(pid, ()))
    for one in found:  # grows while it is walked
        found += children.get(one, ())
    return found


def _stat(pid: int) -> list[str] | None:
    """The fields of `/proc/<pid>/stat` from the state on (proc_pid_stat(5)); None once the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _started(pid: int) -> int | None:
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else int(fields[19])


def _alive(born: Sequence[Born]) -> bool:
    return any(_started(pid) == started for pid, started in born)


def _signal(born: Sequence[Born], number: signal.Signals) -> None:
    for pid, started in born:
        if _started(pid) == started:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
