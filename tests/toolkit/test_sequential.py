"""What the sequential tests promise: how seldom they are wrong, however often one looks, and how soon they decide."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from app.toolkit.verification.result import Verdict
from app.toolkit.verification.sequential import (
    LookTest,
    ProportionTest,
    log_gains_above,
    log_gains_below,
    looks,
    student_quantile,
    unseen_share,
    wilson_interval,
)

Values = npt.NDArray[np.float64]
STREAMS = 20_000


def _test_of(values: Sequence[float] | Values, limit: float = 0.01, confidence: float = 0.99) -> ProportionTest:
    test = ProportionTest(limit, confidence)
    for value in values:
        test.add(float(value))
    return test


def _first_crossing(log_gains: Values, confidence: float) -> npt.NDArray[np.int64]:
    """After how many values the capital of each stream [streams, n, bets] is enough; n + 1 where it never is."""
    capital = np.logaddexp.reduce(log_gains.cumsum(axis=1), axis=2) - math.log(log_gains.shape[2])
    enough = capital >= -math.log(1 - confidence)
    return np.asarray(np.where(enough.any(axis=1), enough.argmax(axis=1) + 1, enough.shape[1] + 1))


def _verdicts(streams: Values, limit: float, confidence: float) -> tuple[Values, Values]:
    """Which streams [streams, n] pass, and which fail, looking after every value."""
    passed, failed = [], []
    for some in np.array_split(streams, max(1, len(streams) // 1000)):
        below = _first_crossing(log_gains_below(some, limit), confidence)
        above = _first_crossing(log_gains_above(some, limit), confidence)
        passed.append(below < above)
        failed.append(above < below)
    return np.concatenate(passed), np.concatenate(failed)


def _mismatches(rate: float, images: int = 500, streams: int = STREAMS) -> Values:
    return (np.random.default_rng(0).random((streams, images), dtype=np.float32) < rate).astype(np.float64)


@pytest.mark.parametrize(
    ("count", "total", "interval"),
    [(10, 100, (0.0552, 0.1744)), (5, 50, (0.0435, 0.2136)), (0, 100, (0.0, 0.0370)), (100, 100, (0.9630, 1.0))],
)
def test_wilsons_interval_is_that_of_the_tables(count: int, total: int, interval: tuple[float, float]) -> None:
    assert wilson_interval(count, total, 0.95) == pytest.approx(interval, abs=5e-5)


def test_of_nothing_everything_is_possible() -> None:
    assert wilson_interval(0, 0, 0.99) == (0.0, 1.0)
    assert ProportionTest(0.01, 0.99).interval() == (0.0, 1.0)


@pytest.mark.slow
def test_at_the_limit_a_verdict_is_as_rare_as_promised_and_above_it_a_pass_is_rarer_still() -> None:
    passed, failed = (found.mean() for found in _verdicts(_mismatches(0.05), limit=0.05, confidence=0.99))
    margin = 3 * math.sqrt(0.01 * 0.99 / STREAMS)
    assert 0.002 < passed < 0.01 + margin
    assert 0.002 < failed < 0.01 + margin
    above, _ = _verdicts(_mismatches(0.06), limit=0.05, confidence=0.99)
    assert above.mean() < passed / 2


def test_shares_keep_the_promise_too() -> None:
    shares = np.random.default_rng(0).beta(0.2, 3.8, (5000, 500))  # of mean 0.05
    passed, failed = _verdicts(shares, limit=0.05, confidence=0.95)
    margin = 3 * math.sqrt(0.05 * 0.95 / len(shares))
    assert passed.mean() < 0.05 + margin and failed.mean() < 0.05 + margin


def test_shares_that_vary_less_than_mismatches_of_the_same_mean_decide_the_same_way() -> None:
    passed, failed = _verdicts(np.full((1, 400), 0.01), limit=0.05, confidence=0.99)
    assert passed.all() and not failed.any()


def test_one_value_at_a_time_decides_as_all_at_once() -> None:
    streams = np.concatenate([_mismatches(rate, 300, 10) for rate in (0.0, 0.05, 0.3)])
    passed, failed = _verdicts(streams, limit=0.05, confidence=0.95)
    words: list[Verdict] = ["passed" if yes else "failed" if no else "undecided" for yes, no in zip(passed, failed)]  # noqa: B905
    assert [_test_of(stream, 0.05, 0.95).verdict for stream in streams] == words
    assert set(words) == {"passed", "failed", "undecided"}


def test_without_a_mismatch_one_percent_is_shown_by_540_images() -> None:
    assert _test_of([0] * 539).verdict == "undecided"
    assert _test_of([0] * 540).verdict == "passed"


def test_a_broken_model_fails_after_three_images() -> None:
    assert _test_of([1] * 2).verdict == "undecided"
    assert _test_of([1] * 3).verdict == "failed"


def test_a_verdict_stays() -> None:
    assert _test_of([0] * 540 + [1] * 100).verdict == "passed"
    assert _test_of([1] * 3 + [0] * 10_000).verdict == "failed"


@pytest.mark.parametrize("first", [0, 1])
def test_a_hundred_thousand_values_neither_overflow_nor_vanish(first: int) -> None:
    values = np.full((1, 100_000), float(first))
    values[0, -1] = 1 - first
    passed, failed = _verdicts(values, limit=0.3, confidence=0.999)
    assert (passed[0], failed[0]) == (not first, bool(first))
    low, high = _test_of(values[0], 0.3, 0.999).interval()
    assert low <= values.mean() <= high and high - low < 0.01


def test_a_limit_of_zero_can_only_fail() -> None:
    assert _test_of([0] * 10_000, limit=0).verdict == "undecided"
    assert _test_of([0] * 10 + [0.001], limit=0).verdict == "failed"


def test_a_limit_of_one_always_passes() -> None:
    assert _test_of([1, 1, 1], limit=1).verdict == "passed"


@pytest.mark.parametrize(("limit", "confidence"), [(-0.1, 0.99), (0.1, 0.0), (0.1, 1.0), (math.nan, 0.9)])
def test_a_test_of_nothing_is_refused(limit: float, confidence: float) -> None:
    with pytest.raises(ValueError, match="no test"):
        ProportionTest(limit, confidence)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_values_outside_of_0_to_1_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not in"):
        ProportionTest(0.1, 0.9).add(value)


def test_the_interval_ends_where_the_verdict_turns() -> None:
    few, many = [1] + [0] * 399, [0] * 399 + [1] * 8
    _, high = _test_of(few).interval()
    assert _test_of(few, limit=high * 1.001).verdict == "passed"
    assert _test_of(few, limit=high * 0.999).verdict == "undecided"
    low, _ = _test_of(many).interval()
    assert _test_of(many, limit=low * 0.999).verdict == "failed"
    assert _test_of(many, limit=low * 1.001).verdict == "undecided"


def test_the_interval_agrees_with_an_early_verdict() -> None:
    assert _test_of([0] * 540 + [1] * 100).interval()[1] <= 0.01
    assert _test_of([1] * 3 + [0] * 10_000).interval()[0] >= 0.01


def test_the_interval_holds_the_mean_as_often_as_promised() -> None:
    intervals = [_test_of(stream, 0.05, 0.95).interval() for stream in _mismatches(0.05, 200, 300)]
    assert np.mean([low > 0.05 for low, _ in intervals]) < 0.05
    assert np.mean([high < 0.05 for _, high in intervals]) < 0.05


def test_looks_grow_and_end_at_the_last_image() -> None:
    assert looks(100) == (32, 40, 50, 63, 79, 99, 100)
    assert looks(20) == (20,)
    assert len(looks(5000)) == 24


@pytest.mark.parametrize(
    ("probability", "degrees", "quantile"), [(0.975, 9, 2.2622), (0.995, 19, 2.8609), (0.9995, 30, 3.6460)]
)
def test_students_quantiles_are_those_of_the_tables(probability: float, degrees: int, quantile: float) -> None:
    assert student_quantile(probability, degrees) == pytest.approx(quantile, abs=2e-3)


@pytest.mark.parametrize(
    ("estimate", "verdict"),
    [
        (0.0, "passed"),
        (-0.005, "passed"),
        (0.009, "undecided"),
        (-0.011, "undecided"),
        (0.02, "failed"),
        (-0.02, "failed"),
    ],
)
def test_a_look_judges_by_the_magnitude_and_its_error(estimate: float, verdict: Verdict) -> None:
    assert LookTest(0.01, 0.99, looks=24).look(estimate, 0.001, 100) == verdict


def test_ten_observations_are_the_fewest_to_judge_by() -> None:
    test = LookTest(0.01, 0.99, looks=1)
    assert (test.look(0, 0, 9), test.look(0, 0, 10)) == ("undecided", "passed")
    assert test.interval(0, 0, 9) is None


def test_looking_often_keeps_the_promise() -> None:
    counts = looks(1000)
    test = LookTest(1.0, 0.95, len(counts))
    values = np.random.default_rng(0).normal(1.0, 2.0, (2000, 1000))  # at the limit
    wrong = 0
    for stream in values:
        seen = [stream[:count] for count in counts]
        verdicts = {test.look(some.mean(), some.std(ddof=1) / math.sqrt(len(some)), len(some)) for some in seen}
        wrong += verdicts != {"undecided"}
    assert 0 < wrong / len(values) < 0.05


@pytest.mark.parametrize("share", [0.01, 0.012, 0.05])
def test_a_share_that_was_never_seen_is_seldom_larger_than_told(share: float) -> None:
    images = next(count for count in range(1, 1000) if unseen_share(count, 0.99) <= share)
    assert 0.008 < (1 - share) ** images <= 0.01
