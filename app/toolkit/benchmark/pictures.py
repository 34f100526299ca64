"""A benchmark's pictures: latency by way, throughput by batch size, accuracy against latency.

A way has the same colour in all of them. What is no headline is drawn hollow, by the middle of its windows' means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from app.toolkit.benchmark.cells import number, way_name
from app.toolkit.benchmark.request import WAYS
from app.toolkit.benchmark.result import Accuracy, BenchmarkResult, Row
from app.toolkit.benchmark.tables import at_smallest_batch, window_limits_ms
from app.toolkit.plotting import DPI, FAINT, GRID, TEXT, new_figure, png_of

COLOURS = ("#4d5b69", "#2f6fb3", "#7fb2e5", "#6b4fa0", "#b09ad6", "#1b8a6b", "#74c9ae", "#d9730d", "#f0b03f")
"""One for each of WAYS, by family: PyTorch grey and blue, CUDA graphs violet, ONNX Runtime green, TensorRT orange."""

WIDTH_IN, HEIGHT_IN = 8.0, 4.6
BAR_IN, MARGIN_IN = 0.42, 1.0
ROOM = 1.25
"""The axis of latencies is so much longer than its longest bar, for the number behind it."""


@dataclass(frozen=True)
class _Point:
    """One row's latency in ms: what is drawn and the interval around it."""

    way: str
    batch_size: int
    ms: float
    low_ms: float
    high_ms: float
    is_headline: bool

    @property
    def images_per_second(self) -> float:
        return 1000 * self.batch_size / self.ms


def benchmark_pictures(result: BenchmarkResult) -> dict[str, bytes]:
    """PNGs by name: "latency", "throughput", "accuracy", those that there is something to draw for.

    The same bytes for the same result and the same matplotlib.
    """
    points = list(_points(result.rows))
    first = list(_points(at_smallest_batch(result)))
    drawn: dict[str, bytes] = {}
    if first:
        drawn["latency"] = _latency_png(first)
    if len({point.batch_size for point in points}) > 1:
        drawn["throughput"] = _throughput_png(points)
    measure = _measure_of(result)
    pairs = [(point, value) for point in first if (value := measure.of(result.accuracy.get(point.way))) is not None]
    if pairs:
        drawn["accuracy"] = _accuracy_png(pairs, measure.name)
    return drawn


def _points(rows: Sequence[Row]) -> Iterator[_Point]:
    for row in rows:
        report = row.parts.get("end_to_end")
        if report is None:
            continue
        if row.headline_ms is not None:
            yield _Point(row.way, row.batch_size, row.headline_ms, *report.p50_interval_ms, True)
        else:
            low, high = window_limits_ms(report)
            yield _Point(row.way, row.batch_size, (low + high) / 2, low, high, False)


@dataclass(frozen=True)
class _Measure:
    name: str
    of: Callable[[Accuracy | None], float | None]


def _measure_of(result: BenchmarkResult) -> _Measure:
    """mAP@50:95 where any way has it, else top-1."""
    if any(found.map50_95 is not None for found in result.accuracy.values()):
        return _Measure("mAP@50:95", lambda found: None if found is None else found.map50_95)
    return _Measure("top-1 accuracy", lambda found: None if found is None else found.top1)


def _latency_png(points: Sequence[_Point]) -> bytes:
    """Bars with their 95 % intervals, in the order of the table."""
    height = MARGIN_IN + BAR_IN * len(points)
    figure, canvas = new_figure(WIDTH_IN, height)
    axes = figure.subplots()
    right = max(point.high_ms for point in points) * ROOM
    for place, point in enumerate(points):
        axes.barh(place, point.ms, height=0.66, **_fill(point))
        around = [[point.ms - point.low_ms], [point.high_ms - point.ms]]
        axes.errorbar(point.ms, place, xerr=around, color=TEXT, linewidth=1, capsize=3)
        axes.text(point.high_ms + right * 0.012, place, _label(point), va="center", fontsize=8.5, color=TEXT)
    axes.set_xlim(0, right)
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.set_yticks(range(len(points)), [way_name(point.way) for point in points])
    _plain(axes, _heading(f"latency at batch {points[0].batch_size}, ms", points), "x")
    renderer = canvas.get_renderer()
    names = max(label.get_window_extent(renderer).width for label in axes.get_yticklabels()) / DPI
    figure.subplots_adjust((names + 0.25) / WIDTH_IN, 0.3 / height, 0.98, 1 - 0.5 / height)
    return png_of(canvas)


