"""`POST /optimizing/quantize_onnx`: INT8 in an ONNX file, for TensorRT or for ONNX Runtime on a CPU."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from app.schemas.common import DataSource, ImageFolder, ImageSize, InputFile, OutputFile
from app.schemas.kind import Kind, Metrics, Parameters
from app.schemas.kinds._pruning import LayerPatterns

STATIC_ONLY = frozenset({"method", "num_samples", "max_batches", "batch_size", "backend", "repair"})


class QuantizeOnnx(Parameters):
    """Quantise an FP32 ONNX file to INT8 and prove on held-out images what that cost."""

    kind: Literal["quantize_onnx"]
    input_path: Annotated[
        str,
        InputFile(".onnx"),
        Field(min_length=1, description="FP32 ONNX: artifact key, or absolute path on the server."),
    ]
    output_path: Annotated[str, OutputFile(".onnx", "{stem}_int8.onnx")] | None = Field(
        None, description="Name of the result; `<stem>_int8.onnx` where left out."
    )
    mode: Literal["static", "dynamic"] = Field(
        "static", description="Ranges from calibration images, or taken while the model runs (never for TensorRT)."
    )
    target: Literal["tensorrt", "onnxruntime-cpu"] = Field(
        "tensorrt", description="What the file is for: no file suits both."
    )
    calib_dir: Annotated[str, ImageFolder(), Field(min_length=1)] | None = Field(
        None,
        description="Calibration images: `/folder` on the server, an archive or a prefix. Mode static needs them.",
    )
    method: Literal["minmax", "entropy", "percentile"] = Field("minmax", description="How ranges are chosen.")
    num_samples: int = Field(100, ge=1, le=100_000, description="Images to calibrate on.")
    max_batches: int | None = Field(None, ge=1, description="At most so many batches of them.")
    batch_size: int | None = Field(None, ge=1, le=1024, description="The graph's own batch, or 1, where left out.")
    input_size: ImageSize | None = Field(None, description="[H, W] where the graph leaves it free.")
    exclude: LayerPatterns = Field((), description="Nodes (`*` stands for anything) or operator types that stay FP32.")
    per_channel: bool = Field(True, description="A weight scale for each output channel.")
    backend: Literal["onnxruntime", "modelopt"] = Field(
        "onnxruntime", description="Who quantises; NVIDIA's ModelOpt where it is installed, for target tensorrt."
    )
    data: DataSource | None = Field(
        None, description="Images to prove the result on, with or without labels; none of them calibrates."
    )
    max_drop: float | None = Field(None, ge=0, le=1, description="The job fails if accuracy falls by more.")
    repair: bool = Field(False, description="Keep the layers that hurt most in FP32 until `max_drop` is met.")

    @model_validator(mode="after")
    def _fits_together(self) -> QuantizeOnnx:
        fields = type(self).model_fields
        changed = {name for name in fields if getattr(self, name) != fields[name].default}
        if self.mode == "static" and self.calib_dir is None:
            raise ValueError("calib_dir: mode static calibrates on images; name a folder, an archive or a prefix")
        if self.mode == "dynamic" and (extra := sorted(STATIC_ONLY & changed)):
            raise ValueError(f"{', '.join(extra)}: only with mode static, which calibrates")
        if self.backend == "modelopt" and self.target != "tensorrt":
            raise ValueError("backend modelopt: only for target tensorrt")
        if self.backend == "modelopt" and self.repair:
            raise ValueError("repair: only with backend onnxruntime")
        if self.repair and self.max_drop is None:
            raise ValueError("repair: give max_drop, the loss of accuracy that is allowed")
        if self.max_drop is not None and self.data is None and self.calib_dir is None:
            raise ValueError("max_drop: give `data` or `calib_dir`, images to measure the loss on")
        return self


class QuantizeMetrics(Metrics):
    """What came out and what it cost."""

    stats: dict[str, Any] = Field(description="Of the result: size_mb, total_params, nonzero_params, sparsity_pct.")
    verdict: str = Field(description="What was gained and lost, and what the file is for, in one sentence.")
    before: dict[str, Any] = Field(description="Size, latency, accuracy of the FP32 file.")
    after: dict[str, Any] = Field(description="The same of the result.")
    accuracy: dict[str, Any] | None = Field(description="On held-out images, mAP or agreement; None without images.")
    latency: list[dict[str, Any]] = Field(description="ONNX Runtime here, both in turns, by number of threads.")
    calibration: dict[str, Any] | None = Field(description="Images used, unreadable, warnings; method, cached, time.")
    quantization: dict[str, Any] = Field(description="Nodes quantised, left alone and why.")
    lint: dict[str, Any] = Field(description="What TensorRT will refuse, as `lint_onnx` says it.")
    repair: dict[str, Any] | None = Field(None, description="Nodes kept in FP32, evaluations, the ranking.")
    warnings: list[str] = Field(default_factory=list)


KIND = Kind(
    parameters=QuantizeOnnx,
    metrics=QuantizeMetrics,
    summary="Quantise an ONNX file to INT8 on calibration images, with the accuracy on others",
    example={
        "pid": "P0001",
        "parameters": {
            "kind": "quantize_onnx",
            "input_path": "artifacts/P0001/optimizing/O0002/best_fp32.onnx",
            "calib_dir": "/app/int8_calib_images",
            "target": "tensorrt",
        },
    },
    needs=("torch", "ultralytics", "timm", "onnx", "onnxruntime"),
)
