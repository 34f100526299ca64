"""Detections from a detector's raw output: the one non-maximum suppression, for every runtime."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torchvision.ops import nms as torchvision_nms

from app.toolkit.images import LetterboxFrame

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

# Boxes of different classes are moved apart by more than any image's side, so that one pass serves all classes.
CLASS_OFFSET_PX = 7680.0
# At most this many candidates enter the suppression; Ultralytics' `max_nms`.
MAX_CANDIDATES = 30_000


@dataclass(frozen=True)
class NmsSettings:
    """Confidence in 0..1, IoU in 0..1, boxes kept per image; `multi_label` lets one anchor speak for several classes.

    The defaults are Ultralytics' for predicting.
    """

    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    multi_label: bool = False


# What Ultralytics' val and COCO figures use.
COCO_NMS = NmsSettings(conf=0.001, iou=0.7, max_det=300, multi_label=True)


@dataclass(frozen=True)
class Detections:
    """One image's boxes [n, 4] xyxy in the image's own px, scores [n] in 0..1 and class indices [n], best first."""

    boxes_xyxy: Float32Array
    scores: Float32Array
    classes: Int64Array

    def __len__(self) -> int:
        return len(self.scores)


def xyxy_from_xywh(boxes_xywh: Float32Array) -> Float32Array:
    """Boxes [n, 4] from centre, width, height to corners, in the same px."""
    half = boxes_xywh[:, 2:4] / 2
    return np.concatenate([boxes_xywh[:, :2] - half, boxes_xywh[:, :2] + half], axis=1)


def non_maximum_suppression(
    boxes_xyxy: Float32Array, scores: Float32Array, classes: Int64Array, *, iou: float, max_det: int
) -> Int64Array:
    """Indices of the boxes kept, best first. Boxes [n, 4] px suppress only boxes of their own class [n]."""
    if not len(scores):
        return np.zeros(0, dtype=np.int64)
    apart = boxes_xyxy + (classes.astype(np.float32) * np.float32(CLASS_OFFSET_PX))[:, None]
    kept = torchvision_nms(torch.from_numpy(apart), torch.from_numpy(scores), iou)
    return np.asarray(kept[:max_det].numpy(), dtype=np.int64)


def detections_from_raw(
    raw: Float32Array, frame: LetterboxFrame, class_count: int, settings: NmsSettings
) -> Detections:
    """Detections of one image from a head's [4 + nc (+ more), anchors]: boxes xywh in network px, scores in 0..1."""
    boxes_xywh, scores = raw[:4].T, raw[4 : 4 + class_count].T
    if settings.multi_label and class_count > 1:
        anchors, classes = np.nonzero(scores > settings.conf)
    else:
        best = scores.argmax(axis=1)
        anchors = np.nonzero(scores[np.arange(len(best)), best] > settings.conf)[0]
        classes = best[anchors]
    confidence = scores[anchors, classes]
    if len(confidence) > MAX_CANDIDATES:
        best_first = np.argsort(-confidence, kind="stable")[:MAX_CANDIDATES]
        anchors, classes, confidence = anchors[best_first], classes[best_first], confidence[best_first]
    boxes = xyxy_from_xywh(np.ascontiguousarray(boxes_xywh[anchors]))
    confidence = np.ascontiguousarray(confidence)
    kept = non_maximum_suppression(boxes, confidence, classes, iou=settings.iou, max_det=settings.max_det)
    return Detections(frame.boxes_in_image(boxes[kept]), confidence[kept], classes[kept].astype(np.int64))
