"""`POST /optimizing/verify`: S4 E-2 and E-3, does the optimised model still answer like the original?"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from app.schemas.common import DFINE_ARCHIVES, DataSource, ImageSize, InputFile, StrictModel
from app.schemas.kind import Kind, Metrics, Parameters, Slot

Share = Annotated[float, Field(ge=0, le=1)]
Model = Annotated[
    str,
    InputFile(".pt", ".pth", ".onnx", ".engine", ".plan", *DFINE_ARCHIVES, companion="{stem}_manifest.json"),
    Field(
        min_length=1, description="`.pt`, `.onnx`, `.engine` or a D-FINE archive: artifact key, or path on the server."
    ),
]


class Nms(StrictModel):
    """The one suppression that reads both models' boxes (S4 E-3). A COCO figure has its own: 0.001, 0.7, 300."""

    conf_threshold: float = Field(0.3, ge=0, lt=1)
    iou_threshold: float = Field(0.5, ge=0, le=1)
    max_detections: int = Field(100, ge=1, le=30_000)


class Limits(StrictModel):
    """The largest differences that pass; what is left out is S4's for the candidate's dtype."""

    mse_mean: float | None = Field(None, ge=0, description="Of probabilities: 1e-4, FP16 5e-4.")
    mse_p99: float | None = Field(None, ge=0, description="Over images: 5e-4, FP16 2.5e-3.")
    top1_mismatch_rate: Share | None = Field(None, description="0.01, FP16 0.02.")
    map_delta: Share | None = Field(None, description="At IoU 0.5 and at 0.5:0.95, with labels: 0.01.")
    iou_delta_p95: Share | None = Field(None, description="1 - IoU of matched boxes, 95th percentile: 0.01, FP16 0.02.")
    detection_mismatch_rate: Share | None = Field(
        None, description="Detections without a partner, of classes without labels: 0.02."
    )


class KernelLimits(StrictModel):
    """The largest differences of raw answers on the same tensors; the service's settings where left out."""

    boxes_px: float | None = Field(None, gt=0)
    scores: float | None = Field(None, gt=0)
    values: float | None = Field(None, gt=0, description="Of other answers, relative to the largest.")


class Preprocessing(StrictModel):
    """How an application feeds a model, where that is not what its file says; what is left out is the file's."""

    resize: Literal["letterbox", "center_crop", "stretch", "stretch_antialiased"] | None = None
    channel_order: Literal["RGB", "BGR"] | None = None
    mean: tuple[float, ...] | None = Field(None, min_length=1)
    std: tuple[float, ...] | None = Field(None, min_length=1)
    crop_pct: float | None = Field(None, gt=0, le=1)
    interpolation: Literal["bilinear", "bicubic"] | None = None


class Preprocessings(StrictModel):
    """Of either model."""

    reference: Preprocessing | None = None
    candidate: Preprocessing | None = None


class Verify(Parameters):
    """Compare two forms of one model on images: what their kernels compute, and what they answer as deployed."""

    kind: Literal["verify"]
    reference_path: Model
    candidate_path: Model
    data: DataSource
    mode: Literal["smoke", "coverage", "full", "auto"] = Field(
        "coverage", description="`auto` stops as soon as every limit is decided one way or the other."
    )
    sample_count: int = Field(32, ge=1, le=100_000, description="`smoke`: images at random.")
    per_class_k: int = Field(1, ge=1, le=100_000, description="`coverage`: images of each class.")
    min_classes: int = Field(1000, ge=1, description="`coverage`: classes to cover, where the data has so many.")
    max_total: int = Field(5000, ge=1, le=1_000_000, description="`coverage` and `auto`: images at most.")
    stratify_by: tuple[Literal["class"], ...] = Field(("class",), min_length=1, max_length=1)
    hardness_bins: tuple[Share, ...] | None = Field(
        None, min_length=2, max_length=20, description="Edges, such as [0, 0.3, 0.6, 0.85, 1]: hard images join."
    )
    hard_per_bin: int = Field(8, ge=1, le=10_000, description="Images that join from each bin.")
    confidence: float = Field(0.99, gt=0.5, lt=1, description="Of `auto`'s decisions and of the intervals.")
    strict: bool = Field(False, description="What `auto` leaves undecided fails the job.")
    input_size: ImageSize | None = Field(None, description="[H, W] where both files leave it free.")
    nms: Nms = Nms()
    limits: Limits = Limits()
    kernel_limits: KernelLimits = KernelLimits()
    same_network: bool = Field(
        True, description="False for a pruned or trained-on candidate: raw answers may differ, the task's limits judge."
    )
    preprocessing: Preprocessings = Preprocessings()
    device: Literal["cpu", "gpu"] = Field("cpu", description="Where the candidate runs; engines need the GPU.")
    reference_device: Literal["cpu", "gpu"] | None = Field(None, description="`device` where left out.")
    tensorrt_provider: bool = Field(
        False, description="Let ONNX Runtime use TensorRT in FP16, which is then compared instead of the model."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Verify:
        if self.hardness_bins and list(self.hardness_bins) != sorted(set(self.hardness_bins)):
            raise ValueError("hardness_bins: expected edges that ascend, such as [0, 0.3, 0.6, 0.85, 1]")
        if self.hardness_bins and self.mode in {"full", "auto"}:
            raise ValueError("hardness_bins: only with mode smoke or coverage; full and auto choose nothing")
        if self.strict and self.mode != "auto":
            raise ValueError("strict: only with mode auto, which alone can leave a limit undecided")
        return self


class VerifyMetrics(Metrics):
    """The verdict, and all of `export_report.json`."""

    verdict: Literal["passed", "undecided"] = Field(description="A failed one fails the job; its report is kept.")
    undecided: bool = Field(description="`auto` took all images and could not decide; `leans` says which way.")
    leans: Literal["passed", "failed"] | None = None
    kernel: dict[str, Any] = Field(description="The same tensors into both: figures, gates, worst images.")
    pipeline: dict[str, Any] = Field(description="Each with its own preprocessing: figures, gates, worst images.")
    report: dict[str, Any] = Field(description="S4 E-3's export_report.json.")


def _slot(parameters: Any) -> Slot:
    engines = any(path.lower().endswith((".engine", ".plan")) for path in _paths(parameters))
    on_gpu = "gpu" in {parameters.device, parameters.reference_device} or parameters.tensorrt_provider
    return Slot("gpu") if engines or on_gpu else Slot()


def _paths(parameters: Verify) -> tuple[str, str]:
    return parameters.reference_path, parameters.candidate_path


KIND = Kind(
    parameters=Verify,
    metrics=VerifyMetrics,
    summary="Prove on images that an optimised model still answers like the original: kernels and pipelines apart",
    example={
        "pid": "P0001",
        "parameters": {
            "kind": "verify",
            "reference_path": "artifacts/P0001/optimizing/O0001/best.pt",
            "candidate_path": "artifacts/P0001/optimizing/O0002/best_fp32.onnx",
            "data": {
                "images": "artifacts/P0001/optimizing/O0003/scenes.zip",
                "annotations": "artifacts/P0001/optimizing/O0004/instances.json",
            },
            "mode": "coverage",
        },
    },
    slot=_slot,
    needs=("torch", "torchvision", "ultralytics", "timm", "onnx", "onnxruntime", "faster_coco_eval"),
)
