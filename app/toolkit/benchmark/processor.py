"""Who used the processor: the kernel's counters now, for the difference of two such readings. Linux only.

`root` is where /proc and /sys are, for all that is read from them; what cannot be read is None.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from app.toolkit.tensorrt.process import descendants

ROOT = Path("/")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
"""The unit of /proc's counters, usually 100."""

IDLE, IOWAIT, STEAL, GUEST = 3, 4, 7, 8  # columns of /proc/stat (proc_stat(5)); guest time is in the user's too


@dataclass(frozen=True)
class CpuTimes:
    """Seconds of CPU time so far. `at_s` is the monotonic clock's, `cores` those that this process may use.

    `counted_s`, `idle_s` and `steal_s` are over these cores; `own_s` is this process, its threads and its descendants;
    `held_back_s` is how long the control group's quota kept it waiting; `overheated` counts throttling for heat.
    """

    at_s: float
    cores: int
    own_s: float
    counted_s: float | None = None
    idle_s: float | None = None
    steal_s: float | None = None
    held_back_s: float | None = None
    overheated: int | None = None


def cpu_times(root: Path = ROOT) -> CpuTimes:
    """Read all counters."""
    cores = sorted(os.sched_getaffinity(0))
    by_name = _rows(root)
    rows = [row for core in cores if (row := by_name.get(f"cpu{core}")) is not None]
    own_s = time.process_time() + _children_s()
    known = len(rows) == len(cores)
    return CpuTimes(
        at_s=time.monotonic(),
        cores=len(cores),
        own_s=own_s,
        counted_s=_seconds(sum(sum(row[:GUEST]) for row in rows)) if known else None,
        idle_s=_seconds(sum(row[IDLE] + row[IOWAIT] for row in rows)) if known else None,
        steal_s=_seconds(sum(row[STEAL] for row in rows)) if known else None,
        held_back_s=_held_back_s(root),
        overheated=_overheated(root, cores),
    )


def text_of(path: Path) -> str | None:
    """A kernel's file without the white space and zeros around; None where it is not there or not ours to read."""
    try:
        return path.read_text(errors="replace").strip("\x00 \n")
    except OSError:
        return None


def whole_of(path: Path) -> int | None:
    """A kernel's file with one whole number."""
    text = text_of(path)
    return int(text) if text and text.lstrip("-").isdecimal() else None


def cgroup_folders(controller: str, root: Path = ROOT) -> list[Path]:
    """The control groups that bind this process for a controller, its own first, of version 2 and of version 1."""
    folders: list[Path] = []
    for line in (text_of(root / "proc/self/cgroup") or "").splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if names else "")
        inside = PurePosixPath(path.lstrip("/"))
        folders += [base / inside, *(base / parent for parent in inside.parents)]
    return [folder for folder in folders if folder.is_dir()]


def _rows(root: Path) -> dict[str, list[int]]:
    lines = (text_of(root / "proc/stat") or "").splitlines()
    rows = (line.split() for line in lines if line.startswith("cpu"))
    return {name: [int(value) for value in values] for name, *values in rows}


def _children_s() -> float:
    """Those that ended and were waited for, and those that live."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = 0
    for pid in descendants(os.getpid()):
        fields = (text_of(Path(f"/proc/{pid}/stat")) or "").rpartition(")")[2].split()
        living += sum(int(value) for value in fields[11:15])  # utime, stime, cutime, cstime (proc_pid_stat(5))
    return ended.ru_utime + ended.ru_stime + _seconds(living)


def _held_back_s(root: Path) -> float | None:
    """`throttled_usec` of version 2, `throttled_time` in ns of version 1, of every group on the way up."""
    found = []
    for folder in cgroup_folders("cpu", root):
        lines = (text_of(folder / "cpu.stat") or "").splitlines()
        values = {name: int(value) for name, value in (line.split() for line in lines)}
        if "throttled_usec" in values:
            found.append(values["throttled_usec"] / 1e6)
        elif "throttled_time" in values:
            found.append(values["throttled_time"] / 1e9)
    return sum(found) if found else None


def _overheated(root: Path, cores: list[int]) -> int | None:
    folder = root / "sys/devices/system/cpu"
    counts = [whole_of(folder / f"cpu{core}/thermal_throttle/core_throttle_count") for core in cores]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _seconds(ticks: int) -> float:
    return ticks / TICKS_PER_SECOND
