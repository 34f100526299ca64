"""Which nodes of an ONNX graph a Jetson's DLA does not take, by NVIDIA's published rules and by its builder's messages.

What no rule here names may still be refused: a convolution must also fit the DLA's buffer, and the builder alone knows.

Sources: [DOC] docs.nvidia.com, TensorRT 11.4.1, "DLA Supported Layers and Restrictions"; [MATRIX] the operators' table
of NVIDIA/Deep-Learning-Accelerator-SW, for Orin with TensorRT 8.5 and 8.6; [LOG] builds of YOLOv8 and YOLO11 on Orin in
ultralytics#18012, #23488 and its pull request 16449.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx import NodeProto, helper

from app.toolkit.tensorrt.shapes import GraphShapes, Shape
from app.toolkit.tensorrt.versions import Version

MAX_AXIS = 8192  # [DOC] "non-batch dimensions"
MAX_BATCH = 4096  # [DOC] the product of all axes but the last three
MAX_KERNEL = 32  # [DOC]
MAX_STRIDE = 8  # [DOC]
MAX_NODES = 20
IMAGE_RANK = 4  # N, C, H, W
CHANNELS_AXIS = 1

# [MATRIX] "Native", and what TensorRT's parser makes of others: Split is slices, Flatten and its like are shuffles.
TAKEN = {
    "Abs", "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Constant", "Conv", "ConvTranspose", "Cos",
    "Equal", "Gemm", "LRN", "LeakyRelu", "MatMul", "Max", "MaxPool", "Mul", "PRelu", "Relu", "Reshape", "Resize",
    "Sigmoid", "Slice", "Softmax", "Sub", "Sum", "Tanh", "Transpose", "Upsample",
    "Split", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout",
}  # fmt: skip
# [MATRIX] "Reconstruction": to be rewritten in other operators by hand.
REWRITTEN = {
    "And", "DepthToSpace", "GRU", "Gather", "Neg", "Not", "Or", "ScatterElements", "SpaceToDepth", "Where", "Xor",
}  # fmt: skip
# [MATRIX] "None"; [LOG] "DLA cores do not support DIV ElementWise operation", of POW too; [DOC] of 11.4.1 lists them.
LISTED_LATER = {"Div", "Greater", "Less", "Min", "Pow"}
LISTED_LATER_FROM: Version = (11, 4)
QDQ = {"QuantizeLinear", "DequantizeLinear"}
QDQ_FROM: Version = (11, 4, 1)


@dataclass(frozen=True)
class Refusal:
    """One rule and the nodes that it sends to the GPU: the first of them by name, `count` all. `source` says whose."""

    rule: str
    what: str
    nodes: tuple[str, ...]
    count: int
    source: str

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {**vars(self), "nodes": list(self.nodes)}


@dataclass(frozen=True)
class Graph:
    """A graph's nodes with the shapes that they have in the build."""

    nodes: Sequence[NodeProto]
    shapes: Mapping[str, Shape]
    version: Version | None
    fed: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fed", frozenset(self.shapes) | {name for node in self.nodes for name in node.output})

    def rank(self, name: str) -> int | None:
        """How many axes; None where the shape is not known."""
        shape = self.shapes.get(name)
        return None if shape is None else len(shape)


def refusals(shapes: GraphShapes, at: Mapping[str, Shape], version: Version | None) -> tuple[list[Refusal], set[str]]:
    """The rules that find something, and the first output's name of every node that one of them concerns.

    `at` are the shapes of the build, as `GraphShapes.at` gives them; `version` None stands for any.
    """
    graph = Graph(shapes.nodes, at, version)
    found: list[Refusal] = []
    concerned: set[str] = set()
    for rule, what, source, applies in _RULES:
        nodes = [node for node in graph.nodes if applies(graph, node)]
        if nodes:
            names = tuple(f"{node.name or node.output[0]} ({node.op_type})" for node in nodes[:MAX_NODES])
            found.append(Refusal(rule, what, names, len(nodes), source))
            concerned.update(node.output[0] for node in nodes)
    return found, concerned


def _unlisted(_graph: Graph, node: NodeProto) -> bool:
    return node.op_type not in TAKEN | REWRITTEN | LISTED_LATER | QDQ


def _rewritten(_graph: Graph, node: NodeProto) -> bool:
    return node.op_type in REWRITTEN


def _listed_later(graph: Graph, node: NodeProto) -> bool:
    return node.op_type in LISTED_LATER and (graph.version is None or graph.version < LISTED_LATER_FROM)


def _qdq(graph: Graph, node: NodeProto) -> bool:
    return node.op_type in QDQ and (graph.version is None or graph.version < QDQ_FROM)


