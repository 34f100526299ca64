"""What goes on around a measurement: who else used the machine, and what memory and energy the measured code took.

Each meter is a context manager that reads the kernel's and the GPU's own counters before and after. None of them runs
anything meanwhile, so none disturbs what it watches. What cannot be read is None.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import time
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from app.toolkit.benchmark.malloc import give_back
from app.toolkit.benchmark.nvml import HEAT, MIB, POWER, Gpu, find_gpu
from app.toolkit.benchmark.processor import ROOT, TICKS_PER_SECOND, CpuTimes, cpu_times, text_of, whole_of
from app.toolkit.tensorrt.process import descendants

OTHERS_LIMIT_PCT = 5.0
"""Of the cores' time, used by others."""
OTHERS_LIMIT_CORES = 0.5
"""On a machine of many cores, where one busy loop is less than OTHERS_LIMIT_PCT."""
HELD_BACK_LIMIT_PCT = 1.0
"""Of the time, held back by a quota or by heat."""
GPU_OTHERS_LIMIT_PCT = 5.0
"""Of the GPU's time, used by another process."""
LEAST_ENERGY_SECONDS = 1.0
"""A GPU's counter moves in steps of up to 0.1 s; of a shorter measurement it would tell little else."""

RESET_PEAK = "5"  # what /proc/self/clear_refs takes for it (proc_pid_clear_refs(5))

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class GpuNoise:
    """The GPU meanwhile; pairs are before and after. `others` counts processes, `others_pct` is what the busiest used.

    `hot_pct` and `power_limited_pct` are how much of the time heat and the power limit held the clocks down. The power
    limit is no noise: under the same load it is the same the next time.
    """

    temperature_c: tuple[int | None, int | None]
    clock_mhz: tuple[int | None, int | None]
    held_down_by: tuple[str, ...] | None
    hot_pct: float | None
    power_limited_pct: float | None
    others: int | None
    others_pct: int | None

    @property
    def reasons(self) -> tuple[str, ...]:
        """A sentence for each limit that was passed."""
        found = []
        if (self.others_pct or 0) > GPU_OTHERS_LIMIT_PCT:
            limit = f"limit {GPU_OTHERS_LIMIT_PCT:g} %"
            found.append(f"another process used up to {self.others_pct} % of the GPU's time ({limit})")
        if (self.hot_pct or 0) > HELD_BACK_LIMIT_PCT:
            found.append(f"heat held the GPU's clocks down for {self.hot_pct:.0f} % of the time")
        return tuple(found)


