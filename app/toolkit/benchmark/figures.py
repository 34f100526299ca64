"""What a row claims: a headline, its energy and a speed-up, each only where it is to be believed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from app.toolkit.benchmark.meters import EnergyMeter, Noise
from app.toolkit.benchmark.result import Part, Row
from app.toolkit.benchmark.timers import Timer
from app.toolkit.latency import LatencyReport, latency_of

ENERGY_SECONDS = 2.0
"""As long as a GPU's energy counter needs to be right within 5 %: it moves in steps of up to 0.1 s."""
NOTHING_CLAIMED: Mapping[str, Any] = {"headline_ms": None, "images_per_second": None, "energy_mj_per_image": None}


def with_headline(row: Row, parts: Mapping[Part, LatencyReport], noise: Noise, energy_mj: float | None = None) -> Row:
    """Only where the time of a whole call was stable and nobody disturbed it; `energy_mj` an image only then too.

    The other parts say it for themselves: a copy of a few microseconds is hardly longer than the step of the clock.
    """
    row = replace(row, parts=parts)
    if not parts["end_to_end"].stable or noise.is_noisy:
        return row
    return _claimed(replace(row, energy_mj_per_image=energy_mj))


def confirmed(row: Row, again: Sequence[LatencyReport]) -> Row:
    """The headline over all openings of the way, `row`'s and those of `again`; none where their medians do not agree.

    One opening repeats itself within a percent and may still be a third off the next: where its memory happens to lie,
    and what the machine is at in that second, last as long as it does (Mytkowicz et al. 2009, Producing Wrong Data
    Without Doing Anything Obviously Wrong).
    """
    every = [row.parts["end_to_end"], *again]
    settings = every[0].settings
    kept = settings.agreeing_windows
    warm_up = [window for one in every for window in one.windows_ms[:-kept]]
    last = [window for one in every for window in one.windows_ms[-kept:]]
    medians_ms = [one.p50_ms for one in every]
    apart_pct = 100 * (max(medians_ms) / min(medians_ms) - 1)
    stable = all(one.stable for one in every) and apart_pct <= settings.tolerance_pct
    pooled = replace(latency_of([*warm_up, *last], replace(settings, agreeing_windows=len(last))), stable=stable)
    row = replace(row, parts={**row.parts, "end_to_end": pooled})
    return _claimed(row) if stable else replace(row, **NOTHING_CLAIMED)


def _claimed(row: Row) -> Row:
    p50_ms = row.parts["end_to_end"].p50_ms
    return replace(row, headline_ms=p50_ms, images_per_second=1000 * row.batch_size / p50_ms)


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
