"""What a comparison found: figures, the gates they went through, and the images that differ most."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from app.toolkit.detections import Detections

Verdict = Literal["passed", "failed", "undecided"]


@dataclass(frozen=True)
class Gate:
    """One limit and what was measured against it; `low` and `high` bound the true value at `confidence`.

    The verdict is the point estimate's, but for `auto`'s, which is the sequential test's; `leans` is what an undecided
    gate would be by its point estimate. `measured` None means that a NaN or an infinity left nothing to measure.
    """

    name: str
    limit: float
    measured: float | None
    verdict: Verdict
    low: float | None = None
    high: float | None = None
    confidence: float | None = None
    leans: Verdict | None = None

    def sentence(self) -> str:
        """The gate in words, for a failure's reason."""
        if self.measured is None:
            return f"{self.name} could not be measured: values are NaN or infinite"
        return f"{self.name} is {self.measured:.4g}, limit {self.limit:.4g}"


@dataclass(frozen=True)
class ClassificationFigures:
    """S4's numbers of a classifier, over `images`. Rates and accuracies are 0..1; MSEs are of probabilities.

    MSEs are None where a NaN or an infinity in every answer left nothing to measure.
    """

    images: int
    mse_mean: float | None
    mse_p99: float | None
    mse_max: float | None
    top1_mismatch_count: int
    top1_mismatch_rate: float
    mismatch_interval: tuple[float, float]
    worst_classes: tuple[dict[str, Any], ...]
    borderline: tuple[dict[str, Any], ...]
    non_finite: int
    reference_accuracy: float | None = None
    candidate_accuracy: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return asdict(self)


@dataclass(frozen=True)
class DetectionFigures:
    """S4's numbers of a detector, over `images`. mAPs are None without labels; `iou_delta_p95` where nothing matched.

    `agreement` is the F1 of the matching at the request's NMS settings, 1 where neither finds anything;
    `mismatch_rate` is 1 - agreement. `mismatch_interval` is over images: those where any detection has no partner.
    """

    images: int
    reference_detections: int
    candidate_detections: int
    matched: int
    agreement: float
    mismatch_rate: float
    mismatched_images: int
    mismatch_interval: tuple[float, float]
    iou_delta_p95: float | None
    iou_delta_mean: float | None
    score_delta_p95: float | None
    worst_classes: tuple[dict[str, Any], ...]
    borderline: tuple[dict[str, Any], ...]
    non_finite: int
    map50_reference: float | None = None
    map50_candidate: float | None = None
    map50_95_reference: float | None = None
    map50_95_candidate: float | None = None

    @property
    def map50_delta(self) -> float | None:
        """Candidate less reference; None without labels."""
        return _less(self.map50_candidate, self.map50_reference)

    @property
    def map50_95_delta(self) -> float | None:
        """Candidate less reference; None without labels."""
        return _less(self.map50_95_candidate, self.map50_95_reference)

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape, the deltas included."""
        return {**asdict(self), "map50_delta": self.map50_delta, "map50_95_delta": self.map50_95_delta}


@dataclass(frozen=True)
class RawFigures:
    """Of a model whose answers are read neither as classes nor as boxes: the worst over `images`, by output."""

    images: int
    outputs: dict[str, dict[str, float | None]]
    non_finite: int

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return asdict(self)


Figures = ClassificationFigures | DetectionFigures | RawFigures


@dataclass(frozen=True)
class Worst:
    """An image on which the two differ: `difference` orders them, its unit depends on the task.

    Detectors bring `reference` and `candidate` detections above the request's confidence, in the image's px;
    classifiers (class index, probability) pairs, best first.
    """

    path: Path
    name: str
    difference: float
    reference: Detections | tuple[tuple[int, float], ...]
    candidate: Detections | tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Comparison:
    """One answer: `kernel` (the same tensors into both) or `pipeline` (each with its own preprocessing)."""

    name: Literal["kernel", "pipeline"]
    figures: Figures
    gates: tuple[Gate, ...]
    worst: tuple[Worst, ...] = field(default=())

    @property
    def verdict(self) -> Verdict:
        """Failed if any gate failed, undecided if any could not be decided, else passed."""
        verdicts = {gate.verdict for gate in self.gates}
        return "failed" if "failed" in verdicts else "undecided" if "undecided" in verdicts else "passed"

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape, without the pictures."""
        return {
            "verdict": self.verdict,
            "figures": self.figures.as_dict(),
            "gates": [asdict(gate) for gate in self.gates],
            "worst_images": [{"name": one.name, "difference": one.difference} for one in self.worst],
        }


def _less(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second
