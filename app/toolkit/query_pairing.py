"""Answers that are a set of rows, as a detector with queries gives them, put in one order before they are compared.

D-FINE's encoder takes the best N of some thousand tokens, best first. Which token comes before which hangs on the last
bits of their scores, so that two correct runtimes answer with the same rows in another order: with random weights at
640 x 640, 3 or 4 of 300 rows of torch and ONNX Runtime change places, and row by row their logits differ by 2. So each
row is compared with the row that it is nearest to, one to one.

At the end of the N the same bits decide which token is still taken. Such a row has no counterpart in the other answer,
and what is left over there is compared with it: one row in a hundred of an image may be so, and is measured and told
but not judged. A fault that touches so few rows alone would pass; one in the graph touches all.

Ultralytics' end-to-end heads answer so too: the best N of all anchors and classes, [N, x1 y1 x2 y2 score class ...].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from app.toolkit.models.base import HeadPart

Array = npt.NDArray[Any]
Answers = Mapping[str, Array]

UNPAIRED_SHARE = 0.01

# How much of a unit is as far as one of the others: of two boxes that overlap, the score and the class tell which is
# which. About the limits of FP16.
DISTANCES = {"px": 1.0, "score": 100.0, "class": 1e4, "value": 1.0}


def in_order_of(reference: Answers, candidate: Answers, parts: Sequence[HeadPart]) -> tuple[dict[str, Array], Array]:
    """The candidate's answers with their rows in the reference's order, and which rows are judged: [N, rows] of bool.

    The `parts`, each of an output [N, rows, values], are paired by the largest difference over all of their values, in
    `DISTANCES`, the nearest pair first. Not judged are the `UNPAIRED_SHARE` of an image's rows, rounded up (but never a
    lone row), that are farthest from theirs.
    """
    names = {part.output for part in parts}
    wanted, given = (
        np.concatenate(
            [part.of(one[part.output]) * np.float32(DISTANCES[part.unit]) for part in parts], axis=2, dtype=np.float32
        )
        for one in (reference, candidate)
    )
    orders, judged = [], []
    for first, second in zip(wanted, given, strict=True):
        order, gaps = _pairs(first, second)
        orders.append(order)
        count = len(gaps) - min(math.ceil(UNPAIRED_SHARE * len(gaps)), len(gaps) // 2)
        judged.append(np.isin(np.arange(len(gaps)), np.argsort(gaps)[:count]))
    sorted_rows = {
        name: np.stack([rows[order] for rows, order in zip(candidate[name], orders, strict=True)]) for name in names
    }
    return {**candidate, **sorted_rows}, np.stack(judged)


def _pairs(first: Array, second: Array) -> tuple[Array, Array]:
    """For each row of `first` its row of `second`, and how far it is; what is not finite is far from everything."""
    with np.errstate(invalid="ignore"):
        distances = np.stack([np.abs(row - second).max(axis=1) for row in first])
    distances = np.nan_to_num(distances, nan=np.finfo(np.float32).max)
    order, gaps = np.zeros(len(first), dtype=np.int64), np.zeros(len(first), dtype=np.float32)
    for _ in range(len(first)):
        row, column = np.unravel_index(distances.argmin(), distances.shape)
        order[row], gaps[row] = column, distances[row, column]
        distances[row], distances[:, column] = np.inf, np.inf
    return order, gaps
