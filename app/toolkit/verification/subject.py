"""One of the two models under comparison: how it is fed, run and read, whatever its file's format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import ModelProto, TensorProto

from app.toolkit.errors import InvalidInputSize, NotAModel
from app.toolkit.images import LetterboxFrame, Uint8Array
from app.toolkit.models.base import ImageModel
from app.toolkit.models.dfine import DFineModel
from app.toolkit.models.exported import ExportedModel
from app.toolkit.models.open_model import open_model
from app.toolkit.onnx_file import load_onnx, opset_of
from app.toolkit.preprocessing import Preprocessing
from app.toolkit.runtimes.base import Array, Runtime, TensorSpec, fill_batch
from app.toolkit.runtimes.failures import failures_told
from app.toolkit.runtimes.ort_runtime import CPU, CUDA, TENSORRT, OrtRuntime, select_providers
from app.toolkit.runtimes.torch_runtime import TorchRuntime
from app.toolkit.runtimes.trt_runtime import TrtRuntime
from app.toolkit.stats import stats_of_onnx
from app.toolkit.tensorrt.manifest import model_metadata
from app.toolkit.verification.errors import ModelsDiffer
from app.toolkit.verification.request import Device, Dtype, VerifyRequest

Format = Literal["pt", "onnx", "engine"]
Answers = dict[str, Array]

TASKS: Mapping[str, Literal["boxes", "classes", "raw"]] = {
    "boxes": "boxes",
    "probabilities": "classes",
    "logits": "classes",
    "raw": "raw",
}
"""What the data must tell for a head."""

TENSORRT_CACHE = ".tensorrt_cache"
"""Where ONNX Runtime's TensorRT provider keeps its engines; hidden, so that they are nobody's artifact."""

QUANTISED = frozenset({"QuantizeLinear", "QLinearConv", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"})


@dataclass(frozen=True)
class Subject:
    """A model that is ready to be run. `fixed_size` is its (H, W) in px where the file leaves no choice.

    `about` are the facts of its file that a report names; `described` is whether the file says what its answers mean.
    """

    path: Path
    format: Format
    dtype: Dtype
    model: ImageModel
    runtime: Runtime
    preprocessing: Preprocessing
    fixed_size: tuple[int, int] | None
    default_size: tuple[int, int]
    described: bool
    about: Mapping[str, Any]

    def tensor_of(self, image: Uint8Array, input_size: tuple[int, int]) -> tuple[Array, LetterboxFrame]:
        """An [h, w, 3] uint8 RGB image as this model's own application would feed it, [1, C, H, W] float32."""
        return self.preprocessing.apply(image, input_size, self.model.channels)

    def answer(self, tensor: Array) -> dict[str, Array]:
        """The answers to one image's tensor, float32 and of batch 1, in the order of the model's outputs.

        Raises OutOfMemory, and RuntimeUnavailable for what the runtime cannot do with it.
        """
        spec = self.runtime.inputs[0]
        feed = fill_batch(tensor.astype(spec.dtype, copy=False), spec)
        with failures_told(f"{self.path.name} on an input {list(feed.shape)}"):
            answers = self.runtime.infer({spec.name: feed})
        return {name: np.asarray(answer[:1], dtype=np.float32) for name, answer in answers.items()}


def open_subjects(request: VerifyRequest) -> tuple[Subject, Subject, tuple[int, int], tuple[str, ...]]:
    """Both models, the input size (H, W) that both take, and notes on what was assumed.

    Raises what opening raises; ModelsDiffer for tasks or classes that differ, InvalidInputSize where no size suits
    both.
    """
    reference = _opened(request, request.reference, request.devices[0])
    candidate = _opened(request, request.candidate, request.devices[1])
    reference, candidate, notes = _each_from_the_other(reference, candidate)
    reference, candidate = (
        replace(one, preprocessing=Preprocessing.from_dict({**one.preprocessing.as_dict(), **changes}))
        for one, changes in zip((reference, candidate), request.preprocessing, strict=True)
    )
    _check_alike(reference, candidate)
    notes += tuple(_elsewhere(one, device) for one, device in zip((reference, candidate), request.devices, strict=True))
    size = _common_size(reference, candidate, request.input_size)
    return reference, candidate, size, tuple(note for note in notes if note)


