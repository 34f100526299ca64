"""A checkpoint in, a proven ONNX file out.

Everything stays in memory until the proof has passed: what was proven are the very bytes that are then written. The
steps run one after the other: a reference in a thread beside the exporter was measured and gained nothing, as torch
already uses every core (docs/decisions/0101-fast-export.md). The cyclic garbage collector rests meanwhile: a job makes
some hundred thousand objects that live to its end, and each pass over them finds nothing.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from onnx import ModelProto

from app.toolkit import parity
from app.toolkit.errors import NoImages, NotFinite, ParityFailed
from app.toolkit.export import DEFAULT_OPSET, onnx_from_torch
from app.toolkit.fp16 import fp16_from_fp32
from app.toolkit.images import DEFAULT_IMAGES, read_image, tensor_from_image
from app.toolkit.models.base import ModelAdapter
from app.toolkit.models.open_model import open_model
from app.toolkit.onnx_file import check, set_metadata, write_whole
from app.toolkit.runtimes.base import Array, Runtime, TensorSpec
from app.toolkit.runtimes.ort_runtime import OrtRuntime
from app.toolkit.runtimes.torch_runtime import TorchRuntime
from app.toolkit.stats import ModelStats, stats_of_onnx

Precision = Literal["fp32", "fp16"]
Progress = Callable[[str, float], None]
PHASES = ("load", "export", "check", "compare")


@dataclass(frozen=True)
class ExportRequest:
    """What to export and how. `input_size` is (H, W) in px; `threads` None means every core this process may use."""

    source: Path
    target: Path
    precision: Precision = "fp32"
    input_size: tuple[int, int] = (640, 640)
    batch_size: int = 1
    channels: int = 3
    opset: int = DEFAULT_OPSET
    dynamic: bool = False
    images: Sequence[Path] = DEFAULT_IMAGES
    limits: parity.ParityLimits = parity.FP32_LIMITS
    threads: int | None = None
    trusted: bool = False


@dataclass(frozen=True)
class ExportResult:
    """A proven export. `parity` and `stats` are JSON's shape; `seconds` is by phase."""

    path: Path
    parity_path: Path
    precision: Precision
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parity: dict[str, Any]
    stats: dict[str, Any]
    model_stats: ModelStats
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Feed:
    name: str
    kind: parity.InputKind
    tensor: Array


def export_and_prove(  # noqa: PLR0913 - the words of the request, each with its default
    source: Path | str,
    target: Path | str,
    *,
    precision: Precision = "fp32",
    input_size: tuple[int, int] = (640, 640),
    batch_size: int = 1,
    channels: int = 3,
    opset: int = DEFAULT_OPSET,
    dynamic: bool = False,
    images: Sequence[Path] = DEFAULT_IMAGES,
    limits: parity.ParityLimits | None = None,
    threads: int | None = None,
    trusted: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """Export a `.pt` to `target` and prove that both answer alike, on one random input and on every image given.

    `input_size` is (H, W) in px; `limits` default to those of the precision; `threads` to the cores that this process
    may use; `trusted` as in `checkpoint.open_checkpoint`. `progress` hears (phase, fraction of that phase) for the
    phases of `PHASES`. A dynamic export is also proven on a random input of another batch and size.

    `<target's stem>_parity.json` is written whether or not the proof passes; `target` only if it does.

    Raises ModelFileErrors, ChannelsMismatch, InvalidInputSize, UnsupportedOpset, NoImages, UnreadableImage,
    ExportFailed, InvalidOnnx, NotFinite, or ParityFailed with the numbers.
    """
    request = ExportRequest(
        Path(source),
        Path(target),
        precision,
        (input_size[0], input_size[1]),
        batch_size,
        channels,
        opset,
        dynamic,
        tuple(images),
        limits or parity.LIMITS[precision],
        threads,
        trusted,
    )
    if not request.images:
        raise NoImages("a proof needs at least one image", expected="a list of image files", received="none")
    with _garbage_collection_off(), _torch_threads(request.threads or len(os.sched_getaffinity(0))):
        return _Run(request, progress or _silent).run()


class _Run:
    """One export, phase by phase, and the clock over them."""

    def __init__(self, request: ExportRequest, progress: Progress) -> None:
        self.request = request
        self.progress = progress
        self.seconds: dict[str, float] = {}

    def run(self) -> ExportResult:
        request = self.request
        with self._phase("load"):
            adapter = open_model(request.source, trusted=request.trusted)
            adapter.check_input(request.input_size, request.channels)
            feeds = _feeds(request)
        with self._phase("export"):
            model = _graph(adapter, request)
        with self._phase("check"):
            data = model.SerializeToString()
            check(data)
            stats = stats_of_onnx(model, request.target, size_bytes=len(data))
            runtime = OrtRuntime(data, threads=request.threads)
        with self._phase("compare"):
            report = _compare(adapter, runtime, request, feeds)
            parity_path = request.target.with_name(f"{request.target.stem}_parity.json")
            write_whole(json.dumps(report.as_dict(), indent=2).encode(), parity_path)
            _refuse_failed(report, request)
            write_whole(data, request.target)
        return ExportResult(
            request.target,
            parity_path,
            request.precision,
            request.opset,
            stats.inputs,
            stats.outputs,
            report.as_dict(),
            stats.as_dict()["stats"],
            stats,
            self.seconds,
        )

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self.progress(name, 0.0)
        begun = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - begun, 4)
        self.progress(name, 1.0)


