"""Machines that engines are for: profiles as data, and this machine as far as the operating system tells.

An engine runs where it was built and on hardly anything else, so what a machine is must be known before a build. What
is not known is None and stays so: nothing is guessed. TensorRT is never imported here; it may open the GPU.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from app.toolkit.errors import BuildElsewhere, UnknownProfile
from app.toolkit.tensorrt.versions import Version, version_of, version_text

TEGRA_RELEASE = Path("/etc/nv_tegra_release")
TEGRA_MODEL = Path("/proc/device-tree/model")
MEMORY_INFO = Path("/proc/meminfo")
DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11")
GPU_QUERY = ("name", "compute_cap", "memory.total", "memory.free", "driver_version")
GPU_QUERY_TIMEOUT_SEC = 10
X86 = "x86_64"
ARM = "aarch64"
JETSONS = (("Orin", (8, 7)), ("Xavier", (7, 2)), ("TX2", (6, 2)), ("Nano", (5, 3)))
"""A word of a Jetson's name and the compute capability that it means; Orin Nano is an Orin, so that it comes first."""


@dataclass(frozen=True)
class Target:
    """A machine. Each field is None where it is not known; `dla_cores` 0 means that there is none.

    `compute_capability` is (major, minor), (8, 7) for Orin. `l4t` is Jetson's system release ("35.4.1"), "" where the
    machine is none. Memory is that of the GPU, in MiB; a Jetson's GPU shares the machine's.
    """

    tensorrt: Version | None = None
    compute_capability: tuple[int, int] | None = None
    gpu_name: str | None = None
    sm_count: int | None = None
    os: str | None = None
    arch: str | None = None
    l4t: str | None = None
    dla_cores: int | None = None
    memory_total_mib: int | None = None
    memory_free_mib: int | None = None
    driver: str | None = None
    trtexec: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape; versions as text."""
        entries = {one.name: getattr(self, one.name) for one in fields(self)}
        entries["tensorrt"] = None if self.tensorrt is None else version_text(self.tensorrt)
        if self.compute_capability is not None:
            entries["compute_capability"] = version_text(self.compute_capability)
        return entries


@dataclass(frozen=True)
class DeviceProfile:
    """What a build for a kind of device may ask for.

    `tensorrt` is the only release line that the device has, None where there are several. `has_dla` is None where it
    depends on the module. `arch` and `compute_capability` as in Target. `note` says what else one must know.
    """

    name: str
    title: str
    arch: str
    workspace_mib: int
    max_batch: int | None
    precisions: tuple[str, ...]
    precision: str
    has_dla: bool | None
    tensorrt: Version | None = None
    compute_capability: tuple[int, int] | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape; versions as text."""
        entries = {one.name: getattr(self, one.name) for one in fields(self)}
        entries["precisions"] = list(self.precisions)
        entries["tensorrt"] = None if self.tensorrt is None else version_text(self.tensorrt)
        if self.compute_capability is not None:
            entries["compute_capability"] = version_text(self.compute_capability)
        return entries


PROFILES: Mapping[str, DeviceProfile] = {
    one.name: one
    for one in (
        DeviceProfile(
            # Maxwell computes no INT8; JetPack stops at 4.6.x, whose TensorRT is 8.2.1 (community list, not NVIDIA's).
            "jetson-nano",
            "Jetson Nano, Nano 2GB",
            arch=ARM,
            workspace_mib=128,
            max_batch=1,
            precisions=("fp32", "fp16"),
            precision="fp16",
            has_dla=False,
            tensorrt=(8, 2),
            compute_capability=(5, 3),
            note="its JetPack 4.6 has TensorRT 8.2; Maxwell has no INT8 hardware",
        ),
        DeviceProfile(
            # How many DLA cores each Orin module has is not settled by NVIDIA's documents: the builder must be asked.
            "jetson-orin",
            "Jetson AGX Orin, Orin NX, Orin Nano",
            arch=ARM,
            workspace_mib=2048,
            max_batch=None,
            precisions=("fp32", "fp16", "int8"),
            precision="fp16",
            has_dla=None,
            compute_capability=(8, 7),
            note="TensorRT 8.5 (JetPack 5.1), 8.6 (6.0), 10.3 (6.1 and later), 11.4.1 possible from JetPack 7.2.2",
        ),
        DeviceProfile(
            "x86",
            "PC or server with an NVIDIA GPU",
            arch=X86,
            workspace_mib=2048,
            max_batch=None,
            precisions=("fp32", "fp16", "int8"),
            precision="fp16",
            has_dla=False,
        ),
    )
}


def profile_named(name: str) -> DeviceProfile:
    """A profile of the table. Raises UnknownProfile."""
    if name not in PROFILES:
        raise UnknownProfile(
            f"there is no device profile {name}", expected=f"one of {', '.join(PROFILES)}", received=name
        )
    return PROFILES[name]


