"""The timer, with a clock and samples of our own."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator

import pytest

from app.toolkit.latency import LatencyReport, LatencySettings, latency_of, median_interval, sample_latency


class _Clock:
    """Moves only when a call says how long it took."""

    def __init__(self, durations_ms: Iterator[float]) -> None:
        self.now_ns = 0
        self.durations_ms = durations_ms

    def call(self, _number: int) -> float:
        took_ms = next(self.durations_ms)
        self.now_ns += int(took_ms * 1e6)
        return took_ms

    def run(self, settings: LatencySettings | None = None) -> LatencyReport:
        return sample_latency(self.call, settings=settings, clock_ns=lambda: self.now_ns)


def test_steady_calls_are_stable_after_three_windows() -> None:
    report = _Clock(itertools.repeat(2.0)).run()
    assert report.stable and len(report.windows_ms) == 3
    assert (report.p50_ms, report.p99_ms, report.mean_ms) == (2.0, 2.0, 2.0)


def test_a_slow_start_is_warm_up_and_leaves_the_figures() -> None:
    report = _Clock(itertools.chain(itertools.repeat(50.0, 25), itertools.repeat(2.0))).run()
    assert report.stable and report.p99_ms == 2.0
    assert len(report.windows_ms) == 5
    assert report.windows_ms[0][0] == 50.0


def test_calls_that_never_settle_are_reported_as_unstable_with_every_window() -> None:
    growing = (float(step) for step in itertools.count(1))
    report = _Clock(growing).run(LatencySettings(max_windows=6))
    assert not report.stable
    assert len(report.windows_ms) == 6
    assert report.as_dict()["stable"] is False and len(report.as_dict()["window_means_ms"]) == 6


def test_a_call_in_twenty_that_was_held_up_does_not_unsettle_the_others() -> None:
    report = _Clock(itertools.cycle([2.0] * 13 + [10.0] + [2.0] * 25)).run()
    assert report.stable and len(report.windows_ms) == 3
    assert report.p50_ms == 2.0 and report.p99_ms == 10.0


def test_windows_that_agree_on_two_speeds_give_no_figure() -> None:
    report = _Clock(itertools.cycle([2.0, 3.0])).run()
    assert not report.stable
    assert report.p50_interval_ms == (2.0, 3.0)


def test_quick_calls_fill_a_window_by_time() -> None:
    report = _Clock(itertools.repeat(0.5)).run()
    assert [len(window) for window in report.windows_ms] == [100, 100, 100]
    assert report.as_dict()["calls"] == 300


def test_slow_calls_make_short_windows() -> None:
    report = _Clock(itertools.repeat(2_500.0)).run()
    assert report.stable
    assert [len(window) for window in report.windows_ms] == [3, 3, 3]


def test_the_time_limit_ends_what_is_too_slow_to_settle() -> None:
    report = _Clock(itertools.repeat(25_000.0)).run()
    assert not report.stable
    assert report.windows_ms == ((25_000.0,) * 3,)
    assert report.p50_interval_ms == (25_000.0, 25_000.0)


def test_samples_may_be_by_another_clock_than_the_time_they_take() -> None:
    clock = _Clock(itertools.repeat(10.0))
    numbers: list[int] = []

    def compute_ms(number: int) -> float:
        clock.call(0)
        numbers.append(number)
        return 4.0

    report = sample_latency(compute_ms, clock_ns=lambda: clock.now_ns)
    assert report.p50_ms == 4.0 and report.p50_interval_ms == (4.0, 4.0)
    assert numbers == list(range(60))


@pytest.mark.parametrize("count", [6, 9, 20, 60, 70, 71, 100, 400, 1000])
def test_the_medians_interval_covers_95_percent_and_hardly_more(count: int) -> None:
    low, high = (int(rank) for rank in median_interval(range(1, count + 1)))

    def coverage(first: int, last: int) -> float:
        return float(sum(math.comb(count, below) for below in range(first, last)) / 2**count)

    assert coverage(low, high) >= 0.95 > coverage(low + 2, high - 2)


def test_of_fewer_than_six_calls_the_interval_is_all_of_them() -> None:
    assert median_interval([5.0, 1.0, 3.0, 2.0, 4.0]) == (1.0, 5.0)


def test_percentiles_are_over_the_agreeing_windows() -> None:
    pattern = itertools.cycle([1.0] * 18 + [3.0, 11.0])
    report = _Clock(pattern).run(LatencySettings(min_window_ms=0))
    assert report.p50_ms == 1.0
    assert report.p90_ms < report.p95_ms < report.p99_ms == 11.0


def test_windows_that_were_taken_elsewhere_are_judged_alike() -> None:
    settings = LatencySettings()
    here = _Clock(itertools.chain(itertools.repeat(50.0, 25), itertools.repeat(2.0))).run()
    assert latency_of(here.windows_ms, settings) == here
    assert not latency_of(here.windows_ms[:-1], settings).stable
    assert not latency_of(here.windows_ms[-2:], settings).stable


def test_the_default_clock_ends_it_in_real_time() -> None:
    def sleep_ms(_number: int) -> float:
        time.sleep(0.01)
        return 10.0

    report = sample_latency(sleep_ms, settings=LatencySettings(max_seconds=0.1))
    assert not report.stable
    assert 1 <= sum(map(len, report.windows_ms)) <= 10
