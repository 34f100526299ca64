"""The one latency timer: warm up, measure in windows until they agree, keep every window.

A number stands only if the last windows agree; otherwise the report says `stable: false` and still holds all it saw.
It times what it is given on the monotonic clock. A device that runs asynchronously must be waited for inside the call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Input = TypeVar("Input")


@dataclass(frozen=True)
class LatencySettings:
    """Calls in a window, how many windows must agree, within what of their mean, and when to give up."""

    window_calls: int = 20
    agreeing_windows: int = 3
    tolerance_pct: float = 5.0
    max_windows: int = 20


@dataclass(frozen=True)
class LatencyReport:
    """Milliseconds a call. The percentiles are over the agreeing windows, or over the last ones if none agreed."""

    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    stable: bool
    windows_ms: tuple[tuple[float, ...], ...]
    settings: LatencySettings

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape: the figures, and each window's mean."""
        return {
            "p50_ms": round(self.p50_ms, 4),
            "p90_ms": round(self.p90_ms, 4),
            "p95_ms": round(self.p95_ms, 4),
            "p99_ms": round(self.p99_ms, 4),
            "mean_ms": round(self.mean_ms, 4),
            "stable": self.stable,
            "window_means_ms": [round(float(np.mean(window)), 4) for window in self.windows_ms],
            "window_calls": self.settings.window_calls,
        }


def measure_latency(
    call: Callable[[Input], object],
    inputs: Sequence[Input],
    *,
    settings: LatencySettings | None = None,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> LatencyReport:
    """Time `call` on the inputs in turn (so that no cache answers for the model) until the last windows agree.

    The first windows are the warm-up: they count only if they agree with those after them. Raises ValueError for no
    inputs.
    """
    if not inputs:
        raise ValueError("a latency needs at least one input")
    settings = settings or LatencySettings()
    windows: list[tuple[float, ...]] = []
    calls = 0
    while len(windows) < settings.max_windows and not _agree(windows, settings):
        window = []
        for _ in range(settings.window_calls):
            argument = inputs[calls % len(inputs)]
            begun = clock_ns()
            call(argument)
            window.append((clock_ns() - begun) / 1e6)
            calls += 1
        windows.append(tuple(window))
    last = np.concatenate(windows[-settings.agreeing_windows :])
    p50, p90, p95, p99 = (float(value) for value in np.percentile(last, (50, 90, 95, 99)))
    return LatencyReport(p50, p90, p95, p99, float(last.mean()), _agree(windows, settings), tuple(windows), settings)


def _agree(windows: Sequence[tuple[float, ...]], settings: LatencySettings) -> bool:
    if len(windows) < settings.agreeing_windows:
        return False
    means = [float(np.mean(window)) for window in windows[-settings.agreeing_windows :]]
    middle = float(np.mean(means))
    return all(abs(mean - middle) <= middle * settings.tolerance_pct / 100 for mean in means)
