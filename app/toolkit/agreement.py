"""How far two models agree on images that nobody has labelled.

Detections: those of both above one confidence are matched, best first, one to one, where class and place (IoU) agree.
The agreement is the F1 of that matching, 2 * matched / (reference + candidate); 1 where neither finds anything.
Classes: the share of images whose highest score is the same class. Anything else: the cosine of the answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from app.toolkit.detections import Detections, NmsSettings
from app.toolkit.parity import measure_difference

Float32Array = npt.NDArray[np.float32]

AGREEMENT_NMS = NmsSettings()
"""What a user sees: detections above Ultralytics' default confidence."""

SAME_PLACE_IOU = 0.5


def matched_pairs(
    reference: Detections, candidate: Detections, iou: float = SAME_PLACE_IOU
) -> list[tuple[int, int, float]]:
    """(reference index, candidate index, IoU) of the pairs of one class, each box once, the highest IoU first."""
    ious = box_iou(reference.boxes_xyxy, candidate.boxes_xyxy)
    ious[reference.classes[:, None] != candidate.classes[None, :]] = 0
    pairs = []
    order = np.argsort(-ious, axis=None, kind="stable")
    rows, columns = set(range(len(reference))), set(range(len(candidate)))
    for row, column in zip(*np.unravel_index(order, ious.shape), strict=True):
        if ious[row, column] < iou or not rows or not columns:
            break
        if row in rows and column in columns:
            rows.remove(row)
            columns.remove(column)
            pairs.append((int(row), int(column), float(ious[row, column])))
    return pairs


def box_iou(first: Float32Array, second: Float32Array) -> Float32Array:
    """IoU [n, m] of boxes [n, 4] and [m, 4], xyxy in one unit. A box without area has IoU 0 with all."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - common
    found: Float32Array = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return found


def detection_agreement(reference: Sequence[Detections], candidate: Sequence[Detections]) -> float:
    """F1 over all images, 0..1."""
    pairs = sum(len(matched_pairs(first, second)) for first, second in zip(reference, candidate, strict=True))
    total = sum(map(len, reference)) + sum(map(len, candidate))
    return 2 * pairs / total if total else 1.0


def class_agreement(reference: Sequence[Float32Array], candidate: Sequence[Float32Array]) -> float:
    """The share of images, 0..1, whose scores [1, classes] have their maximum in the same place."""
    same = [first.argmax() == second.argmax() for first, second in zip(reference, candidate, strict=True)]
    return float(np.mean(same)) if same else 1.0


def output_agreement(
    reference: Sequence[Mapping[str, Float32Array]], candidate: Sequence[Mapping[str, Float32Array]]
) -> float:
    """The mean cosine, at most 1, over images and outputs; an answer that is not finite counts as 0."""
    cosines = [
        measure_difference(first[name], second[name]).cosine or 0.0
        for first, second in zip(reference, candidate, strict=True)
        for name in first
    ]
    return float(np.mean(cosines)) if cosines else 1.0
