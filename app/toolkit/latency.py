"""The one latency timer: warm up, measure in windows until they agree, keep every window.

A number stands only if the last windows agree; otherwise the report says `stable: false` and still holds all it saw.
That says that the figure repeats, not that the machine was quiet: a load that never changes slows every window alike
(`benchmark.meters` sees it). A device that runs asynchronously must be waited for inside the call.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST_CALLS = 3
"""In a slow model's window: nine calls are the fewest whose p50 has a 95 % interval narrower than their whole range."""
TRIMMED = 0.1  # of a window, at either end: one call in twenty that was held up for long says nothing of the others


@dataclass(frozen=True)
class LatencySettings:
    """How long a window is, how many must agree, within what, and when to give up.

    A window has `window_calls` calls, more where they take less than `min_window_ms` together, and fewer (not under 3)
    once they took `max_window_ms`. After `max_windows` windows or `max_seconds` there is no further call.
    """

    window_calls: int = 20
    agreeing_windows: int = 3
    tolerance_pct: float = 5.0
    max_windows: int = 20
    min_window_ms: float = 50.0
    max_window_ms: float = 5_000.0
    max_seconds: float = 60.0


@dataclass(frozen=True)
class LatencyReport:
    """Milliseconds a call. The percentiles are over the agreeing windows, or over the last ones if none agreed.

    `p50_interval_ms` is `median_interval` of the same calls. `windows_ms` has every call, warm-up first.
    """

    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    p50_interval_ms: tuple[float, float]
    stable: bool
    windows_ms: tuple[tuple[float, ...], ...]
    settings: LatencySettings

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape: the figures, how many calls they stand on, and each window's trimmed mean."""
        return {
            "p50_ms": round(self.p50_ms, 4),
            "p50_interval_ms": [round(value, 4) for value in self.p50_interval_ms],
            "p90_ms": round(self.p90_ms, 4),
            "p95_ms": round(self.p95_ms, 4),
            "p99_ms": round(self.p99_ms, 4),
            "mean_ms": round(self.mean_ms, 4),
            "stable": self.stable,
            "calls": sum(map(len, self.windows_ms[-self.settings.agreeing_windows :])),
            "window_means_ms": [round(_trimmed_mean(window), 4) for window in self.windows_ms],
        }


def sample_latency(
    sample_ms: Callable[[int], float],
    *,
    settings: LatencySettings | None = None,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> LatencyReport:
    """Take samples until the last windows agree. `sample_ms` gets the call's number, from 0, and returns milliseconds.

    Windows agree if their trimmed means lie within `tolerance_pct` of these means' mean, and the 95 % interval of the
    p50 over all of them within as much of the p50. The first windows are the warm-up: they count only if they agree
    with those after them. `clock_ns` tells only how long it has taken, whatever clock the samples are by.
    """
    settings = settings or LatencySettings()
    deadline_ns = clock_ns() + settings.max_seconds * 1e9
    windows: list[tuple[float, ...]] = []
    stable = False
    while not windows or (not stable and len(windows) < settings.max_windows and clock_ns() < deadline_ns):
        taken = sum(map(len, windows))
        windows.append(_window(sample_ms, taken, settings, deadline_ns, clock_ns))
        stable = _agree(windows[-settings.agreeing_windows :], settings)
    return latency_of(windows, settings)


def latency_of(windows: Sequence[tuple[float, ...]], settings: LatencySettings) -> LatencyReport:
    """What windows of milliseconds come to, taken here or by another program; whether they agree as above."""
    agreeing = windows[-settings.agreeing_windows :]
    last = np.concatenate(agreeing)
    p50, p90, p95, p99 = (float(value) for value in np.percentile(last, (50, 90, 95, 99)))
    interval, stable = median_interval(last.tolist()), _agree(agreeing, settings)
    return LatencyReport(p50, p90, p95, p99, float(last.mean()), interval, stable, tuple(windows), settings)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the median, as two of the values themselves; all of them for fewer than six.

    By order statistics, whatever the distribution (Le Boudec, Performance Evaluation of Computer and Communication
    Systems, theorem 2.1; its normal approximation for more than 70). It takes the calls as independent: a disturbance
    that lasts several calls makes the true interval wider.
    """
    ordered = sorted(values)
    count = len(ordered)
    if count > 70:
        rank = math.floor(count / 2 - 0.98 * math.sqrt(count))
    else:
        # In how many of the 2**count ways at most 0, 1, ... values lie below the median; 2.5 % is 1 in 40.
        at_most = itertools.accumulate(math.comb(count, below) for below in range(count))
        rank = sum(40 * ways <= 2**count for ways in at_most)
    rank = max(rank, 1)
    return ordered[rank - 1], ordered[count - rank]


def _window(
    sample_ms: Callable[[int], float],
    taken: int,
    settings: LatencySettings,
    deadline_ns: float,
    clock_ns: Callable[[], int],
) -> tuple[float, ...]:
    begun_ns = clock_ns()
    window: list[float] = []
    now_ns = begun_ns
    while not window or (now_ns < deadline_ns and not _is_full(len(window), (now_ns - begun_ns) / 1e6, settings)):
        window.append(sample_ms(taken + len(window)))
        now_ns = clock_ns()
    return tuple(window)


def _is_full(calls: int, took_ms: float, settings: LatencySettings) -> bool:
    if calls >= LEAST_CALLS and took_ms >= settings.max_window_ms:
        return True
    return calls >= settings.window_calls and took_ms >= settings.min_window_ms


def _agree(windows: Sequence[tuple[float, ...]], settings: LatencySettings) -> bool:
    least = min(LEAST_CALLS, settings.window_calls)
    if len(windows) < settings.agreeing_windows or min(map(len, windows)) < least:
        return False
    means = [_trimmed_mean(window) for window in windows]
    middle = float(np.mean(means))
    if any(abs(mean - middle) > middle * settings.tolerance_pct / 100 for mean in means):
        return False
    calls = [value for window in windows for value in window]
    p50 = float(np.median(calls))
    return all(abs(end - p50) <= p50 * settings.tolerance_pct / 100 for end in median_interval(calls))


def _trimmed_mean(window: Sequence[float]) -> float:
    cut = int(len(window) * TRIMMED)
    return float(np.mean(sorted(window)[cut : len(window) - cut]))
