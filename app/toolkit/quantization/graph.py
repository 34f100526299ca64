"""What quantisation must know of a graph first: that it can start, which nodes to leave alone, which are meant by name.

The head's post-processing decodes boxes and scores: its tensors mix pixels (0 to 640) with probabilities (0 to 1), and
256 steps over both leave nothing of the second. So what comes after the last trained layer stays floating.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from app.toolkit.errors import AlreadyQuantised, FeedMismatch, InvalidOnnx, UnknownLayer, UnsupportedOpset
from app.toolkit.onnx_file import input_specs, opset_of, sort_topologically

MIN_OPSET = 13  # the first whose QuantizeLinear has an axis, which a scale a channel needs
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"})
HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def prepared(model: ModelProto) -> ModelProto:
    """A copy with sorted nodes of unique names, constants as initializers and every shape inferred.

    Batch-normalisations should be folded already, as in our exports. Raises AlreadyQuantised for a graph with
    quantisers or FP16 weights, UnsupportedOpset below 13, FeedMismatch unless it has one float32 input of rank 4,
    InvalidOnnx for weights outside the file or shapes that contradict each other.
    """
    _refuse_reduced(model)
    _check_form(model)
    copy = ModelProto()
    copy.CopyFrom(model)
    _lift_constants(copy)
    sort_topologically(copy.graph)
    _name_nodes(copy)
    try:
        inferred: ModelProto = onnx.shape_inference.infer_shapes(copy)
    except onnx.shape_inference.InferenceError as error:
        raise InvalidOnnx(
            "the graph's shapes contradict each other", received=str(error).strip().splitlines()[0]
        ) from error
    return inferred


def _refuse_reduced(model: ModelProto) -> None:
    received = next(_reduced(model), None)
    if received is not None:
        raise AlreadyQuantised(
            "the graph does not compute in FP32 any more",
            expected="an FP32 graph without quantisation",
            received=received,
            hint="give the FP32 export that this one was made from",
        )


def _reduced(model: ModelProto) -> Iterator[str]:
    for node in model.graph.node:
        if node.op_type in QUANTISERS or node.op_type.startswith("QLinear"):
            yield f"{node.op_type} {node.name}"
    for tensor in model.graph.initializer:
        if tensor.data_type in HALVES:
            yield f"FP16 weights {tensor.name}"


def _check_form(model: ModelProto) -> None:
    if opset_of(model) < MIN_OPSET:
        raise UnsupportedOpset(
            f"opset {opset_of(model)} cannot hold a scale a channel",
            expected=f"opset {MIN_OPSET} or later",
            received=str(opset_of(model)),
            hint="export again, with opset 17",
        )
    inputs = input_specs(model)
    if len(inputs) != 1 or inputs[0].dtype != "float32" or len(inputs[0].shape) != 4:
        raise FeedMismatch(
            "the graph does not take one batch of images",
            expected="one float32 input [N, C, H, W]",
            received=", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in inputs) or "none",
        )
    outside = [one.name for one in model.graph.initializer if one.data_location == TensorProto.EXTERNAL]
    if outside:
        raise InvalidOnnx(
            "weights lie in another file",
            received=f"{len(outside)} tensors, the first {outside[0]}",
            hint="save the model as one file (onnx.save without external data)",
        )


def _lift_constants(model: ModelProto) -> None:
    """Constant nodes become initializers: ONNX Runtime's quantiser takes only these for weights."""
    kept = []
    for node in model.graph.node:
        value = next((one.t for one in node.attribute if one.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            lifted = model.graph.initializer.add()
            lifted.CopyFrom(value)
            lifted.name = node.output[0]
        else:
            kept.append(node)
    if len(kept) < len(model.graph.node):
        nodes = [NodeProto.FromString(node.SerializeToString()) for node in kept]
        del model.graph.node[:]
        model.graph.node.extend(nodes)


def _name_nodes(model: ModelProto) -> None:
    """Nodes are excluded by name, so every one must have its own."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{index}"
        while name in taken:
            name += "_"
        node.name = name
        taken.add(name)


def post_processing(model: ModelProto) -> tuple[str, ...]:
    """The nodes of a prepared graph, in its order, whose result reaches no trained layer any more."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    wanted: set[str] = set()  # tensors that some trained layer is computed from
    found = []
    for node in reversed(model.graph.node):
        if _is_trained(node, weights) or not wanted.isdisjoint(node.output):
            wanted.update(node.input)
        else:
            found.append(node.name)
    return tuple(reversed(found))


def _is_trained(node: NodeProto, weights: dict[str, TensorProto]) -> bool:
    """A layer with weights of its own. DFL's convolution has none: it is the mean over the bins 0, 1, ..., n-1."""
    constants = [weights[name] for name in node.input[:2] if name in weights]
    if node.op_type not in LAYERS or not constants:
        return False
    values = numpy_helper.to_array(constants[0])
    return not (node.op_type == "Conv" and values.shape[0] == 1 and np.array_equal(values.ravel(), range(values.size)))


def matching(model: ModelProto, patterns: Sequence[str]) -> tuple[str, ...]:
    """The nodes of a prepared graph, in its order, that the patterns mean.

    A pattern is an operator type (`Sigmoid`), a node's name, a folder of names (`/model.22`) or a glob (`/model.2?/*`,
    whose `*` matches slashes). ONNX's operators need not occur, so that one list serves many models; anything else that
    means nothing raises UnknownLayer, with the nearest names.
    """
    nodes = model.graph.node
    meant = {pattern: {node.name for node in nodes if _means(pattern, node)} for pattern in patterns}
    for pattern, found in meant.items():
        if not found and not onnx.defs.has(pattern):
            raise _unknown(pattern, nodes)
    names = set[str]().union(*meant.values())
    return tuple(node.name for node in nodes if node.name in names)


def _means(pattern: str, node: NodeProto) -> bool:
    folder = pattern.rstrip("/") + "/"
    return pattern in {node.op_type, node.name} or node.name.startswith(folder) or fnmatchcase(node.name, pattern)


def _unknown(pattern: str, nodes: Sequence[NodeProto]) -> UnknownLayer:
    names = sorted({node.op_type for node in nodes}) + [node.name for node in nodes]
    nearest = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5) or names[:3]
    return UnknownLayer(
        f"the graph has no node {pattern!r}",
        expected="an operator type, a node's name, a folder of names or a pattern with *",
        received=repr(pattern),
        hint=f"the nearest are {', '.join(nearest)}",
    )