@dataclass(frozen=True)
class Noise:
    """What else went on for `seconds`. The shares are in percent of the time of the `cores` this process may use.

    `others_pct` is what was neither idle nor used by this process and its descendants: other processes, the kernel's
    own work, and what the hypervisor took, which is `steal_pct`. `error_pct` is what the counters' step comes to.
    `load` is the kernel's mean number of running processes in the last minute, ours included, before and after.
    """

    seconds: float
    cores: int
    own_pct: float
    others_pct: float | None
    error_pct: float
    steal_pct: float | None
    held_back_pct: float | None
    overheated: int | None
    load: tuple[float, float]
    gpu: GpuNoise | None = None

    @property
    def is_noisy(self) -> bool:
        """Whether a figure taken meanwhile is not to be believed."""
        return bool(self.reasons)

    @property
    def reasons(self) -> tuple[str, ...]:
        """A sentence for each limit that was passed."""
        found = []
        limit = _others_limit_pct(self.cores)
        if self.others_pct is not None and self.others_pct - self.error_pct > limit:
            cores = "the one core's" if self.cores == 1 else f"the {self.cores} cores'"
            found.append(f"others used {self.others_pct:.0f} % of {cores} time (limit {limit:.2g} %)")
        if (self.held_back_pct or 0) > HELD_BACK_LIMIT_PCT:
            found.append(
                f"the control group's CPU quota held the process back for {self.held_back_pct:.0f} % of the time"
            )
        if self.overheated:
            found.append(f"heat slowed the processor down, {self.overheated} times")
        return (*found, *(() if self.gpu is None else self.gpu.reasons))

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape, with the verdict."""
        return {**asdict(self), "is_noisy": self.is_noisy, "reasons": list(self.reasons)}


class NoiseMeter:
    """Who else used the cores that this process may use and, for "cuda", the GPU. `noise` is there after the block.

    `started_pids` are processes of ours that may have ended before the block does: NVML still tells what they used.
    """

    noise: Noise

    def __init__(self, device: Device = "cpu", started_pids: AbstractSet[int] = frozenset()) -> None:
        self._gpu = find_gpu() if device == "cuda" else None
        self._started_pids = started_pids

    def __enter__(self) -> NoiseMeter:
        self._load = os.getloadavg()[0]
        self._gpu_before = None if self._gpu is None else _GpuReading.of(self._gpu)
        self._before = cpu_times()
        return self

    @property
    def is_long_enough(self) -> bool:
        """Whether the counters' step is at most half of what others may use: more could hide others' work."""
        error_pct = _error_pct(time.monotonic() - self._before.at_s)
        return error_pct <= _others_limit_pct(self._before.cores) / 2

    def __exit__(self, *_: object) -> None:
        after = cpu_times()
        gpu = None
        if self._gpu is not None and self._gpu_before is not None:
            ours = {os.getpid(), *descendants(os.getpid()), *self._started_pids}
            gpu = _gpu_noise(self._gpu, self._gpu_before, after.at_s - self._before.at_s, ours)
        self.noise = noise_between(self._before, after, (self._load, os.getloadavg()[0]), gpu)


def noise_between(before: CpuTimes, after: CpuTimes, load: tuple[float, float], gpu: GpuNoise | None = None) -> Noise:
    """What two readings come to. Where /proc/stat stands still, as in some sandboxes, the others' share is None.

    The share stands on what was idle, which the kernel counts exactly; busy time it counts by samples.
    """
    seconds = max(after.at_s - before.at_s, 1e-9)
    total_s = seconds * after.cores
    own_s = after.own_s - before.own_s
    counted_s, idle_s = _more(before.counted_s, after.counted_s), _more(before.idle_s, after.idle_s)
    others_s = total_s - idle_s - own_s if idle_s is not None and (counted_s or 0) > total_s / 2 else None
    overheated = _more(before.overheated, after.overheated)
    return Noise(
        seconds=round(seconds, 3),
        cores=after.cores,
        own_pct=_pct(own_s, total_s) or 0.0,
        others_pct=_pct(others_s, total_s),
        error_pct=round(_error_pct(seconds), 2),
        steal_pct=_pct(_more(before.steal_s, after.steal_s), total_s),
        held_back_pct=_pct(_more(before.held_back_s, after.held_back_s), total_s),
        overheated=None if overheated is None else int(overheated),
        load=load,
        gpu=gpu,
    )


@dataclass(frozen=True)
class _GpuReading:
    at_us: int
    temperature_c: int | None
    clock_mhz: int | None
    hot_ns: int | None
    power_limited_ns: int | None

    @classmethod
    def of(cls, gpu: Gpu) -> _GpuReading:
        held_down_ns = (gpu.held_down_ns(HEAT), gpu.held_down_ns(POWER))
        return cls(time.time_ns() // 1000, gpu.temperature_c, gpu.clock_mhz, *held_down_ns)


def _gpu_noise(gpu: Gpu, before: _GpuReading, seconds: float, ours: AbstractSet[int]) -> GpuNoise:
    after = _GpuReading.of(gpu)
    others, others_pct = other_processes(ours, gpu.running_pids(), gpu.used_pct_by_pid(before.at_us))
    return GpuNoise(
        temperature_c=(before.temperature_c, after.temperature_c),
        clock_mhz=(before.clock_mhz, after.clock_mhz),
        held_down_by=gpu.held_down_by,
        hot_pct=_pct(_more(before.hot_ns, after.hot_ns), seconds * 1e9),
        power_limited_pct=_pct(_more(before.power_limited_ns, after.power_limited_ns), seconds * 1e9),
        others=others,
        others_pct=others_pct,
    )


def other_processes(
    ours: AbstractSet[int], running: AbstractSet[int] | None, used_pct: Mapping[int, int] | None
) -> tuple[int | None, int | None]:
    """How many are there, and what the busiest used, of process ids as NVML tells them.

    None where those are not of this namespace: none of ours is among them.
    """
    seen = {*(running or ()), *(used_pct or ())}
    if running is None or not seen & ours:
        return None, None
    others_pct = None if used_pct is None else max((pct for pid, pct in used_pct.items() if pid not in ours), default=0)
    return len(running - ours), others_pct


@dataclass(frozen=True)
class Memory:
    """The most that was in use, in MiB above what was at the start."""

    host_peak_mib: float | None = None
    device_peak_mib: float | None = None


class MemoryMeter:
    """The peak of this process's memory and, for "cuda", of the GPU's. `memory` is there after the block.

    The host's is the kernel's own high-water mark of resident memory, without child processes. The device's is the
    larger of what torch's allocator handed out at its peak, and of what is taken of the whole GPU at the end: ONNX
    Runtime and TensorRT keep what they took until they close, so close them after the block. Nothing is told of a
    block that raised, nor of a GPU that torch does not see.
    """

    def __init__(self, device: Device = "cpu") -> None:
        self._on_gpu = device == "cuda" and torch.cuda.is_available()
        self._peak_mib = 0.0
        self.memory = Memory()

    def __enter__(self) -> MemoryMeter:
        if self._on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._allocated = torch.cuda.memory_allocated()
            self._free = torch.cuda.mem_get_info()[0]
        gc.collect()
        give_back()
        self._resident_mib = _resident_mib("VmRSS") if _reset_peak() else None
        return self

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What the host's memory holds for a while in the block does not count."""
        self._peak_mib = max(self._peak_mib, _resident_mib("VmHWM") or 0.0)
        yield
        give_back()
        _reset_peak()

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is not None:
            return
        peak_mib = _resident_mib("VmHWM")
        host = _more(self._resident_mib, None if peak_mib is None else max(peak_mib, self._peak_mib))
        device = None
        if self._on_gpu:
            torch.cuda.synchronize()
            by_torch = torch.cuda.max_memory_allocated() - self._allocated
            device = max(by_torch, self._free - torch.cuda.mem_get_info()[0]) / MIB
        self.memory = Memory(host, device)


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def _resident_mib(name: str) -> float | None:
    found = re.search(rf"^{name}:\s+(\d+) kB", text_of(Path("/proc/self/status")) or "", re.M)
    return None if found is None else int(found[1]) / 1024


