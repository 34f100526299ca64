"""What is done to an ONNX graph once it exists: slimming, sorting, checking, describing, writing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxslim.cli._main  # noqa: F401 - onnxslim loads its parts late, which costs a process's first export 60 ms
from onnx import GraphProto, ModelProto, NodeProto, helper
from onnxslim.core import OptimizationSettings, optimize
from onnxslim.utils import TensorInfo, update_outputs_dims

from app.toolkit.errors import CorruptFile, EmptyFile, ExportFailed, FileMissing, InvalidOnnx, NotAModel
from app.toolkit.runtimes.base import TensorSpec


def slim(model: ModelProto) -> ModelProto:
    """Infer every shape, fold constants, drop what is dead, double or idle; the result is sorted topologically.

    This is one round of onnxslim after onnx's own shape inference. onnxslim's folds the padding of D-FINE's first
    layer at opset 16 to another one. Of a YOLO with a fixed input it leaves the nodes that onnxslim's own loop leaves,
    in a third of its time. Raises ExportFailed.
    """
    output_shapes = {info.name: info.shape for info in map(TensorInfo, model.graph.output)}
    OptimizationSettings.reset(None)
    try:
        shaped = onnx.shape_inference.infer_shapes(model, data_prop=True)
        slimmed: ModelProto = update_outputs_dims(optimize(shaped), output_dims=output_shapes)
    except Exception as error:  # onnxslim raises whatever its graph surgery meets
        raise ExportFailed(
            "the exported graph could not be slimmed",
            received=f"{type(error).__name__}: {error}",
            hint="report the model; exporting with another opset may avoid it",
        ) from error
    return slimmed


def sort_topologically(graph: GraphProto) -> None:
    """Put the nodes in an order in which each comes after what it reads, in place, keeping the order where it may.

    Raises InvalidOnnx for a cycle.
    """
    made_here = {name for node in graph.node for name in node.output if name}
    needs = [{name for name in _reads(node) if name in made_here} for node in graph.node]
    waiting: dict[str, list[int]] = {}
    for index, names in enumerate(needs):
        for name in names:
            waiting.setdefault(name, []).append(index)
    missing = [len(names) for names in needs]
    ready = [index for index, count in enumerate(missing) if count == 0]
    order: list[int] = []
    for index in ready:  # grows while it is walked
        order.append(index)
        for name in graph.node[index].output:
            for reader in waiting.get(name, ()):
                missing[reader] -= 1
                if missing[reader] == 0:
                    ready.append(reader)
    if len(order) != len(graph.node):
        raise InvalidOnnx("the graph has a cycle", expected="a directed graph without cycles")
    nodes = [NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _reads(node: NodeProto) -> Iterable[str]:
    """The names that a node reads, and those that its subgraphs read from outside."""
    yield from node.input
    for attribute in node.attribute:
        for subgraph in (attribute.g, *attribute.graphs):
            for inner in subgraph.node:
                yield from _reads(inner)


def check(model: ModelProto | bytes) -> None:
    """onnx's own checker with strict shape inference, which refuses an unsorted graph too. Raises InvalidOnnx."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InvalidOnnx(
            "the ONNX graph breaks the format's rules",
            expected="a graph that onnx.checker accepts",
            received=str(error).strip().splitlines()[0],
        ) from error


def set_metadata(model: ModelProto, entries: Mapping[str, str]) -> None:
    """Replace the model's metadata, in place."""
    del model.metadata_props[:]
    helper.set_model_props(model, dict(entries))


def load_onnx(path: Path | str) -> ModelProto:
    """Read an ONNX file. Raises FileMissing, EmptyFile, NotAModel or CorruptFile."""
    path = Path(path)
    if not path.is_file():
        raise FileMissing(f"there is no file {path.name}", expected="an .onnx file", received=str(path))
    data = path.read_bytes()
    if not data:
        raise EmptyFile(f"{path.name} is empty", expected="an .onnx file", received="0 bytes")
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError; its class moved between releases
        raise CorruptFile(f"{path.name} is no ONNX file, or is cut", received=str(error)) from error
    if not model.HasField("graph") or not model.opset_import:
        raise NotAModel(f"{path.name} holds no ONNX graph", expected="a graph and its opset", received="neither")
    return model


def opset_of(model: ModelProto) -> int:
    """The opset of the standard operators."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def input_specs(model: ModelProto) -> tuple[TensorSpec, ...]:
    """The inputs that a caller must feed: initializers are none, though old files list them."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    return tuple(_spec(value) for value in model.graph.input if value.name not in initializers)


def output_specs(model: ModelProto) -> tuple[TensorSpec, ...]:
    """The outputs."""
    return tuple(_spec(value) for value in model.graph.output)


def _spec(value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else "unknown"
    axes = (dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim)
    return TensorSpec(value.name, dtype, tuple(axes))


def operators(model: ModelProto) -> dict[str, int]:
    """How many nodes of each operator the main graph has, the most frequent first."""
    return dict(Counter(node.op_type for node in model.graph.node).most_common())


def write_whole(data: bytes, path: Path) -> None:
    """Write a file beside its place and rename it, so that no reader ever sees a part of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
