"""How much GPU memory an engine needs at the least, from the graph alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto, TensorProto

from app.toolkit.tensorrt.request import Precision
from app.toolkit.tensorrt.shapes import GraphShapes, Shape, count, element_types

FLOAT_BYTES: Mapping[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1}
FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16))
OTHER_BYTES: Mapping[int, int] = {TensorProto.INT64: 8, TensorProto.INT32: 4, TensorProto.INT8: 1, TensorProto.UINT8: 1}
MIB = 1 << 20


@dataclass(frozen=True)
class MemoryEstimate:
    """In MiB: all weights, and the inputs and outputs of the node that has the largest, in the asked precision.

    A floor for planning, not a bound: kernels, the CUDA context and the workspace come on top, while fused layers keep
    less. The CUDA context alone is some hundred MiB.
    """

    weights_mib: float
    activations_mib: float
    largest_node: str

    @property
    def total_mib(self) -> float:
        """Both."""
        return round(self.weights_mib + self.activations_mib, 1)

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {**vars(self), "total_mib": self.total_mib}


def memory_estimate(
    model: ModelProto, shapes: GraphShapes, at: Mapping[str, Shape], precision: Precision
) -> MemoryEstimate:
    """Count a graph whose tensors have the shapes `at`, as `GraphShapes.at` gives them for the largest inputs."""
    types = element_types(model)
    weights = sum(math.prod(tensor.dims) * _bytes(tensor.data_type, precision) for tensor in shapes.constants.values())
    largest, largest_node = 0, ""
    for node in shapes.nodes:
        names = {name for name in (*node.input, *node.output) if name in at}
        size = sum((count(at[name]) or 0) * _bytes(types.get(name, TensorProto.FLOAT), precision) for name in names)
        if size > largest:
            largest, largest_node = size, f"{node.name or node.output[0]} ({node.op_type})"
    return MemoryEstimate(round(weights / MIB, 1), round(largest / MIB, 1), largest_node)


def _bytes(element_type: int, precision: Precision) -> int:
    if element_type in FLOATS:
        return FLOAT_BYTES[precision]
    return OTHER_BYTES.get(element_type, 1)  # bool, and what is rarer
