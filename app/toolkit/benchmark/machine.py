"""The machine that a figure was taken on: what it is, how it is set, and how it stands at this moment."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from app.toolkit.benchmark.nvml import find_gpu
from app.toolkit.benchmark.processor import ROOT, cgroup_folders, text_of, whole_of

LIBRARIES = (
    "faster-coco-eval",
    "numpy",
    "nvidia-ml-py",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "opencv-python",
    "tensorrt",
    "timm",
    "torch",
    "torchvision",
    "transformers",
    "triton",
    "ultralytics",
)
JETSON_GPU = re.compile(r"\d+\.(gpu|gp10b|gv11b|ga10b)")
"""The GPU among /sys/class/devfreq: Nano and JetPack 6, TX2, Xavier, Orin."""
NVPMODEL_TIMEOUT_SEC = 10
UNLIMITED = 1 << 60  # version 1 of control groups writes "no limit" as a number near 2**63


def machine_facts(root: Path = ROOT) -> dict[str, Any]:
    """JSON's shape. None is what cannot be read here, or is not there. `root` is where /proc, /sys and /etc are."""
    gpu = find_gpu()
    return {
        "cpu": cpu_facts(root),
        "memory": memory_facts(root),
        "load": [round(value, 2) for value in os.getloadavg()],
        "os": os_name(root),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "container": {"cpu_quota_cores": cpu_quota_cores(root), "memory_limit_mib": memory_limit_mib(root)},
        "python": platform.python_version(),
        "versions": versions(),
        "gpu": None if gpu is None else gpu.as_dict(),
        "jetson": jetson_facts(root),
    }


def cpu_facts(root: Path = ROOT) -> dict[str, Any]:
    """The processor; of clocks and governor, the first core's that this process may use."""
    about = text_of(root / "proc/cpuinfo") or ""
    cores = sorted(os.sched_getaffinity(0))
    folder = root / "sys/devices/system/cpu"
    clock = folder / f"cpu{cores[0]}/cpufreq"
    smt, boost = whole_of(folder / "smt/active"), whole_of(folder / "cpufreq/boost")
    flags = _field(about, "flags")
    return {
        "model": _cpu_model(about),
        "cores": os.cpu_count(),
        "cores_usable": len(cores),
        "virtual_machine": None if flags is None else "hypervisor" in flags.split(),
        "hyper_threading": None if smt is None else bool(smt),
        "governor": text_of(clock / "scaling_governor"),
        "clock_mhz": _mhz(clock / "scaling_cur_freq", 1000) or _shown_mhz(about),
        "clock_min_mhz": _mhz(clock / "scaling_min_freq", 1000),
        "clock_max_mhz": _mhz(clock / "scaling_max_freq", 1000),
        "boost": None if boost is None else bool(boost),
    }


def memory_facts(root: Path = ROOT) -> dict[str, int | None]:
    """The machine's, not the container's."""
    text = text_of(root / "proc/meminfo") or ""
    found = {name: int(kib) // 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    return {"total_mib": found.get("MemTotal"), "available_mib": found.get("MemAvailable")}


def os_name(root: Path = ROOT) -> str | None:
    """By /etc/os-release."""
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', text_of(root / "etc/os-release") or "", re.M)
    return found[1] if found else None


def cpu_quota_cores(root: Path = ROOT) -> float | None:
    """How many cores' time the control groups allow; None without a limit."""
    quotas = []
    for folder in cgroup_folders("cpu", root):
        words = (text_of(folder / "cpu.max") or "").split()
        if not words:
            words = [text_of(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
        if len(words) == 2 and all(word.isdecimal() for word in words):  # "max" or -1 is no limit
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limit_mib(root: Path = ROOT) -> int | None:
    """The control groups' limit; None without one."""
    folders = cgroup_folders("memory", root)
    read = [whole_of(folder / name) for folder in folders for name in ("memory.max", "memory.limit_in_bytes")]
    return min((limit >> 20 for limit in read if limit is not None and limit < UNLIMITED), default=None)


def versions() -> dict[str, str]:
    """The libraries that are installed, and what torch was built with."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]
    built = {"torch's CUDA": torch.version.cuda, "torch's cuDNN": None if cudnn is None else str(cudnn)}
    return {**found, **{name: version for name, version in built.items() if version is not None}}


def jetson_facts(root: Path = ROOT) -> dict[str, Any] | None:
    """The board, its power mode, and whether its clocks are fixed (jetson_clocks); None where this is no Jetson."""
    model = text_of(root / "proc/device-tree/model")
    release = text_of(root / "etc/nv_tegra_release")
    if release is None and "Jetson" not in (model or ""):
        return None
    gpus = [path for path in (root / "sys/class/devfreq").glob("*") if JETSON_GPU.fullmatch(path.name)]
    clocks = {name: _mhz(gpus[0] / f"{name}_freq", 1_000_000) if gpus else None for name in ("cur", "min", "max")}
    fixed = None if None in (clocks["min"], clocks["max"]) else clocks["min"] == clocks["max"]
    return {
        "model": model,
        "release": None if release is None else release.splitlines()[0].lstrip("# "),
        "power_mode": _power_mode(),
        "gpu_clock_mhz": clocks["cur"],
        "gpu_clock_min_mhz": clocks["min"],
        "gpu_clock_max_mhz": clocks["max"],
        "clocks_fixed": fixed,
    }


def _power_mode() -> str | None:
    command = shutil.which("nvpmodel")
    if command is None:
        return None
    try:
        done = subprocess.run(
            [command, "-q"], capture_output=True, text=True, timeout=NVPMODEL_TIMEOUT_SEC, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"NV Power Mode:\s*(\S+)", done.stdout)
    return found[1] if found else None


def _cpu_model(about: str) -> str | None:
    """By its name; an Arm core has none there and is its maker's and its own number."""
    name = _field(about, "model name")
    if name is None and (part := _field(about, "CPU part")) is not None:
        return f"Arm core, implementer {_field(about, 'CPU implementer')}, part {part}"
    return name


def _field(about: str, name: str) -> str | None:
    found = re.search(rf"^{name}[ \t]*:[ \t]*(.+)$", about, re.M)
    return found[1].strip() if found else None


def _shown_mhz(about: str) -> int | None:
    """A virtual machine's processor has no cpufreq, but often this."""
    shown = _field(about, "cpu MHz")
    return None if shown is None else round(float(shown))


def _mhz(path: Path, units_in_mhz: int) -> int | None:
    value = whole_of(path)
    return None if value is None else round(value / units_in_mhz)
