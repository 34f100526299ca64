"""How many multiply-accumulates one run of a model takes: of a torch network, and of an ONNX graph.

Counted are convolutions, transposed convolutions, linear layers and matrix products (attention): one for each pair of
numbers multiplied and added up. A bias, a normalisation, an activation, a softmax, a pooling or an upsampling is none.
The whole batch is counted. A network and the graph exported from it give the same number. How other counters differ,
each shown in tests/toolkit/test_macs.py:

- Ultralytics (`get_flops`, by thop 2.2) counts the same of a fused network, times 2 and in billions. Where the
  normalisations are not fused it adds 4 for each value of theirs; average poolings and softmax modules count too.
- Torch-Pruning (`count_ops_and_params`) counts the same for a convolution without a bias. It adds 1 for each value that
  gets a bias (of a linear layer: once for each output feature), 2 for each value of a normalisation, 1 for each value
  into a pooling and out of an upsampling; takes a transposed convolution for an ordinary one: by its output's size,
  `stride` squared times too many (YOLO's segmentation heads); and sees no matrix product (attention in YOLO11).
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx.shape_inference
import torch
from onnx import GraphProto, ModelProto, NodeProto
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from app.toolkit.errors import InvalidInputSize

Shapes = Mapping[str, Sequence[int] | None]


def macs_by_layer(network: nn.Module, example: torch.Tensor) -> dict[str, int]:
    """Multiply-accumulates of each layer that multiplies, by its name in `network.named_modules()`.

    `example` is an input [N, C, H, W]; only its shape is used. Layers come in the network's order. Every convolution
    and linear layer is there, with 0 if it is not called; one that is called twice counts twice. What is multiplied
    outside of them is booked under the module that does it: an attention block has its two matrix products,
    nn.MultiheadAttention its projections as well (they are functions, so its `out_proj` has 0).

    What runs is a copy in evaluation mode: on torch's meta device, which computes shapes alone (50 ms for YOLOv8n,
    whatever the input's size), or on the CPU in float32 where a network reads values while it runs. The network itself
    is not touched. Raises InvalidInputSize where the network does not run on such an input.
    """
    try:
        return _count(_copy(network, _without_values), torch.empty_like(example, device="meta", dtype=_dtype(network)))
    except (RuntimeError, TypeError, ValueError):  # it reads values, or mixes in a tensor that was made elsewhere
        pass
    try:
        return _count(_copy(network, _as_float32), torch.zeros(example.shape))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise InvalidInputSize(
            "the network does not run on an input of this shape",
            expected="[N, C, H, W] with the channels and multiples of the stride that the network takes",
            received=f"{list(example.shape)}: {str(error).strip().splitlines()[0] if str(error) else error!r}",
        ) from error


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Sees every operator below torch's functions, and books it under the module that runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running: list[str] = []
        self.counts: Counter[str] = Counter()

    def leave(self, *_: Any) -> None:
        self.running.pop()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = operator(*args, **(kwargs or {}))
        if operator.name() in TORCH_OPERATORS:
            self.counts[self.running[-1]] += TORCH_OPERATORS[operator.name()](args, made)
        return made


def _count(network: nn.Module, example: torch.Tensor) -> dict[str, int]:
    counter = _Counter()
    for name, module in network.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: counter.running.append(name))
        module.register_forward_hook(counter.leave)
    with torch.no_grad(), counter:
        network.eval()(example)
    return {
        name: counter.counts[name]
        for name, module in network.named_modules()
        if name in counter.counts or isinstance(module, (_ConvNd, nn.Linear))
    }


def _of_convolution(args: tuple[Any, ...], made: torch.Tensor) -> int:
    """A weight's first axis is what it makes ([out, in / groups, ...]), or of a transposed one what it reads."""
    given, weight, _bias, _stride, _padding, _dilation, transposed, *_ = args
    counted: torch.Tensor = given if transposed else made
    return counted.numel() * int(math.prod(weight.shape[1:]))


def _of_product(args: tuple[Any, ...], made: torch.Tensor) -> int:
    return made.numel() * int(args[0].shape[-1])


