"""Processes as /proc shows them: which are still there, and which belong to a job that is over. Linux only."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from functools import lru_cache
from pathlib import Path

from app.jobs.protocol import MARK_VARIABLE

MAX_ROUNDS = 20
"""A fork bomb is not chased for ever."""


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (proc(5), field 22); None where there is no such process."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _stat(pid: int) -> list[str] | None:
    """/proc/PID/stat from its third field (the state) on; the second, the name, may hold any bytes."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode("ascii").split()
    except OSError:
        return None


@lru_cache(maxsize=1)
def this_host() -> str:
    """Names the space in which a pid means one process: host, boot and pid namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()}/{boot}/{Path('/proc/self/ns/pid').readlink()}"


def owner_name() -> str:
    """This service process, so that another can tell whether it still lives: `host|pid|start`."""
    return f"{this_host()}|{os.getpid()}|{start_ticks(os.getpid())}"


def is_dead_owner(owner: str) -> bool:
    """True where `owner` was a process of this host that is no more; False where that cannot be known from here."""
    host, _, process = owner.partition("|")
    pid, _, started = process.partition("|")
    return host == this_host() and str(start_ticks(int(pid))) != started


def group_members(group: int) -> list[int]:
    """The processes of a process group that still run (a zombie does not)."""
    return [pid for pid, _, pgrp in _running() if pgrp == group]


def _running() -> list[tuple[int, int, int]]:
    """(pid, parent, process group) of everything that runs and is no zombie."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields and fields[0] not in "ZX":
                found.append((int(entry.name), int(fields[1]), int(fields[2])))
    return found


def family(leader: int, started: int | None, mark: str) -> set[int]:
    """What a job runs: its process's group, their descendants, and whatever bears its mark, wherever it went.

    The leader's pid may long belong to somebody else: it and its group count only while its start time is the one that
    was noted, or while the leader is gone and a member of its group bears the mark.
    """
    running = _running()
    is_ours = start_ticks(leader) == started
    members = {
        pid
        for pid, _, pgrp in running
        if (is_ours and leader in (pid, pgrp)) or (pid != os.getpid() and _bears(pid, mark))
    }
    grown = True
    while grown:
        below = {pid for pid, parent, _ in running if parent in members} - members
        members |= below
        grown = bool(below)
    return members


def kill_group(group: int, signal_number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal_number)


def end_family(leader: int, started: int | None, mark: str) -> int:
    """Kills all that a job still runs; returns how many processes that were."""
    ended: set[int] = set()
    for _ in range(MAX_ROUNDS):  # one that was just forked is met in the next round
        found = family(leader, started, mark)
        if not found:
            break
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ended |= found
    return len(ended)


def _bears(pid: int, mark: str) -> bool:
    try:
        return f"{MARK_VARIABLE}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
