"""Rows that are a set are compared as one, and a fault is still seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from app.toolkit import parity
from app.toolkit.models.dfine import PARTS
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
