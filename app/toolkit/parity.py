"""Do two runtimes answer the same? Measuring is one function, judging another; the numbers stay even when they pass.

Definitions, where a formula alone would leave a hole:

- A non-finite value in either answer is counted and left out of max and mean; any such value fails the judgement.
- The cosine of two zero tensors is 1, of a zero and a non-zero one 0, and with non-finite values it is None.
- A part of unit "value" (mask coefficients, angles) has no scale of its own, so its largest difference is judged
  relative to the reference's largest magnitude, or to 1 if that is smaller.

- Boxes (and key points) are measured twice: over every anchor, and over the *detectable* ones, whose reference score
  reaches the lowest confidence that any post-processing here asks for (0.001, COCO's). FP16 is judged on the latter,
  where there are any. On the pills model and a photograph without pills, one anchor of score 4e-7 moved by 3.8 px, the
  detectable ones by 0.3 px: no reader of the output would ever have seen the first.

- Rows that are a set (`HeadPart.is_set`) are put in the reference's order first, and judged where they have a
  counterpart: `query_pairing`.

Random inputs find what images cannot (a fixed branch, a wrong shape) but lie far from what the network was trained on:
YOLOv8n's boxes move by 12 px in FP16 on noise where they move by 1 px on photographs. So they are reported, and judged
`random_factor` times as loosely.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from app.toolkit.detections import COCO_NMS
from app.toolkit.models.base import HeadPart
from app.toolkit.query_pairing import in_order_of

Array = npt.NDArray[Any]
InputKind = Literal["random", "image"]

DETECTABLE_SCORE = COCO_NMS.conf
CLASS_LIMIT = 0.5  # of an index, whatever the numbers' precision: any other is another class
DETECTABLE = "_detectable"
PAIRED = "_paired"


@dataclass(frozen=True)
class ParityLimits:
    """The largest differences that pass: boxes in network px, scores in 0..1, other values relative.

    `detectable_only` judges boxes where a detection could come from, and reports the others.
    """

    boxes_px: float
    scores: float
    values: float
    random_factor: float = 10.0
    detectable_only: bool = False


# Begun from a hand measurement on photographs: FP32 5e-4 px and 3e-6, FP16 1.1 px and 1.7e-3. On 200 scenes the pills
# model's FP16 scores move by up to 0.0124, one image in 33 by more than 0.01 (benchmarks/verify_table.py).
FP32_LIMITS = ParityLimits(boxes_px=0.05, scores=1e-4, values=1e-3)
FP16_LIMITS = ParityLimits(boxes_px=4.0, scores=3e-2, values=5e-2, detectable_only=True)
LIMITS = {"fp32": FP32_LIMITS, "fp16": FP16_LIMITS}


@dataclass(frozen=True)
class Difference:
    """How far a candidate's tensor is from the reference's; `mse` is the mean of squared differences."""

    max_abs: float
    mean_abs: float
    mse: float
    cosine: float | None
    reference_max_abs: float
    non_finite: int


@dataclass(frozen=True)
class InputParity:
    """One input's differences: whole outputs by name, and their parts by name."""

    name: str
    kind: InputKind
    outputs: dict[str, Difference]
    parts: dict[str, Difference]


