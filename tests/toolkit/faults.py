"""Faults as exports really have them, each planted in a good export of the pills models and drawn from a seed.

A fault of the graph is written into the graph, a fault of the preprocessing is what a candidate then says of its own.
Only `noise` is scaled by what it does; all others are planted without looking at their effect. But the detector finds
every pill at stride 8, at 320 as at 640 px: a layer that only the other two levels read changes no answer, whatever its
weights, so faults of one layer keep out of those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from app.toolkit.export import onnx_from_torch
from app.toolkit.images import BORDER_GREY
from app.toolkit.models.open_model import open_model

CLASSES = 12
BOX_ROWS = 4
IMAGENET: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
IDLE_LAYERS = re.compile(r"model\.(1[6-9]|2[01])[./]|cv[23]\.[12][./]")
CARRIED = 256.0  # a power of two, so that float32 loses nothing

Rng = np.random.Generator
Array = npt.NDArray[Any]
Change = Callable[[Array], Array]


@dataclass(frozen=True)
class Good:
    """A good export: its checkpoint, its FP32 graph with a fixed square input, and that input's side in px."""

    source: Path
    graph: ModelProto
    side_px: int

    @property
    def is_detector(self) -> bool:
        """Boxes, or else classes."""
        return "yolo" in self.source.name

    def copy(self) -> ModelProto:
        """The graph, to be spoilt."""
        copied = ModelProto()
        copied.CopyFrom(self.graph)
        return copied


@dataclass(frozen=True)
class Planted:
    """The spoilt graph, what was done to it, and what the candidate says otherwise of its preprocessing."""

    graph: ModelProto
    words: str
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


Plant = Callable[[Good, Rng], Planted]


def good_export(source: Path, side_px: int) -> Good:
    """A checkpoint's FP32 export of a square input."""
    graph = onnx_from_torch(open_model(source), input_size=(side_px, side_px))
    return Good(source, graph, side_px)


def swapped_classes(good: Good, rng: Rng) -> Planted:
    """Two classes' output channels change places."""
    first, second = _classes(rng, 2)
    rows = list(range(CLASSES + (BOX_ROWS if good.is_detector else 0)))
    offset = len(rows) - CLASSES
    rows[offset + first], rows[offset + second] = rows[offset + second], rows[offset + first]
    model = good.copy()
    _add(model, "rows", np.array(rows, np.int64))
    _append(model, helper.make_node("Gather", ["answer", "rows"], ["swapped"], axis=1))
    return Planted(model, f"classes {first} and {second}")


def shifted_bias(good: Good, rng: Rng) -> Planted:
    """A class's bias is off by 2 to 4 log-odds, up or down."""
    (index,) = _classes(rng, 1)
    shift = float(rng.uniform(2, 4) * rng.choice([-1, 1]))
    model = good.copy()
    for name in _head_tensors(model, "bias"):
        _edit(model, name, lambda bias: _with(bias, index, bias[index] + shift))
    return Planted(model, f"class {index} by {shift:+.2f}")


def missing_class(good: Good, rng: Rng) -> Planted:
    """A class's weights were lost: a detector never finds it, a classifier gives it the logit 0."""
    (index,) = _classes(rng, 1)
    model = good.copy()
    for name in _head_tensors(model, "weight"):
        _edit(model, name, lambda weight: _with(weight, index, 0))
    for name in _head_tensors(model, "bias"):
        _edit(model, name, lambda bias: _with(bias, index, -20 if good.is_detector else 0))
    return Planted(model, f"class {index}")


def wrong_normalisation(good: Good, rng: Rng) -> Planted:
    """Another mean and std than the training's."""
    half, none = {"mean": [0.5] * 3, "std": [0.5] * 3}, {"mean": [0.0] * 3, "std": [1.0] * 3}
    known = {"ImageNet's": IMAGENET, "0.5": half, "none": none}
    names = ["ImageNet's", "0.5"] if good.is_detector else ["0.5", "none"]
    name = str(rng.choice(names))
    return Planted(good.graph, f"{name} mean and std", known[name])


