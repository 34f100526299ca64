"""Results of benchmarks made by hand, for what is written from them. S1's figures where S1 has them."""

from __future__ import annotations

from typing import Any

from app.toolkit.benchmark.result import Accuracy, Agreement, BenchmarkResult, Row
from app.toolkit.latency import LatencyReport, LatencySettings

MACHINE = {
    "cpu": {"model": "A processor", "cores": 8, "cores_usable": 2, "governor": None},
    "memory": {"total_mib": 7900},
    "container": {"cpu_quota_cores": None},
    "os": "Debian 12",
    "python": "3.11.14",
    "architecture": "x86_64",
    "versions": {"torch": "2.9.1", "onnxruntime": "1.23.2"},
    "gpu": None,
    "jetson": None,
}
SETTINGS = LatencySettings()
RUNNER_NOTE = "onnxruntime 1.23.2, 2 threads"
"""What a way says of itself, which is no reason for anything."""

DISTURBANCE = "others used 40 % of the 2 cores' time (limit 5 %)"
BATCHES = {1: 55.04, 2: 61.60, 4: 103.03, 8: 197.22, 16: 387.87}
"""S1's batch table: ms by batch size."""


def report(p50_ms: float, *, spread: float = 0.01, stable: bool = True) -> LatencyReport:
    """A report whose interval and windows lie `spread` around the p50."""
    low, high = p50_ms * (1 - spread), p50_ms * (1 + spread)
    windows = ((p50_ms * 3,) * 20, (low,) * 20, (p50_ms,) * 20, (high,) * 20)
    return LatencyReport(p50_ms, high, high, high, p50_ms, (low, high), stable, windows, SETTINGS)


def timed(way: str, batch_size: int, p50_ms: float, *, spread: float = 0.01, **more: Any) -> Row:
    """A row with a headline; `first_ms` gives it a speed-up."""
    first_ms = more.pop("first_ms", None)
    return Row(
        way,
        batch_size,
        headline_ms=p50_ms,
        images_per_second=1000 * batch_size / p50_ms,
        speedup=None if first_ms is None else first_ms / p50_ms,
        parts={"end_to_end": report(p50_ms, spread=spread)},
        **more,
    )


def unstable(way: str, batch_size: int, p50_ms: float) -> Row:
    return Row(way, batch_size, parts={"end_to_end": report(p50_ms, spread=0.2, stable=False)})


def disturbed(way: str, batch_size: int, p50_ms: float) -> Row:
    return Row(way, batch_size, parts={"end_to_end": report(p50_ms)}, notes=(RUNNER_NOTE, DISTURBANCE))


def lacking(way: str, batch_size: int = 1) -> Row:
    return Row(way, batch_size, why_not="TensorRT is not installed | here", hint="install tensorrt")


def benchmark_of(*rows: Row, accuracy: dict[str, Accuracy] | None = None, **changes: Any) -> BenchmarkResult:
    """A result of these rows."""
    given: dict[str, Any] = {
        "model": {
            "name": "dfine_x.pt",
            "family": "dfine",
            "task": "detect",
            "input_size": [640, 640],
            "size_bytes": 42_000_000,
            "params": 3_012_213,
        },
        "rows": rows,
        "accuracy": accuracy or {},
        "machine": {"before": MACHINE, "after": MACHINE},
        "noise": {
            f"{row.way}, batch {row.batch_size}": {
                "others_pct": 0.4,
                "steal_pct": 0.0,
                "held_back_pct": None,
                "load": [0.9, 1.1],
                "reasons": [note for note in row.notes if note == DISTURBANCE],
            }
            for row in rows
            if row.parts
        },
        "settings": {**vars(SETTINGS), "rotating_inputs": 8, "device": "cpu"},
        "seconds": {row.way: 1.5 for row in rows},
    }
    return BenchmarkResult(**{**given, **changes})


def s1_table(**changes: Any) -> BenchmarkResult:
    """S1's table and batch table, with a way that was unstable, one that was disturbed and one that is lacking."""
    good = Agreement(True, {"boxes": 0.012, "scores": 0.0004}, {"boxes": 0.5, "scores": 0.01})
    return benchmark_of(
        timed("torch_fp32", 1, 71.20, first_ms=71.20, device_peak_mib=900.0, agreement=good),
        *(
            timed("torch_fp16", size, ms, first_ms=71.20 if size == 1 else None, device_peak_mib=400.0 + 90 * size)
            for size, ms in BATCHES.items()
        ),
        unstable("torch_compile", 1, 59.87),
        disturbed("onnxruntime", 1, 64.99),
        timed("tensorrt_fp16", 1, 12.98, first_ms=71.20, device_peak_mib=150.0),
        timed("tensorrt_fp16", 2, 21.4),
        timed("tensorrt_fp16", 4, 39.9),
        Row("tensorrt_fp16", 8, why_not="out of memory at batch 8", hint="take a smaller batch"),
        lacking("tensorrt_int8"),
        accuracy={
            "torch_fp32": Accuracy(100, 0.684, 0.572),
            "torch_fp16": Accuracy(100, 0.682, 0.574),
            "torch_compile": Accuracy(100, 0.684, 0.572),
            "onnxruntime": Accuracy(100, 0.684, 0.5719),
            "tensorrt_fp16": Accuracy(100, 0.682, 0.565),
        },
        **changes,
    )