def _label(point: _Point) -> str:
    return number(point.ms) if point.is_headline else f"{number(point.low_ms)} to {number(point.high_ms)}"


def _throughput_png(points: Sequence[_Point]) -> bytes:
    """Images a second by batch size, a line a way."""
    figure, canvas = new_figure(WIDTH_IN, HEIGHT_IN)
    axes = figure.subplots()
    for way in dict.fromkeys(point.way for point in points):
        line = [point for point in points if point.way == way]
        sizes = [point.batch_size for point in line]
        axes.plot(sizes, [point.images_per_second for point in line], color=_colour(way), linewidth=1.6, zorder=2)
        for point in line:
            axes.plot(point.batch_size, point.images_per_second, "o", markersize=6, zorder=3, **_marker(point))
        axes.plot([], [], "o-", color=_colour(way), label=way_name(way))
    axes.set_xscale("log", base=2)
    sizes = sorted({point.batch_size for point in points})
    axes.set_xticks(sizes, map(str, sizes))
    axes.minorticks_off()
    axes.set_ylim(0, max(point.images_per_second for point in points) * 1.08)
    axes.set_xlabel("batch size", fontsize=9, color=TEXT)
    _plain(axes, _heading("images a second", points), "both")
    axes.legend(fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1), labelcolor=TEXT)
    figure.subplots_adjust(0.08, 0.11, 0.69, 0.92)
    return png_of(canvas)


def _accuracy_png(pairs: Sequence[tuple[_Point, float]], measure: str) -> bytes:
    """Up and to the left is better; ringed and joined are those that no other beats in both."""
    figure, canvas = new_figure(WIDTH_IN, HEIGHT_IN)
    axes = figure.subplots()
    front = pareto_front([(point.ms, value) for point, value in pairs if point.is_headline])
    if front:
        style = {"linestyle": "--", "linewidth": 1.2, "marker": "o", "markersize": 13, "markerfacecolor": "none"}
        axes.plot(*zip(*front, strict=True), color=FAINT, zorder=1, label="Pareto front", **style)
    for point, value in pairs:
        axes.plot(point.ms, value, "o", markersize=8, zorder=3, label=way_name(point.way), **_marker(point))
    values = [value for _, value in pairs]
    room = max(0.15 * (max(values) - min(values)), 0.005)
    axes.set_ylim(min(values) - room, max(values) + room)
    axes.set_xlim(0, max(point.ms for point, _ in pairs) * 1.08)
    points = [point for point, _ in pairs]
    axes.set_xlabel(f"latency at batch {points[0].batch_size}, ms", fontsize=9, color=TEXT)
    axes.locator_params(axis="y", nbins=7, steps=[1, 2, 5, 10])
    axes.yaxis.set_major_formatter("{x:.3f}")
    _plain(axes, _heading(measure, points), "both")
    axes.legend(fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1), labelcolor=TEXT)
    figure.subplots_adjust(0.08, 0.11, 0.69, 0.92)
    return png_of(canvas)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (latency, accuracy), those that none is both faster and more accurate than, the fastest first."""
    front: list[tuple[float, float]] = []
    for ms, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((ms, value))
    return front


def _heading(text: str, points: Sequence[_Point]) -> str:
    hollow = any(not point.is_headline for point in points)
    return f"{text} (hollow: not stable or disturbed)" if hollow else text


def _colour(way: str) -> str:
    names: Sequence[str] = WAYS
    return COLOURS[names.index(way)] if way in names else FAINT


def _fill(point: _Point) -> dict[str, Any]:
    colour = _colour(point.way)
    return {"facecolor": colour if point.is_headline else "white", "edgecolor": colour, "linewidth": 1.4}


def _marker(point: _Point) -> dict[str, Any]:
    colour = _colour(point.way)
    return {
        "markerfacecolor": colour if point.is_headline else "white",
        "markeredgecolor": colour,
        "color": colour,
        "linestyle": "none",
    }


def _plain(axes: Any, heading: str, grid: str) -> None:
    axes.set_title(heading, fontsize=10, color=TEXT, loc="left", fontweight="bold", pad=10)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.tick_params(axis="both", length=0, labelsize=8.5, labelcolor=TEXT)
    for name, spine in axes.spines.items():
        spine.set_visible(name in {"left", "bottom"})
        spine.set_color(FAINT)
