"""trtexec's performance summary: what a timed run of the engine printed at its end.

11.x flips what is timed (CUDA graph and spin-wait on, transfers off by default), so its figures do not compare with
those of 10.x.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ROWS = {
    "Latency": "latency_ms",
    "Enqueue Time": "enqueue_ms",
    "H2D Latency": "h2d_ms",
    "GPU Compute Time": "gpu_compute_ms",
    "D2H Latency": "d2h_ms",
}
ROW = re.compile(rf"({'|'.join(ROWS)}): (min = .+)")
FIGURE = re.compile(r"(?P<name>min|max|mean|median|percentile\((?P<rank>[\d.]+)%\)) = (?P<value>[-+.\deE]+|nan|inf) ms")
TOTALS = {
    "throughput_qps": re.compile(r"Throughput: ([\d.eE+-]+) qps"),
    "host_walltime_s": re.compile(r"Total Host Walltime: ([\d.eE+-]+) s"),
    "gpu_compute_s": re.compile(r"Total GPU Compute Time: ([\d.eE+-]+) s"),
    "unstable_pct": re.compile(r"\* .+ is unstable, with coefficient of variance = ([\d.eE+-]+)%"),
}


@dataclass(frozen=True)
class Performance:
    """`totals`: `throughput_qps` (inferences a second) and the run's length. `rows`: for each of `latency_ms`,
    `enqueue_ms`, `h2d_ms`, `gpu_compute_ms` and `d2h_ms` its `min`, `max`, `mean`, `median` and percentiles (`p99`)."""

    totals: Mapping[str, float]
    rows: Mapping[str, Mapping[str, float]]

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {**self.totals, **{name: dict(row) for name, row in self.rows.items()}}


class PerformanceReader:
    """Collects while lines come."""

    def __init__(self) -> None:
        self._totals: dict[str, float] = {}
        self._rows: dict[str, dict[str, float]] = {}

    def feed(self, text: str) -> None:
        """One message, without its date and severity."""
        if row := ROW.match(text):
            self._rows[ROWS[row[1]]] = {
                f"p{one['rank']}" if one["rank"] else one["name"]: float(one["value"])
                for one in FIGURE.finditer(row[2])
            }
            return
        for name, pattern in TOTALS.items():
            if total := pattern.match(text):
                self._totals[name] = float(total[1])

    def performance(self) -> Performance | None:
        """None where nothing was timed."""
        return Performance(self._totals, self._rows) if self._rows else None
