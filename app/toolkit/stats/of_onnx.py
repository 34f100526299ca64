"""Stats of an ONNX graph, node by node.

Parameters are its floating and 8-bit initializers, less those that the exporter made by folding (torch's exporter names
them `..._output_0`; YOLO's 25,200 anchor coordinates are such), unless a convolution or product has them as weights: a
normalisation was folded into those. In a quantised graph the integers behind a DequantizeLinear are the parameters,
biases of 32 bits among them, and belong to the node that reads what comes out; its scales and zero points are none: the
zero points would pass for sparsity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from app.toolkit.macs import macs_of_onnx, node_names
from app.toolkit.onnx_file import input_specs, operators, opset_of, output_specs
from app.toolkit.stats.base import LayerStats, ModelStats, count_by_dtype

WEIGHT_DTYPES = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.DOUBLE,
        TensorProto.INT8,
        TensorProto.UINT8,
    }
)
# Operator -> the inputs that are scales and zero points; and those that are parameters whatever their dtype.
QUANTISER_INPUTS = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
}
QUANTISED_INPUTS = {"DequantizeLinear": (0,), "QLinearConv": (8,)}
WEIGHT_INPUTS = {"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (1,)}
# A weight that passes through one of these is still that weight.
PASSING = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "Cast", "Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze"}
)


@dataclass(frozen=True)
class _Weight:
    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    nonzero: int


def stats_of_onnx(model: ModelProto, path: Path, *, size_bytes: int | None = None) -> ModelStats:
    """Stats of a graph that is loaded already. `size_bytes` saves the look at the file, which may not exist yet."""
    weights = [_weight(tensor) for tensor in _parameters(model.graph)]
    macs = macs_of_onnx(model)
    inputs = input_specs(model)
    unknown = [name for name, count in macs.items() if count is None]
    shape = tuple(axis for axis in inputs[0].shape if isinstance(axis, int)) if inputs else ()
    return ModelStats(
        path,
        "onnx",
        path.stat().st_size if size_bytes is None else size_bytes,
        total_params=sum(weight.size for weight in weights),
        nonzero_params=sum(weight.nonzero for weight in weights),
        dtypes=count_by_dtype((weight.dtype, weight.size) for weight in weights),
        layers=operators(model),
        inputs=inputs,
        outputs=output_specs(model),
        opset=opset_of(model),
        details={entry.key: entry.value for entry in model.metadata_props if entry.key in ("task", "description")},
        table=tuple(_rows(model.graph, weights, macs)),
        macs=None if unknown else sum(count or 0 for count in macs.values()),
        macs_input=shape if shape and not unknown else None,
        notes=tuple(_notes(unknown, len(macs))),
    )


def _notes(unknown: list[str], multiplying: int) -> Iterator[str]:
    if unknown:
        yield (
            f"MACs unknown of {len(unknown)} of {multiplying} nodes: the graph leaves axes free, or has operators "
            "whose shapes onnx cannot infer; export it with a fixed size to have them counted"
        )


def _weight(tensor: TensorProto) -> _Weight:
    array = numpy_helper.to_array(tensor)
    dtype = str(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return _Weight(tensor.name, tuple(tensor.dims), dtype, array.size, int(np.count_nonzero(array)))


def _parameters(graph: GraphProto) -> list[TensorProto]:
    scales = _inputs_at(graph, QUANTISER_INPUTS)
    quantised = _inputs_at(graph, QUANTISED_INPUTS)
    weights = _inputs_at(graph, WEIGHT_INPUTS)
    return [
        tensor
        for tensor in graph.initializer
        if (tensor.data_type in WEIGHT_DTYPES or tensor.name in quantised)
        and tensor.name not in scales
        and ("_output_" not in tensor.name or tensor.name in weights)
    ]


def _inputs_at(graph: GraphProto, places: Mapping[str, tuple[int, ...]]) -> set[str]:
    return {
        node.input[place]
        for node in graph.node
        for place in places.get(node.op_type, ())
        if place < len(node.input) and node.input[place]
    }


def _rows(graph: GraphProto, weights: list[_Weight], macs: dict[str, int | None]) -> Iterator[LayerStats]:
    """A row for each node that reads parameters or multiplies, then one for each parameter that no node reads."""
    owners = _owners(graph, {weight.name for weight in weights})
    owned: dict[int | None, list[_Weight]] = {}
    for weight in weights:
        owned.setdefault(owners.get(weight.name), []).append(weight)
    for index, (name, node) in enumerate(zip(node_names(graph), graph.node, strict=True)):
        if index in owned or name in macs:
            yield _row(name, node, owned.get(index, []), macs.get(name, 0))
    for weight in owned.get(None, []):
        yield LayerStats(weight.name, "initializer", weight.shape, weight.dtype, weight.size, weight.nonzero, 0)


def _owners(graph: GraphProto, names: set[str]) -> dict[str, int]:
    """Parameter -> the index of the first node that works with it."""
    carries = {name: name for name in names}
    owners: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        if node.op_type in PASSING and node.input and node.output and node.input[0] in carries:
            carries[node.output[0]] = carries[node.input[0]]
            continue
        for name in node.input:
            if name in carries:
                owners.setdefault(carries[name], index)
    return owners


def _row(name: str, node: NodeProto, own: list[_Weight], macs: int | None) -> LayerStats:
    weight = max(own, key=lambda one: (len(one.shape) > 1, one.size), default=None)
    return LayerStats(
        name,
        node.op_type,
        None if weight is None else weight.shape,
        None if weight is None else weight.dtype,
        sum(one.size for one in own),
        sum(one.nonzero for one in own),
        macs,
    )
