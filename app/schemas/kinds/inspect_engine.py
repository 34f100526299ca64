"""`POST /optimizing/inspect_engine`: what an engine is, as far as header, manifest and TensorRT here tell."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from app.schemas.kind import Kind, Metrics, Parameters, Slot
from app.schemas.kinds._engine import Engine


class InspectEngine(Parameters):
    """Read an engine's header and manifest; with TensorRT of its version here, its tensors and layers too."""

    kind: Literal["inspect_engine"]
    input_path: Engine


class InspectMetrics(Metrics):
    """What was found."""

    engine: dict[str, Any] = Field(description="Header, manifest, inputs, outputs, memory, layers; why not more.")


KIND = Kind(
    parameters=InspectEngine,
    metrics=InspectMetrics,
    summary="Say what a TensorRT engine is: version, inputs, outputs, memory, layers, without loading strangers' files",
    example={
        "pid": "P0001",
        "parameters": {
            "kind": "inspect_engine",
            "input_path": "artifacts/P0001/optimizing/O0015/best_fp16.engine",
        },
    },
    slot=lambda _: Slot("light"),
    needs=("onnx",),
)
