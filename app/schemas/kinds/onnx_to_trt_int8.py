"""`POST /optimizing/onnx_to_trt_int8`: S0 section 7."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.schemas.common import ImageFolder, ImageSize, InputFile, OutputFile
from app.schemas.kind import Kind
from app.schemas.kinds._engine import MACHINES, NEEDS, BuildParameters, EngineMetrics, build_slot


class OnnxToTrtInt8(BuildParameters):
    """Build an INT8 TensorRT engine, calibrated on images, or from an ONNX that is quantised already."""

    kind: Literal["onnx_to_trt_int8"]
    output_path: Annotated[str, OutputFile(".engine", "{stem}_int8.engine")] | None = Field(
        None, description="Name of the engine; `<stem>_int8.engine` where left out."
    )
    calib_dir: Annotated[str, ImageFolder(), Field(min_length=1)] | None = Field(
        None,
        description="Calibration images: `/folder` on the server, an archive or a prefix. A Q/DQ ONNX needs none.",
    )
    calibration_cache: Annotated[str, InputFile(".cache", ".calib"), Field(min_length=1)] | None = Field(
        None, description="A calibration cache of an earlier build, instead of images; up to TensorRT 10."
    )
    precision: Literal["int8"] = "int8"
    mixed_fp16: bool = Field(False, description="Let layers without INT8 run in FP16 instead of FP32.")
    int8_max_batches: int = Field(10, ge=1, le=10_000, description="Batches of calibration images, at most.")
    input_size: ImageSize


KIND = Kind(
    parameters=OnnxToTrtInt8,
    metrics=EngineMetrics,
    summary="Build an INT8 TensorRT engine, calibrated on images, for the GPU or a DLA core",
    example={
        "pid": "P0001",
        "parameters": {
            "kind": "onnx_to_trt_int8",
            "input_path": "artifacts/P0001/optimizing/O0014/best.onnx",
            "calib_dir": "/app/int8_calib_images",
            "device": "dla",
            "mixed_fp16": False,
            "sparse": False,
            "precision": "int8",
            "int8_max_batches": 10,
            "input_size": [608, 608],
        },
    },
    slot=build_slot,
    needs=(*NEEDS, "onnxruntime", "torch", "ultralytics"),
    lacking=MACHINES,
)