def range_255(good: Good, _rng: Rng) -> Planted:
    """Pixels are not divided by 255."""
    own = {"mean": [0.0] * 3, "std": [1.0] * 3} if good.is_detector else IMAGENET
    scaled = {name: [value / 255 for value in values] for name, values in own.items()}
    return Planted(good.graph, "pixels of 0..255", scaled)


def swapped_colours(good: Good, _rng: Rng) -> Planted:
    """BGR for RGB, as OpenCV reads pictures."""
    return Planted(good.graph, "BGR", {"channel_order": "BGR"})


def stretched(good: Good, _rng: Rng) -> Planted:
    """A plain resize for the letterbox."""
    return Planted(good.graph, "stretch", {"resize": "stretch"})


def other_crop(good: Good, rng: Rng) -> Planted:
    """The centre of a larger picture, as classifiers of ImageNet take it."""
    crop_pct = float(rng.choice([0.8, 0.85, 0.875]))
    return Planted(good.graph, f"crop_pct {crop_pct}", {"crop_pct": crop_pct})


def letterbox_off_by_one(good: Good, rng: Rng) -> Planted:
    """The picture lies 1 px from where its boxes are mapped back from."""
    down, right = [(1, 0), (0, 1), (1, 1), (-1, 0), (0, -1), (-1, -1)][rng.integers(6)]
    model = good.copy()
    _add(model, "shift", np.array([0, 0, down, right, 0, 0, -down, -right], np.int64))
    _add(model, "grey", np.float32(BORDER_GREY / 255))
    _prepend(model, helper.make_node("Pad", ["fed", "shift", "grey"], ["moved"]))
    return Planted(model, f"{down:+d} px down, {right:+d} px right")


def transposed_input(good: Good, _rng: Rng) -> Planted:
    """[N, C, W, H] for [N, C, H, W]."""
    model = good.copy()
    _prepend(model, helper.make_node("Transpose", ["fed"], ["turned"], perm=[0, 1, 3, 2]))
    return Planted(model, "H and W swapped")


def truncated_weights(good: Good, rng: Rng) -> Planted:
    """A convolution's tensor breaks off: from a quarter to three quarters of it are zeros."""
    model = good.copy()
    node = _drawn_convolution(model, rng)
    share = float(rng.uniform(0.25, 0.75))

    def cut(weight: Array) -> Array:
        kept = np.arange(weight.size) < weight.size * (1 - share)
        return np.where(kept.reshape(weight.shape), weight, 0)

    _edit(model, node.input[1], cut)
    return Planted(model, f"the last {share:.0%} of {node.name}")


def noise(good: Good, rng: Rng) -> Callable[[float], Planted]:
    """Normal noise on a drawn convolution's weights, by its strength: its deviation over that of the weights."""
    node = _drawn_convolution(good.graph, rng)
    direction = rng.standard_normal(_tensors(good.graph)[node.input[1]].dims).astype(np.float32)

    def plant(strength: float) -> Planted:
        model = good.copy()
        _edit(model, node.input[1], lambda weight: weight + direction * np.float32(strength * weight.std()))
        return Planted(model, f"{strength:.3g} of the weights' deviation on {node.name}")

    return plant


def stale_statistics(good: Good, rng: Rng) -> Planted:
    """A batch norm's running statistics are from 40 % to 100 % those of before the training."""
    share = float(rng.uniform(0.4, 1))
    adapter = open_model(good.source)
    modules = adapter.reference_module().named_modules()  # on the tensors that the export is of
    norms = [(name, one) for name, one in modules if isinstance(one, nn.BatchNorm2d) and not IDLE_LAYERS.search(name)]
    name, norm = norms[rng.integers(len(norms))]
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    mean.copy_(torch.lerp(mean, torch.zeros_like(mean), share))
    variance.copy_(torch.lerp(variance, torch.ones_like(variance), share))
    graph = onnx_from_torch(adapter, input_size=(good.side_px, good.side_px))
    return Planted(graph, f"{share:.0%} initial in {name}")


