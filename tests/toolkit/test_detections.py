"""The one non-maximum suppression, against Ultralytics' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ultralytics.utils.nms import non_max_suppression

from app.toolkit.detections import COCO_NMS, NmsSettings, detections_from_raw, non_maximum_suppression, xyxy_from_xywh
from app.toolkit.images import LetterboxFrame

WHOLE = LetterboxFrame(1.0, 0, 0, (640, 640))


def _raw(seed: int, classes: int = 3, anchors: int = 400) -> np.ndarray:
    """Boxes in clusters, so that there is something to suppress, all inside of 640 x 640."""
    rng = np.random.default_rng(seed)
    raw = np.zeros((4 + classes, anchors), np.float32)
    raw[:2] = rng.choice([120, 300, 500], (2, anchors)) + rng.normal(0, 8, (2, anchors))
    raw[2:4] = rng.uniform(60, 120, (2, anchors))
    raw[4:] = rng.random((classes, anchors)) ** 4
    return raw


@pytest.mark.parametrize("settings", [NmsSettings(), NmsSettings(0.3, 0.5, 100), COCO_NMS, NmsSettings(max_det=3)])
@pytest.mark.parametrize("seed", range(4))
def test_detections_equal_those_of_ultralytics(seed: int, settings: NmsSettings) -> None:
    raw = _raw(seed)
    ours = detections_from_raw(raw, WHOLE, 3, settings)
    (theirs,) = non_max_suppression(
        torch.from_numpy(raw[None].copy()),
        settings.conf,
        settings.iou,
        max_det=settings.max_det,
        multi_label=settings.multi_label,
        max_time_img=60,
    )
    assert len(ours) == len(theirs) > 0
    assert np.allclose(ours.scores, theirs[:, 4].numpy())
    assert np.array_equal(ours.classes, theirs[:, 5].numpy().astype(np.int64))
    assert np.allclose(ours.boxes_xyxy, theirs[:, :4].numpy(), atol=1e-3)


def test_boxes_of_different_classes_do_not_suppress_each_other() -> None:
    boxes = np.array([[0, 0, 10, 10]] * 3, np.float32)
    scores = np.array([0.5, 0.9, 0.7], np.float32)
    kept = non_maximum_suppression(boxes, scores, np.array([0, 0, 1]), iou=0.5, max_det=10)
    assert kept.tolist() == [1, 2]


def test_the_best_come_first_and_no_more_than_asked() -> None:
    boxes = np.array([[0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]], np.float32)
    kept = non_maximum_suppression(
        boxes, np.array([0.1, 0.9, 0.5], np.float32), np.zeros(3, np.int64), iou=0.5, max_det=2
    )
    assert kept.tolist() == [1, 2]


def test_nothing_above_the_confidence_gives_no_detections() -> None:
    found = detections_from_raw(_raw(0), WHOLE, 3, NmsSettings(conf=2.0))
    assert len(found) == 0
    assert found.boxes_xyxy.shape == (0, 4)


def test_one_anchor_speaks_for_several_classes_only_where_asked() -> None:
    raw = np.array([[50], [50], [10], [10], [0.9], [0.8]], np.float32)
    assert detections_from_raw(raw, WHOLE, 2, NmsSettings()).classes.tolist() == [0]
    assert detections_from_raw(raw, WHOLE, 2, NmsSettings(multi_label=True)).classes.tolist() == [0, 1]


def test_corners_come_from_centres() -> None:
    assert xyxy_from_xywh(np.array([[10, 20, 4, 6]], np.float32)).tolist() == [[8, 17, 12, 23]]
