"""What TensorRT will refuse in an ONNX file, read from the graph before anybody waits for a build.

The texts under `says` are TensorRT's own, from its parser's sources and from logs; where a release has none here, its
words are not known to us. For 11 little is published yet: what 10 refuses is taken to be refused by 11 too. A build may
still fail on what no rule here knows.

Sources: onnx-tensorrt's operator tables (docs/operators.md of each release) and importers; NVIDIA's developer guide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from app.toolkit.onnx_file import opset_of

RELEASES = ("8.2", "8.5", "8.6", "10", "11")
"""TensorRT's, as its behaviour changed: 8.6 stands for 8.6 alone, 10 for 10.0 to 10.16, 11 for 11.x."""

UP_TO_10 = ("8.2", "8.5", "8.6", "10")
OPSETS = {"8.2": 13, "8.5": 17}
"""The newest opset that a release says it supports; of the others no figure is known to us."""

MAX_NODES = 20
INTEGER_OPERATORS = ("ConvInteger", "MatMulInteger")
NOT_TAKEN = frozenset({TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128})
PER_CHANNEL_OPSET = 13  # the first whose QuantizeLinear has an axis

PLUGIN_10 = "Plugin not found, are the plugin name, version, and namespace correct?"
PLUGIN_8 = "No importer registered for op: {0}. Attempting to import as plugin."
ZERO_POINTS = "zeroPt must be all zeros"
SYMMETRIC_8 = f"TRT only supports symmetric quantization - {ZERO_POINTS}"
SYMMETRIC_10 = (
    "TensorRT only supports symmetric quantization. The zero point for the QuantizeLinear/DequantizeLinear operator "
    "must be all zeros."
)
UINT8_10 = (
    "TensorRT doesn't support QuantizeLinear/DequantizeLinear with UINT8 zero_point. TensorRT will use INT8 instead."
)

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that a release refuses (an error) or takes in a way that surprises (a warning).

    `nodes` are the first of those concerned, `count` all; `says` is release -> TensorRT's words.
    """

    rule: str
    severity: Severity
    what: str
    nodes: tuple[str, ...]
    count: int
    releases: tuple[str, ...]
    instead: str
    says: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {**vars(self), "nodes": list(self.nodes), "releases": list(self.releases), "says": dict(self.says)}


@dataclass(frozen=True)
class LintReport:
    """What was found, errors first. `releases` are those that it speaks of."""

    findings: tuple[Finding, ...]
    opset: int
    releases: tuple[str, ...] = RELEASES

    def restricted_to(self, releases: Sequence[str]) -> LintReport:
        """The same without what concerns other releases only."""
        wanted = tuple(release for release in RELEASES if release in releases)
        kept = tuple(one for one in self.findings if set(one.releases) & set(wanted))
        return LintReport(kept, self.opset, wanted)

    def refused_by(self, release: str) -> bool:
        """Whether an error concerns that release."""
        return any(one.severity == "error" and release in one.releases for one in self.findings)

    def verdict(self) -> str:
        """One sentence."""
        refusing = [release for release in self.releases if self.refused_by(release)]
        if not refusing:
            return f"clean: nothing here that TensorRT {', '.join(self.releases)} is known to refuse"
        rules = [one.rule for one in self.findings if one.severity == "error" and set(one.releases) & set(refusing)]
        return f"TensorRT {', '.join(refusing)} would refuse it: {', '.join(rules)}"

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape; `clean` says for each release that no rule here knows why it would refuse the file."""
        return {
            "clean": {release: not self.refused_by(release) for release in self.releases},
            "errors": sum(one.severity == "error" for one in self.findings),
            "warnings": sum(one.severity == "warning" for one in self.findings),
            "opset": self.opset,
            "findings": [one.as_dict() for one in self.findings],
        }


def lint(model: ModelProto, folder: Path | None = None) -> LintReport:
    """Read a graph, subgraphs included. `folder` is where its external data lies; None skips that rule."""
    graph = _Graph(model)
    found = [finding for rule in _RULES for finding in rule(graph)]
    if folder is not None:
        found += _external_data(model, folder)
    found.sort(key=lambda one: one.severity)  # "error" comes first in the alphabet too
    return LintReport(tuple(found), graph.opset)