def _feeds(request: ExportRequest) -> list[_Feed]:
    """The inputs of the proof: noise in 0..1, then the images in batches, the last one filled up from the first."""
    height, width = request.input_size
    noise = np.random.default_rng(0)
    shapes = {"random": (request.batch_size, request.channels, height, width)}
    if request.dynamic:
        shapes["random, another size"] = (request.batch_size + 1, request.channels, height + 128, width + 64)
    feeds = [_Feed(name, "random", noise.random(shape, dtype=np.float32)) for name, shape in shapes.items()]
    tensors = [tensor_from_image(read_image(p), request.input_size, request.channels)[0] for p in request.images]
    for first in range(0, len(tensors), request.batch_size):
        indices = [index % len(tensors) for index in range(first, first + request.batch_size)]
        name = ", ".join(dict.fromkeys(request.images[index].name for index in indices))
        feeds.append(_Feed(name, "image", np.concatenate([tensors[index] for index in indices])))
    return feeds


def _graph(adapter: ModelAdapter, request: ExportRequest) -> ModelProto:
    size, batch, dynamic = request.input_size, request.batch_size, request.dynamic
    model = onnx_from_torch(adapter, input_size=size, batch_size=batch, opset=request.opset, dynamic=dynamic)
    if request.precision == "fp16":
        model = fp16_from_fp32(model)
        set_metadata(model, adapter.metadata(size, batch, dynamic=dynamic, half=True, opset=request.opset))
    return model


def _compare(
    adapter: ModelAdapter, candidate: Runtime, request: ExportRequest, feeds: Sequence[_Feed]
) -> parity.ParityReport:
    """One runtime after the other: taking turns, the threads of each spin in the other's way, a third slower."""
    inputs = adapter.input_specs(request.input_size, request.batch_size)
    if request.dynamic:
        inputs = tuple(TensorSpec(s.name, s.dtype, ("batch", s.shape[1], "height", "width")) for s in inputs)
    reference = TorchRuntime(adapter.reference_module(), inputs, adapter.output_specs())
    wanted, given = (_answers(runtime, feeds) for runtime in (reference, candidate))
    measured = [
        parity.measure(feed.name, feed.kind, first, second, adapter.parts)
        for feed, first, second in zip(feeds, wanted, given, strict=True)
    ]
    return parity.judge(measured, adapter.parts, request.limits)


def _answers(runtime: Runtime, feeds: Sequence[_Feed]) -> list[dict[str, Array]]:
    with runtime:
        return [runtime.infer({runtime.inputs[0].name: feed.tensor}) for feed in feeds]


def _refuse_failed(report: parity.ParityReport, request: ExportRequest) -> None:
    if report.passed:
        return
    received = "; ".join(report.failures[:6])
    fp16 = request.precision == "fp16"
    if report.non_finite:
        raise NotFinite(
            f"{report.non_finite} values of the answers are NaN or infinite",
            expected="finite values from torch and ONNX Runtime on every input",
            received=received,
            hint="export with precision fp32: a layer overflows FP16" if fp16 else "look at the checkpoint's weights",
        )
    raise ParityFailed(
        "the exported model answers differently from the checkpoint",
        report=report.as_dict(),
        expected=f"boxes within {request.limits.boxes_px} px and scores within {request.limits.scores} on images",
        received=received,
        hint="export with precision fp32, or raise the limits if the difference is acceptable"
        if fp16
        else "try another opset; the report lists every input",
    )


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _garbage_collection_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _silent(_phase: str, _fraction: float) -> None:
    """Hears progress where nobody asked for it."""