def shifted_pads(good: Good, rng: Rng) -> Planted:
    """A convolution pads more at its end and less at its beginning, or the reverse; sizes stay."""
    model = good.copy()
    padded = [node for node in _convolutions(model) if any(_ints(node, "pads"))]
    node = padded[rng.integers(len(padded))]
    down, right = [(1, 1), (-1, -1), (1, 0), (0, 1)][rng.integers(4)]
    top, left, bottom, end = _ints(node, "pads")
    _set(node, "pads", [top - down, left - right, bottom + down, end + right])
    return Planted(model, f"{_ints(node, 'pads')} in {node.name}")


def other_resize(good: Good, rng: Rng) -> Planted:
    """An upsampling interpolates or rounds otherwise."""
    model = good.copy()
    resizes = [node for node in model.graph.node if node.op_type == "Resize"]
    node = resizes[rng.integers(len(resizes))]
    mode, place = [("linear", "half_pixel"), ("linear", "asymmetric"), ("nearest", "align_corners")][rng.integers(3)]
    _set(node, "mode", mode)
    _set(node, "coordinate_transformation_mode", place)
    return Planted(model, f"{mode}, {place} in {node.name}")


def fp16_overflow(good: Good, rng: Rng) -> Planted:
    """A tensor is carried 65536 times as large into a convolution that divides it again: exact in FP32 alone.

    It is kept as FP16 in between. ONNX Runtime's CPU kernels compute a graph that is FP16 throughout in FP32, where
    nothing overflows; a tensor that is cast by the graph itself is rounded there too.
    """
    model = good.copy()
    node = _drawn_convolution(model, rng)
    _add(model, "carry", np.float32(CARRIED))
    _edit(model, node.input[1], lambda weight: weight / np.float32(CARRIED**2))
    carried = [
        helper.make_node("Mul", [node.input[0], "carry"], ["larger"]),
        helper.make_node("Mul", ["larger", "carry"], ["largest"]),
        helper.make_node("Cast", ["largest"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["single"], to=TensorProto.FLOAT),
    ]
    node.input[0] = "single"
    _insert(model, list(model.graph.node).index(node), carried)
    return Planted(model, f"before {node.name}")


def sigmoid_missing(good: Good, _rng: Rng) -> Planted:
    """A detector's scores are log-odds."""
    model = good.copy()
    _score_node(model).op_type = "Identity"
    return Planted(model, "scores are log-odds")


def sigmoid_twice(good: Good, _rng: Rng) -> Planted:
    """A detector's scores went through the sigmoid in the graph and after it."""
    model = good.copy()
    node = _score_node(model)
    once = helper.make_node("Sigmoid", [node.input[0]], ["once"])
    node.input[0] = "once"
    _insert(model, list(model.graph.node).index(node), [once])
    return Planted(model, "scores through two sigmoids")


def softmax_twice(good: Good, _rng: Rng) -> Planted:
    """A classifier's logits are already probabilities."""
    model = good.copy()
    _append(model, helper.make_node("Softmax", ["answer"], ["softened"], axis=1))
    return Planted(model, "a softmax in the graph")


def swapped_strides(good: Good, rng: Rng) -> Planted:
    """The finest of the detector's levels and another are scaled by each other's stride."""
    one, other = 8.0, float(rng.choice([16.0, 32.0]))
    model = good.copy()
    scale = next(node for node in model.graph.node if node.output[0] == model.graph.node[-1].input[0])
    _edit(model, scale.input[1], lambda held: np.select([held == one, held == other], [other, one], held))
    return Planted(model, f"{one:g} and {other:g}")


def corners_for_centres(good: Good, _rng: Rng) -> Planted:
    """Boxes are x1, y1, x2, y2 where x, y, width, height is expected."""
    model = good.copy()
    made_by = {node.output[0]: node for node in model.graph.node}
    joined = made_by[made_by[model.graph.node[-1].input[0]].input[0]]
    width_height = made_by[joined.input[1]]
    joined.input[0], joined.input[1] = width_height.input[1], width_height.input[0]
    return Planted(model, "x1, y1, x2, y2")


BOTH: dict[str, Plant] = {
    "two classes' channels swapped": swapped_classes,
    "one class's bias shifted": shifted_bias,
    "one class's weights lost": missing_class,
    "wrong mean and std": wrong_normalisation,
    "pixels of 0..255": range_255,
    "BGR for RGB": swapped_colours,
    "H and W transposed": transposed_input,
    "truncated weights of one layer": truncated_weights,
    "stale batch-norm statistics": stale_statistics,
    "wrong pad in one layer": shifted_pads,
    "FP16 overflow": fp16_overflow,
}
DETECTOR: dict[str, Plant] = {
    **BOTH,
    "letterbox off by one": letterbox_off_by_one,
    "plain resize for letterbox": stretched,
    "other resize mode": other_resize,
    "sigmoid missing": sigmoid_missing,
    "sigmoid twice": sigmoid_twice,
    "strides of two levels swapped": swapped_strides,
    "corners for centres": corners_for_centres,
}
CLASSIFIER: dict[str, Plant] = {**BOTH, "other centre crop": other_crop, "softmax twice": softmax_twice}


def _classes(rng: Rng, count: int) -> list[int]:
    return [int(index) for index in rng.choice(CLASSES, count, replace=False)]


def _tensors(model: ModelProto) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _head_tensors(model: ModelProto, kind: str) -> list[str]:
    """The last layers of the classes: three levels of YOLOv8's, one of timm's."""
    return [name for name in _tensors(model) if re.search(rf"(\.cv3\.\d\.2|^classifier)\.{kind}$", name)]


def _edit(model: ModelProto, name: str, change: Change) -> None:
    tensor = _tensors(model)[name]
    held = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(held), dtype=held.dtype), name))


