"""`POST /optimizing/check_model_stats`: S0 section 5."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.schemas.common import InputFile
from app.schemas.kind import Kind, Metrics, Parameters


class CheckModelStats(Parameters):
    """Count what is in a model: file size, parameters, zeros."""

    kind: Literal["check_model_stats"]
    input_path: Annotated[
        str,
        InputFile(".pt", ".onnx", ".engine"),
        Field(min_length=1, description="Artifact key, or absolute path on the server."),
    ]


class StatsMetrics(Metrics):
    """What was counted."""

    stats: dict[str, Any] = Field(description="size_mb, total_params, nonzero_params, sparsity_pct.")
    model: dict[str, Any] = Field(description="What else the file tells: format, inputs, outputs, operators.")


KIND = Kind(
    parameters=CheckModelStats,
    metrics=StatsMetrics,
    summary="Count a model's size, parameters and zeros into `<stem>_stats.txt`",
    example={
        "pid": "P0001",
        "parameters": {
            "kind": "check_model_stats",
            "input_path": "artifacts/P0001/optimizing/O0001/best.pt",
        },
    },
    needs=("torch", "ultralytics", "onnx"),
)
