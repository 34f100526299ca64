"""What the two ONNX export routes share (S0 sections 1 and 2)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.schemas.common import DFINE_ARCHIVES, DataSource, ImageSize, InputFile
from app.schemas.kind import Metrics, Parameters

NEEDS = ("torch", "torchvision", "ultralytics", "timm", "onnx", "onnxslim", "onnxruntime")

SERIES = {"detection_best": "detection", "classification_best": "classification"}
"""S4 E-1: exports of these checkpoints, in either precision, are versions of one series."""

OUTPUT_PATH = (
    "Name of the result; left out, `<stem>_{precision}.onnx`, of `detection_best.pt` and `classification_best.pt` "
    "`detection-<UTC>-<git sha>.onnx` and `classification-...`."
)


class ExportParameters(Parameters):
    """From a `.pt` checkpoint to an ONNX file that was shown to answer like it."""

    kind: Literal["pt_to_onnx"]
    input_path: Annotated[
        str,
        InputFile(".pt", *DFINE_ARCHIVES),
        Field(
            min_length=1,
            description="A `.pt`, or an archive of a D-FINE checkpoint: artifact key, or absolute path on the server.",
        ),
    ]
    input_size: ImageSize | None = Field(None, description="[H, W] in px; the checkpoint's own, or 640 x 640.")
    batch_size: int = Field(1, ge=1, le=1024)
    channels: int = Field(
        3, ge=1, le=1024, description="Input channels (RGB = 3), as the model's first layer has them."
    )
    opset: int | None = Field(None, ge=11, le=20, description="ONNX opset; the service's OPSET where left out (17).")
    dynamic: bool = Field(
        False, description="Batch, height and width stay free in the file; of a timm classifier the batch alone."
    )
    num_queries: int | None = Field(None, ge=1, le=1000, description="D-FINE: fewer queries than it was trained with.")
    data: DataSource | None = Field(
        None, description="Images for the proof; left out, the two pictures that Ultralytics carries."
    )


class ExportMetrics(Metrics):
    """What an export is, and what was shown of it."""

    stats: dict[str, Any] = Field(description="size_mb, total_params, nonzero_params, sparsity_pct.")
    parity: dict[str, Any] = Field(description="Torch against ONNX Runtime on the same tensors, with the limits.")
    onnx: dict[str, Any] = Field(description="Opset, inputs and outputs, and how long each phase took.")