@dataclass(frozen=True)
class ParityReport:
    """All measurements, the limits they were judged by, and what failed (nothing, if it passed)."""

    reference: str
    candidate: str
    limits: ParityLimits
    inputs: tuple[InputParity, ...]
    units: dict[str, str]
    failures: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Did every input stay within the limits?"""
        return not self.failures

    @property
    def non_finite(self) -> int:
        """How many values, over all inputs, were NaN or infinite."""
        return sum(difference.non_finite for one in self.inputs for difference in one.outputs.values())

    def worst(self, part: str, kind: InputKind) -> float | None:
        """The largest difference of a part over the inputs of a kind, in the part's unit; None if there is none."""
        found = [one.parts[part].max_abs for one in self.inputs if one.kind == kind and part in one.parts]
        return max(found, default=None)

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape. `boxes_max_abs_px`, `scores_max_abs` and `outputs` are the worst over the real images."""
        return {
            "passed": self.passed,
            "reference": self.reference,
            "candidate": self.candidate,
            "boxes_max_abs_px": self.worst("boxes", "image"),
            "boxes_detectable_max_abs_px": self.worst("boxes" + DETECTABLE, "image"),
            "scores_max_abs": self.worst("scores", "image"),
            "random": {
                "boxes_max_abs_px": self.worst("boxes", "random"),
                "scores_max_abs": self.worst("scores", "random"),
            },
            "outputs": self._worst_outputs(),
            "limits": asdict(self.limits),
            "units": self.units,
            "inputs": [asdict(one) for one in self.inputs],
            "failures": list(self.failures),
        }

    def _worst_outputs(self) -> dict[str, dict[str, float | None]]:
        images = [one for one in self.inputs if one.kind == "image"] or list(self.inputs)
        worst: dict[str, dict[str, float | None]] = {}
        for name in images[0].outputs if images else ():
            found = [one.outputs[name] for one in images]
            cosines = [difference.cosine for difference in found if difference.cosine is not None]
            worst[name] = {
                "max_abs": max(difference.max_abs for difference in found),
                "mean_abs": max(difference.mean_abs for difference in found),
                "mse": max(difference.mse for difference in found),
                "cosine": min(cosines, default=None),
            }
        return worst


def measure_difference(reference: Array, candidate: Array) -> Difference:
    """Compare two arrays of one shape, in float32 (the cosine in float64)."""
    if reference.shape != candidate.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {candidate.shape}")
    first, second = reference.astype(np.float32, copy=False), candidate.astype(np.float32, copy=False)
    finite = np.isfinite(first) & np.isfinite(second)
    non_finite = int(finite.size - np.count_nonzero(finite))
    if non_finite:
        first, second = first[finite], second[finite]
    gap = np.abs(first - second)
    return Difference(
        max_abs=float(gap.max(initial=0.0)),
        mean_abs=float(gap.mean(dtype=np.float64)) if gap.size else 0.0,
        mse=float(np.square(gap, dtype=np.float64).mean()) if gap.size else 0.0,
        cosine=None if non_finite else _cosine(first, second),
        reference_max_abs=float(np.abs(first).max(initial=0.0)),
        non_finite=non_finite,
    )


def _cosine(first: Array, second: Array) -> float:
    a, b = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
    norms = math.sqrt(float(a @ a)), math.sqrt(float(b @ b))
    if not any(norms):
        return 1.0
    if not all(norms):
        return 0.0
    return min(float(a @ b) / (norms[0] * norms[1]), 1.0)


def measure(
    name: str,
    kind: InputKind,
    reference: Mapping[str, Array],
    candidate: Mapping[str, Array],
    parts: Sequence[HeadPart],
) -> InputParity:
    """Measure one input's answers: each output as a whole, and each part in its own unit."""
    by_set: dict[str, Difference] = {}
    sets = [part for part in parts if part.is_set]
    if sets:
        candidate, paired = in_order_of(reference, candidate, sets)
        for part in sets:
            first, second = (part.of(answers[part.output])[paired] for answers in (reference, candidate))
            by_set[part.name + PAIRED] = measure_difference(first, second)
    outputs = {key: measure_difference(reference[key], candidate[key]) for key in reference}
    by_part = {p.name: measure_difference(p.of(reference[p.output]), p.of(candidate[p.output])) for p in parts}
    for scores in (part for part in parts if part.unit == "score"):
        detectable = scores.of(reference[scores.output]).max(axis=scores.axis, initial=0.0) >= DETECTABLE_SCORE
        if scores.is_set:
            detectable &= paired
        if not detectable.any():
            continue
        for part in (part for part in parts if part is not scores and part.output == scores.output):
            if part.unit != "px" and not part.is_set:
                continue
            first, second = (
                np.moveaxis(part.of(answers[part.output]), part.axis, -1)[detectable]
                for answers in (reference, candidate)
            )
            by_part[part.name + DETECTABLE] = measure_difference(first, second)
    return InputParity(name, kind, outputs, {**by_part, **by_set})


def judge(
    inputs: Sequence[InputParity],
    parts: Sequence[HeadPart],
    limits: ParityLimits,
    *,
    reference: str = "torch",
    candidate: str = "onnxruntime",
) -> ParityReport:
    """Apply the limits; every breach is a sentence in `failures`."""
    units = {part.name: part.unit for part in parts}
    failures = [failure for one in inputs for failure in _breaches(one, units, limits)]
    return ParityReport(reference, candidate, limits, tuple(inputs), dict(units), tuple(failures))


def _breaches(one: InputParity, units: Mapping[str, str], limits: ParityLimits) -> list[str]:
    breaches = [
        f"{one.name}: {difference.non_finite} values of {name} are NaN or infinite"
        for name, difference in one.outputs.items()
        if difference.non_finite
    ]
    for name, (difference, limit) in shares_of_limit(one, units, limits).items():
        if difference > limit:
            suffix = " px" if units[name.removesuffix(DETECTABLE).removesuffix(PAIRED)] == "px" else ""
            breaches.append(f"{one.name}: {name} differ by {difference:.3g}{suffix}, limit {limit:.3g}{suffix}")
    return breaches


def shares_of_limit(one: InputParity, units: Mapping[str, str], limits: ParityLimits) -> dict[str, tuple[float, float]]:
    """(largest difference, its limit) of each part that is judged, in the part's unit."""
    found = {}
    for name, unit in units.items():
        judged = name + PAIRED if name + PAIRED in one.parts else name
        if limits.detectable_only and name + DETECTABLE in one.parts:
            judged = name + DETECTABLE
        factor = limits.random_factor if one.kind == "random" and unit != "class" else 1.0
        found[judged] = (one.parts[judged].max_abs, _limit(one.parts[judged], unit, limits) * factor)
    return found


def _limit(difference: Difference, unit: str, limits: ParityLimits) -> float:
    if unit == "value":
        return limits.values * max(difference.reference_max_abs, 1.0)
    if unit == "class":
        return math.inf if math.isinf(limits.scores) else CLASS_LIMIT
    return limits.boxes_px if unit == "px" else limits.scores
