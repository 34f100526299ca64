"""Runs `compare_benchmarks`."""

from __future__ import annotations

import json

from app.jobs.context import JobContext
from app.schemas.kinds.compare_benchmarks import CompareBenchmarks, ComparisonMetrics
from app.toolkit.benchmark.comparing import compare
from app.toolkit.benchmark.comparison_text import comparison_markdown, verdict
from app.toolkit.benchmark.reading import load_benchmark


def run(parameters: CompareBenchmarks, context: JobContext) -> ComparisonMetrics:
    context.phase("compare", 0.1)
    before, after = (
        load_benchmark(context.input(f"{side}_path"), f"the benchmark {side}") for side in ("before", "after")
    )
    found = compare(before, after, tolerance=parameters.tolerance)
    document, table = found.as_dict(), comparison_markdown(found)
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    (context.workdir / "comparison.json").write_text(text, encoding="utf-8")
    (context.workdir / "comparison.md").write_text(table, encoding="utf-8")
    return ComparisonMetrics(verdict=verdict(found), regression=found.regression, comparison=document, table=table)
