"""A comparison of two benchmarks as Markdown: what became slower, S2's before and after, the accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import get_args

from app.toolkit.benchmark.cells import UNKNOWN, Table, before_after, escaped, number, share, way_name
from app.toolkit.benchmark.comparing import Change, Comparison, RowComparison
from app.toolkit.benchmark.reading import StoredBenchmark, StoredRow

MEASURE_NAMES = {"map50": "mAP@50", "map50_95": "mAP@50:95", "top1": "top-1"}


def comparison_markdown(found: Comparison) -> str:
    """Every table, after the verdict and its warnings."""
    parts = [f"# {escaped(found.before.name)} and {escaped(found.after.name)} compared", escaped(verdict(found))]
    tables = (row_table(found), fastest_table(found), accuracy_table(found))
    parts += _listed("Warnings", found.warnings)
    parts += [table.markdown() for table in tables if table.rows]
    parts += _listed("What else differs", found.notes)
    parts += _listed("How it was judged", tuple(method(found)))
    return "\n\n".join(parts) + "\n"


def _listed(title: str, lines: tuple[str, ...]) -> list[str]:
    return [f"## {title}\n\n" + "\n".join(f"- {escaped(line)}" for line in lines)] if lines else []


def verdict(found: Comparison) -> str:
    """The comparison in one sentence."""
    if not found.comparable:
        return "Not judged: the benchmarks are not of the same machine and settings."
    judged = [row for row in found.rows if row.change is not None]
    if not judged:
        return "Not judged: no way has a figure at the same batch size in both."
    counts = Counter(row.change for row in judged)
    told = ", ".join(f"{counts[name]} {name}" for name in get_args(Change) if counts[name])
    rows = f"rows judged {len(judged)}, {told}"
    if found.regression is None:
        return f"Undecided: no row is slower beyond {_percent(found)}, but {len(found.open_rows)} may be: {rows}."
    if not found.regression:
        return f"No regression beyond {_percent(found)}: {rows}."
    worst = max((row for row in judged if row.regression), key=lambda row: row.ratio or 0.0)
    where = f"{way_name(worst.way)} at batch {worst.batch_size}"
    return f"Regression beyond {_percent(found)}: {rows}. The worst is {where}, {_ratio(worst)} times as long."


def _percent(found: Comparison) -> str:
    return f"{100 * found.tolerance:.3g} %"


def row_table(found: Comparison) -> Table:
    """Each way and batch size of either benchmark."""
    headings = ("way", "batch", "before, ms", "after, ms", "time ratio (interval)", "remark")
    rows = tuple(
        (
            way_name(row.way),
            str(row.batch_size),
            number(row.before_ms),
            number(row.after_ms),
            _ratio(row),
            row.change or row.why_not or "not judged",
        )
        for row in found.rows
    )
    return Table("By way and batch size", headings, rows)


def _ratio(row: RowComparison) -> str:
    if row.ratio is None or row.ratio_interval is None:
        return UNKNOWN
    low, high = row.ratio_interval
    return f"{row.ratio:.3f} ({low:.3f} to {high:.3f})"


def fastest_table(found: Comparison) -> Table:
    """S2's table: the fastest way of each at the smallest batch size that both have a figure for."""
    sizes = _sizes(found.before) & _sizes(found.after)
    if not sizes:
        return Table("Before and after", (), ())
    size = min(sizes)
    before, after = _fastest(found.before, size), _fastest(found.after, size)
    figures = (
        ("parameters", found.before.params, found.after.params),
        ("size, MB", _mb(found.before), _mb(found.after)),
        ("latency, ms", before.headline_ms, after.headline_ms),
        ("frames per second", before.images_per_second, after.images_per_second),
        ("GPU memory, MiB", before.device_peak_mib, after.device_peak_mib),
        ("host memory, MiB", before.host_peak_mib, after.host_peak_mib),
    )
    title = f"Before and after, the fastest way of each at batch {size}"
    return before_after(title, f"before: {way_name(before.way)}", f"after: {way_name(after.way)}", figures)


def _sizes(benchmark: StoredBenchmark) -> set[int]:
    return {row.batch_size for row in benchmark.rows.values() if row.headline_ms is not None}


def _fastest(benchmark: StoredBenchmark, batch_size: int) -> StoredRow:
    timed = [row for row in benchmark.rows.values() if row.batch_size == batch_size and row.headline_ms is not None]
    return min(timed, key=lambda row: row.headline_ms or 0.0)


def _mb(benchmark: StoredBenchmark) -> float | None:
    return None if benchmark.size_bytes is None else benchmark.size_bytes / 1e6


def accuracy_table(found: Comparison) -> Table:
    """Each measure that a way has in both."""
    rows = tuple(
        (
            way_name(one.way),
            MEASURE_NAMES[one.measure],
            share(one.before),
            share(one.after),
            UNKNOWN if one.delta is None else f"{one.delta:+.3f}",
        )
        for one in found.accuracy
    )
    return Table("Accuracy", ("way", "measure", "before", "after", "delta"), rows, left=2)


def method(found: Comparison) -> Iterator[str]:
    """What the words and the interval mean."""
    yield (
        "The time ratio is after over before, of the medians: above 1 is slower. Its interval is the widest that both "
        "medians' 95 % intervals allow."
    )
    yield (
        f"Slower or faster is an interval that lies as a whole beyond {_percent(found)}, alike one that lies within; "
        "undecided is any other: benchmark both again, for longer."
    )
    yield "Nothing is judged between different machines or settings, nor from a figure that was not stable."
