"""`POST /optimizing/onnx_to_trt`: S0 section 6."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from app.schemas.common import OutputFile
from app.schemas.kind import Kind
from app.schemas.kinds._engine import MACHINES, NEEDS, BuildParameters, DynamicSize, EngineMetrics, build_slot


class OnnxToTrt(BuildParameters, DynamicSize):
    """Build a TensorRT engine in FP32 or FP16, on this machine and for it."""

    kind: Literal["onnx_to_trt"]
    output_path: Annotated[str, OutputFile(".engine", "{stem}_{precision}.engine")] | None = Field(
        None, description="Name of the engine; `<stem>_<precision>.engine` where left out."
    )
    precision: Literal["fp32", "fp16"]

    @model_validator(mode="after")
    def _dla_precision(self) -> OnnxToTrt:
        if self.device != "gpu" and self.precision == "fp32":
            raise ValueError("precision: a DLA computes in fp16 or int8, not in fp32")
        return self


KIND = Kind(
    parameters=OnnxToTrt,
    metrics=EngineMetrics,
    summary="Build a TensorRT engine (FP32, FP16) for the GPU or a DLA core, with its manifest",
    example={
        "pid": "P0001",
        "parameters": {
            "kind": "onnx_to_trt",
            "input_path": "artifacts/P0001/optimizing/O0014/best.onnx",
            "precision": "fp16",
            "device": "gpu",
        },
    },
    slot=build_slot,
    needs=NEEDS,
    lacking=MACHINES,
)
