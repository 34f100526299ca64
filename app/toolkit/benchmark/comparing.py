"""Two benchmarks side by side: what became slower, by how much at least and at most, and what became of the accuracy.

A ratio is after over before: 2 is twice the time. Its interval is [after's low / before's high, after's high / before's
low] of the medians' 95 % intervals. Where both of these hold the true medians the ratio's does too, so it holds in 90 %
of cases by Bonferroni's inequality, and in 95 % or more where both medians err about normally (the sum of two
half-widths is never below the root of their squares' sum). Bootstrapping the windows would need more of them than the
three that a benchmark stops at.

That takes calls as independent, and no interval within one run tells how far two runs of the same thing lie apart, by
what they were given of memory, clocks and heat. The tolerance stands for both, so only an interval that lies beyond it
as a whole is called slower or faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from app.toolkit.benchmark.cells import way_name
from app.toolkit.benchmark.reading import StoredBenchmark, StoredRow, stored_benchmark

Change = Literal["slower", "faster", "alike", "undecided"]

TOLERANCE = 0.05
"""How far the medians of two runs of the same thing may lie apart: what a benchmark lets its own windows do."""

MACHINE_FACTS = (
    ("architecture",),
    ("cpu", "model"),
    ("cpu", "cores_usable"),
    ("cpu", "governor"),
    ("cpu", "boost"),
    ("container", "cpu_quota_cores"),
    ("gpu", "name"),
    ("gpu", "power_limit_w"),
    ("jetson", "model"),
    ("jetson", "power_mode"),
    ("jetson", "clocks_fixed"),
)
"""Where these differ, a ratio says something of the machines and nothing of the models."""

MAX_FACT = 100  # characters of a fact that a warning shows
SOFTWARE_FACTS = (("os",), ("kernel",), ("python",), ("gpu", "driver"))
MODEL_FACTS = (("family",), ("task",), ("input_size",))


@dataclass(frozen=True)
class RowComparison:
    """One way at one batch size.

    `ratio` is the time after over that before; None, and `why_not` set, where either has no headline. `change` is None
    where it was not judged: for that, or because the benchmarks are not comparable.
    """

    way: str
    batch_size: int
    before_ms: float | None = None
    after_ms: float | None = None
    ratio: float | None = None
    ratio_interval: tuple[float, float] | None = None
    change: Change | None = None
    why_not: str = ""

    @property
    def regression(self) -> bool | None:
        """Whether it is slower beyond doubt and tolerance; None where it is undecided or was not judged."""
        return None if self.change in {None, "undecided"} else self.change == "slower"

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        interval = None if self.ratio_interval is None else list(self.ratio_interval)
        return {**asdict(self), "ratio_interval": interval, "regression": self.regression}


@dataclass(frozen=True)
class AccuracyChange:
    """One measure of one way, 0..1. `delta` is after less before, None where the numbers of images differ."""

    way: str
    measure: str
    before: float
    after: float
    delta: float | None


@dataclass(frozen=True)
class Comparison:
    """`warnings` are why nothing is judged, or what could not be; `notes` what else differs and may be the cause."""

    before: StoredBenchmark
    after: StoredBenchmark
    tolerance: float
    rows: tuple[RowComparison, ...]
    accuracy: tuple[AccuracyChange, ...]
    comparable: bool
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def regression(self) -> bool | None:
        """Whether any row is one; None where none is and some may be, or no row was judged."""
        judged = [row.regression for row in self.rows if row.regression is not None]
        if any(judged):
            return True
        return False if judged and not self.open_rows else None

    @property
    def open_rows(self) -> tuple[RowComparison, ...]:
        """Rows of both benchmarks that may be slower: undecided, or timed before and not to be compared now."""
        both = self.before.rows.keys() & self.after.rows.keys()
        open_places = {place for place in both if self.before.rows[place].was_timed}
        return tuple(row for row in self.rows if row.regression is None and (row.way, row.batch_size) in open_places)

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {
            "comparison_version": 1,
            "before": self.before.figures,
            "after": self.after.figures,
            "tolerance": self.tolerance,
            "comparable": self.comparable,
            "regression": self.regression,
            "rows": [row.as_dict() for row in self.rows],
            "accuracy": [asdict(one) for one in self.accuracy],
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }


def compare(before: Mapping[str, Any], after: Mapping[str, Any], *, tolerance: float = TOLERANCE) -> Comparison:
    """Two `benchmark.json`. `tolerance` is a part of one: with 0.05, a row is slower from 1.05 times the time.

    Raises CorruptFile, saying which of the two is no benchmark and why.
    """
    first, second = stored_benchmark(before, "the benchmark before"), stored_benchmark(after, "the benchmark after")
    hindrances = tuple(_hindrances(first, second))
    places = dict.fromkeys((*first.rows, *second.rows))
    judged_by = None if hindrances else tolerance
    rows = tuple(_row(first.row(*place), second.row(*place), judged_by) for place in places)
    return Comparison(
        before=first,
        after=second,
        tolerance=tolerance,
        rows=rows,
        accuracy=tuple(_accuracy(first, second)),
        comparable=not hindrances,
        warnings=(*hindrances, *_not_judged(first, second, rows), *_other_images(first, second)),
        notes=tuple(_causes(first, second)),
    )


def ratio_interval(before: StoredRow, after: StoredRow) -> tuple[float, float]:
    """Of after's time over before's, by the medians' intervals; both rows must have a headline."""
    return after.interval_ms[0] / before.interval_ms[1], after.interval_ms[1] / before.interval_ms[0]


