"""Static INT8: Q/DQ pairs around the operators, scales from calibrated ranges, for one of two targets.

No file can be both. TensorRT takes signed and symmetric quantisation only, which ONNX Runtime computes slower than FP32
on a CPU; what is fast there (unsigned asymmetric activations, INT32 biases) TensorRT refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from app.toolkit.onnx_file import check, sort_topologically
from app.toolkit.quantization.operators import QUANTIZED_OPERATORS, WEIGHTED, Target
from app.toolkit.quantization.ranges import Ranges

__all__ = ["Target", "quantizable", "quantize_static"]

ACTIVATIONS = {"tensorrt": QuantType.QInt8, "onnxruntime-cpu": QuantType.QUInt8}
OPTIONS: dict[Target, dict[str, Any]] = {
    "tensorrt": {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "AddQDQPairToWeight": True,  # weights stay FP32 in the file; the build quantises them
        "QuantizeBias": False,
        "DedicatedQDQPair": True,
        # A pair behind a convolution keeps TensorRT from fusing it with its activation, and costs accuracy.
        "OpTypesToExcludeOutputQuantization": list(WEIGHTED),
    },
    "onnxruntime-cpu": {"ActivationSymmetric": False, "WeightSymmetric": True},
}
THIN_CHANNELS = 5  # an image has up to 4
# ONNX Runtime's mark of a graph whose shapes are inferred; without it the graph goes through a file once more.
INFERRED = ("onnx.infer", "onnxruntime.quant")


def quantizable(model: ModelProto, target: Target) -> tuple[str, ...]:
    """The nodes of a prepared graph, in its order, that have an operator for the target and floating input.

    Those that only move values (Reshape) are quantised where what they move is. For ONNX Runtime the convolution on the
    image itself is none: its few channels fill no integer kernel, and FP32 computes it in half the time.
    """
    operators = set(QUANTIZED_OPERATORS[target])
    slow = _thin_convolutions(model) if target == "onnxruntime-cpu" else set()
    values = (*model.graph.input, *model.graph.value_info)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    found = (node for node in model.graph.node if node.op_type in operators and node.input[0] in floats)
    return tuple(node.name for node in found if node.name not in slow)


def _thin_convolutions(model: ModelProto) -> set[str]:
    """Those with few channels of input and no groups."""
    channels = {tensor.name: tensor.dims[1] for tensor in model.graph.initializer if len(tensor.dims) > 1}
    convolutions = (node for node in model.graph.node if node.op_type == "Conv")
    return {
        node.name
        for node in convolutions
        if channels.get(node.input[1], THIN_CHANNELS) < THIN_CHANNELS
        and all(one.i == 1 for one in node.attribute if one.name == "group")
    }


def quantize_static(
    model: ModelProto,
    ranges: Ranges,
    *,
    target: Target,
    per_channel: bool = True,
    exclude_nodes: Sequence[str] = (),
) -> ModelProto:
    """A prepared graph with Q/DQ pairs; the metadata is kept, the nodes excluded by name stay floating.

    Post-processing is not excluded by itself: add `post_processing(model)`. `per_channel` gives weights a scale an
    output channel instead of one a tensor; it is always symmetric. A range of nothing gives the scale 1.
    Raises InvalidOnnx.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.metadata_props.add(key=INFERRED[0], value=INFERRED[1])
    quantizer = QDQQuantizer(
        copy,
        per_channel,
        False,  # reduce_range: 7-bit weights, for CPUs older than VNNI
        QuantType.QInt8,
        ACTIVATIONS[target],
        {name: _tensor_data(*pair) for name, pair in ranges.tensors.items()},
        [],
        [*exclude_nodes, *(_thin_convolutions(model) if target == "onnxruntime-cpu" else ())],
        list(QUANTIZED_OPERATORS[target]),
        dict(OPTIONS[target]),
    )
    made: ModelProto = quantizer.quantize_model()
    sort_topologically(made.graph)
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)
    check(made)
    return made


def _tensor_data(low: float, high: float) -> TensorData:
    return TensorData(lowest=np.float32(low), highest=np.float32(high))
