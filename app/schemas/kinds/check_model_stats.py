"""`POST /optimizing/check_model_stats`: S0 section 5."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.schemas.common import InputFile
from app.schemas.kind import Kind, Metrics, Parameters


class CheckModelStats(Parameters):
    """Count what is in a model: file size, parameters, zeros, and the work of each layer."""

    kind: Literal["check_model_stats"]
    input_path: Annotated[
        str,
        InputFile(".pt", ".onnx", ".engine", companion="{stem}_manifest.json"),
        Field(min_length=1, description="Artifact key, or absolute path on the server."),
    ]


class StatsMetrics(Metrics):
    """What was counted."""

    stats: dict[str, Any] = Field(
        description="size_mb (10^6 bytes), total_params, nonzero_params, sparsity_pct; all but the first are null for "
        "an engine, whose header tells no more."
    )
    model: dict[str, Any] = Field(
        description="What else the file tells. format; dtypes (parameters of each); layers (how many of each type or "
        "operator); inputs and outputs (name, dtype, shape); opset; details; macs (multiply-accumulates of one run; "
        "null where the sizes are not known), gmacs (in billions) and macs_input (the input they are for); "
        "layer_table, by layer in the network's order: name, type, weight_shape, dtype, params, nonzero, "
        "sparsity_pct, macs; layer_table_left_out (rows after the first 500, which `<stem>_stats.txt` has); manifest "
        "(of an engine, where `<stem>_manifest.json` lies beside it); notes."
    )


KIND = Kind(
    parameters=CheckModelStats,
    metrics=StatsMetrics,
    summary="Count a model's size, parameters, zeros and work, layer by layer: `<stem>_stats.txt` and `.png`",
    example={
        "pid": "P0001",
        "parameters": {
            "kind": "check_model_stats",
            "input_path": "artifacts/P0001/optimizing/O0001/best.pt",
        },
    },
    needs=("torch", "ultralytics", "timm", "onnx", "matplotlib"),
)