@dataclass(frozen=True)
class Energy:
    """What the whole GPU, or all the processor's packages, took; idle power and other processes' is in it."""

    millijoules: float | None = None
    source: Literal["NVML", "RAPL"] | None = None


class EnergyMeter:
    """The GPU's energy for "cuda", else the processor's. `energy` is there after the block.

    It is None where there is no counter or it may not be read (RAPL's is root's on most machines), and for a block
    that raised or took less than a second.
    """

    def __init__(self, device: Device = "cpu", *, root: Path = ROOT) -> None:
        self._gpu = find_gpu() if device == "cuda" else None
        self._packages = rapl_packages(root) if device == "cpu" else []
        self.energy = Energy()

    @property
    def has_counter(self) -> bool:
        """Whether there is one that may be read: without, running for the sake of energy is time lost."""
        if self._gpu is not None:
            return self._gpu.energy_mj is not None
        return bool(self._packages) and all(whole_of(one / "energy_uj") is not None for one in self._packages)

    def __enter__(self) -> EnergyMeter:
        self._begun = time.monotonic()
        self._gpu_mj = None if self._gpu is None else self._gpu.energy_mj
        self._uj = [whole_of(package / "energy_uj") for package in self._packages]
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is not None or time.monotonic() - self._begun < LEAST_ENERGY_SECONDS:
            return
        if self._gpu is not None:
            self.energy = Energy(_more(self._gpu_mj, self._gpu.energy_mj), "NVML")
        elif self._packages:
            used_uj = [_used_uj(package, uj) for package, uj in zip(self._packages, self._uj, strict=True)]
            known = [uj for uj in used_uj if uj is not None]
            self.energy = Energy(sum(known) / 1000 if len(known) == len(used_uj) else None, "RAPL")


def rapl_packages(root: Path = ROOT) -> list[Path]:
    """The powercap folders of the processor's packages (Linux, Documentation/power/powercap), AMD's too.

    Their parts and the whole platform (`psys`), which has the packages in it, stand beside them.
    """
    folders = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
    return [one for one in folders if (text_of(one / "name") or "").startswith("package-")]


def _used_uj(package: Path, before: int | None) -> int | None:
    """Since `before`; the counter starts anew after `max_energy_range_uj`."""
    now, limit = whole_of(package / "energy_uj"), whole_of(package / "max_energy_range_uj")
    if before is None or now is None:
        return None
    if now >= before:
        return now - before
    return None if limit is None else limit - before + now


def _others_limit_pct(cores: int) -> float:
    return min(OTHERS_LIMIT_PCT, 100 * OTHERS_LIMIT_CORES / cores)


def _error_pct(seconds: float) -> float:
    """A step of each core's counter, of all cores' time."""
    return 100 / TICKS_PER_SECOND / seconds


def _more(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _pct(part: float | None, whole: float) -> float | None:
    return None if part is None else round(100 * max(part, 0.0) / whole, 2)
