"""A picture of a model's layers: where its work is, and where its zeros are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.toolkit.plotting import DPI, FAINT, GRID, TEXT, any_letters, new_figure, png_of
from app.toolkit.stats.base import LayerStats, ModelStats, percent_of_zeros
from app.toolkit.stats.text import shortened

TOP = 40
"""Layers that get a bar of their own; the rest share one."""

MAX_NAME = 44
WIDTH_IN, ROW_IN = 10.0, 0.2
TOP_IN, BOTTOM_IN = 0.62, 0.12
ROOM = 1.14
"""An axis is so much longer than its longest bar, for the number behind it."""

WORK, ZEROS, REST = "#2f6fb3", "#d9730d", "#9aa5b1"


@dataclass(frozen=True)
class _Bar:
    """One row of the picture: `share` and `zeros` in percent, `zeros` None where there is nothing to be zero."""

    label: str
    share: float
    zeros: float | None
    is_rest: bool = False


def layers_png(stats: ModelStats) -> bytes | None:
    """Bars by layer, in the network's order: the share of the MACs (of the parameters where no MACs are known), and
    the percentage of weights that are zero. The bytes of a PNG, the same for the same stats and the same matplotlib.

    Drawn are the layers with a weight of two axes or more, and what multiplies besides; the TOP with the largest
    shares get a bar of their own. None where there is no such layer (an engine).
    """
    bars = _bars(stats)
    if not bars:
        return None
    height = TOP_IN + BOTTOM_IN + ROW_IN * len(bars)
    figure, canvas = new_figure(WIDTH_IN, height)
    work, zeros = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_work(work, bars, stats)
    _draw_zeros(zeros, bars, stats)
    with any_letters():
        renderer = canvas.get_renderer()
        names = max(label.get_window_extent(renderer).width for label in work.get_yticklabels()) / DPI
        left, right = (names + 0.2) / WIDTH_IN, 1 - 0.15 / WIDTH_IN
        figure.subplots_adjust(left, BOTTOM_IN / height, right, 1 - TOP_IN / height, wspace=0.06)
    return png_of(canvas)


def _bars(stats: ModelStats) -> list[_Bar]:
    drawn = [layer for layer in stats.table if layer.macs or (layer.shape is not None and len(layer.shape) > 1)]
    sizes = [_size(layer, stats) for layer in drawn]
    whole = (stats.total_params if stats.macs is None else stats.macs) or 1
    ranked = sorted(range(len(drawn)), key=lambda index: -sizes[index])
    # One layer left over gets its own bar too: "1 other layer" would take its place and say less.
    top = sorted(ranked) if len(drawn) <= TOP + 1 else sorted(ranked[:TOP])
    bars = [_Bar(drawn[i].name, 100 * sizes[i] / whole, drawn[i].sparsity_pct) for i in top]
    rest = [drawn[index] for index in sorted(set(ranked) - set(top))]
    if rest:
        share = 100 * sum(_size(layer, stats) for layer in rest) / whole
        bars.append(_Bar(f"{len(rest)} other layers", share, _zeros_of(rest), is_rest=True))
    return bars


def _size(layer: LayerStats, stats: ModelStats) -> int:
    return layer.params if stats.macs is None else layer.macs or 0


def _zeros_of(layers: Sequence[LayerStats]) -> float | None:
    params = sum(layer.params for layer in layers)
    return percent_of_zeros(params, sum(layer.nonzero for layer in layers)) if params else None


def _draw_work(axes: Any, bars: Sequence[_Bar], stats: ModelStats) -> None:
    whole, unit = (stats.total_params, "parameters") if stats.macs is None else (stats.macs, "MACs")
    widest = max(bar.share for bar in bars if not bar.is_rest) or 1.0
    _prepare(axes, bars, f"{unit}, % of {_short(whole or 0)}", widest * ROOM)
    axes.set_yticks(range(len(bars)), [shortened(bar.label, MAX_NAME) for bar in bars])
    axes.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a name with dollars is no formula
    for row, bar in enumerate(bars):
        if bar.is_rest:  # a bar of what is many layers together would dwarf those that are drawn
            _note(axes, row, 0, widest * ROOM, f"{bar.share:.1f} together")
            continue
        axes.barh(row, bar.share, height=0.7, color=WORK)
        _note(axes, row, bar.share, widest * ROOM, f"{bar.share:.1f}")


def _draw_zeros(axes: Any, bars: Sequence[_Bar], stats: ModelStats) -> None:
    _prepare(axes, bars, f"zeros, % (in all {stats.sparsity_pct or 0:g})", 100 * ROOM)
    axes.set_xticks(range(0, 101, 25))
    axes.set_yticks([])
    for row, bar in enumerate(bars):
        if bar.zeros is None:
            _note(axes, row, 0, 100 * ROOM, "no weights")
            continue
        axes.barh(row, bar.zeros, height=0.7, color=REST if bar.is_rest else ZEROS)
        _note(axes, row, bar.zeros, 100 * ROOM, f"{bar.zeros:.1f}" if bar.zeros else "0")


def _prepare(axes: Any, bars: Sequence[_Bar], heading: str, right: float) -> None:
    axes.set_xlim(0, right)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.tick_params(axis="both", length=0, labelsize=8, labelcolor=TEXT)
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", labelcolor=FAINT, pad=1)
    axes.set_xlabel(heading, fontsize=9.5, color=TEXT, loc="left", labelpad=6, fontweight="bold")
    axes.xaxis.set_label_position("top")
    for name, spine in axes.spines.items():
        spine.set_visible(name == "left")
        spine.set_color(FAINT)


def _note(axes: Any, row: int, value: float, right: float, text: str) -> None:
    color = FAINT if text == "0" else TEXT
    axes.text(value + right * 0.01, row, text, va="center_baseline", ha="left", fontsize=7.5, color=color)


def _short(number: int) -> str:
    """1234567 as 1.23 M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return str(number)