def _of_added_product(args: tuple[Any, ...], made: torch.Tensor) -> int:
    return _of_product(args[1:], made)


def _of_attention(args: tuple[Any, ...], _made: Any) -> int:
    """Queries [..., rows, depth] by keys [..., columns, depth], and what that gives by values [..., columns, width]."""
    query, key, value, *_ = args
    return int(math.prod(query.shape[:-1])) * int(key.shape[-2]) * int(query.shape[-1] + value.shape[-1])


# By name, as not every release of torch has each of them.
TORCH_OPERATORS: dict[str, Callable[[tuple[Any, ...], Any], int]] = {
    "aten::convolution": _of_convolution,
    "aten::mm": _of_product,
    "aten::bmm": _of_product,
    "aten::addmm": _of_added_product,
    "aten::baddbmm": _of_added_product,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _of_attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": _of_attention,
}


def _copy(network: nn.Module, convert: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """Another network on converted tensors: nothing of it is shared with the first."""
    memo: dict[int, Any] = {id(tensor): convert(tensor) for tensor in (*network.parameters(), *network.buffers())}
    for module in network.modules():
        # Plain attributes too: Detect keeps its anchors so, and a layer under a pruning mask its masked weight. But
        # lists of numbers stay as they are: Python code reads them (Detect's strides).
        for value in vars(module).values():
            if isinstance(value, torch.Tensor):
                memo[id(value)] = convert(value) if value.ndim > 1 else value.detach().clone()
    return copy.deepcopy(network, memo)


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("meta")


def _as_float32(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().to("cpu", copy=True)
    return tensor.float() if tensor.is_floating_point() else tensor


def _dtype(network: nn.Module) -> torch.dtype:
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


# Operator -> which of its inputs are the data and the weight.
ONNX_OPERANDS = {
    "Conv": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearConv": (0, 3),
    "ConvTranspose": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearMatMul": (0, 3),
}


def macs_of_onnx(model: ModelProto) -> dict[str, int | None]:
    """Multiply-accumulates of each node of the main graph that `ONNX_OPERANDS` names, in the graph's order.

    The key is the node's of `node_names`. None where onnx's shape inference does not tell the sizes: a graph with free
    axes, or operators that onnx does not know. The model is not changed.
    """
    shapes = onnx_shapes(model)
    named = zip(node_names(model.graph), model.graph.node, strict=True)
    return {name: _macs_of_node(node, shapes) for name, node in named if node.op_type in ONNX_OPERANDS}


def node_names(graph: GraphProto) -> list[str]:
    """A name for each node, no two alike: its own, or its first output's (which ONNX lets be nobody else's)."""
    names: dict[str, None] = {}
    for index, node in enumerate(graph.node):
        name = node.name or next(iter(node.output), node.op_type)
        names[name if name not in names else f"{name} #{index}"] = None
    return list(names)


def onnx_shapes(model: ModelProto) -> dict[str, tuple[int, ...] | None]:
    """Every tensor's shape that onnx can infer; None for one with an axis that is free."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):  # ValueError: over protobuf's 2 GiB
        graph = model.graph
    shapes: dict[str, tuple[int, ...] | None] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            known = all(axis.HasField("dim_value") and axis.dim_value >= 0 for axis in kind.shape.dim)
            shapes[value.name] = tuple(axis.dim_value for axis in kind.shape.dim) if known else None
    shapes.update({tensor.name: tuple(tensor.dims) for tensor in graph.initializer})
    return shapes


def _macs_of_node(node: NodeProto, shapes: Shapes) -> int | None:
    data_at, weight_at = ONNX_OPERANDS[node.op_type]
    if len(node.input) <= weight_at or not node.output:
        return None  # broken, but not ours to judge here
    given, weight, made = (shapes.get(name) for name in (node.input[data_at], node.input[weight_at], node.output[0]))
    if node.op_type == "ConvTranspose":
        return None if given is None or weight is None else math.prod(given) * math.prod(weight[1:])
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        return None if made is None or weight is None else math.prod(made) * math.prod(weight[1:])
    if made is None or not given:
        return None
    transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
    return math.prod(made) * given[0 if transposed else -1]
