"""What is timed, in which ways, and how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from app.toolkit.latency import LatencySettings

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
WAYS: tuple[Way, ...] = get_args(Way)
"""S1's, in the order of its table; the first that answers is what the others' answers are judged by."""

BATCH_SIZES = (1, 2, 4, 8, 16)
"""S1's sweep."""


@dataclass(frozen=True)
class BenchmarkRequest:
    """A benchmark of `model`, a `.pt`, `.onnx`, `.engine`, or a folder or archive of a D-FINE checkpoint.

    `int8` is an INT8 ONNX file; without it INT8 is made with `calibration`, a folder of images. `images` are timed, and
    with `annotations` (COCO) they give a mAP, as class folders a top-1 accuracy, on `sample` of them. `input_size` is
    (H, W) in px where the model leaves it free, `num_queries` D-FINE's. `folder` takes what must be made.
    """

    model: Path
    folder: Path
    ways: tuple[Way, ...] = WAYS
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    device: Literal["cpu", "cuda"] = "cpu"
    input_size: tuple[int, int] | None = None
    images: Path | None = None
    calibration: Path | None = None
    annotations: Path | None = None
    sample: int | None = None
    int8: Path | None = None
    settings: LatencySettings = field(default_factory=LatencySettings)
    threads: int | None = None
    trusted: bool = False
    name: str | None = None
    num_queries: int | None = None
