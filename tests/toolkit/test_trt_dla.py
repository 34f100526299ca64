"""What the DLA report says of real exports at several sizes, and each of its rules on a graph made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from app.toolkit.tensorrt.dla import DlaReport, dla_available, dla_report
from app.toolkit.tensorrt.dla_rules import MAX_AXIS
from app.toolkit.tensorrt.shapes import GraphShapes
from app.toolkit.tensorrt.targets import Target
from app.toolkit.tensorrt.versions import Version
from tests.toolkit.trt_exports import pills_at, yolo11

ORIN = Target(tensorrt=(8, 6, 2, 3), compute_capability=(8, 7), os="linux", arch="aarch64", l4t="36.3.0", dla_cores=2)


def at_size(model: ModelProto, height: int, width: int) -> DlaReport:
    return dla_report(GraphShapes(model), {"images": (1, 3, height, width)}, ORIN)


def rules(report: DlaReport) -> dict[str, int]:
    return {one.rule: one.count for one in report.refused}


# -- real exports -----------------------------------------------------------------------------------------------------
def test_640_has_axes_of_8400_and_smaller_sizes_are_named() -> None:
    report = at_size(pills_at(640), 640, 640)
    first = report.large_axes[0]
    assert (first.tensor, first.shape, first.axis) == ("output0", (1, 16, 8400), 8400)
    assert first.node == "/model.22/Concat_7 (Concat)"
    assert {one.axis for one in report.large_axes} == {8400}
    assert [one.as_dict() for one in report.fitting_sizes] == [
        {"input_size": [608, 608], "axis": 7581},
        {"input_size": [576, 576], "axis": 6804},
    ]
    assert report.sentences[0] == (
        f"output0 has an axis of 8400 (over 8192), and so have {len(report.large_axes) - 1} more tensors: what touches "
        "them runs on the GPU; 608x608 gives 7581, 576x576 gives 6804"
    )
    assert report.sentences[1].startswith("a smaller input removes this obstacle, not every one")


@pytest.mark.parametrize(("side", "anchors"), [(608, 7581), (576, 6804)])
def test_an_export_at_the_named_size_has_the_named_axis(side: int, anchors: int) -> None:
    report = at_size(pills_at(side), side, side)
    assert report.large_axes == ()
    assert report.fitting_sizes == ()
    assert "AXIS_OVER_8192" not in rules(report)
    assert anchors == 21 * side * side // 1024, "strides 8, 16 and 32"
    shapes = GraphShapes(pills_at(side)).at({"images": (1, 3, side, side)})
    assert shapes["output0"] == (1, 16, anchors)


def test_the_head_is_refused_at_608_too_for_other_reasons() -> None:
    found = rules(at_size(pills_at(608), 608, 608))
    assert found == {
        "OPERATOR_LISTED_LATER": 1,
        "CONCAT_NOT_ON_CHANNELS": 2,
        "SLICE_NOT_4D": 2,
        "SHUFFLE_NOT_4D": 8,
    }


def test_a_dynamic_export_is_read_at_the_size_of_the_build() -> None:
    model = pills_at(640, dynamic=True)
    assert at_size(model, 576, 576).large_axes == ()
    report = at_size(model, 640, 640)
    assert report.large_axes[0].shape == (1, 16, 8400)
    assert [one.axis for one in report.fitting_sizes] == [7581, 6804]
    wide = at_size(model, 736, 1280)
    assert [one.input_size for one in wide.fitting_sizes] == [(480, 832), (448, 768)]
    assert wide.fitting_sizes[0].axis == 21 * 480 * 832 // 1024 == 8190


def test_the_attention_of_yolo11_bakes_sizes_in_and_is_answered_all_the_same() -> None:
    assert [str(one) for one in at_size(yolo11("n"), 640, 640).fitting_sizes] == [
        "608x608 gives 7581",
        "576x576 gives 6804",
    ]


# -- whether there is DLA at all ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("version", "available"),
    [
        ((8, 5, 2, 2), True),
        ((10, 3, 0, 30), True),
        ((10, 7, 0, 23), True),
        ((10, 16, 1, 11), None),
        ((11, 0, 0, 114), False),
        ((11, 3, 0), False),
        ((11, 4, 0, 106), False),
        ((11, 4, 1), None),
        (None, None),
    ],
)
def test_some_releases_have_no_dla(version: Version | None, available: bool | None) -> None:
    found, why = dla_available(Target(tensorrt=version, arch="aarch64", dla_cores=2))
    assert found is available, why


def test_the_machine_decides_too() -> None:
    assert dla_available(Target(tensorrt=(10, 3, 0), arch="x86_64", dla_cores=0)) == (
        False,
        "this machine has no DLA core",
    )
    assert dla_available(Target(tensorrt=(10, 3, 0), gpu_name="NVIDIA Jetson AGX Thor", dla_cores=2))[0] is False
    unknown, why = dla_available(Target(tensorrt=(10, 3, 0), arch="aarch64"))
    assert unknown is None and "ask builder.num_DLA_cores" in why


# -- rules, by hand ---------------------------------------------------------------------------------------------------
def graph_of(nodes: Sequence[NodeProto], x: Sequence[int], weights: dict[str, Any] | None = None) -> ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def one_node(op: str, inputs: str = "x", **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), ["y"], "node", **attributes)


KERNEL = np.zeros((8, 8, 3, 3), np.float32)
TAKEN = [
    (one_node("Relu"), (1, 8, 16, 16), {}),
    (one_node("Concat", "x x", axis=1), (1, 8, 16, 16), {}),
    (one_node("Concat", "x x", axis=-3), (1, 8, 16, 16), {}),
    (one_node("Conv", "x w", strides=[2, 2]), (1, 8, 16, 16), {"w": KERNEL}),
    (one_node("ConvTranspose", "x w"), (1, 8, 16, 16), {"w": KERNEL}),
    (one_node("MatMul", "x w"), (1, 8, 16, 16), {"w": np.zeros((16, 4), np.float32)}),
    (one_node("Add", "x w"), (1, MAX_AXIS, 1, 1), {"w": np.zeros(1, np.float32)}),
    (one_node("Relu"), (4096, 3, 8, 8), {}),
]
REFUSED = [
    ("OPERATOR_NOT_LISTED", one_node("Erf"), (1, 8, 16, 16), {}),
    ("OPERATOR_NOT_LISTED", one_node("GlobalAveragePool"), (1, 8, 16, 16), {}),
    ("OPERATOR_TO_REWRITE", one_node("DepthToSpace", blocksize=2), (1, 8, 16, 16), {}),
    ("OPERATOR_LISTED_LATER", one_node("Div", "x w"), (1, 8, 16, 16), {"w": np.ones(1, np.float32)}),
    (
        "QDQ",
        one_node("QuantizeLinear", "x s z"),
        (1, 8, 16, 16),
        {"s": np.float32(0.5), "z": np.int8(0)},
    ),
    ("CONCAT_NOT_ON_CHANNELS", one_node("Concat", "x x", axis=2), (1, 8, 16, 16), {}),
    ("CONCAT_NOT_ON_CHANNELS", one_node("Concat", axis=1), (1, 8, 16, 16), {}),
    ("SLICE_NOT_4D", one_node("Slice", "x a b"), (1, 8, 16), {"a": np.zeros(1, np.int64), "b": np.ones(1, np.int64)}),
    ("SHUFFLE_NOT_4D", one_node("Reshape", "x s"), (1, 8, 16, 16), {"s": np.array([1, 8, -1])}),
    ("CONVOLUTION_LIMITS", one_node("Conv", "x w", strides=[9, 9]), (1, 8, 16, 16), {"w": KERNEL}),
    ("CONVOLUTION_LIMITS", one_node("Conv", "x w"), (1, 8, 16), {"w": np.zeros((8, 8, 3), np.float32)}),
    ("DECONVOLUTION_LIMITS", one_node("ConvTranspose", "x w", pads=[1] * 4), (1, 8, 16, 16), {"w": KERNEL}),
    ("SECOND_INPUT_NOT_CONSTANT", one_node("MatMul", "x x"), (1, 8, 16, 16), {}),
    ("BATCH_OVER_4096", one_node("Relu"), (4097, 3, 8, 8), {}),
    ("AXIS_OVER_8192", one_node("Relu"), (1, MAX_AXIS + 1, 1, 1), {}),
]


def report_on(node: NodeProto, shape: Sequence[int], weights: dict[str, Any], target: Target = ORIN) -> DlaReport:
    return dla_report(GraphShapes(graph_of([node], shape, weights)), {"x": tuple(shape)}, target)


@pytest.mark.parametrize(("node", "shape", "weights"), TAKEN)
def test_what_a_dla_takes_is_not_refused(node: NodeProto, shape: Sequence[int], weights: dict[str, Any]) -> None:
    report = report_on(node, shape, weights)
    assert report.refused == () and report.refused_nodes == 0
    assert report.sentences == ()


@pytest.mark.parametrize(("rule", "node", "shape", "weights"), REFUSED)
def test_each_rule_finds_what_it_is_for_and_nothing_else(
    rule: str, node: NodeProto, shape: Sequence[int], weights: dict[str, Any]
) -> None:
    report = report_on(node, shape, weights)
    assert rules(report) == {rule: 1}
    assert report.refused[0].nodes == (f"node ({node.op_type})",)
    assert (report.refused_nodes, report.nodes) == (1, 1)


def test_a_kernel_is_measured_where_it_is_stated() -> None:
    weights = {"w": np.zeros((8, 8, 33, 33), np.float32)}
    assert rules(report_on(one_node("Conv", "x w", kernel_shape=[33, 33]), (1, 8, 64, 64), weights)) == {
        "CONVOLUTION_LIMITS": 1
    }


def test_a_later_release_takes_what_its_documents_list() -> None:
    later = Target(tensorrt=(11, 4, 1), arch="aarch64", dla_cores=2)
    assert report_on(one_node("Div", "x w"), (1, 8, 4, 4), {"w": np.ones(1, np.float32)}, later).refused == ()


def test_an_axis_that_does_not_depend_on_the_input_has_no_fitting_size() -> None:
    weights = {"w": np.zeros((9000, 3, 16, 16), np.float32)}
    report = report_on(one_node("Conv", "x w", strides=[8, 8]), (1, 3, 64, 64), weights)
    assert report.large_axes[0].axis == 9000
    assert report.fitting_sizes == ()
    assert "no smaller input" in report.sentences[0]


def test_an_axis_of_the_image_itself_shrinks_with_it() -> None:
    report = report_on(one_node("Relu"), (1, 3, 64, 16384), {})
    assert [str(one) for one in report.fitting_sizes] == ["32x8192 gives 8192"]


def test_what_only_computes_shapes_is_no_layer() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], "shape"),
        helper.make_node("Gather", ["s", "i"], ["g"], "gather"),
        helper.make_node("Relu", ["x"], ["y"], "relu"),
    ]
    model = graph_of(nodes, (1, 8, 16, 16), {"i": np.array([0])})
    assert dla_report(GraphShapes(model), {"x": (1, 8, 16, 16)}, ORIN).nodes == 1
