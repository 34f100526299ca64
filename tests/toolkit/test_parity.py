"""How a difference is measured, and how it is judged."""

from __future__ import annotations

import numpy as np
import pytest

from app.toolkit.models.base import HeadPart
from app.toolkit.parity import FP16_LIMITS, FP32_LIMITS, LIMITS, judge, measure, measure_difference

PARTS = (HeadPart("boxes", "out", "px", 0, 4), HeadPart("scores", "out", "score", 4, 6))


def _answers(anchors: int = 8) -> np.ndarray:
    answers = np.random.default_rng(0).random((1, 6, anchors), dtype=np.float32)
    answers[:, :4] *= 640
    return answers


def test_equal_arrays_differ_by_nothing() -> None:
    answer = _answers()
    difference = measure_difference(answer, answer.copy())
    assert (difference.max_abs, difference.mean_abs, difference.non_finite) == (0.0, 0.0, 0)
    assert difference.cosine == pytest.approx(1.0)


def test_the_measures_are_what_their_names_say() -> None:
    difference = measure_difference(np.array([1.0, 0.0], np.float32), np.array([1.0, 1.0], np.float32))
    assert difference.max_abs == 1.0
    assert difference.mean_abs == 0.5
    assert difference.cosine == pytest.approx(1 / np.sqrt(2))
    assert difference.reference_max_abs == 1.0


@pytest.mark.parametrize(("first", "second", "cosine"), [(0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)])
def test_the_cosine_of_zero_is_defined(first: float, second: float, cosine: float) -> None:
    assert measure_difference(np.full(3, first, np.float32), np.full(3, second, np.float32)).cosine == cosine


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_and_kept_out_of_the_rest(value: float) -> None:
    difference = measure_difference(np.array([1.0, 2.0], np.float32), np.array([1.5, value], np.float32))
    assert difference.non_finite == 1
    assert difference.cosine is None
    assert difference.max_abs == 0.5


def test_nan_on_both_sides_is_no_agreement() -> None:
    nothing = np.full((1, 6, 8), np.nan, np.float32)
    report = judge([measure("a", "image", {"out": nothing}, {"out": nothing}, PARTS)], PARTS, FP32_LIMITS)
    assert not report.passed and report.non_finite == 48


def test_nothing_at_all_compares() -> None:
    empty = np.zeros((0, 6), np.float32)
    assert measure_difference(empty, empty).max_abs == 0.0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        measure_difference(np.zeros(2), np.zeros(3))


def test_boxes_and_scores_are_judged_each_in_its_unit() -> None:
    reference, moved = _answers(), _answers()
    moved[0, 1, 3] += 0.2
    report = judge([measure("a.jpg", "image", {"out": reference}, {"out": moved}, PARTS)], PARTS, FP32_LIMITS)
    assert report.failures == ("a.jpg: boxes differ by 0.2 px, limit 0.05 px",)
    assert report.as_dict()["boxes_max_abs_px"] == pytest.approx(0.2, abs=1e-4)
    assert report.as_dict()["scores_max_abs"] == 0.0


def test_noise_is_judged_more_loosely_and_reported_apart() -> None:
    reference, moved = _answers(), _answers()
    moved[0, 1, 3] += 0.2
    report = judge([measure("random", "random", {"out": reference}, {"out": moved}, PARTS)], PARTS, FP32_LIMITS)
    assert report.passed
    assert report.as_dict()["boxes_max_abs_px"] is None
    assert report.as_dict()["random"]["boxes_max_abs_px"] == pytest.approx(0.2, abs=1e-4)


def test_fp16_boxes_that_nobody_can_see_are_reported_and_not_judged() -> None:
    reference = _answers()
    reference[0, 4:, 3] = 1e-5
    moved = reference.copy()
    moved[0, 0, 3] += 30
    parity = [measure("a.jpg", "image", {"out": reference}, {"out": moved}, PARTS)]
    assert judge(parity, PARTS, FP16_LIMITS).passed
    assert judge(parity, PARTS, FP16_LIMITS).as_dict()["boxes_max_abs_px"] == pytest.approx(30, abs=1e-3)
    assert not judge(parity, PARTS, FP32_LIMITS).passed


def test_fp16_boxes_are_all_judged_where_none_can_be_seen() -> None:
    reference = _answers()
    reference[0, 4:] = 1e-5
    moved = reference.copy()
    moved[0, 0, 3] += 30
    report = judge([measure("a.jpg", "image", {"out": reference}, {"out": moved}, PARTS)], PARTS, FP16_LIMITS)
    assert report.failures == ("a.jpg: boxes differ by 30 px, limit 4 px",)


def test_values_without_a_scale_are_judged_by_their_own() -> None:
    parts = (HeadPart("prototypes", "out", "value"),)
    reference = {"out": np.full((1, 2, 2), 100.0, np.float32)}
    near, far = ({"out": reference["out"] + gap} for gap in (0.05, 0.5))
    assert judge([measure("a", "image", reference, near, parts)], parts, FP32_LIMITS).passed
    assert not judge([measure("a", "image", reference, far, parts)], parts, FP32_LIMITS).passed


def test_the_worst_image_is_what_the_report_shows() -> None:
    reference = {"out": _answers()}
    answers = [{"out": reference["out"] + np.float32(gap)} for gap in (0.001, 0.03, 0.002)]
    measured = [measure(str(i), "image", reference, answer, PARTS) for i, answer in enumerate(answers)]
    assert judge(measured, PARTS, FP32_LIMITS).as_dict()["outputs"]["out"]["max_abs"] == pytest.approx(0.03, abs=1e-4)


def test_the_limits_are_those_of_the_service() -> None:
    assert (LIMITS["fp32"].boxes_px, LIMITS["fp32"].scores) == (0.05, 1e-4)
    assert (LIMITS["fp16"].boxes_px, LIMITS["fp16"].scores) == (4.0, 3e-2)