def _opened(request: VerifyRequest, path: Path, device: Device) -> Subject:
    openers = {".pt": _open_pt, ".pth": _open_pt, ".onnx": _open_onnx, ".engine": _open_engine, ".plan": _open_engine}
    opener = _open_pt if DFineModel.recognises(path) else openers.get(path.suffix.lower())
    if opener is None:
        raise NotAModel(
            f"{path.name} is no model by its name", expected="a .pt, .onnx or .engine file", received=path.suffix
        )
    subject = opener(request, path, device)
    _check_image_input(subject)
    return subject


def _check_image_input(subject: Subject) -> None:
    """Raise NotAModel for an input that takes no [N, C, H, W] of floats, which is what images are made into here."""
    (spec,) = subject.runtime.inputs
    channels_last = spec.shape[3] in (1, 3) and spec.shape[1] not in (1, 3)
    if np.dtype(spec.dtype).kind != "f" or channels_last:
        raise NotAModel(
            f"{subject.path.name} takes images in another form than they are made here",
            expected="one input [N, C, H, W] of float32 or float16",
            received=f"{spec.name} {list(spec.shape)} of {spec.dtype}",
            hint="export it with the channels first and floats in, and leave the conversion to the preprocessing",
        )


def _open_pt(request: VerifyRequest, path: Path, device: Device) -> Subject:
    adapter = open_model(path, trusted=request.trusted)
    (spec,) = adapter.input_specs(adapter.default_input_size, 1)
    free = TensorSpec(spec.name, spec.dtype, ("batch", spec.shape[1], "height", "width"))
    network = adapter.reference_module()
    runtime = TorchRuntime(network, (free,), adapter.output_specs(), threads=request.threads, device=device)
    about = {
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "family": adapter.family,
        "backbone": adapter.backbone,
    }
    return Subject(
        path,
        "pt",
        "fp32",
        adapter,
        runtime,
        adapter.preprocessing,
        None,
        adapter.default_input_size,
        True,
        about,
    )


def _open_onnx(request: VerifyRequest, path: Path, device: Device) -> Subject:
    graph = load_onnx(path)
    model = ExportedModel.of_onnx(graph)
    tensorrt = request.tensorrt_provider and path == request.candidate  # the reference stays what it is
    providers = select_providers(device, tensorrt=tensorrt, cache_dir=request.folder / TENSORRT_CACHE)
    runtime = OrtRuntime(path, providers=providers, threads=request.threads)
    print(f"{path.name}: {runtime.summary()}")  # noqa: T201 - S4 E-4: the log says what took effect
    axes = [axis for spec in runtime.inputs for axis in spec.shape]
    entries = {entry.key: entry.value for entry in graph.metadata_props}
    about = {
        "opset": opset_of(graph),
        "dynamic_axes": any(isinstance(axis, str) for axis in axes),
        "params": stats_of_onnx(graph, path).total_params,
        "family": model.family,
        "backbone": _backbone(entries),
        "exported_at": entries.get("date"),
    }
    return _exported(path, "onnx", dtype_of(graph), model, runtime, about)


def _open_engine(request: VerifyRequest, path: Path, _device: Device) -> Subject:
    """An engine tells its tensors; what they mean is told by what lies beside it (`manifest.model_metadata`)."""
    runtime = TrtRuntime(path, trusted=request.trusted)
    manifest = runtime.file.manifest
    entries = model_metadata(runtime.file.plan, manifest)
    model = ExportedModel(entries, runtime.inputs, runtime.outputs)
    about = {
        "dynamic_axes": any(isinstance(axis, str) for spec in runtime.inputs for axis in spec.shape),
        "family": model.family,
        "backbone": _backbone(entries),
        "exported_at": manifest and manifest.built_at,
    }
    dtype: Dtype = dtype_of_header(entries) if manifest is None else manifest.precision  # type: ignore[assignment]
    return _exported(path, "engine", dtype, model, runtime, about)


def _exported(
    path: Path, form: Format, dtype: Dtype, model: ExportedModel, runtime: Runtime, about: Mapping[str, Any]
) -> Subject:
    places = (model.fixed_size, model.input_size, model.described)
    return Subject(path, form, dtype, model, runtime, model.preprocessing, *places, about)


