"""Rows that are a set are compared as one, and a fault is still seen."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from app.toolkit import parity
from app.toolkit.models.base import HeadPart
from app.toolkit.models.dfine import PARTS
from app.toolkit.models.ultralytics import parts_of
from app.toolkit.query_pairing import in_order_of

Answers = dict[str, npt.NDArray[Any]]


def answers(rows: int = 300) -> Answers:
    noise = np.random.default_rng(0)
    return {
        "logits": noise.normal(0, 3, (2, rows, 7)).astype(np.float32),
        "pred_boxes": noise.random((2, rows, 4), dtype=np.float32),
    }


def shuffled(one: Answers) -> Answers:
    order = np.random.default_rng(1).permutation(one["logits"].shape[1])
    return {name: array[:, order] for name, array in one.items()}


def judged(candidate: Answers, rows: int = 300) -> parity.ParityReport:
    measured = parity.measure("photo", "image", answers(rows), candidate, PARTS)
    return parity.judge([measured], PARTS, parity.FP32_LIMITS)


def test_rows_return_to_the_references_order() -> None:
    ordered, _ = in_order_of(answers(), shuffled(answers()), PARTS)
    for name, array in answers().items():
        np.testing.assert_array_equal(ordered[name], array)


def test_the_same_rows_in_another_order_pass() -> None:
    report = judged(shuffled(answers()))
    assert report.passed and report.worst("logits", "image") == 0


def test_an_output_of_no_set_keeps_its_order() -> None:
    ordered = tuple(replace(part, is_set=False) for part in PARTS)
    measured = parity.measure("photo", "image", answers(), shuffled(answers()), ordered)
    assert not parity.judge([measured], ordered, parity.FP32_LIMITS).passed


@pytest.mark.parametrize(("others", "passes"), [(3, True), (4, False)])
def test_one_row_in_a_hundred_may_be_of_another_token(others: int, passes: bool) -> None:
    candidate = answers()
    candidate["pred_boxes"][1, -others:] += 0.5
    report = judged(candidate)
    assert report.passed == passes
    assert report.worst("pred_boxes", "image") == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["logits", "pred_boxes"])
def test_a_fault_in_every_row_is_seen(name: str) -> None:
    candidate = shuffled(answers())
    candidate[name] += 0.1
    (failure,) = judged(candidate).failures
    assert f"photo: {name}_paired differ by 0.1" in failure


def test_boxes_of_another_querys_logits_are_seen() -> None:
    candidate = answers()
    candidate["pred_boxes"] = candidate["pred_boxes"][:, ::-1]
    assert not judged(candidate).passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_row_that_is_not_finite_fails(value: float) -> None:
    candidate = answers()
    candidate["logits"][0, 5] = value
    assert judged(candidate).non_finite == 7


def test_a_lone_query_is_judged() -> None:
    candidate = answers(1)
    candidate["logits"] += 1
    assert not judged(candidate, 1).passed


# -- Ultralytics' end-to-end heads ------------------------------------------------------------------------------------
def rows_of_boxes(extra: int = 0) -> npt.NDArray[np.float32]:
    """[1, 300, 6 + extra]: x1, y1, x2, y2, score, class and more, the best first."""
    noise = np.random.default_rng(2)
    rows = noise.random((1, 300, 6 + extra), dtype=np.float32) * 640
    rows[..., 4] = np.sort(noise.random(300, dtype=np.float32))[::-1]
    rows[..., 5] = np.arange(300) % 12
    return rows


def judged_rows(task: str, candidate: Answers, extra: int = 0, kind: parity.InputKind = "image") -> list[str]:
    """The names of the parts that break FP16's limits, the looser ones."""
    reference = {"output0": rows_of_boxes(extra), "output1": np.zeros((1, 4, 8, 8), np.float32)}
    parts = parts_of(task, 12, ["output0", "output1"], end2end=True)
    report = parity.judge([parity.measure("a", kind, reference, candidate, parts)], parts, parity.FP16_LIMITS)
    return [failure.split()[1] for failure in report.failures]


@pytest.mark.parametrize("kind", ["image", "random"])
def test_classes_that_are_one_off_fail(kind: parity.InputKind) -> None:
    candidate = rows_of_boxes()
    candidate[..., 5] += 1
    failures = judged_rows("detect", {"output0": candidate, "output1": np.zeros((1, 4, 8, 8))}, kind=kind)
    assert failures  # by the class, or by the box of another row that has it


@pytest.mark.parametrize(
    ("task", "part"),
    [("segment", "mask_coefficients"), ("pose", "keypoints"), ("obb", "angle"), ("segment", "output1")],
)
def test_what_follows_the_class_is_judged_and_the_prototypes(task: str, part: str) -> None:
    candidate = {"output0": rows_of_boxes(4), "output1": np.zeros((1, 4, 8, 8), np.float32)}
    assert judged_rows(task, candidate, 4) == []
    if part == "output1":
        candidate["output1"] += 1
    else:
        candidate["output0"][..., 6:] += 100
    expected = "prototypes" if part == "output1" else f"{part}_detectable"
    assert judged_rows(task, candidate, 4) == [expected]


def test_near_ties_may_change_places_and_the_score_tells_boxes_apart_that_overlap() -> None:
    reference = rows_of_boxes()
    reference[0, 1, :4] = reference[0, 0, :4] + 1  # nearer than FP16 keeps boxes
    reference[0, :2, 5] = 3
    reference[0, :2, 4] = 0.9, 0.2
    candidate = reference.copy()
    candidate[0, 0, :4] += 1
    candidate = candidate[:, ::-1]
    parts = parts_of("detect", 12, ["output0"], end2end=True)
    measured = parity.measure("a", "image", {"output0": reference}, {"output0": candidate}, parts)
    assert parity.judge([measured], parts, parity.FP16_LIMITS).passed


def test_classes_are_not_judged_where_scores_are_not() -> None:
    part = HeadPart("classes", "output0", "class", 5, 6, axis=2)
    candidate = rows_of_boxes()
    candidate[..., 5] += 1
    measured = parity.measure("a", "image", {"output0": rows_of_boxes()}, {"output0": candidate}, [part])
    nothing = parity.ParityLimits(boxes_px=inf, scores=inf, values=inf)
    assert parity.judge([measured], [part], nothing).passed
    assert not parity.judge([measured], [part], replace(nothing, scores=10.0)).passed
