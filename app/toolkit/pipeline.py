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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from onnx import ModelProto

from app.toolkit import parity
from app.toolkit.errors import NoImages, NotFinite, ParityFailed
from app.toolkit.export import DEFAULT_OPSET, onnx_from_torch
from app.toolkit.fp16 import fp16_from_fp32
from app.toolkit.images import DEFAULT_IMAGES, read_image
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
    """What to export and how. `input_size` is (H, W) in px, the model's own where None.

    `threads` None means every core this process may use.
    """

    source: Path
    target: Path
    precision: Precision = "fp32"
    input_size: tuple[int, int] | None = None
    batch_size: int = 1
    channels: int = 3
    opset: int = DEFAULT_OPSET
    dynamic: bool = False
    images: Sequence[Path] = DEFAULT_IMAGES
    limits: parity.ParityLimits = parity.FP32_LIMITS
    threads: int | None = None
    trusted: bool = False
    num_queries: int | None = None


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
    input_size: tuple[int, int] | None = None,
    batch_size: int = 1,
    channels: int = 3,
    opset: int = DEFAULT_OPSET,
    dynamic: bool = False,
    images: Sequence[Path] = DEFAULT_IMAGES,
    limits: parity.ParityLimits | None = None,
    threads: int | None = None,
    trusted: bool = False,
    num_queries: int | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Export a `.pt` or a D-FINE checkpoint to `target`, and prove that both answer alike.

    The proof is one random input and every image given. A dynamic export is also proven on a random input of another
    batch, and of another size where the family leaves that free.

    `input_size` is (H, W) in px, by default the checkpoint's own, which of YOLO is 640 x 640; `limits` default to those
    of the precision; `threads` to the cores that this process may use; `trusted` and `num_queries` as in `open_model`.
    `progress` hears (phase, fraction of that phase) for the phases of `PHASES`.

    `<target's stem>_parity.json` is written whether or not the proof passes; `target` only if it does.

    Raises ModelFileErrors, ChannelsMismatch, InvalidInputSize, UnsupportedOpset, NoImages, UnreadableImage,
    ExportFailed, InvalidOnnx, NotFinite, or ParityFailed with the numbers.
    """
    request = ExportRequest(
        Path(source),
        Path(target),
        precision,
        None if input_size is None else (input_size[0], input_size[1]),
        batch_size,
        channels,
        opset,
        dynamic,
        tuple(images),
        limits or parity.LIMITS[precision],
        threads,
        trusted,
        num_queries,
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
            adapter = open_model(request.source, trusted=request.trusted, num_queries=request.num_queries)
            size = request.input_size or adapter.default_input_size
            adapter.check_input(size, request.channels)
            feeds = _feeds(adapter, request, size)
        with self._phase("export"):
            model = _graph(adapter, request, size)
        with self._phase("check"):
            data = model.SerializeToString()
            check(data)
            stats = stats_of_onnx(model, request.target, size_bytes=len(data))
            runtime = OrtRuntime(data, threads=request.threads)
        with self._phase("compare"):
            report = _compare(adapter, runtime, _inputs(adapter, request, size), feeds, request.limits)
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


def _inputs(adapter: ModelAdapter, request: ExportRequest, size: tuple[int, int]) -> tuple[TensorSpec, ...]:
    """The model's inputs, with the axes that the export frees by their names."""
    specs = adapter.input_specs(size, request.batch_size)
    free = adapter.dynamic_axes() if request.dynamic else {}
    return tuple(
        replace(spec, shape=tuple(free.get(spec.name, {}).get(axis, side) for axis, side in enumerate(spec.shape)))
        for spec in specs
    )


def _feeds(adapter: ModelAdapter, request: ExportRequest, size: tuple[int, int]) -> list[_Feed]:
    """The inputs of the proof: noise in 0..1, then the images in batches, the last one filled up from the first."""
    noise = np.random.default_rng(0)
    shapes = {"random": (request.batch_size, request.channels, *size)}
    (spec,) = _inputs(adapter, request, size)
    if isinstance(spec.shape[-1], str):
        shapes["random, another size"] = (request.batch_size + 1, request.channels, size[0] + 128, size[1] + 64)
    elif request.dynamic:
        shapes["random, another batch"] = (request.batch_size + 1, request.channels, *size)
    feeds = [_Feed(name, "random", noise.random(shape, dtype=np.float32)) for name, shape in shapes.items()]
    tensors = [adapter.preprocess(read_image(path), size)[0] for path in request.images]
    for first in range(0, len(tensors), request.batch_size):
        indices = [index % len(tensors) for index in range(first, first + request.batch_size)]
        name = ", ".join(dict.fromkeys(request.images[index].name for index in indices))
        feeds.append(_Feed(name, "image", np.concatenate([tensors[index] for index in indices])))
    return feeds


def _graph(adapter: ModelAdapter, request: ExportRequest, size: tuple[int, int]) -> ModelProto:
    batch, dynamic = request.batch_size, request.dynamic
    model = onnx_from_torch(adapter, input_size=size, batch_size=batch, opset=request.opset, dynamic=dynamic)
    if request.precision == "fp16":
        model = fp16_from_fp32(model)
        set_metadata(model, adapter.metadata(size, batch, dynamic=dynamic, half=True, opset=request.opset))
    return model


def _compare(
    adapter: ModelAdapter,
    candidate: Runtime,
    inputs: Sequence[TensorSpec],
    feeds: Sequence[_Feed],
    limits: parity.ParityLimits,
) -> parity.ParityReport:
    """One runtime after the other: taking turns, the threads of each spin in the other's way, a third slower."""
    reference = TorchRuntime(adapter.reference_module(), inputs, adapter.output_specs())
    wanted, given = (_answers(runtime, feeds) for runtime in (reference, candidate))
    measured = [
        parity.measure(feed.name, feed.kind, first, second, adapter.parts)
        for feed, first, second in zip(feeds, wanted, given, strict=True)
    ]
    return parity.judge(measured, adapter.parts, limits)


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
