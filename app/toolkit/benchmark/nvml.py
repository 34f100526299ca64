"""The NVIDIA GPU that torch uses, through NVML. What the GPU or its driver does not tell is None, never a guess."""

from __future__ import annotations

import functools
from typing import Any

import pynvml  # type: ignore[import-untyped]
import torch

HELD_DOWN = {
    pynvml.nvmlClocksThrottleReasonSwPowerCap: "power limit",
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "heat, by the driver",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "heat, by the hardware",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "power brake",
}
"""NVML's reasons for clocks lower than asked for. Idle, a user's own clocks and the like are none of these."""

POWER, HEAT = pynvml.NVML_PERF_POLICY_POWER, pynvml.NVML_PERF_POLICY_THERMAL

MIB = 1 << 20


class Gpu:
    """One GPU. `ask("PowerUsage")` calls `nvmlDeviceGetPowerUsage` and gives None where NVML has no answer."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def ask(self, what: str, *arguments: Any) -> Any:
        """NVML's answer in NVML's units."""
        try:
            return getattr(pynvml, f"nvmlDeviceGet{what}")(self._handle, *arguments)
        except pynvml.NVMLError:
            return None

    @property
    def energy_mj(self) -> int | None:
        """Of the whole board since the driver was loaded; GPUs before Volta do not count it."""
        return _whole(self.ask("TotalEnergyConsumption"))

    @property
    def temperature_c(self) -> int | None:
        """The chip's, in degrees Celsius."""
        return _whole(self.ask("Temperature", pynvml.NVML_TEMPERATURE_GPU))

    @property
    def clock_mhz(self) -> int | None:
        """The multiprocessors', now."""
        return _whole(self.ask("ClockInfo", pynvml.NVML_CLOCK_SM))

    @property
    def held_down_by(self) -> tuple[str, ...] | None:
        """Why the clocks are lower than asked for, now."""
        reasons = self.ask("CurrentClocksThrottleReasons")
        return None if reasons is None else tuple(text for bit, text in HELD_DOWN.items() if reasons & bit)

    def held_down_ns(self, policy: int) -> int | None:
        """How long a policy (POWER or HEAT) has held the clocks down since the driver was loaded."""
        status = self.ask("ViolationStatus", policy)
        return None if status is None else int(status.violationTime)

    def running_pids(self) -> frozenset[int] | None:
        """Every process with a CUDA context here. In a container they may be the host's pids, or none at all."""
        processes = self.ask("ComputeRunningProcesses")
        return None if processes is None else frozenset(one.pid for one in processes)

    def used_pct_by_pid(self, since_us: int) -> dict[int, int] | None:
        """The most that each process used of the multiprocessors' time in a sample since then (µs of the epoch)."""
        used: dict[int, int] = {}
        for sample in self.ask("ProcessUtilization", since_us) or ():
            used[sample.pid] = max(used.get(sample.pid, 0), int(sample.smUtil))
        return used or None

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape: what it is, how it is set and how it stands now."""
        memory = self.ask("MemoryInfo")
        limit_mw, power_mw = self.ask("EnforcedPowerLimit"), self.ask("PowerUsage")
        capability, persistence = self.ask("CudaComputeCapability"), self.ask("PersistenceMode")
        reasons = self.held_down_by
        return {
            "name": self.ask("Name"),
            "compute_capability": None if capability is None else ".".join(map(str, capability)),
            "driver": _of_system("DriverVersion"),
            "driver_cuda": _cuda_version(_of_system("CudaDriverVersion_v2")),
            "memory_total_mib": None if memory is None else memory.total // MIB,
            "memory_used_mib": None if memory is None else memory.used // MIB,
            "power_limit_w": None if limit_mw is None else limit_mw / 1000,
            "power_w": None if power_mw is None else power_mw / 1000,
            "sm_clock_mhz": self.clock_mhz,
            "sm_clock_max_mhz": self.ask("MaxClockInfo", pynvml.NVML_CLOCK_SM),
            "memory_clock_mhz": self.ask("ClockInfo", pynvml.NVML_CLOCK_MEM),
            "memory_clock_max_mhz": self.ask("MaxClockInfo", pynvml.NVML_CLOCK_MEM),
            "temperature_c": self.temperature_c,
            "persistence_mode": None if persistence is None else bool(persistence),
            "pcie_generation": self.ask("CurrPcieLinkGeneration"),
            "pcie_lanes": self.ask("CurrPcieLinkWidth"),
            "clocks_held_down_by": None if reasons is None else list(reasons),
        }


@functools.cache
def find_gpu() -> Gpu | None:
    """The GPU that torch uses, else NVML's first; None where there is no driver or no GPU.

    NVML stays open until the process ends.
    """
    try:
        pynvml.nvmlInit()
        if torch.cuda.is_available():  # NVML knows nothing of CUDA_VISIBLE_DEVICES and of CUDA's order
            return Gpu(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}"))
        return Gpu(pynvml.nvmlDeviceGetHandleByIndex(0))
    except pynvml.NVMLError:
        return None


def _of_system(what: str) -> Any:
    try:
        return getattr(pynvml, f"nvmlSystemGet{what}")()
    except pynvml.NVMLError:
        return None


def _cuda_version(number: int | None) -> str | None:
    """NVML's 12090 is 12.9."""
    return None if number is None else f"{number // 1000}.{number % 1000 // 10}"


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)
