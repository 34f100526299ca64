"""What a quantisation came to: the numbers, and one sentence of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from app.toolkit.onnx_lint import LintReport
from app.toolkit.quantization.proof import Accuracy
from app.toolkit.quantization.repair import Repair
from app.toolkit.quantization.request import QuantizationRequest
from app.toolkit.race import Race
from app.toolkit.stats import ModelStats

FP32_WEIGHTS = 0.7  # a file with INT8 weights is far below this part of the FP32 one


@dataclass(frozen=True)
class NodeReport:
    """Which nodes compute in INT8, and which were left alone: the head's post-processing, and what was excluded."""

    quantised: tuple[str, ...]
    post_processing: tuple[str, ...]
    excluded: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {
            "quantised_nodes": len(self.quantised),
            "post_processing_nodes": list(self.post_processing),
            "excluded_nodes": list(self.excluded),
        }


@dataclass(frozen=True)
class QuantizationResult:
    """An INT8 file (written unless the accuracy fell too far) and all that was measured on the way.

    `calibration` is JSON's shape; `seconds` is by phase.
    """

    request: QuantizationRequest
    path: Path
    stats: ModelStats
    size_before_mb: float
    nodes: NodeReport
    operators: dict[str, int]
    lint: LintReport
    races: tuple[Race, ...]
    accuracy: Accuracy | None
    calibration: dict[str, Any] | None
    repair: Repair | None
    warnings: tuple[str, ...]
    seconds: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether the limit on the loss, if there is one, was kept."""
        limit = self.request.max_drop
        return limit is None or (self.accuracy is not None and self.accuracy.drop <= limit)

    def verdict(self) -> str:
        """One sentence: what the file is for, what it weighs, how fast it is here, what it lost."""
        parts = [self._purpose(), self._size(), self._speed(), self._loss(), self._lint()]
        return "; ".join(part for part in parts if part)

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        before: dict[str, Any] = {"size_mb": self.size_before_mb}
        after: dict[str, Any] = {"size_mb": self.stats.size_mb}
        if self.races:
            before["latency_p50_ms"] = round(self.races[0].before_ms, 3)
            after["latency_p50_ms"] = round(self.races[0].after_ms, 3)
        if self.accuracy is not None:
            before[self.accuracy.measure] = round(self.accuracy.before, 5)
            after[self.accuracy.measure] = round(self.accuracy.after, 5)
        request = self.request
        how = {"mode": request.mode, "target": request.target, "backend": request.backend}
        return {
            "stats": self.stats.as_dict()["stats"],
            "verdict": self.verdict(),
            "before": before,
            "after": after,
            "accuracy": self.accuracy.as_dict() if self.accuracy else None,
            "latency": [one.as_dict() for one in self.races],
            "calibration": self.calibration,
            "quantization": {**how, **self.nodes.as_dict(), "operators": self.operators, "seconds": self.seconds},
            "lint": self.lint.as_dict(),
            "repair": self.repair.as_dict() if self.repair else None,
            "warnings": list(self.warnings),
        }

    def _purpose(self) -> str:
        if self.request.mode == "dynamic":
            return "dynamic INT8, for ONNX Runtime on a CPU only"
        if self.request.target == "tensorrt":
            return "INT8 for TensorRT"
        return "INT8 for ONNX Runtime on a CPU"

    def _size(self) -> str:
        size = f"{self.stats.size_mb:g} MB from {self.size_before_mb:g} MB"
        if self.request.target == "tensorrt" and self.stats.size_mb > FP32_WEIGHTS * self.size_before_mb:
            size += " (the file keeps FP32 weights, the engine will not)"
        return size

    def _speed(self) -> str:
        if not self.races:
            return ""
        one = self.races[0]
        threads = "1 thread" if one.threads == 1 else f"{one.threads} threads"
        text = f"{one.speedup:.2f}x as fast as before in ONNX Runtime here on {threads}"
        if one.word == "slower" and self.request.target == "tensorrt":
            text += ", where this form is slow: TensorRT is what it is for"
        return text

    def _loss(self) -> str:
        if self.accuracy is None:
            return "accuracy was not measured: no image was held out"
        one = self.accuracy
        name = {"map50_95": "mAP50-95"}.get(one.measure, one.measure.replace("_", " "))
        text = f"{name} {one.before:.3f} before, {one.after:.3f} after on {one.images} held-out images"
        if not self.passed:
            text += f": more than {self.request.max_drop:g} lost"
        if self.repair is not None and self.repair.kept:
            text += f" with {len(self.repair.kept)} node(s) kept in FP32"
        return text

    def _lint(self) -> str:
        return "" if self.request.target != "tensorrt" and self.request.mode == "static" else self.lint.verdict()


def quantisers(model: ModelProto) -> dict[str, int]:
    """How many nodes of each quantising or integer operator a graph has."""
    names = Counter(node.op_type for node in model.graph.node)
    return {name: count for name, count in names.items() if "Linear" in name or "Integer" in name}
