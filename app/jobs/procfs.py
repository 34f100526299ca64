"""Processes as /proc shows them: which are still there, and which belong to a job that is over. Linux only."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from app.jobs.protocol import MARK_VARIABLE


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (proc(5), field 22); None where there is no such process."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _stat(pid: int) -> list[str] | None:
    """/proc/PID/stat from its third field (the state) on; the second may hold blanks and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


@lru_cache(maxsize=1)
def this_host() -> str:
    """Names the space in which a pid means one process: host, boot and pid namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()}/{boot}/{os.readlink('/proc/self/ns/pid')}"


def owner_name() -> str:
    """This service process, so that another can tell whether it still lives: `host|pid|start`."""
    return f"{this_host()}|{os.getpid()}|{start_ticks(os.getpid())}"


def is_dead_owner(owner: str) -> bool:
    """True where `owner` was a process of this host that is no more; False where that cannot be known from here."""
    host, _, process = owner.partition("|")
    pid, _, started = process.partition("|")
    return host == this_host() and str(start_ticks(int(pid))) != started


def group_members(group: int) -> Iterator[int]:
    """The processes of a process group that still run (a zombie does not)."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields and int(fields[2]) == group and fields[0] not in "ZX":
                yield int(entry.name)


def kill_group(group: int, signal_number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal_number)


def end_leftovers(group: int, started: int | None, mark: str) -> int:
    """Kills what an earlier attempt of a job left running, and nothing else; returns how many processes that were.

    The pid may long belong to somebody else: the leader must have the start time that was noted, the others the
    job's mark in their environment.
    """
    leftovers = [
        pid for pid in group_members(group) if (pid == group and start_ticks(pid) == started) or _bears(pid, mark)
    ]
    for pid in leftovers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(leftovers)


def _bears(pid: int, mark: str) -> bool:
    try:
        return f"{MARK_VARIABLE}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
