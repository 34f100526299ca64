"""The timer, with a clock and a call of our own."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

from app.toolkit.latency import LatencyReport, LatencySettings, measure_latency


class _Clock:
    """Moves only when a call says how long it took."""

    def __init__(self, durations_ms: Iterator[float]) -> None:
        self.now_ns = 0
        self.durations_ms = durations_ms
        self.inputs: list[int] = []

    def call(self, argument: int) -> None:
        self.inputs.append(argument)
        self.now_ns += int(next(self.durations_ms) * 1e6)

    def run(self, settings: LatencySettings | None = None) -> LatencyReport:
        return measure_latency(self.call, [0, 1, 2], settings=settings, clock_ns=lambda: self.now_ns)


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


def test_percentiles_are_over_the_agreeing_windows() -> None:
    pattern = itertools.cycle([1.0] * 18 + [3.0, 11.0])
    report = _Clock(pattern).run(LatencySettings(min_window_ms=0))
    assert report.p50_ms == 1.0
    assert report.p90_ms < report.p95_ms < report.p99_ms == 11.0


def test_inputs_rotate() -> None:
    clock = _Clock(itertools.repeat(1.0))
    clock.run()
    assert clock.inputs[:6] == [0, 1, 2, 0, 1, 2]


def test_the_default_clock_measures_real_time() -> None:
    settings = LatencySettings(window_calls=5, max_windows=5, tolerance_pct=50)
    report = measure_latency(lambda _: time.sleep(0.002), [None], settings=settings)
    assert 2.0 <= report.p50_ms < 20.0


def test_no_input_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one input"):
        measure_latency(print, [])
