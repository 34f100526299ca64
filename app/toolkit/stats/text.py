"""The text of `<stem>_stats.txt`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from app.toolkit.stats.base import LayerStats, ModelStats

WIDTH = 120
"""Columns of the table; a name that would not fit loses its middle, which tells the least."""

MIN_NAME = 24
MAX_TYPE = 16
HEADINGS = ("layer", "type", "weight", "dtype", "params", "nonzero", "zero %", "MACs")
LEFT = 4
"""Columns that are aligned to the left; the others hold numbers."""


def stats_text(stats: ModelStats) -> str:
    """One `key: value` a line, how many layers there are of each type, then every layer in a table."""
    lines = [f"file: {stats.path.name}", f"format: {stats.format}"]
    for key, value in stats.as_dict()["stats"].items():
        lines.append(f"{key}: {'unknown' if value is None else value}")
    if stats.opset is not None:
        lines.append(f"opset: {stats.opset}")
    lines += [f"{key}: {value}" for key, value in stats.details.items()]
    for label, specs in (("input", stats.inputs), ("output", stats.outputs)):
        lines += [f"{label}: {spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs]
    lines += [f"parameters as {dtype}: {count}" for dtype, count in stats.dtypes.items()]
    if stats.layers:
        lines += ["", "layers:", *(f"  {name}: {count}" for name, count in stats.layers.items())]
    lines += ["", *_work(stats), *_notes(stats)]
    if stats.manifest:
        lines += ["", "manifest:", *(f"  {key}: {value}" for key, value in stats.manifest.items())]
    if stats.table:
        lines += ["", *table_lines(stats.table)]
    return "\n".join(lines) + "\n"


def _notes(stats: ModelStats) -> list[str]:
    return [line for note in stats.notes for line in textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent="  ")]


def _work(stats: ModelStats) -> list[str]:
    if stats.macs is None:
        return ["macs: unknown"]
    return [f"macs: {stats.macs}", f"gmacs: {stats.gmacs}", f"macs_input: {list(stats.macs_input or ())}"]


def table_lines(layers: Sequence[LayerStats]) -> list[str]:
    """A heading, a rule, a line for each layer, and the sums; columns aligned, at most WIDTH wide."""
    rows = [HEADINGS, *(_cells(layer) for layer in layers), _sums(layers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    others = sum(widths[1:]) + 2 * (len(HEADINGS) - 1)
    widths[0] = min(widths[0], max(WIDTH - others, MIN_NAME))
    lines = [_line(row, widths) for row in rows]
    rule = "-" * (sum(widths) + 2 * (len(HEADINGS) - 1))
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def _cells(layer: LayerStats) -> tuple[str, ...]:
    return (
        layer.name,
        shortened(layer.type, MAX_TYPE),
        "-" if layer.shape is None else "x".join(map(str, layer.shape)) or "scalar",
        layer.dtype or "-",
        str(layer.params),
        str(layer.nonzero),
        "-" if layer.sparsity_pct is None else f"{layer.sparsity_pct:.2f}",
        "?" if layer.macs is None else str(layer.macs),
    )


def _sums(layers: Sequence[LayerStats]) -> tuple[str, ...]:
    macs = None if any(layer.macs is None for layer in layers) else sum(layer.macs or 0 for layer in layers)
    total = LayerStats(
        f"{len(layers)} in all", "", (), "", sum(one.params for one in layers), sum(o.nonzero for o in layers), macs
    )
    name, _, _, _, *numbers = _cells(total)
    return (name, "", "", "", *numbers)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        shortened(cell, width).ljust(width) if column < LEFT else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def shortened(name: str, length: int) -> str:
    """A name of at most `length` characters that all show: its middle, where it is too long, is three dots."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    if len(name) <= length:
        return name
    tail = (length - 3) * 2 // 3
    return f"{name[: length - 3 - tail]}...{name[len(name) - tail :]}"
