"""What a row claims: a headline, its energy and a speed-up, each only where it is to be believed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from app.toolkit.benchmark.meters import EnergyMeter, Noise
from app.toolkit.benchmark.result import Part, Row
from app.toolkit.benchmark.timers import Timer
from app.toolkit.latency import LatencyReport, LatencySettings, latency_of, sample_latency

ENERGY_SECONDS = 2.0
"""As long as a GPU's energy counter needs to be right within 5 %: it moves in steps of up to 0.1 s."""

LONG_MS = 5_000.0
"""A measurement of this length has seen for itself whether the machine changes from second to second."""


def confirmed(first: LatencyReport, end_to_end: Timer, settings: LatencySettings) -> LatencyReport:
    """`first` itself where a second measurement, taken at the row's end, has its p50; else one over both, not stable.

    Three windows may agree within a fifth of a second, which on one GPU machine lay in a slow spell of the host.
    """
    if not first.stable or sum(map(sum, first.windows_ms)) > LONG_MS:
        return first
    again = sample_latency(end_to_end, settings=settings)
    if again.stable and abs(again.p50_ms / first.p50_ms - 1) <= settings.tolerance_pct / 100:
        return first
    kept = settings.agreeing_windows
    windows = [
        *first.windows_ms[:-kept],
        *again.windows_ms[:-kept],
        *first.windows_ms[-kept:],
        *again.windows_ms[-kept:],
    ]
    return replace(latency_of(windows, replace(settings, agreeing_windows=2 * kept)), stable=False)


def with_headline(row: Row, parts: Mapping[Part, LatencyReport], noise: Noise, energy_mj: float | None = None) -> Row:
    """Only where the time of a whole call was stable and nobody disturbed it; `energy_mj` an image only then too.

    The other parts say it for themselves: a copy of a few microseconds is hardly longer than the step of the clock.
    """
    end_to_end = parts["end_to_end"]
    if not end_to_end.stable or noise.is_noisy:
        return replace(row, parts=parts)
    p50_ms = end_to_end.p50_ms
    per_second = 1000 * row.batch_size / p50_ms
    return replace(row, parts=parts, headline_ms=p50_ms, images_per_second=per_second, energy_mj_per_image=energy_mj)


def with_speedups(rows: Sequence[Row]) -> list[Row]:
    """Over the first way that was timed, at the same batch size, where both have a headline."""
    first = next((row.way for row in rows if row.parts), None)
    base = {row.batch_size: row.headline_ms for row in rows if row.way == first}
    return [
        replace(row, speedup=before / row.headline_ms)
        if row.headline_ms and (before := base.get(row.batch_size))
        else row
        for row in rows
    ]


def energy_mj_per_image(meter: EnergyMeter, end_to_end: Timer, batch_size: int) -> float | None:
    """From whole calls one after the other; None, and no call, where there is no counter."""
    if not meter.has_counter:
        return None
    calls, ends_at = 0, time.monotonic() + ENERGY_SECONDS
    with meter:
        while time.monotonic() < ends_at:
            end_to_end(calls)
            calls += 1
    return None if meter.energy.millijoules is None else meter.energy.millijoules / (calls * batch_size)
