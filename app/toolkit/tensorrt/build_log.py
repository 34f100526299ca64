"""trtexec's output, line by line, into what a job wants to know. No process here: any log can be read again.

The lines are those of NVIDIA's sources of 8.2 to 11.1; what carries `[TRT]` comes from libnvinfer, which is closed, and
is from users' logs: its wording drifts, so nothing depends on such a line being there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.toolkit.tensorrt.dialects import decode_version
from app.toolkit.tensorrt.node_errors import NodeError, NodeErrorReader
from app.toolkit.tensorrt.performance import Performance, PerformanceReader
from app.toolkit.tensorrt.placement import Placement, PlacementReader
from app.toolkit.tensorrt.versions import Version, version_text

Phase = Literal["start", "parse", "build", "save"]
PHASES: tuple[Phase, ...] = ("start", "parse", "build", "save")

MAX_MESSAGES = 200

MESSAGE = re.compile(r"\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] \[(?P<severity>[VIWEF])\] (?:\[TRT\] )?(?P<text>.*)")
BANNER = re.compile(
    r"&&&& (?P<word>RUNNING|PASSED|FAILED) TensorRT\.trtexec \[TensorRT v(?P<version>\d+)\]"
    r"(?: \[b(?P<build>\d+)\])? # (?P<command>.*)"
)
PHASE_BEGINS: tuple[tuple[str, Phase], ...] = (
    ("Start parsing network model", "parse"),
    ("Finish parsing network model", "build"),  # 8.2 and 8.5
    ("Finished parsing network model", "build"),
    ("Engine built in ", "save"),
)

NUMBER = r"([\d.]+(?:e[+-]?\d+)?)"
NUMBERS = {
    "parse_seconds": rf"Finished parsing network model\. Parse time: {NUMBER}",
    "build_seconds": rf"Engine built in {NUMBER} sec",
    "engine_mib": rf"Created engine with size: {NUMBER} MiB",
    "load_seconds": rf"Engine loaded in {NUMBER} sec",
    "deserialize_seconds": rf"Engine deserialized in {NUMBER} sec",
    "generation_seconds": rf"Engine generation completed in {NUMBER} seconds",
    "host_persistent_bytes": rf"Total Host Persistent Memory: {NUMBER}",
    "device_persistent_bytes": rf"Total Device Persistent Memory: {NUMBER}",
    "scratch_bytes": rf"(?:Total|Max) Scratch Memory: {NUMBER}",
    "activation_bytes": rf"Total Activation Memory: {NUMBER}",
    "weights_bytes": rf"Total Weights Memory: {NUMBER}",
    "peak_cpu_mib": rf".*memory allocators: CPU {NUMBER} MiB",
    "peak_gpu_mib": rf".*memory allocators: CPU [\d.]+ MiB, GPU {NUMBER} MiB",
    "timing_cache_loaded_bytes": rf"Loaded {NUMBER} bytes of timing cache from",
    "timing_cache_saved_bytes": rf"Saved {NUMBER} bytes of timing cache to",
    "device_memory_mib": rf"Device Global Memory: {NUMBER} MiB",
    "multiprocessors": rf"SMs: {NUMBER}",
    "dla_core_missing": rf"Cannot create DLA engine, {NUMBER} not available",
}
"""The last line of each wins: a build reads its own engine back, and says so again."""
TEXTS = {
    "device": r"Selected Device: (.+)",
    "compute_capability": r"Compute Capability: (\S+)",
    "timing_cache_unreadable": r"Could not read timing cache from: (.+?)\. A new timing cache",
    "unknown_shape_input": r'Cannot find input tensor with name "(.+?)" in the network inputs',
    "invented_shape": r"Dynamic dimensions required for input: (.+?), but no shapes were provided",
    "cuda_failure": r"(Cuda failure.*|.*CUDA initialization failure.*|Cannot find device ID .*)",
}
_NUMBERS = {name: re.compile(pattern) for name, pattern in NUMBERS.items()}
_TEXTS = {name: re.compile(pattern) for name, pattern in TEXTS.items()}

SKIPPED_TACTIC = re.compile(r".*[Ss]kipping tactic .*(?:insufficient|insuficient) memory")  # 8.2 spells it with one f
WORKSPACE_SHORT = "Some tactics do not have sufficient workspace memory to run"
OUT_OF_MEMORY = re.compile(
    r"(?i).*(?:insufficient workspace|out ?of ?memory|could not be allocated|cannot allocate memory|bad_alloc)"
)
HELP_BEGINS = "=== Model Options ==="


@dataclass(frozen=True)
class BuildLog:
    """What a log told. `numbers` and `texts` hold what was found under the names of `NUMBERS` and `TEXTS`.

    `version` and `build` are the banner's. `passed` and `failed`: whether trtexec said so. `phase`: how far it came.
    `warnings` and `errors` are the first 200 of each. `option_refused`: it printed its help instead of building.
    `tactics_skipped` counts those that did not fit into memory; `workspace_short`: it asked for more workspace.
    """

    version: Version | None
    build: str
    passed: bool
    failed: bool
    phase: Phase
    numbers: Mapping[str, float]
    texts: Mapping[str, str]
    warnings: tuple[str, ...]
    errors: tuple[str, ...]
    option_refused: bool
    node_errors: tuple[NodeError, ...]
    out_of_memory: str
    tactics_skipped: int
    workspace_short: bool
    placement: Placement
    performance: Performance | None

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {
            **vars(self),
            "version": version_text(self.version),
            "numbers": dict(self.numbers),
            "texts": dict(self.texts),
            "warnings": list(self.warnings),
            "errors": list(self.errors),
            "node_errors": [one.as_dict() for one in self.node_errors],
            "placement": self.placement.as_dict(),
            "performance": self.performance.as_dict() if self.performance else None,
        }


class BuildLogReader:
    """Takes lines as they come; `on_phase` hears each phase when it begins, except the first."""

    def __init__(self, on_phase: Callable[[Phase], None] | None = None) -> None:
        self._on_phase = on_phase
        self._phase: Phase = "start"
        self._version: Version | None = None
        self._build = ""
        self._words: set[str] = set()
        self._numbers: dict[str, float] = {}
        self._texts: dict[str, str] = {}
        self._warnings: list[str] = []
        self._errors: list[str] = []
        self._option_refused = False
        self._out_of_memory = ""
        self._tactics_skipped = 0
        self._workspace_short = False
        self._nodes = NodeErrorReader()
        self._placement = PlacementReader()
        self._performance = PerformanceReader()

    def feed(self, line: str) -> None:
        """One line, without its end."""
        if banner := BANNER.match(line):
            self._words.add(banner["word"])
            self._version, self._build = decode_version(banner["version"]), banner["build"] or ""
        elif message := MESSAGE.match(line):
            self._message(message["severity"], message["text"])
        else:
            self._bare(line)

    def _message(self, severity: str, text: str) -> None:
        if severity in "WEF" and text:
            kept = self._warnings if severity == "W" else self._errors
            if len(kept) < MAX_MESSAGES:
                kept.append(text)
        if severity in "EF" and not self._out_of_memory and OUT_OF_MEMORY.match(text):
            self._out_of_memory = text
        self._memory(text)
        self._facts(text)
        self._begins(text)
        for reader in (self._nodes, self._placement, self._performance):
            reader.feed(text)

    def _bare(self, line: str) -> None:
        """The help, a message's further lines, what CUDA and the C++ runtime print before they abort."""
        if line == HELP_BEGINS:
            self._option_refused = True
        if not self._out_of_memory and OUT_OF_MEMORY.match(line) and not self._option_refused:
            self._out_of_memory = line
        self._facts(line)
        self._nodes.feed(line)

    def _memory(self, text: str) -> None:
        self._tactics_skipped += bool(SKIPPED_TACTIC.match(text))
        self._workspace_short |= text.startswith(WORKSPACE_SHORT)

    def _facts(self, text: str) -> None:
        for name, pattern in _NUMBERS.items():
            if number := pattern.match(text):
                self._numbers[name] = float(number[1])
        for name, pattern in _TEXTS.items():
            if found := pattern.match(text):
                self._texts[name] = found[1]

    def _begins(self, text: str) -> None:
        phase = next((phase for begins, phase in PHASE_BEGINS if text.startswith(begins)), None)
        if phase is not None and PHASES.index(phase) > PHASES.index(self._phase):
            self._phase = phase
            if self._on_phase is not None:
                self._on_phase(phase)

    def log(self) -> BuildLog:
        """What has been told so far."""
        return BuildLog(
            self._version,
            self._build,
            "PASSED" in self._words,
            "FAILED" in self._words,
            self._phase,
            self._numbers,
            self._texts,
            tuple(self._warnings),
            tuple(self._errors),
            self._option_refused,
            self._nodes.errors(),
            self._out_of_memory,
            self._tactics_skipped,
            self._workspace_short,
            self._placement.placement(),
            self._performance.performance(),
        )


def read_log(text: str) -> BuildLog:
    """Read a whole log."""
    reader = BuildLogReader()
    for line in text.splitlines():
        reader.feed(line)
    return reader.log()
