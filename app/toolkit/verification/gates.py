"""The gates of kernel parity: the largest differences of raw answers, by the limits of `app.toolkit.parity`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.toolkit.parity import InputParity, ParityLimits, ParityReport, shares_of_limit
from app.toolkit.verification.result import Gate, RawFigures


def finite_gate(non_finite: int) -> Gate:
    """Any NaN or infinity fails."""
    return Gate("non_finite_values", 0.0, float(non_finite), "failed" if non_finite else "passed")


def parity_gates(inputs: Sequence[InputParity], units: Mapping[str, str], limits: ParityLimits) -> tuple[Gate, ...]:
    """One gate for each part of the answers, in the part's unit, over all images; and that every value is finite."""
    worst: dict[str, tuple[float, float]] = {}
    for one in inputs:
        for name, pair in shares_of_limit(one, units, limits).items():
            worst[name] = max(worst.get(name, pair), pair, key=_over)
    non_finite = sum(difference.non_finite for one in inputs for difference in one.outputs.values())
    gates = [
        Gate(f"kernel_{name}", limit, difference, "passed" if difference <= limit else "failed")
        for name, (difference, limit) in worst.items()
    ]
    return (*gates, finite_gate(non_finite))


def _over(pair: tuple[float, float]) -> tuple[bool, float]:
    """How far a difference is over its limit, which may be 0; limits of `values` differ from image to image."""
    difference, limit = pair
    return difference > limit, difference / limit if limit else difference


def raw_figures(report: ParityReport) -> RawFigures:
    """What is told of answers that are only tensors."""
    return RawFigures(len(report.inputs), report.as_dict()["outputs"], report.non_finite)
