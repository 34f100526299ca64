"""A benchmark's figures. One row a way and batch size; a way that cannot run here is a row that says why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from app.toolkit.latency import LatencyReport

Part = Literal["compute", "copy_in", "copy_out", "end_to_end"]


@dataclass(frozen=True)
class Agreement:
    """A way's answers against the first way's, on the same tensors: the largest differences by part of the answers.

    `limits` are parity's for the way's dtype, None where there are none (INT8); `ok` is None then too.
    """

    ok: bool | None
    differences: Mapping[str, float]
    limits: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Row:
    """One way at one batch size.

    `headline_ms` is the p50 of end-to-end time, None unless it was stable and the machine quiet; `parts` has every part
    that could be timed apart. `speedup` is over the first way that was timed, at the same batch size. `why_not` is the
    reason where nothing was timed: the way is lacking here, memory ran out, or its answers are wrong. Memory is in MiB
    above what was in use before, energy in mJ an image.
    """

    way: str
    batch_size: int
    headline_ms: float | None = None
    images_per_second: float | None = None
    speedup: float | None = None
    parts: Mapping[Part, LatencyReport] = field(default_factory=dict)
    agreement: Agreement | None = None
    device_peak_mib: float | None = None
    host_peak_mib: float | None = None
    energy_mj_per_image: float | None = None
    why_not: str = ""
    hint: str = ""
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        entries = {name: getattr(self, name) for name in self.__dataclass_fields__}
        entries["parts"] = {name: report.as_dict() for name, report in self.parts.items()}
        entries["agreement"] = None if self.agreement is None else asdict(self.agreement)
        return {**entries, "notes": list(self.notes)}


@dataclass(frozen=True)
class Accuracy:
    """A way's accuracy on the request's data, 0..1; None where its kind of labels is not there."""

    images: int
    map50: float | None = None
    map50_95: float | None = None
    top1: float | None = None


@dataclass(frozen=True)
class BenchmarkResult:
    """All rows, each way's accuracy, the model's figures, and the machine before and after."""

    model: Mapping[str, Any]
    rows: tuple[Row, ...]
    accuracy: Mapping[str, Accuracy]
    machine: Mapping[str, Any]
    noise: Mapping[str, Any]
    settings: Mapping[str, Any]
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @property
    def stable(self) -> bool:
        """Whether every row that was timed has a headline."""
        timed = [row for row in self.rows if row.parts]
        return bool(timed) and all(row.headline_ms is not None for row in timed)

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {
            "benchmark_version": 1,
            "stable": self.stable,
            "model": dict(self.model),
            "rows": [row.as_dict() for row in self.rows],
            "accuracy": {way: asdict(one) for way, one in self.accuracy.items()},
            "machine": dict(self.machine),
            "noise": dict(self.noise),
            "settings": dict(self.settings),
            "seconds": dict(self.seconds),
            "notes": list(self.notes),
        }
