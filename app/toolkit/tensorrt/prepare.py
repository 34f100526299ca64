"""The ONNX that a release wants: cast to FP16, quantised to Q/DQ, or as it is with batches that calibrate it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from app.toolkit.calibration.images import CalibrationImages, choose_images, tensors
from app.toolkit.fp16 import fp16_from_fp32
from app.toolkit.images import Uint8Array
from app.toolkit.modelopt import available, cast_with_modelopt
from app.toolkit.models.exported import ExportedModel, Float32Array
from app.toolkit.onnx_file import write_whole
from app.toolkit.quantization.graph import post_processing, prepared
from app.toolkit.quantization.ranges import collect_ranges
from app.toolkit.quantization.static import quantize_static


@dataclass(frozen=True)
class Images:
    """Calibration images: their folder, (H, W) in px, and at most so many batches of them."""

    folder: Path
    input_size: tuple[int, int]
    max_batches: int
    threads: int = 1


def cast_to_fp16(model: ModelProto, path: Path) -> Path:
    """Write the FP16 form, with float32 inputs and outputs: by ModelOpt where it is installed, else by our own export.

    Raises NotFinite, RuntimeUnavailable.
    """
    made = cast_with_modelopt(model) if available() else fp16_from_fp32(model)
    write_whole(made.SerializeToString(), path)
    return path


def quantised(model: ModelProto, images: Images, path: Path) -> dict[str, Any]:
    """Write the Q/DQ form that TensorRT takes; what calibrated it, as JSON has it. Raises as `quantize_static`."""
    graph = prepared(model)
    batches = calibration_batches(model, images)
    ranges = collect_ranges(graph, batches.stream, method="entropy", threads=images.threads)
    made = quantize_static(graph, ranges, target="tensorrt", exclude_nodes=post_processing(graph))
    write_whole(made.SerializeToString(), path)
    return {**batches.images.as_dict(), "method": "entropy"}


@dataclass(frozen=True)
class Batches:
    """A stream of [batch_size, C, H, W] float32, and the images that it is made of."""

    stream: Iterator[Float32Array]
    batch_size: int
    images: CalibrationImages


def calibration_batches(model: ModelProto, images: Images) -> Batches:
    """Of the graph's batch size, or 1 where that is free. Raises NoImages, InvalidInputSize."""
    exported = ExportedModel.of_onnx(model)
    batch_size, size = exported.batch or 1, exported.check_size(images.input_size)
    found = choose_images(images.folder, count=images.max_batches * batch_size, workers=images.threads)

    def preprocess(image: Uint8Array) -> Float32Array:
        return exported.preprocess(image, size)[0]

    stream = tensors(found.calibration, preprocess, batch_size=batch_size, workers=images.threads)
    return Batches(stream, batch_size, found)
