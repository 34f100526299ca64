"""Small ONNX graphs for the tests of quantisation."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper


def small_network(*, opset: int = 17, batch: Any = 1, silent: bool = False) -> ModelProto:
    """Two convolutions, an activation beside the second, a classifier over 5 classes; input [batch, 3, 8, 8] float32.

    `silent` zeroes the first convolution, so that nothing of the image gets through.
    """
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(size=(8, 3, 3, 3)) * (0 if silent else 1),
        "b1": rng.normal(size=8) * (0 if silent else 1),
        "w2": rng.normal(size=(6, 8, 3, 3)),
        "b2": rng.normal(size=6),
        "w3": rng.normal(size=(6, 5)),
        "b3": rng.normal(size=5),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "/stem/Conv", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], "/stem/Relu"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "/body/Conv", pads=[1] * 4),
        helper.make_node("Sigmoid", ["c2"], ["s2"], "/body/Sigmoid"),
        helper.make_node("Mul", ["c2", "s2"], ["m2"], "/body/Mul"),
        helper.make_node("GlobalAveragePool", ["m2"], ["g"], "/head/Pool"),
        helper.make_node("Flatten", ["g"], ["f"], "/head/Flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["l"], "/head/Gemm"),
        helper.make_node("Softmax", ["l"], ["y"], "/head/Softmax"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(model, {"task": "classify"})
    return model


def mean_reader(
    weights: np.ndarray[Any, np.dtype[Any]],
    *,
    shape: tuple[int, ...] = (),
    output: str = "y",
    dtype: int = TensorProto.FLOAT,
    axes: tuple[Any, ...] = (1, 3, 64, 64),
    entries: dict[str, str] | None = None,
) -> ModelProto:
    """Each channel's mean times `weights` [channels, values]: logits, or of `shape` a tensor and no more."""
    nodes = [
        helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("GlobalAveragePool", ["floats"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["m"]),
        helper.make_node("Reshape", ["m", "s"], [output]),
    ]
    shape = shape or (1, weights.shape[1])
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("x", dtype, axes)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(weights.astype(np.float32), "w"),
            numpy_helper.from_array(np.array(shape, np.int64), "s"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, entries or {})
    return model


def noise(count: int, *, scale: float = 1.0, seed: int = 1) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Batches [1, 3, 8, 8] float32 around zero."""
    rng = np.random.default_rng(seed)
    return [((rng.random((1, 3, 8, 8)) - 0.4) * scale).astype(np.float32) for _ in range(count)]
