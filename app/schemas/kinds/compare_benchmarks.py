"""`POST /optimizing/compare_benchmarks`: what became slower between two benchmarks, answered at once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.schemas.common import InputFile
from app.schemas.kind import Kind, Metrics, Parameters, Slot

BenchmarkFile = Annotated[
    str,
    InputFile(".json"),
    Field(min_length=1, description="A benchmark job's `benchmark.json`: artifact key, or path on the server."),
]


class CompareBenchmarks(Parameters):
    """Put two benchmarks side by side."""

    kind: Literal["compare_benchmarks"]
    before_path: BenchmarkFile
    after_path: BenchmarkFile
    tolerance: float = Field(0.05, ge=0, le=1, description="Slower is from so much more time, as a part of one.")


class ComparisonMetrics(Metrics):
    """The answer, which lies beside it as `comparison.json` and `comparison.md`."""

    verdict: str
    regression: bool | None = Field(description="None where no row is slower, and some may be or none could be judged.")
    comparison: dict[str, Any] = Field(description="Each row with the time's ratio and its interval; warnings.")
    table: str = Field(description="The tables in Markdown.")


KIND = Kind(
    parameters=CompareBenchmarks,
    metrics=ComparisonMetrics,
    summary="Compare two benchmarks: each row's time ratio with its interval, regressions, S2's before and after",
    example={
        "pid": "P0001",
        "parameters": {
            "kind": "compare_benchmarks",
            "before_path": "artifacts/P0001/optimizing/O0021/benchmark.json",
            "after_path": "artifacts/P0001/optimizing/O0034/benchmark.json",
        },
    },
    slot=lambda _: Slot("light"),
    answers_at_once=True,
)