def change_of(interval: tuple[float, float], tolerance: float) -> Change:
    """What an interval of the time's ratio says: undecided where it crosses the tolerance's edge."""
    low, high = interval
    if low > 1 + tolerance:
        return "slower"
    if high < 1 / (1 + tolerance):
        return "faster"
    return "alike" if 1 / (1 + tolerance) <= low and high <= 1 + tolerance else "undecided"


def _row(before: StoredRow, after: StoredRow, tolerance: float | None) -> RowComparison:
    """Judged by the tolerance, if there is one."""
    plain = RowComparison(before.way, before.batch_size, before.headline_ms, after.headline_ms)
    if before.headline_ms is None or after.headline_ms is None:
        return replace(plain, why_not=_why_not(before.why, after.why))
    interval = ratio_interval(before, after)
    return replace(
        plain,
        ratio=after.headline_ms / before.headline_ms,
        ratio_interval=interval,
        change=None if tolerance is None else change_of(interval, tolerance),
    )


def _why_not(before: str, after: str) -> str:
    if before == after:
        return f"both: {before}"
    return "; ".join(f"{side}: {why}" for side, why in (("before", before), ("after", after)) if why)


def _accuracy(before: StoredBenchmark, after: StoredBenchmark) -> Iterator[AccuracyChange]:
    for way, first in before.accuracy.items():
        second = after.accuracy.get(way)
        if second is None:
            continue
        for measure, value in first.values.items():
            if (other := second.values.get(measure)) is not None:
                delta = other - value if first.images == second.images else None
                yield AccuracyChange(way, measure, value, other, delta)


def _differing(
    before: Mapping[str, Any], after: Mapping[str, Any], places: Iterable[Sequence[str]], what: str
) -> Iterator[str]:
    for place in places:
        first, second = _at(before, place), _at(after, place)
        if first != second:
            yield f"another {what}: {' '.join(place)} was {_told(first)} and is {_told(second)}"


def _at(facts: Any, place: Sequence[str]) -> Any:
    """The fact that lies there; None where there is none."""
    for key in place:
        facts = facts.get(key) if isinstance(facts, dict) else None
    return facts


def _told(fact: Any) -> str:
    return "not told" if fact is None else str(fact)[:MAX_FACT]


def _software(facts: Mapping[str, Any]) -> list[Sequence[str]]:
    versions = facts.get("versions")
    return [("versions", name) for name in versions] if isinstance(versions, dict) else []


def _hindrances(before: StoredBenchmark, after: StoredBenchmark) -> Iterator[str]:
    """Why the two cannot be judged by each other."""
    yield from _differing(before.machine, after.machine, MACHINE_FACTS, "machine")
    names = dict.fromkeys((*before.settings, *after.settings))
    yield from _differing(before.settings, after.settings, [(name,) for name in names], "setting")


def _not_judged(before: StoredBenchmark, after: StoredBenchmark, rows: Iterable[RowComparison]) -> Iterator[str]:
    """Rows of both that were timed in either and have no figure to compare."""
    for row in rows:
        place = (row.way, row.batch_size)
        if place not in before.rows or place not in after.rows or not row.why_not:
            continue
        if before.rows[place].was_timed or after.rows[place].was_timed:
            yield f"{way_name(row.way)}, batch {row.batch_size}: {row.why_not}"


def _other_images(before: StoredBenchmark, after: StoredBenchmark) -> Iterator[str]:
    for way, first in before.accuracy.items():
        second = after.accuracy.get(way)
        if second is not None and first.images != second.images:
            yield f"{way_name(way)}: accuracy on {first.images} images before, on {second.images} after"


def _causes(before: StoredBenchmark, after: StoredBenchmark) -> Iterator[str]:
    """What else differs: it may be what was changed on purpose, so rows are judged all the same."""
    yield from _differing(before.model, after.model, MODEL_FACTS, "model")
    versions = dict.fromkeys((*_software(before.machine), *_software(after.machine)))
    yield from _differing(before.machine, after.machine, (*SOFTWARE_FACTS, *versions), "software")
