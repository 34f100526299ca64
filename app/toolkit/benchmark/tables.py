"""A benchmark's tables: S1's by way and by batch size, S2's before and after, and the machine that they hold for.

A figure that was not stable, or taken while others used the machine, is never shown as one: its cell has the range of
the windows' means. A way that could not run has its row, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from app.toolkit.benchmark.cells import (
    UNKNOWN,
    Table,
    before_after,
    escaped,
    number,
    one_decimal,
    share,
    times,
    way_name,
)
from app.toolkit.benchmark.result import Accuracy, BenchmarkResult, Row
from app.toolkit.latency import LatencyReport

LATENCY = "latency ms, p50 (95 % interval)"
IMAGES = "images/s"
NOTHING = Accuracy(images=0)


def benchmark_markdown(result: BenchmarkResult) -> str:
    """Every table, with what is needed to believe it."""
    parts = [f"# Benchmark of {escaped(str(result.model.get('name', 'a model')))}", escaped(verdict(result))]
    parts += [table.markdown() for table in benchmark_tables(result)]
    if result.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {escaped(note)}" for note in result.notes))
    parts.append("## How it was measured\n\n" + "\n".join(f"- {escaped(line)}" for line in method(result)))
    return "\n\n".join(parts) + "\n"


def benchmark_tables(result: BenchmarkResult) -> list[Table]:
    """The tables in the order in which they are read; those without a row are left out."""
    tables = [
        by_way(result),
        *by_batch(result),
        first_and_fastest(result),
        cost_table(result),
        parts_table(result),
        agreement_table(result),
        model_table(result.model),
        machine_table(result.machine),
        noise_table(result.noise),
    ]
    return [table for table in tables if table.rows]


def verdict(result: BenchmarkResult) -> str:
    """The benchmark in one sentence."""
    timed = [row for row in result.rows if row.parts]
    if not timed:
        return "Nothing could be timed here; the table says why."
    best = fastest(result)
    if best is None:
        return "The machine was too noisy for every figure: do not quote them."
    believed = sum(row.headline_ms is not None for row in timed)
    told = f"Fastest at batch {best.batch_size}: {way_name(best.way)}, {number(best.headline_ms)} ms"
    speedup = "" if best.speedup in {None, 1} else f", {times(best.speedup)} the first way's speed"
    doubt = ""
    if believed < len(timed):
        doubt = f" The machine was too noisy for {len(timed) - believed} of {len(timed)} figures: do not quote them."
    return f"{told}{speedup}.{doubt}"


def at_smallest_batch(result: BenchmarkResult) -> list[Row]:
    """The rows of S1's table: every way at the smallest batch size that there are figures for.

    A way that ended before it has its last row, which says why.
    """
    smallest = smallest_batch(result)
    rows = {row.way: row for row in result.rows if not row.parts and row.batch_size < smallest}
    rows |= {row.way: row for row in result.rows if row.batch_size == smallest}
    return [rows[way] for way in dict.fromkeys(row.way for row in result.rows) if way in rows]


def smallest_batch(result: BenchmarkResult) -> int:
    """The smallest batch size with a headline; else the smallest that was timed, else the smallest asked for."""
    headlines = [row.batch_size for row in result.rows if row.headline_ms is not None]
    timed = [row.batch_size for row in result.rows if row.parts]
    return min(headlines or timed or [row.batch_size for row in result.rows], default=1)


def fastest(result: BenchmarkResult) -> Row | None:
    """Of the smallest batch size, by its headline; None where there is none."""
    timed = [row for row in at_smallest_batch(result) if row.headline_ms is not None]
    return min(timed, key=lambda row: row.headline_ms or 0.0, default=None)


def by_way(result: BenchmarkResult) -> Table:
    """S1's table, at the smallest batch size."""
    rows = at_smallest_batch(result)
    title = f"By way, batch {smallest_batch(result)}"
    headings = ("way", LATENCY, IMAGES, "mAP@50", "mAP@50:95", "top-1", "speed-up", "remark")
    return Table(title, headings, tuple(_way_cells(row, result) for row in rows)).without_empty_columns()


def _way_cells(row: Row, result: BenchmarkResult) -> tuple[str, ...]:
    found = result.accuracy.get(row.way, NOTHING)
    accuracy = (share(found.map50), share(found.map50_95), share(found.top1))
    return (way_name(row.way), latency(row), number(row.images_per_second), *accuracy, times(row.speedup), remark(row))


