"""The releases that can be played, their flags, and what the double is told to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FLAGS = Path(__file__).parents[2] / "assets" / "trt" / "trtexec_known_flags.json"

VERSIONS: dict[str, tuple[int, int, int]] = {
    "8.2": (8, 2, 3),
    "8.5": (8, 5, 3),
    "8.6": (8, 6, 1),
    "10.3": (10, 3, 0),
    "10.16": (10, 16, 0),
    "11.0": (11, 0, 0),
    "11.1": (11, 1, 0),
}
RELEASES = tuple(VERSIONS)
SCENARIOS = (
    "success",
    "parser_error",
    "out_of_memory",
    "workspace_short",
    "create_failed",
    "cuda",
    "killed",
    "crash",
    "hang",
    "stubborn",
    "no_passed",
    "empty",
    "no_plan",
)


@dataclass(frozen=True)
class Release:
    """One genuine release."""

    name: str
    flags: frozenset[str]

    @property
    def version(self) -> tuple[int, int, int]:
        return VERSIONS[self.name]

    @property
    def banner(self) -> str:
        major, minor, patch = self.version
        number = major * (10000 if major >= 10 else 1000) + minor * 100 + patch
        return f"[TensorRT v{number}]" + (" [b72]" if self.version >= (10, 10, 0) else "")

    def at_least(self, *version: int) -> bool:
        return self.version >= version


def release(name: str) -> Release:
    known = json.loads(FLAGS.read_text())[name].split()
    return Release(name, frozenset(f"--{flag}" for flag in ["onnx", *known]))  # --onnx was given with every line tried


@dataclass(frozen=True)
class Setting:
    """What is played. `pause_sec` is slept between steps, so that lines come one after the other."""

    release: str = "10.3"
    scenario: str = "success"
    pause_sec: float = 0.0
    dla_cores: int = 0


def setting(called: Path, environment: Mapping[str, str]) -> Setting:
    beside = called.with_name("trtexec.json")
    told = json.loads(beside.read_text()) if beside.is_file() else {}
    if "-" in called.name:
        told["release"] = called.name.partition("-")[2]
    for name in ("release", "scenario", "pause_sec", "dla_cores"):
        told[name] = environment.get(f"TRTEXEC_DOUBLE_{name.upper()}", told.get(name, getattr(Setting, name)))
    found = Setting(told["release"], told["scenario"], float(told["pause_sec"]), int(told["dla_cores"]))
    if found.release not in RELEASES or found.scenario not in SCENARIOS:
        raise SystemExit(f"the double cannot play {found}")
    return found
