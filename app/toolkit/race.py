"""Two models timed in turns in ONNX Runtime, and how many times as fast the second is.

They take turns window by window and in changing order, so that a machine that gets slower or busier in between touches
both; the speed-up is the median of the rounds' ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from app.toolkit.runtimes.base import Array
from app.toolkit.runtimes.ort_runtime import OrtRuntime

WARM_CALLS = 2  # of each window, as the other model's threads may still spin
SAME_SPEED = 0.03  # what two measurements of one model differ by


@dataclass(frozen=True)
class RaceSettings:
    """How often the two models take turns, and how many calls each makes in a turn. The first round is warm-up."""

    rounds: int = 7
    calls: int = 10


@dataclass(frozen=True)
class Race:
    """Median milliseconds of both, and how many times as fast the second is: median, least and most of the rounds."""

    threads: int
    before_ms: float
    after_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float

    @property
    def word(self) -> Literal["faster", "slower", "no faster"]:
        """No faster where the rounds do not agree on a side, or the difference is what noise makes."""
        if self.speedup_low > 1 and self.speedup > 1 + SAME_SPEED:
            return "faster"
        return "slower" if self.speedup_high < 1 and self.speedup < 1 - SAME_SPEED else "no faster"

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {
            "runtime": "onnxruntime CPU",
            "threads": self.threads,
            "before_p50_ms": round(self.before_ms, 3),
            "after_p50_ms": round(self.after_ms, 3),
            "speedup": round(self.speedup, 3),
            "speedup_low": round(self.speedup_low, 3),
            "speedup_high": round(self.speedup_high, 3),
            "result": self.word,
        }


def race(
    before: Path | bytes,
    after: Path | bytes,
    *,
    threads: int = 1,
    shape: Sequence[int] | None = None,
    settings: RaceSettings | None = None,
) -> Race:
    """Time two ONNX files of one input shape in turns, on noise in 0..1.

    `shape` is the input's, [N, C, H, W]; it must be given where an axis is free. Raises RuntimeUnavailable.
    """
    settings = settings or RaceSettings()
    with OrtRuntime(before, threads=threads) as first, OrtRuntime(after, threads=threads) as second:
        sizes = tuple(int(axis) for axis in shape or first.inputs[0].shape)
        feeds = list(np.random.default_rng(0).random((3, *sizes), dtype=np.float32))
        windows: tuple[list[list[float]], list[list[float]]] = ([], [])
        for number in range(settings.rounds + 1):
            turns = [(first, windows[0]), (second, windows[1])]
            for runtime, seen in turns if number % 2 == 0 else reversed(turns):
                seen.append(_window(runtime, feeds, settings.calls))
    medians = [[statistics.median(window) for window in seen[1:]] for seen in windows]
    ratios = [slow / fast for slow, fast in zip(*medians, strict=True)]
    calls = [[value for window in seen[1:] for value in window] for seen in windows]
    return Race(
        threads,
        statistics.median(calls[0]),
        statistics.median(calls[1]),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
    )


def _window(runtime: OrtRuntime, feeds: Sequence[Array], calls: int) -> list[float]:
    name = runtime.inputs[0].name
    times = []
    for number in range(WARM_CALLS + calls):
        begun = time.perf_counter_ns()
        runtime.infer({name: feeds[number % len(feeds)]})
        times.append((time.perf_counter_ns() - begun) / 1e6)
    return times[WARM_CALLS:]