def target_of(profile: DeviceProfile) -> Target:
    """What a profile says of a machine that is not here."""
    return Target(
        tensorrt=profile.tensorrt,
        compute_capability=profile.compute_capability,
        os="linux",
        arch=profile.arch,
        dla_cores=0 if profile.has_dla is False else None,
    )


def local_target() -> Target:
    """This machine: architecture, GPU by nvidia-smi, Jetson's release file, TensorRT by its package's metadata.

    Where only trtexec is installed, the TensorRT version stays None: ask trtexec. On a Jetson the number of DLA cores
    stays None: ask the builder.
    """
    l4t = l4t_of(TEGRA_RELEASE.read_text(errors="replace")) if TEGRA_RELEASE.is_file() else ""
    here = Target(
        tensorrt=_installed_tensorrt(),
        os=platform.system().lower(),
        arch=platform.machine(),
        l4t=l4t,
        dla_cores=0 if platform.machine() == X86 else None,
        trtexec=shutil.which("trtexec"),
    )
    here = with_gpu(here, _nvidia_smi())
    if not l4t:
        return here
    model = TEGRA_MODEL.read_text(errors="replace") if TEGRA_MODEL.is_file() else ""
    return as_jetson(here, model, MEMORY_INFO.read_text())


def l4t_of(text: str) -> str:
    """Jetson's release out of /etc/nv_tegra_release: "# R35 (release), REVISION: 4.1, ..." is 35.4.1; "" for others."""
    found = re.search(r"R([0-9]+) \(release\), REVISION: ([0-9.]+)", text)
    return f"{found[1]}.{found[2]}" if found else ""


def with_gpu(target: Target, row: str) -> Target:
    """A target with what nvidia-smi's CSV says of the first GPU, in GPU_QUERY's order; "[N/A]" stays unknown."""
    lines = row.strip().splitlines()
    values = [value.strip() for value in lines[0].split(",")] if lines else []
    if len(values) != len(GPU_QUERY):
        return target
    name, capability, total, free, driver = (None if "N/A" in value else value for value in values)
    known = version_of(capability or "")
    return replace(
        target,
        gpu_name=name,
        compute_capability=(known[0], known[1]) if known and len(known) == 2 else None,
        memory_total_mib=_whole(total),
        memory_free_mib=_whole(free),
        driver=driver,
    )


def as_jetson(target: Target, model: str, memory: str) -> Target:
    """A Jetson by its model's name (/proc/device-tree/model), where nvidia-smi says little or does not exist.

    Its GPU uses the machine's own memory, so that /proc/meminfo, `memory`, has the figures.
    """
    name = model.strip("\x00\n ") or None
    found = {key: int(kib) // 1024 for key, kib in re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", memory, re.M)}
    capability = next((known for word, known in JETSONS if word in (name or "")), None)
    return replace(
        target,
        gpu_name=name or target.gpu_name,
        compute_capability=target.compute_capability or capability,
        memory_total_mib=found.get("MemTotal"),
        memory_free_mib=found.get("MemAvailable"),
    )


def differences(profile: DeviceProfile, here: Target) -> tuple[str, ...]:
    """What shows that this machine is none of the profile's kind; empty where nothing does."""
    release = None if profile.tensorrt is None else len(profile.tensorrt)
    compared: tuple[tuple[str, object, object], ...] = (
        ("architecture", profile.arch, here.arch),
        ("compute capability", profile.compute_capability, here.compute_capability),
        ("TensorRT", profile.tensorrt, here.tensorrt[:release] if here.tensorrt else None),
    )
    return tuple(
        f"{what} {_text(theirs)} there, {_text(ours)} here"
        for what, theirs, ours in compared
        if theirs is not None and ours is not None and theirs != ours
    )


def check_buildable_here(profile: DeviceProfile, here: Target, onnx_name: str, command_line: str) -> None:
    """Raise BuildElsewhere unless this machine is one of the profile's kind.

    `command_line` is the trtexec line for that machine, which the message carries beside the ONNX file's name.
    """
    differs = differences(profile, here)
    if differs:
        raise BuildElsewhere(
            f"an engine for {profile.title} cannot be built on this machine",
            expected=f"a {profile.title}: engines are built on the machine that runs them",
            received="; ".join(differs),
            hint=f"copy {onnx_name} to that machine and run there: {command_line}",
        )


def _text(value: object) -> str:
    return version_text(value) if isinstance(value, tuple) else str(value)


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


def _installed_tensorrt() -> Version | None:
    for name in DISTRIBUTIONS:
        try:
            return version_of(metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
    return None


def _nvidia_smi() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    query = [command, f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=GPU_QUERY_TIMEOUT_SEC, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