def by_batch(result: BenchmarkResult) -> Iterator[Table]:
    """S1's batch table, one a way that has more than one batch size."""
    headings = ("batch", LATENCY, IMAGES, "speed-up", "remark")
    for way in dict.fromkeys(row.way for row in result.rows):
        rows = [row for row in result.rows if row.way == way]
        if len(rows) > 1:
            cells = tuple(_batch_cells(row) for row in rows)
            yield Table(f"By batch size, {way_name(way)}", headings, cells).without_empty_columns()


def _batch_cells(row: Row) -> tuple[str, ...]:
    return (str(row.batch_size), latency(row), number(row.images_per_second), times(row.speedup), remark(row))


def first_and_fastest(result: BenchmarkResult) -> Table:
    """S2's table: the first way that was timed before, the fastest after."""
    timed = [row for row in at_smallest_batch(result) if row.headline_ms is not None]
    after = fastest(result)
    if after is None or after is timed[0]:
        return Table("Before and after", (), ())
    before = timed[0]
    figures = (
        ("latency, ms", before.headline_ms, after.headline_ms),
        ("frames per second", before.images_per_second, after.images_per_second),
        ("GPU memory, MiB", before.device_peak_mib, after.device_peak_mib),
        ("host memory, MiB", before.host_peak_mib, after.host_peak_mib),
    )
    return before_after(
        f"Before and after, batch {after.batch_size}", way_name(before.way), way_name(after.way), figures
    )


def cost_table(result: BenchmarkResult) -> Table:
    """What S1's tables have no column for: the slow calls, memory above what was in use before, energy."""
    headings = ("way", "batch", "p90, ms", "p95, ms", "p99, ms", "GPU MiB", "host MiB", "mJ/image")
    rows = tuple(_cost_cells(row) for row in result.rows if row.parts)
    return Table("Slow calls, memory and energy", headings, rows).without_empty_columns()


def _cost_cells(row: Row) -> tuple[str, ...]:
    """Percentiles and energy of a headline only: of another row they are as little to be quoted."""
    report = None if row.headline_ms is None else row.parts["end_to_end"]
    slow = (None, None, None) if report is None else (report.p90_ms, report.p95_ms, report.p99_ms)
    energy_mj = None if report is None else row.energy_mj_per_image
    costs = (row.device_peak_mib, row.host_peak_mib, energy_mj)
    return (way_name(row.way), str(row.batch_size), *map(number, (*slow, *costs)))


def parts_table(result: BenchmarkResult) -> Table:
    """Where the time goes, for rows whose parts could be timed apart (a GPU's)."""
    names = ("copy_in", "compute", "copy_out", "end_to_end")
    headings = ("way", "batch", *(f"{name.replace('_', ' ')}, ms" for name in names))
    rows = tuple(
        (way_name(row.way), str(row.batch_size), *(_part(row, name) for name in names))
        for row in result.rows
        if len(row.parts) > 1
    )
    return Table("Where the time goes, p50", headings, rows)


def _part(row: Row, name: str) -> str:
    """A p50 where the row has a headline and the part was stable for itself, else the range."""
    report = {str(part): one for part, one in row.parts.items()}.get(name)
    if report is None:
        return UNKNOWN
    if not report.stable:
        return f"not stable: {windows_range(report)}"
    return windows_range(report) if row.headline_ms is None else number(report.p50_ms)


def agreement_table(result: BenchmarkResult) -> Table:
    """Whether each way answers like the first: its largest differences, and what parity allows."""
    rows = tuple(
        (way_name(row.way), {True: "yes", False: "no", None: "not judged"}[row.agreement.ok], _differences(row))
        for row in at_smallest_batch(result)
        if row.agreement is not None
    )
    return Table("Answers against the first way's", ("way", "within limits", "largest differences"), rows, left=3)


def _differences(row: Row) -> str:
    if row.agreement is None:
        return ""
    limits = row.agreement.limits or {}
    told = (
        f"{name} {value:.2g}" + (f" of {limits[name]:.2g}" if name in limits else "")
        for name, value in row.agreement.differences.items()
    )
    return ", ".join(told)


def model_table(model: Mapping[str, Any]) -> Table:
    """What was timed."""
    size = model.get("size_bytes")
    params = model.get("params")
    told = {
        "file": model.get("name"),
        "family": model.get("family"),
        "task": model.get("task"),
        "input size, H x W": " x ".join(map(str, model.get("input_size") or ())),
        "parameters": None if params is None else f"{params:,}",
        "size": None if size is None else f"{size / 1e6:.2f} MB",
    }
    return _facts("The model", told)