def _concat(graph: Graph, node: NodeProto) -> bool:
    if node.op_type != "Concat":
        return False
    rank = graph.rank(node.output[0])
    axis = _attribute(node, "axis", CHANNELS_AXIS)
    return len(node.input) < 2 or axis + (rank or 0 if axis < 0 else 0) != CHANNELS_AXIS


def _slice(graph: Graph, node: NodeProto) -> bool:
    return node.op_type in {"Slice", "Split"} and graph.rank(node.input[0]) not in {None, IMAGE_RANK}


def _shuffle(graph: Graph, node: NodeProto) -> bool:
    if node.op_type not in {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"}:
        return False
    return bool({graph.rank(node.input[0]), graph.rank(node.output[0])} - {None, IMAGE_RANK})


def _convolution(graph: Graph, node: NodeProto) -> bool:
    if node.op_type != "Conv":
        return False
    kernel, strides = _attribute(node, "kernel_shape", []), _attribute(node, "strides", [])
    channels = [graph.shapes.get(name, (None, None))[1:2] for name in (node.input[0], node.output[0])]
    return (
        graph.rank(node.output[0]) not in {None, IMAGE_RANK}
        or any(not 1 <= size <= MAX_KERNEL for size in kernel)
        or any(not 1 <= step <= MAX_STRIDE for step in strides)
        or any((axis or 0) > MAX_AXIS for axes in channels for axis in axes)
    )


def _deconvolution(_graph: Graph, node: NodeProto) -> bool:
    if node.op_type != "ConvTranspose":
        return False
    dilated = any(step > 1 for step in _attribute(node, "dilations", []))
    return _attribute(node, "group", 1) > 1 or dilated or any(_attribute(node, "pads", []))


def _second_input(graph: Graph, node: NodeProto) -> bool:
    return node.op_type in {"MatMul", "PRelu"} and node.input[1] in graph.fed


def _batch(graph: Graph, node: NodeProto) -> bool:
    shape = graph.shapes.get(node.output[0], ())
    batch = 1
    for axis in shape[:-3]:
        batch *= axis or 1
    return batch > MAX_BATCH


def _axis(graph: Graph, node: NodeProto) -> bool:
    return any((axis or 0) > MAX_AXIS for name in (*node.input, *node.output) for axis in non_batch(graph.shapes, name))


def _free_axis(graph: Graph, node: NodeProto) -> bool:
    return None in graph.shapes.get(node.output[0], (None,))


def non_batch(shapes: Mapping[str, Shape], name: str) -> Iterator[int | None]:
    """The axes that the limit of 8192 is about: all but the first; of five axes and more, the last three."""
    shape = shapes.get(name, ())
    yield from shape[-3:] if len(shape) > IMAGE_RANK else shape[1:]


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


_RULES: tuple[tuple[str, str, str, Callable[[Graph, NodeProto], bool]], ...] = (
    ("AXIS_OVER_8192", f"an input or output has an axis over {MAX_AXIS}", "DOC", _axis),
    ("BATCH_OVER_4096", f"the axes before C, H, W come to more than {MAX_BATCH}", "DOC", _batch),
    ("FREE_AXIS", "the output's shape is not fixed, or could not be inferred", "DOC", _free_axis),
    ("OPERATOR_NOT_LISTED", "NVIDIA lists no DLA form of this operator", "MATRIX", _unlisted),
    ("OPERATOR_TO_REWRITE", "only rewritten in other operators, by hand, before the build", "MATRIX", _rewritten),
    ("OPERATOR_LISTED_LATER", "not taken up to 8.6, listed for 11.4; between them not known", "LOG", _listed_later),
    ("QDQ", "Q/DQ is not taken up to 10.x; INT8 on a DLA needs a calibration there", "DOC", _qdq),
    ("CONCAT_NOT_ON_CHANNELS", '"DLA only supports concatenation on the C dimension", of two or more', "LOG", _concat),
    ("SLICE_NOT_4D", '"DLA only supports slicing 4 dimensional tensors"', "LOG", _slice),
    ("SHUFFLE_NOT_4D", "YOLO heads' reshapes to or from other than four axes were refused", "LOG", _shuffle),
    ("CONVOLUTION_LIMITS", "2D only, kernel 1 to 32, stride 1 to 8, channels 1 to 8192", "DOC", _convolution),
    ("DECONVOLUTION_LIMITS", "no groups, no dilation, padding 0", "DOC", _deconvolution),
    ("SECOND_INPUT_NOT_CONSTANT", "the second input must be a constant", "MATRIX", _second_input),
)
