"""`POST /optimizing/benchmark`: S1's tables, how fast a model is here in every way of running it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from app.schemas.common import DFINE_ARCHIVES, DataSource, ImageFolder, ImageSize, InputFile
from app.schemas.kind import Kind, Metrics, Parameters, Slot

Way = Literal[
    "torch_fp32",
    "torch_fp16",
    "torch_compile",
    "torch_fp16_graph",
    "torch_fp16_compile_graph",
    "onnxruntime",
    "onnxruntime_int8",
    "tensorrt_fp16",
    "tensorrt_int8",
]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"expected each value once, got {list(values)}")
    return values


class Benchmark(Parameters):
    """Time one model in several ways and batch sizes, with what is needed to believe the figures."""

    kind: Literal["benchmark"]
    input_path: Annotated[
        str,
        InputFile(".pt", ".pth", ".onnx", ".engine", ".plan", *DFINE_ARCHIVES, companion="{stem}_manifest.json"),
        Field(
            min_length=1,
            description="`.pt`, `.onnx`, `.engine`, an archive of a D-FINE checkpoint: artifact key or path.",
        ),
    ]
    ways: Annotated[tuple[Way, ...], Field(min_length=1), AfterValidator(_distinct)] | Literal["all"] = Field(
        "all",
        description="Speed-ups are over the first that is timed; answers are judged by the first's that gives any.",
    )
    batch_sizes: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], AfterValidator(_distinct)] = Field(
        (1, 2, 4, 8, 16), min_length=1, max_length=16
    )
    device: Literal["cpu", "gpu"] = Field("cpu", description="Where every way runs; an engine needs the GPU.")
    input_size: ImageSize | None = Field(None, description="[H, W] where the model leaves it free.")
    data: DataSource | None = Field(
        None, description="Images to time and measure accuracy on: COCO annotations give mAP, class folders top-1."
    )
    calib_dir: Annotated[str, ImageFolder(), Field(min_length=1)] | None = Field(
        None, description="Calibration images for the INT8 ways."
    )
    int8_path: Annotated[str, InputFile(".onnx"), Field(min_length=1)] | None = Field(
        None, description="An INT8 ONNX file for `onnxruntime_int8`, instead of one made from `calib_dir`."
    )
    num_queries: int | None = Field(None, ge=1, le=1000, description="D-FINE: fewer queries than it was trained with.")

    @model_validator(mode="after")
    def _ascending(self) -> Benchmark:
        if list(self.batch_sizes) != sorted(self.batch_sizes):
            raise ValueError("batch_sizes: expected ascending sizes, as memory ends a way's row at the first too large")
        return self

    @model_validator(mode="after")
    def _engine_on_gpu(self) -> Benchmark:
        if self.device == "cpu" and self.input_path.lower().endswith((".engine", ".plan")):
            raise ValueError("device: an engine runs on the GPU alone; set device to gpu")
        return self


class BenchmarkMetrics(Metrics):
    """The tables, and what lies beside them as `benchmark.json`, `.md`, `.html` and pictures."""

    stable: bool = Field(description="Every timed row was stable on a quiet machine; else it claims no headline.")
    rows: list[dict[str, Any]]
    accuracy: dict[str, Any]
    model: dict[str, Any]
    machine: dict[str, Any]
    noise: dict[str, Any]
    table: str = Field(description="`benchmark.md`: S1's tables and S2's, the machine, and how it was measured.")
    notes: list[str] = Field(default_factory=list)


def _slot(parameters: Any) -> Slot:
    """The device alone: a benchmark beside other work measures the other work."""
    return Slot(parameters.device, exclusive=True)


KIND = Kind(
    parameters=Benchmark,
    metrics=BenchmarkMetrics,
    summary="Time a model in every way that this machine has: latency, throughput, mAP, memory, with their uncertainty",
    example={
        "pid": "P0001",
        "parameters": {
            "kind": "benchmark",
            "input_path": "artifacts/P0001/optimizing/O0001/best.pt",
            "ways": ["torch_fp32", "onnxruntime"],
            "batch_sizes": [1, 2, 4],
            "device": "cpu",
        },
    },
    slot=_slot,
    needs=("torch", "torchvision", "ultralytics", "timm", "transformers", "onnx", "onnxruntime", "faster_coco_eval"),
    reusable=False,
)