def _backbone(entries: Mapping[str, str]) -> str | None:
    """By its own entry, else by Ultralytics' description: `Ultralytics YOLOv8n model`."""
    described = entries.get("description", "").removeprefix("Ultralytics ").removesuffix(" model")
    return entries.get("backbone") or described or None


def dtype_of(graph: ModelProto) -> Dtype:
    """INT8 where anything is quantised, FP16 where most of the weights' values are, else FP32."""
    if any(node.op_type in QUANTISED for node in graph.graph.node):
        return "int8"
    values = {True: 0, False: 0}
    for tensor in graph.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            values[tensor.data_type == TensorProto.FLOAT16] += int(np.prod(tensor.dims, dtype=np.int64))
    return "fp16" if values[True] > values[False] else "fp32"


def dtype_of_header(entries: Mapping[str, str]) -> Dtype:
    """Of an engine that Ultralytics wrote: its header has the export's arguments, `{'half': True, ...}`."""
    arguments = entries.get("args", "")
    return "int8" if "'int8': True" in arguments else "fp16" if "'half': True" in arguments else "fp32"


def _each_from_the_other(reference: Subject, candidate: Subject) -> tuple[Subject, Subject, tuple[str, ...]]:
    """A file that does not say what it is, is fed and read as the other, which it was made from or made."""
    if reference.described == candidate.described:
        return reference, candidate, ()
    told, silent = (reference, candidate) if reference.described else (candidate, reference)
    note = f"{silent.path.name} does not say how it is fed and read: as {told.path.name} is"
    read = replace(silent, model=told.model, preprocessing=told.preprocessing)
    return (read, candidate, (note,)) if silent is reference else (reference, read, (note,))


def _elsewhere(subject: Subject, device: Device) -> str:
    """A note where ONNX Runtime did not take what it was asked for (S4 E-4)."""
    runtime = subject.runtime
    if not isinstance(runtime, OrtRuntime):
        return ""
    if runtime.used_providers[0] == CPU and device != "cpu":
        return f"{subject.path.name} ran on the CPU: {runtime.refused.get(CUDA, 'no CUDA provider')}"
    if TENSORRT in runtime.refused:
        return f"{subject.path.name} ran on {runtime.used_providers[0]} without TensorRT: {runtime.refused[TENSORRT]}"
    return ""


def _check_alike(reference: Subject, candidate: Subject) -> None:
    first, second = reference.model, candidate.model
    for what, one, other in (
        ("answers", first.head, second.head),
        ("channels", first.channels, second.channels),
        ("class counts", len(first.names), len(second.names)),
        ("class names", dict(first.names), dict(second.names)),
        ("outputs", len(reference.runtime.outputs), len(candidate.runtime.outputs)),
    ):
        if one != other:
            raise ModelsDiffer(
                f"the two models cannot be compared: their {what} differ",
                expected=f"{reference.path.name}: {one}"[:300],
                received=f"{candidate.path.name}: {other}"[:300],
                hint="compare a model with what was made from it",
            )


def _common_size(reference: Subject, candidate: Subject, asked: tuple[int, int] | None) -> tuple[int, int]:
    fixed = {subject.fixed_size for subject in (reference, candidate)} - {None}
    sizes = ", ".join(f"{one.path.name}: {_words(one.fixed_size)}" for one in (reference, candidate))
    if len(fixed) > 1:
        raise InvalidInputSize(
            "no input size suits both models",
            expected=f"one input size for {reference.path.name} and {candidate.path.name}",
            received=sizes,
            hint="export one of them at the other's size, or with dynamic axes",
        )
    if asked is not None and fixed and asked not in fixed:
        raise InvalidInputSize(
            "the models do not take the input size that was asked for",
            expected=sizes,
            received=f"input_size {list(asked)}",
            hint="leave input_size out, or export with dynamic axes",
        )
    size = next((size for size in fixed if size is not None), None) or asked or reference.default_size
    for subject in (reference, candidate):
        check_input = getattr(subject.model, "check_input", None)
        if check_input is not None:
            check_input(size, subject.model.channels)
    return size


def _words(size: tuple[int, int] | None) -> str:
    return f"fixed {list(size)}" if size else "any size"
