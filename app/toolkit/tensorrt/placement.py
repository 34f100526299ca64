"""Which layers a build put on the DLA and which on the GPU, and why, from its log: it is said nowhere else.

The two lists are printed by 8.x for every build, whether or not a DLA was asked for; whether 10.3 and later print them
is not known to us. Without them the lines on layers that move to the GPU are counted. All wording is from users' logs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

MAX_REASONS = 200

SUBGRAPH = "{ForeignNode["
MOVES = (
    re.compile(r"Layer '(?P<layer>.+)' \((?P<why>\w+)\): Unsupported on DLA\. Switching"),
    re.compile(r"Validation failed for DLA layer: (?P<layer>.+)\. Switching to GPU fallback"),
    re.compile(r"(?P<why>DLA supports only \d+ subgraphs per DLA core)\. Switching to GPU for layer (?P<layer>.+)"),
    re.compile(r"Default DLA is enabled but layer (?P<layer>.+) is not supported on DLA, falling back to GPU"),
)
"""Lines that say that a layer runs on the GPU after all."""
WHYS = (
    re.compile(r"(?P<layer>\S.*?): (?P<why>DLA only supports .+)"),
    re.compile(r"(?P<why>DLA cores do not support .+)"),
    re.compile(r"Splitting DLA subgraph at: (?P<layer>.+) because (?P<why>DLA validation failed) for this layer"),
)
"""Lines that say why, mostly just before."""


@dataclass(frozen=True)
class Fallback:
    """What TensorRT said of a layer that the DLA does not take; either may be empty."""

    layer: str
    why: str


@dataclass(frozen=True)
class Placement:
    """Layers by device, as the builder fused them: a `{ForeignNode[a...b]}` on the DLA is everything from a to b.

    `source` says what was read: the builder's two `lists`, its `warnings` (then `gpu_layers` are those that moved there
    and the DLA's are not known), or `none`.
    """

    source: Literal["lists", "warnings", "none"]
    dla_layers: tuple[str, ...] = ()
    gpu_layers: tuple[str, ...] = ()
    reasons: tuple[Fallback, ...] = ()

    @property
    def dla_subgraphs(self) -> int:
        """How many pieces of the network are handed to the DLA whole; between any two the GPU works."""
        return sum(layer.startswith(SUBGRAPH) for layer in self.dla_layers)

    @property
    def most_transitions(self) -> int:
        """How often work changes between DLA and GPU at most: into and out of each piece, if the GPU has any.

        The lists do not tell how layers are connected, so that two pieces may in truth follow each other.
        """
        return 2 * len(self.dla_layers) if self.gpu_layers else 0

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape; counts of the DLA are None where the log does not tell, `dla_pct` is of layers as fused."""
        told, both = self.source == "lists", len(self.dla_layers) + len(self.gpu_layers)
        return {
            "source": self.source,
            "dla_count": len(self.dla_layers) if told else None,
            "gpu_count": len(self.gpu_layers),
            "dla_pct": round(100 * len(self.dla_layers) / both, 1) if told and both else None,
            "most_transitions": self.most_transitions if told else None,
            "dla_subgraphs": self.dla_subgraphs,
            "dla_layers": list(self.dla_layers),
            "gpu_layers": list(self.gpu_layers),
            "reasons": [vars(one) for one in self.reasons],
        }


class PlacementReader:
    """Collects while lines come."""

    def __init__(self) -> None:
        self._listed: dict[str, list[str]] = {"DlaLayer": [], "GpuLayer": []}
        self._moved: dict[str, None] = {}
        self._reasons: dict[Fallback, None] = {}

    def feed(self, text: str) -> None:
        """One message, without its date and severity."""
        if listed := re.match(r"\[(DlaLayer|GpuLayer)\] (.+)", text):
            self._listed[listed[1]].append(listed[2])
        elif "DLA" in text and not text.startswith("---"):
            self._why(text)

    def _why(self, text: str) -> None:
        moved = next((found for pattern in MOVES if (found := pattern.match(text))), None)
        if moved:
            self._moved[moved["layer"]] = None
        found = moved or next((found for pattern in WHYS if (found := pattern.match(text))), None)
        if found and len(self._reasons) < MAX_REASONS:
            parts = found.groupdict()
            self._reasons[Fallback(parts.get("layer") or "", parts.get("why") or "")] = None

    def placement(self) -> Placement:
        """What has been said so far."""
        dla, gpu = (tuple(self._listed[name]) for name in ("DlaLayer", "GpuLayer"))
        reasons = tuple(self._reasons)
        if dla or gpu:
            return Placement("lists", dla, gpu, reasons)
        return Placement("warnings" if reasons else "none", (), tuple(self._moved), reasons)
