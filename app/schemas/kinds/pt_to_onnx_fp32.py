"""`POST /optimizing/pt_to_onnx_fp32`: S0 section 1."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from app.schemas.common import OutputFile
from app.schemas.kind import Kind
from app.schemas.kinds._export import NEEDS, OUTPUT_PATH, SERIES, ExportMetrics, ExportParameters


class PtToOnnxFp32(ExportParameters):
    """Export a `.pt` to ONNX in FP32; the job fails unless the file answers like the checkpoint."""

    output_path: Annotated[str, OutputFile(".onnx", "{stem}_fp32.onnx", SERIES)] | None = Field(
        None, description=OUTPUT_PATH.format(precision="fp32")
    )


KIND = Kind(
    parameters=PtToOnnxFp32,
    metrics=ExportMetrics,
    summary="Export a `.pt` checkpoint to ONNX in FP32, proven equal on the same tensors",
    example={
        "pid": "P0001",
        "parameters": {
            "kind": "pt_to_onnx",
            "input_path": "artifacts/P0001/optimizing/O0001/best.pt",
            "input_size": [640, 640],
            "batch_size": 1,
        },
    },
    needs=NEEDS,
)
