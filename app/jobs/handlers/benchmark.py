"""Runs `benchmark`."""

from __future__ import annotations

from typing import Any

from app.jobs.context import JobContext
from app.schemas.kinds.benchmark import Benchmark, BenchmarkMetrics
from app.toolkit.benchmark.pipeline import benchmark
from app.toolkit.benchmark.request import WAYS, BenchmarkRequest
from app.toolkit.benchmark.tables import benchmark_markdown
from app.toolkit.benchmark.writing import write_benchmark

MEASURED = 0.95
"""The part of a job's progress that is behind it when everything is timed."""


def run(parameters: Benchmark, context: JobContext) -> BenchmarkMetrics:
    result = benchmark(_request(parameters, context), lambda name, part: context.phase(name, MEASURED * part))
    write_benchmark(result, context.workdir)
    document: dict[str, Any] = result.as_dict()
    kept = ("stable", "rows", "accuracy", "model", "machine", "noise", "notes")
    return BenchmarkMetrics(table=benchmark_markdown(result), **{name: document[name] for name in kept})


def _request(parameters: Benchmark, context: JobContext) -> BenchmarkRequest:
    given, calibration = context.images("data"), context.images("calib_dir")
    return BenchmarkRequest(
        model=context.input("input_path"),
        folder=context.workdir,
        ways=WAYS if parameters.ways == "all" else parameters.ways,
        batch_sizes=parameters.batch_sizes,
        device="cuda" if parameters.device == "gpu" else "cpu",
        input_size=parameters.input_size,
        images=given[0] if given else None,
        annotations=context.annotations("data"),
        sample=given[1] if given else None,
        calibration=calibration[0] if calibration else None,
        int8=context.optional_input("int8_path"),
        threads=context.threads,
        trusted=context.options["trust_checkpoints"],
        name=parameters.input_path,
        num_queries=parameters.num_queries,
    )
