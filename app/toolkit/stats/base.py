"""What is told of a model file, whatever its format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.toolkit.runtimes.base import TensorSpec

MAX_ROWS = 500
"""Rows of the table in `as_dict`, which becomes part of a job's record; the text has all."""


@dataclass(frozen=True)
class LayerStats:
    """One layer that holds parameters or multiplies.

    `shape` and `dtype` are its weight's, None where it has none. `macs` are those of one run, None where the sizes are
    not known.
    """

    name: str
    type: str
    shape: tuple[int, ...] | None
    dtype: str | None
    params: int
    nonzero: int
    macs: int | None

    @property
    def sparsity_pct(self) -> float | None:
        """The share of its parameters that are exactly zero, in percent; None where it has none."""
        return percent_of_zeros(self.params, self.nonzero) if self.params else None

    def as_dict(self) -> dict[str, Any]:
        """A row as JSON has it."""
        return {
            "name": self.name,
            "type": self.type,
            "weight_shape": None if self.shape is None else list(self.shape),
            "dtype": self.dtype,
            "params": self.params,
            "nonzero": self.nonzero,
            "sparsity_pct": self.sparsity_pct,
            "macs": self.macs,
        }


@dataclass(frozen=True)
class ModelStats:
    """One model file. Parameters are None where the format does not tell them (an engine).

    `layers` counts the layers (or operators) of each type. `macs` are the multiply-accumulates of one run on an input
    of `macs_input` ([N, C, H, W]), as `app.toolkit.macs` counts them.
    """

    path: Path
    format: str
    size_bytes: int
    total_params: int | None = None
    nonzero_params: int | None = None
    dtypes: dict[str, int] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    opset: int | None = None
    details: dict[str, str] = field(default_factory=dict)
    table: tuple[LayerStats, ...] = ()
    macs: int | None = None
    macs_input: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()
    manifest: dict[str, Any] | None = None

    @property
    def size_mb(self) -> float:
        """Megabytes of 10^6 bytes, two decimals."""
        return round(self.size_bytes / 1e6, 2)

    @property
    def sparsity_pct(self) -> float | None:
        """The share of parameters that are exactly zero, in percent, two decimals."""
        if self.total_params is None or self.nonzero_params is None:
            return None
        return percent_of_zeros(self.total_params, self.nonzero_params)

    @property
    def gmacs(self) -> float | None:
        """Billions of multiply-accumulates, three decimals. GFLOPs, where they are given, are twice that."""
        return None if self.macs is None else round(self.macs / 1e9, 3)

    def as_dict(self) -> dict[str, Any]:
        """S0's numbers under `stats`, the rest beside it; of the table at most MAX_ROWS rows."""
        return {
            "stats": {
                "size_mb": self.size_mb,
                "total_params": self.total_params,
                "nonzero_params": self.nonzero_params,
                "sparsity_pct": self.sparsity_pct,
            },
            "format": self.format,
            "dtypes": self.dtypes,
            "layers": self.layers,
            "inputs": [spec.as_dict() for spec in self.inputs],
            "outputs": [spec.as_dict() for spec in self.outputs],
            "opset": self.opset,
            "details": self.details,
            "macs": self.macs,
            "gmacs": self.gmacs,
            "macs_input": None if self.macs_input is None else list(self.macs_input),
            "layer_table": [layer.as_dict() for layer in self.table[:MAX_ROWS]],
            "layer_table_left_out": max(len(self.table) - MAX_ROWS, 0),
            "manifest": self.manifest,
            "notes": list(self.notes),
        }


def percent_of_zeros(total: int, nonzero: int) -> float:
    """100 * (1 - nonzero / total), two decimals; nothing has no zeros."""
    return round(100.0 * (1.0 - nonzero / total), 2) if total else 0.0


def count_by_dtype(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The sum of the sizes of each dtype, the largest first."""
    counts: Counter[str] = Counter()
    for dtype, size in sizes:
        counts[dtype] += size
    return dict(counts.most_common())
