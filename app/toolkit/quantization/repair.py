"""Where plain INT8 loses too much: which nodes hurt most, and the fewest of them that must stay in floating point.

A node's sensitivity is what quantising it alone does to the answers: the L2 norm of the change over that of the answer,
averaged over the rows of each output (a detector's scores and boxes differ in scale by a thousand) and over some
calibration images. That an ordering by single errors serves for sets of layers is an assumption, usual since Wu et al.
2020 ("Integer Quantization for Deep Learning Inference", arXiv 2004.09602, section 6.1, partial quantisation).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.toolkit.quantization.proof import Accuracy
from app.toolkit.runtimes.base import Array
from app.toolkit.runtimes.ort_runtime import OrtRuntime

Quantise = Callable[[Sequence[str]], bytes]
"""From the nodes that stay in floating point to the quantised graph's bytes."""

TINY = 1e-12
MATRIX_AXES = 2


@dataclass(frozen=True)
class Sensitivity:
    """A node and the relative error of the answers when it alone is quantised; infinite where they are not finite."""

    node: str
    error: float

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {"node": self.node, "error": float(f"{self.error:.4g}") if math.isfinite(self.error) else None}


@dataclass(frozen=True)
class Repair:
    """The nodes kept in floating point, what that gives, how often the held-out images were run, and the ranking."""

    kept: tuple[str, ...]
    accuracy: Accuracy
    graph: bytes
    evaluations: int
    ranking: tuple[Sensitivity, ...]
    fits: bool

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape, without the graph."""
        return {
            "kept": list(self.kept),
            "quantised": len(self.ranking) - len(self.kept),
            "evaluations": self.evaluations,
            "fits": self.fits,
            "ranking": [one.as_dict() for one in self.ranking],
        }


def rank(
    reference: bytes,
    quantise: Quantise,
    nodes: Sequence[str],
    tensors: Sequence[Array],
    *,
    threads: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[Sensitivity, ...]:
    """The nodes, the most sensitive first. `tensors` are inputs [N, C, H, W] float32; `progress` hears 0..1."""
    wanted = _answers(reference, tensors, threads)
    found = []
    for index, node in enumerate(nodes):
        alone = quantise([other for other in nodes if other != node])
        found.append(Sensitivity(node, _relative_error(wanted, _answers(alone, tensors, threads))))
        if progress is not None:
            progress((index + 1) / len(nodes))
    return tuple(sorted(found, key=lambda one: (-one.error, one.node)))


def repair(
    ranking: Sequence[Sensitivity],
    quantise: Quantise,
    score: Callable[[bytes], Accuracy],
    max_drop: float,
    progress: Callable[[int], None] | None = None,
) -> Repair:
    """Keep the first 1, 2, 4, ... of the ranking until the drop fits, then bisect between the last two.

    At least one node stays quantised. `progress` hears the evaluations done. `fits` is False where nothing does; the
    result is then the one that lost least.
    """
    tried: dict[int, tuple[Accuracy, bytes]] = {}

    def fits(count: int) -> bool:
        graph = quantise([one.node for one in ranking[:count]])
        tried[count] = (score(graph), graph)
        if progress is not None:
            progress(len(tried))
        return tried[count][0].drop <= max_drop

    most = max(len(ranking) - 1, 0)
    low, high = 0, min(1, most)
    if most == 0:
        fits(0)
    while high > low and not fits(high):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    count = high if high in tried and tried[high][0].drop <= max_drop else _least(tried)
    accuracy, graph = tried[count]
    kept = tuple(one.node for one in ranking[:count])
    return Repair(kept, accuracy, graph, len(tried), tuple(ranking), accuracy.drop <= max_drop)


def _least(tried: dict[int, tuple[Accuracy, bytes]]) -> int:
    return min(tried, key=lambda count: tried[count][0].drop)


def _answers(graph: bytes, tensors: Sequence[Array], threads: int | None) -> list[dict[str, Array]]:
    with OrtRuntime(graph, threads=threads) as runtime:
        return [runtime.infer({runtime.inputs[0].name: tensor}) for tensor in tensors]


def _relative_error(wanted: Sequence[dict[str, Array]], given: Sequence[dict[str, Array]]) -> float:
    errors = []
    for first, second in zip(wanted, given, strict=True):
        for name, answer in first.items():
            axes = tuple(range(2, answer.ndim)) if answer.ndim > MATRIX_AXES else (answer.ndim - 1,)
            change = np.linalg.norm(_flat(second[name] - answer, axes), axis=-1)
            size = np.linalg.norm(_flat(answer, axes), axis=-1)
            errors.append(float(np.mean(change / np.maximum(size, TINY))))
    error = float(np.mean(errors))
    return error if math.isfinite(error) else math.inf


def _flat(array: Array, axes: tuple[int, ...]) -> Array:
    kept = array.ndim - len(axes)
    return array.astype(np.float64).reshape(*array.shape[:kept], -1)