class _Graph:
    """A model's nodes, those of subgraphs too, and its constants by name."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.opset = opset_of(model)
        self.nodes = list(_nodes(model.graph))
        self.constants: dict[str, TensorProto] = {}
        for graph in _graphs(model.graph):
            self.constants.update({tensor.name: tensor for tensor in graph.initializer})
        for node in self.nodes:
            if node.op_type == "Constant":
                value = next((one.t for one in node.attribute if one.name == "value"), None)
                if value is not None:
                    self.constants[node.output[0]] = value

    def quantisers(self) -> Iterator[NodeProto]:
        return (node for node in self.nodes if node.op_type in {"QuantizeLinear", "DequantizeLinear"})

    def input(self, node: NodeProto, index: int) -> TensorProto | None:
        """A node's input, if it is a constant."""
        return self.constants.get(node.input[index]) if len(node.input) > index else None

    def values(self, node: NodeProto, index: int) -> npt.NDArray[Any] | None:
        """A constant input's values; None where it is none, or lies outside the file."""
        tensor = self.input(node, index)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        array: npt.NDArray[Any] = numpy_helper.to_array(tensor)
        return array


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for one in _graphs(graph):
        yield from one.node


def _name(node: NodeProto) -> str:
    return f"{node.name or node.output[0]} ({node.op_type})"


def _finding(
    rule: str,
    nodes: Sequence[NodeProto],
    what: str,
    instead: str,
    *,
    severity: Severity = "error",
    releases: tuple[str, ...] = RELEASES,
    says: Mapping[str, str] | None = None,
) -> Iterator[Finding]:
    if nodes:
        names = tuple(map(_name, nodes[:MAX_NODES]))
        yield Finding(rule, severity, what, names, len(nodes), releases, instead, says or {})


# -- rules --------------------------------------------------------------------------------------------------------
def _dynamic_quantisation(graph: _Graph) -> Iterator[Finding]:
    yield from _finding(
        "DYNAMIC_QUANTIZATION",
        [node for node in graph.nodes if node.op_type == "DynamicQuantizeLinear"],
        "activations are quantised while the model runs, which no release's parser has an importer for "
        "(8.2 to 10: its own table; 11: not verified)",
        "quantise statically with calibration images (quantize_onnx, mode static, target tensorrt)",
        says={
            **dict.fromkeys(("8.2", "8.5", "8.6"), PLUGIN_8.format("DynamicQuantizeLinear")),
            "10": PLUGIN_10,
        },
    )


def _integer_operators(graph: _Graph) -> Iterator[Finding]:
    nodes = [node for node in graph.nodes if node.op_type in INTEGER_OPERATORS or node.op_type.startswith("QLinear")]
    yield from _finding(
        "INTEGER_OPERATORS",
        nodes,
        "these operators compute on integers themselves; TensorRT takes INT8 as QuantizeLinear and DequantizeLinear",
        "quantise the FP32 model in Q/DQ form (quantize_onnx, target tensorrt)",
    )


def _zero_points(graph: _Graph) -> Iterator[Finding]:
    nonzero, unsigned = [], []
    for node in graph.quantisers():
        zero_point, values = graph.input(node, 2), graph.values(node, 2)
        if values is not None and np.any(values != 0):
            nonzero.append(node)
        elif zero_point is not None and zero_point.data_type == TensorProto.UINT8:
            unsigned.append(node)
    yield from _finding(
        "ZERO_POINT_NOT_ZERO",
        nonzero,
        "the quantisation is asymmetric: a zero point is not zero",
        "quantise symmetrically (quantize_onnx, target tensorrt); for ONNX Runtime on a CPU the file is right as it is",
        says={"8.2": SYMMETRIC_8, "8.5": SYMMETRIC_8, "8.6": SYMMETRIC_10, "10": SYMMETRIC_10},
    )
    yield from _finding(
        "ZERO_POINT_UINT8",
        unsigned,
        "a zero point is unsigned: release 10 warns and takes INT8 instead, so that the scales are silently wrong",
        "quantise to signed INT8 (quantize_onnx, target tensorrt)",
        says={"10": UINT8_10},
    )


