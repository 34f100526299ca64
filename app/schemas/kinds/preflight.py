"""`POST /optimizing/preflight`: what can be known of a build before it starts, answered at once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from app.schemas.kind import Kind, Metrics, Slot
from app.schemas.kinds._engine import BuildParameters, DynamicSize


class PreflightParameters(BuildParameters, DynamicSize):
    """Look at a build before it starts: what TensorRT will refuse, shapes, the DLA, memory."""

    kind: Literal["preflight"]
    precision: Literal["fp32", "fp16", "int8"] = "fp16"
    tensorrt: str | None = Field(
        None, pattern=r"^[0-9]{1,2}(\.[0-9]{1,3}){0,3}$", description="The release that will build; this machine's."
    )


class PreflightMetrics(Metrics):
    """What was seen."""

    verdict: str
    ok: bool
    preflight: dict[str, Any] = Field(
        description="Problems and warnings with where and what instead; shapes, DLA, memory, lint."
    )


KIND = Kind(
    parameters=PreflightParameters,
    metrics=PreflightMetrics,
    summary="Say in under a second what will become of a TensorRT build: refused nodes, shapes, DLA, memory",
    example={
        "pid": "P0001",
        "parameters": {
            "kind": "preflight",
            "input_path": "artifacts/P0001/optimizing/O0014/best.onnx",
            "precision": "fp16",
            "device": "dla0",
        },
    },
    slot=lambda _: Slot("light"),
    needs=("onnx",),
    reusable=False,
    answers_at_once=True,
)
