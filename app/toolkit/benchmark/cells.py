"""Numbers and names of a benchmark as a person reads them, and the table that the Markdown and the page share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

UNKNOWN = "-"

WAY_NAMES = {
    "torch_fp32": "PyTorch FP32",
    "torch_fp16": "PyTorch FP16",
    "torch_compile": "torch.compile",
    "torch_fp16_graph": "PyTorch FP16, CUDA graph",
    "torch_fp16_compile_graph": "torch.compile FP16, CUDA graph",
    "onnxruntime": "ONNX Runtime",
    "onnxruntime_int8": "ONNX Runtime INT8",
    "tensorrt_fp16": "TensorRT FP16",
    "tensorrt_int8": "TensorRT INT8",
}


@dataclass(frozen=True)
class Table:
    """Cells as they are read. The first `left` columns hold words, and so does the last of a table with remarks."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Which columns are aligned to the right."""
        return tuple(self.left <= index and name != "remark" for index, name in enumerate(self.headings))

    def without_empty_columns(self) -> Table:
        """Without the columns of numbers or remarks that nothing is known of."""
        kept = [
            index
            for index in range(len(self.headings))
            if index < self.left or any(row[index] not in {"", UNKNOWN} for row in self.rows)
        ]
        rows = tuple(tuple(row[index] for index in kept) for row in self.rows)
        return Table(self.title, tuple(self.headings[index] for index in kept), rows, self.left)

    def markdown(self) -> str:
        """A heading and the table, in GitHub's dialect."""
        rule = ["---:" if number else "---" for number in self.numeric]
        lines = [self.headings, rule, *self.rows]
        return f"## {escaped(self.title)}\n\n" + "\n".join(
            f"| {' | '.join(cell if line is rule else escaped(cell) for cell in line)} |" for line in lines
        )


def escaped(text: str) -> str:
    """Text that Markdown takes as it is: names and reasons come from files that are not ours."""
    for character in "\\`*_[]<>|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def way_name(way: str) -> str:
    """S1's words for a way."""
    return WAY_NAMES.get(way, way)


def number(value: float | None) -> str:
    """Four significant digits, whole from a thousand on."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")


def one_decimal(value: float | None) -> str:
    """A percentage or a load."""
    return UNKNOWN if value is None else f"{value:.1f}"


def share(value: float | None) -> str:
    """An accuracy, 0..1, as S1 writes it."""
    return UNKNOWN if value is None else f"{value:.3f}"


def times(value: float | None) -> str:
    """A speed-up, 1x being none."""
    return UNKNOWN if value is None else f"{value:.3g}x"


def change(before: float | None, after: float | None) -> str:
    """What became of a number, in percent of it."""
    percent = change_pct(before, after)
    return UNKNOWN if percent is None else f"{percent:+.1f} %"


def change_pct(before: float | None, after: float | None) -> float | None:
    """After over before, less one, in percent; None where it is not known."""
    if before is None or after is None or before == 0:
        return None
    return 100 * (after / before - 1)


def before_after(
    title: str, before: str, after: str, figures: Sequence[tuple[str, float | None, float | None]]
) -> Table:
    """S2's table of (what, before, after), with the change in percent; what neither side knows is left out."""
    rows = tuple(
        (name, number(first), number(second), change(first, second))
        for name, first, second in figures
        if first is not None or second is not None
    )
    return Table(title, ("", before, after, "change"), rows)