def _scales(graph: _Graph) -> Iterator[Finding]:
    scales = [(node, graph.values(node, 1)) for node in graph.quantisers()]
    yield from _finding(
        "SCALE_NOT_POSITIVE",
        [node for node, scale in scales if scale is not None and not np.all((scale > 0) & np.isfinite(scale))],
        "a scale is zero, negative or not finite",
        "look at the calibration images: a tensor that is always zero gives no scale; exclude its node",
        says={"8.5": "Scale coefficients must all be positive"},
    )
    uneven = []
    for node, scale in scales:
        zero_point = graph.values(node, 2)
        if scale is not None and zero_point is not None and scale.size != zero_point.size:
            uneven.append(node)
    yield from _finding(
        "SCALE_AND_ZERO_POINT_DIFFER",
        uneven,
        "scale and zero point have different numbers of values",
        "quantise anew",
        says=dict.fromkeys(UP_TO_10, "The scale and zero point must have the same volume."),
    )
    per_channel = [node for node, scale in scales if scale is not None and scale.size > 1]
    yield from _finding(
        "ACTIVATION_PER_CHANNEL",
        [node for node in per_channel if node.op_type == "QuantizeLinear" and graph.input(node, 0) is None],
        "an activation has a scale a channel; TensorRT takes one a tensor (weights may have one a channel)",
        "quantise activations with one scale a tensor",
    )
    if graph.opset < PER_CHANNEL_OPSET:
        yield from _finding(
            "PER_CHANNEL_BEFORE_OPSET_13",
            per_channel,
            f"a scale a channel needs opset {PER_CHANNEL_OPSET}; this is opset {graph.opset}",
            "export with opset 13 or later",
        )


def _integer_bias(graph: _Graph) -> Iterator[Finding]:
    def is_int32(node: NodeProto) -> bool:
        tensor = graph.input(node, 0)
        return tensor is not None and tensor.data_type == TensorProto.INT32

    yield from _finding(
        "INT32_DEQUANTIZED",
        [node for node in graph.quantisers() if node.op_type == "DequantizeLinear" and is_int32(node)],
        "a bias is stored as INT32 and dequantised",
        "quantise without the biases (quantize_onnx, target tensorrt, leaves them in FP32)",
        says=dict.fromkeys(("8.6", "10"), "only activation types allowed as input to this layer."),
    )


def _types(graph: _Graph) -> Iterator[Finding]:
    typed = [(value.name, value.type.tensor_type.elem_type) for value in graph.model.graph.input]
    typed += [(tensor.name, tensor.data_type) for tensor in graph.constants.values()]
    names = [f"{name} ({helper.tensor_dtype_to_string(kind)})" for name, kind in typed if kind in NOT_TAKEN]
    if names:
        what = "tensors of a type that TensorRT does not have"
        instead = "keep texts and complex numbers outside the network"
        yield Finding("TYPE_NOT_TAKEN", "error", what, tuple(names[:MAX_NODES]), len(names), RELEASES, instead)


def _dynamic_axes(graph: _Graph) -> Iterator[Finding]:
    initial = {tensor.name for tensor in graph.model.graph.initializer}
    names = []
    for value in graph.model.graph.input:
        axes = value.type.tensor_type.shape.dim
        if value.name not in initial and any(not axis.HasField("dim_value") or axis.dim_value < 1 for axis in axes):
            names.append(value.name)
    if names:
        what = "an input has free axes: the build needs its least, usual and largest shape, and the DLA takes none free"
        instead = "give the shapes to the build, or export without dynamic"
        yield Finding("DYNAMIC_AXES", "warning", what, tuple(names[:MAX_NODES]), len(names), RELEASES, instead)


def _opset(graph: _Graph) -> Iterator[Finding]:
    behind = tuple(release for release, newest in OPSETS.items() if graph.opset > newest)
    if behind:
        newest = ", ".join(f"{release} up to {OPSETS[release]}" for release in behind)
        what = f"opset {graph.opset} is newer than these releases say they support ({newest})"
        yield Finding("OPSET_TOO_NEW", "warning", what, (), 0, behind, "export with that opset or an older one")


_RULES: tuple[Callable[[_Graph], Iterator[Finding]], ...] = (
    _dynamic_quantisation,
    _integer_operators,
    _zero_points,
    _scales,
    _integer_bias,
    _types,
    _dynamic_axes,
    _opset,
)


def _external_data(model: ModelProto, folder: Path) -> Iterator[Finding]:
    """Weights outside the file, where they should lie beside it and do not."""
    missing = []
    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
                if not location or ".." in Path(location).parts or not (folder / location).is_file():
                    missing.append(f"{tensor.name} ({location})")
    if missing:
        what = "weights lie in another file, which is not here"
        instead = "save the model as one file (onnx.save without external data)"
        yield Finding(
            "EXTERNAL_DATA_MISSING", "error", what, tuple(missing[:MAX_NODES]), len(missing), RELEASES, instead
        )
