"""Agreement of two models without labels: what counts as the same, and what of nothing."""

from __future__ import annotations

import numpy as np
import pytest

from app.toolkit.agreement import box_iou, class_agreement, detection_agreement, matched_pairs, output_agreement
from app.toolkit.detections import Detections

SQUARE = (0.0, 0.0, 10.0, 10.0)


def _found(*boxes: tuple[float, float, float, float], classes: list[int] | None = None) -> Detections:
    count = len(boxes)
    corners = np.array(boxes, dtype=np.float32).reshape(count, 4)
    return Detections(corners, np.full(count, 0.9, np.float32), np.array(classes or [0] * count, dtype=np.int64))


def test_iou_by_hand() -> None:
    first = np.array([SQUARE, (5, 5, 5, 9)], dtype=np.float32)
    second = np.array([SQUARE, (5, 0, 15, 10), (20, 20, 30, 30)], dtype=np.float32)
    assert box_iou(first, second).tolist() == [[1.0, pytest.approx(1 / 3), 0.0], [0.0, 0.0, 0.0]]


def test_each_box_is_matched_once_and_the_nearest_wins() -> None:
    near, far = (0.0, 0.0, 10.0, 9.0), (0.0, 0.0, 10.0, 7.0)
    ((first, second, iou),) = matched_pairs(_found(SQUARE), _found(far, near))
    assert (first, second) == (0, 1)
    assert iou == pytest.approx(0.9)
    ((first, second, _),) = matched_pairs(_found(SQUARE, far), _found(near))
    assert (first, second) == (0, 0)


def test_another_class_in_the_same_place_is_no_match() -> None:
    assert matched_pairs(_found(SQUARE, classes=[1]), _found(SQUARE, classes=[2])) == []


def test_agreement_counts_what_is_missing_and_what_is_too_much() -> None:
    both, none = _found(SQUARE, (50, 50, 60, 60)), _found()
    assert detection_agreement([both], [both]) == 1.0
    assert detection_agreement([both], [_found(SQUARE)]) == pytest.approx(2 / 3)
    assert detection_agreement([_found(SQUARE)], [both]) == pytest.approx(2 / 3)
    assert detection_agreement([both], [none]) == 0.0
    assert detection_agreement([none], [none]) == 1.0


def test_classes_agree_where_their_highest_score_is_the_same() -> None:
    scores = [np.array([[0.1, 0.9]], np.float32), np.array([[0.8, 0.2]], np.float32)]
    assert class_agreement(scores, scores) == 1.0
    assert class_agreement(scores, [scores[0], scores[0]]) == 0.5


def test_answers_that_are_not_finite_do_not_agree() -> None:
    good, bad = {"y": np.ones((1, 3), np.float32)}, {"y": np.array([[1, np.nan, 1]], np.float32)}
    assert output_agreement([good], [good]) == pytest.approx(1.0)
    assert output_agreement([good], [bad]) == 0.0
