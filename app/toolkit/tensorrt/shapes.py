"""The shape of every tensor of an ONNX graph at any input size, without its weights: about 10 ms for YOLOv8n.

onnx's shape inference on a copy of the graph that has no weights in it, so that nothing large is copied; the sizes that
the file itself states for inner tensors are left out too, because they are those of the exported size only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from app.toolkit.onnx_file import input_specs

Shape = tuple[int | None, ...]
"""Axes of a tensor; None where an axis is not known."""

MAX_KEPT_INTEGERS = 64  # a Reshape's target, a Slice's ends
MAX_KEPT_FLOATS = 16  # a Resize's scales


class GraphShapes:
    """One graph, to be asked for its shapes again and again."""

    def __init__(self, model: ModelProto) -> None:
        self.inputs: dict[str, tuple[int | str, ...]] = {spec.name: spec.shape for spec in input_specs(model)}
        self.nodes: tuple[NodeProto, ...] = tuple(_on_data(model.graph, set(self.inputs)))
        """Those that compute on what is fed, in order: without what only reads shapes or constants."""
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = tuple(value.name for value in model.graph.output)
        self._skeleton = _skeleton(model, set(self.inputs))

    @property
    def is_dynamic(self) -> bool:
        """Has an input a free axis?"""
        return any(isinstance(axis, str) or axis < 1 for shape in self.inputs.values() for axis in shape)

    def at(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Shape]:
        """The shape of each input and of each tensor that depends on one, for inputs of these shapes.

        A tensor whose shape cannot be inferred is missing. Sizes that were baked into the graph at its export (the
        target of a Reshape, the anchors of a detection head) stay what they were.
        """
        for value in self._skeleton.graph.input:
            if value.name in shapes:
                _set_shape(value, shapes[value.name])
        inferred = onnx.shape_inference.infer_shapes(self._skeleton, data_prop=True).graph
        wanted = {name for node in self.nodes for name in node.output} | set(self.inputs)
        values = (*inferred.input, *inferred.value_info, *inferred.output)
        return {value.name: _shape(value) for value in values if value.name in wanted and _has_shape(value)}


def element_types(model: ModelProto) -> dict[str, int]:
    """TensorProto's type of each tensor that the file states one for."""
    graph = model.graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def count(shape: Shape) -> int | None:
    """How many elements; None where an axis is not known."""
    return None if None in shape else math.prod(axis or 0 for axis in shape)


def _on_data(graph: GraphProto, fed: set[str]) -> Iterator[NodeProto]:
    reached = set(fed)
    for node in graph.node:
        if node.op_type not in {"Shape", "Size"} and reached.intersection(node.input):
            reached.update(node.output)
            yield node


def _skeleton(model: ModelProto, fed: set[str]) -> ModelProto:
    skeleton = ModelProto(ir_version=model.ir_version)
    skeleton.opset_import.extend(model.opset_import)
    graph = skeleton.graph
    graph.name = "shapes"
    graph.node.extend(model.graph.node)
    graph.input.extend(value for value in model.graph.input if value.name in fed)
    graph.output.extend(ValueInfoProto(name=value.name) for value in model.graph.output)
    for tensor in model.graph.initializer:
        if _is_kept(tensor):
            graph.initializer.append(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return skeleton


def _is_kept(tensor: TensorProto) -> bool:
    integers = tensor.data_type in {TensorProto.INT64, TensorProto.INT32}
    return int(math.prod(tensor.dims)) <= (MAX_KEPT_INTEGERS if integers else MAX_KEPT_FLOATS)


def _set_shape(value: ValueInfoProto, shape: tuple[int, ...]) -> None:
    value.type.tensor_type.ClearField("shape")
    for axis in shape:
        value.type.tensor_type.shape.dim.add(dim_value=axis)


def _has_shape(value: ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.HasField("shape"))


def _shape(value: ValueInfoProto) -> Shape:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