def _with(held: Array, index: int, value: Any) -> Array:
    changed = np.array(held)
    changed[index] = value
    return changed


def _add(model: ModelProto, name: str, value: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def _convolutions(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Conv" and not IDLE_LAYERS.search(node.name)]


def _drawn_convolution(model: ModelProto, rng: Rng) -> NodeProto:
    """Not the smallest, and not those that a squeeze feeds: a layer that pictures go through."""
    tensors = _tensors(model)
    large = [
        node for node in _convolutions(model) if "/se/" not in node.name and np.prod(tensors[node.input[1]].dims) >= 256
    ]
    return large[rng.integers(len(large))]


def _score_node(model: ModelProto) -> Any:
    return next(node for node in model.graph.node if node.output[0] == model.graph.node[-1].input[1])


def _ints(node: NodeProto, name: str) -> list[int]:
    return next((list(one.ints) for one in node.attribute if one.name == name), [])


def _set(node: NodeProto, name: str, value: Any) -> None:
    kept = [one for one in node.attribute if one.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def _insert(model: ModelProto, at: int, nodes: Sequence[NodeProto]) -> None:
    changed = [*model.graph.node[:at], *nodes, *model.graph.node[at:]]
    del model.graph.node[:]
    model.graph.node.extend(changed)


def _prepend(model: ModelProto, node: NodeProto) -> None:
    """Let a node that reads "fed" stand between the input and its readers."""
    name = model.graph.input[0].name
    for reader in model.graph.node:
        reader.input[:] = [node.output[0] if one == name else one for one in reader.input]
    node.input[0] = name
    _insert(model, 0, [node])


def _append(model: ModelProto, node: NodeProto) -> None:
    """Let a node that reads "answer" stand between the last node and the output."""
    last = model.graph.node[-1]
    node.output[0], last.output[0] = last.output[0], node.input[0]
    _insert(model, len(model.graph.node), [node])