def machine_table(machine: Mapping[str, Any]) -> Table:
    """The machine in short, as it was before; what it does not tell is left out."""
    facts = machine.get("before", machine)
    cpu, gpu, jetson = (facts.get(name) or {} for name in ("cpu", "gpu", "jetson"))
    versions = facts.get("versions") or {}
    told = {
        "processor": cpu.get("model"),
        "cores, usable of all": _of(cpu.get("cores_usable"), cpu.get("cores")),
        "CPU quota, cores": (facts.get("container") or {}).get("cpu_quota_cores"),
        "governor": cpu.get("governor"),
        "memory, MiB": (facts.get("memory") or {}).get("total_mib"),
        "GPU": gpu.get("name"),
        "compute capability": gpu.get("compute_capability"),
        "driver": gpu.get("driver"),
        "power limit, W": gpu.get("power_limit_w"),
        "board": jetson.get("model"),
        "power mode": jetson.get("power_mode"),
        "clocks fixed": None if jetson.get("clocks_fixed") is None else ("yes" if jetson["clocks_fixed"] else "no"),
        "system": facts.get("os"),
        "Python": facts.get("python"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return _facts("The machine", told)


def _of(part: Any, whole: Any) -> str | None:
    return None if part is None else f"{part} of {whole}"


def _facts(title: str, told: Mapping[str, Any]) -> Table:
    rows = tuple((name, str(value)) for name, value in told.items() if value not in {None, ""})
    return Table(title, ("what", "value"), rows, left=2)


def noise_table(noise: Mapping[str, Any]) -> Table:
    """What else went on while each row was timed, in percent of the time of the cores."""
    names = ("others_pct", "steal_pct", "held_back_pct")
    headings = ("row", "others %", "stolen %", "held back %", "load before", "load after", "remark")
    rows = tuple(
        (
            _row_name(row),
            *(one_decimal(found.get(name)) for name in names),
            *map(one_decimal, found.get("load") or (None, None)),
            "; ".join(found.get("reasons") or ()),
        )
        for row, found in noise.items()
    )
    return Table("Noise", headings, rows).without_empty_columns()


def _row_name(row: str) -> str:
    way, comma, batch = row.partition(",")
    return f"{way_name(way)}{comma}{batch}"


def latency(row: Row) -> str:
    """A headline with its interval, else in words why there is none and what was seen."""
    report = row.parts.get("end_to_end")
    if report is None:
        return UNKNOWN
    if row.headline_ms is not None:
        low, high = report.p50_interval_ms
        return f"{number(row.headline_ms)} ({number(low)} to {number(high)})"
    return f"{'disturbed' if report.stable else 'not stable'}: {windows_range(report)}"


def windows_range(report: LatencyReport) -> str:
    """The least and the largest mean of the last windows, ms."""
    low, high = window_limits_ms(report)
    return f"{number(low)} to {number(high)}"


def window_limits_ms(report: LatencyReport) -> tuple[float, float]:
    """The least and the largest trimmed mean of the windows that the report's figures stand on."""
    means = report.as_dict()["window_means_ms"][-report.settings.agreeing_windows :]
    return min(means), max(means)


def remark(row: Row) -> str:
    """Why there is no figure, what to try, and what else to know."""
    return "; ".join(text for text in (row.why_not, row.hint, *row.notes) if text)


def method(result: BenchmarkResult) -> Iterator[str]:
    """How the figures came about, from the settings that were used."""
    settings = result.settings
    yield (
        "Latency is the median end-to-end time of a call, host array in to host array out, by the monotonic clock; "
        "its 95 % interval is by order statistics, whatever the distribution."
    )
    yield (
        f"Windows of {settings.get('window_calls', UNKNOWN)} calls or more were timed until "
        f"{settings.get('agreeing_windows', UNKNOWN)} in a row agreed within "
        f"{settings.get('tolerance_pct', UNKNOWN)} %; those before them are the warm-up. A way "
        "with a figure was opened and timed again, once or twice: it stands only where all medians agree as well."
    )
    yield f"{settings.get('rotating_inputs', UNKNOWN)} different inputs took turns; each way ran alone."
    yield "Each way's answers were checked against the first way's before it was timed."
    if settings.get("device") == "cuda":
        yield (
            "PyTorch computed FP32 without TF32, channels first, and FP16 channels last; "
            "cuDNN chose its algorithms by timing them."
        )
    else:
        yield "PyTorch kept the memory that it freed: to get it anew for each call may double its times."
    yield "Memory is of opening, answering and being timed; torch.compile's has the compiling in it."
    if counts := sorted({found.images for found in result.accuracy.values()}):
        yield f"Accuracy was measured on {', '.join(map(str, counts))} images."
    yield (
        "A figure that was not stable, or was taken while others used the machine, is no headline: "
        "the range of its windows' means stands in its place, and no speed-up is made of it."
    )
