"""What to quantise and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from app.toolkit.coco import CocoData
from app.toolkit.quantization.ranges import Method
from app.toolkit.quantization.static import Target
from app.toolkit.race import RaceSettings

Mode = Literal["static", "dynamic"]
Backend = Literal["onnxruntime", "modelopt"]


@dataclass(frozen=True)
class QuantizationRequest:
    """`images` is the folder that calibrates; `data` (with labels) or the folder `proof_images` proves the result.

    Without either the proof takes images of `images` that did not calibrate. `input_size` is (H, W) in px, `threads`
    those of ONNX Runtime and of decoding. `max_drop` is in units of the accuracy's measure, 0..1.
    """

    source: Path
    result: Path
    mode: Mode = "static"
    target: Target = "tensorrt"
    images: Path | None = None
    method: Method = "minmax"
    num_samples: int = 100
    max_batches: int | None = None
    batch_size: int | None = None
    input_size: tuple[int, int] | None = None
    exclude: Sequence[str] = ()
    per_channel: bool = True
    backend: Backend = "onnxruntime"
    data: CocoData | None = None
    proof_images: Path | None = None
    proof_sample: int | None = None
    max_drop: float | None = None
    repair: bool = False
    cache_dir: Path | None = None
    threads: int = 1
    race: RaceSettings = field(default_factory=RaceSettings)
