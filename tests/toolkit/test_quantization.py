"""Q/DQ and dynamic INT8: what each target's file holds, what stays floating, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from app.toolkit import modelopt
from app.toolkit.errors import (
    AlreadyQuantised,
    FeedMismatch,
    InvalidOnnx,
    NoImages,
    RequestError,
    RuntimeUnavailable,
    UnknownLayer,
    UnsupportedOpset,
)
from app.toolkit.export import onnx_from_torch
from app.toolkit.images import DEFAULT_IMAGES, read_image, tensor_from_image
from app.toolkit.models.open_model import open_model
from app.toolkit.onnx_file import check
from app.toolkit.onnx_lint import RELEASES, lint
from app.toolkit.quantization.dynamic import quantize_dynamic
from app.toolkit.quantization.graph import matching, post_processing, prepared
from app.toolkit.quantization.operators import Target
from app.toolkit.quantization.ranges import Method, Ranges, collect_ranges
from app.toolkit.quantization.static import quantizable, quantize_static
from app.toolkit.runtimes.ort_runtime import OrtRuntime
from tests.toolkit.small_graphs import noise, small_network

SIZE = (320, 320)
IMAGES = [tensor_from_image(read_image(path), SIZE)[0] for path in DEFAULT_IMAGES]
TARGETS: tuple[Target, ...] = ("tensorrt", "onnxruntime-cpu")


@pytest.fixture(scope="module")
def pills_graph(pills: Path) -> ModelProto:
    return prepared(onnx_from_torch(open_model(pills), input_size=SIZE))


@pytest.fixture(scope="module")
def pills_ranges(pills_graph: ModelProto) -> Ranges:
    return collect_ranges(pills_graph, IMAGES, method="minmax", threads=2)


@pytest.fixture
def small() -> ModelProto:
    return prepared(small_network())


@pytest.fixture
def small_ranges(small: ModelProto) -> Ranges:
    return collect_ranges(small, noise(4), method="minmax", threads=1)


def nodes_of(model: ModelProto) -> dict[str, NodeProto]:
    return {node.name: node for node in model.graph.node}


def constants(model: ModelProto) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def quantisers(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]


def run(model: ModelProto, feed: Any) -> Any:
    with OrtRuntime(model.SerializeToString(), threads=1) as runtime:
        return next(iter(runtime.infer({runtime.inputs[0].name: feed}).values()))


# -- the graph before --------------------------------------------------------------------------------------------
def test_the_post_processing_of_a_detector_is_what_comes_after_its_trained_layers(pills_graph: ModelProto) -> None:
    head = post_processing(pills_graph)
    assert len(head) == 24
    assert [name for name in head if nodes_of(pills_graph)[name].op_type == "Conv"] == ["/model.22/dfl/conv/Conv"]
    assert {"/model.22/Sigmoid", "/model.22/dfl/Softmax", "/model.22/Concat_7"} <= set(head)


def test_what_feeds_a_trained_layer_is_no_post_processing_though_it_is_an_output_too() -> None:
    model = small_network()
    model.graph.output.append(helper.make_tensor_value_info("r1", TensorProto.FLOAT, None))
    assert post_processing(prepared(model)) == ("/head/Softmax",)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([], ()),
        (["Conv"], ("/stem/Conv", "/body/Conv")),
        (["/head/Gemm"], ("/head/Gemm",)),
        (["/body"], ("/body/Conv", "/body/Sigmoid", "/body/Mul")),
        (["/*/Conv", "Softmax", "/stem/*"], ("/stem/Conv", "/stem/Relu", "/body/Conv", "/head/Softmax")),
    ],
)
def test_nodes_are_meant_by_type_name_folder_or_pattern(
    small: ModelProto, patterns: list[str], expected: tuple[str, ...]
) -> None:
    assert matching(small, patterns) == expected


def test_an_operator_that_the_graph_does_without_is_no_mistake(small: ModelProto) -> None:
    assert matching(small, ["Sigmoid", "Tanh"]) == ("/body/Sigmoid",), "S4's list serves every model"


@pytest.mark.parametrize("pattern", ["Sigmoyd", "/body/Sigmoyd", "/nothing/*", "/bod"])
def test_a_pattern_that_means_nothing_is_refused_with_the_nearest_names(small: ModelProto, pattern: str) -> None:
    with pytest.raises(UnknownLayer) as caught:
        matching(small, ["Conv", pattern])
    assert repr(pattern) in caught.value.message
    assert ("Sigmoid" in caught.value.hint) == ("Sigmoyd" in pattern)


def test_preparing_names_every_node_and_lifts_constants_and_leaves_the_given_graph_alone() -> None:
    model = small_network()
    for node in model.graph.node:
        node.name = "" if node.op_type == "Relu" else "same"
    weight = model.graph.initializer[0]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w1"], value=weight))
    del model.graph.initializer[0]
    before = model.SerializeToString()
    ready = prepared(model)
    assert model.SerializeToString() == before
    assert len({node.name for node in ready.graph.node}) == len(ready.graph.node) == 9
    assert np.array_equal(constants(ready)["w1"], numpy_helper.to_array(weight))
    assert np.array_equal(run(ready, noise(1)[0]), run(small_network(), noise(1)[0]))


def _quantised() -> ModelProto:
    model = prepared(small_network())
    return quantize_static(model, collect_ranges(model, noise(1), method="minmax"), target="tensorrt")


def _half() -> ModelProto:
    model = small_network()
    half = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float16)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(half, "w1"))
    return model


def _of_bytes() -> ModelProto:
    model = small_network()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    return model


def _outside() -> ModelProto:
    model = small_network()
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    return model


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (_quantised, AlreadyQuantised),
        (_half, AlreadyQuantised),
        (lambda: small_network(opset=12), UnsupportedOpset),
        (_of_bytes, FeedMismatch),
        (_outside, InvalidOnnx),
    ],
)
def test_what_cannot_be_quantised_is_refused_first(make: Callable[[], ModelProto], error: type[Exception]) -> None:
    with pytest.raises(error):
        prepared(make())


# -- for TensorRT ------------------------------------------------------------------------------------------------
def test_the_file_for_tensorrt_is_symmetric_int8_throughout(pills_graph: ModelProto, pills_ranges: Ranges) -> None:
    head = post_processing(pills_graph)
    made = quantize_static(pills_graph, pills_ranges, target="tensorrt", exclude_nodes=head)
    values = constants(made)
    for node in quantisers(made):
        scale, zero_point = values[node.input[1]], values[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
        assert np.all((scale > 0) & np.isfinite(scale))
        assert node.input[0] not in values or values[node.input[0]].dtype == np.float32
    assert not [one for one in lint(made).findings if one.severity == "error"]
    assert made.metadata_props == pills_graph.metadata_props
    check(made)


def test_weights_get_a_scale_a_channel_or_one_a_tensor(pills_graph: ModelProto, pills_ranges: Ranges) -> None:
    for per_channel in (True, False):
        made = quantize_static(pills_graph, pills_ranges, target="tensorrt", per_channel=per_channel)
        values = constants(made)
        weights = [node for node in quantisers(made) if node.input[0] in values]
        assert len(weights) == 64
        for node in weights:
            channels = values[node.input[0]].shape[0]
            assert values[node.input[1]].shape == ((channels,) if per_channel else ())


def test_only_the_inputs_of_weighted_layers_are_quantised_for_tensorrt(small: ModelProto, small_ranges: Ranges) -> None:
    made = quantize_static(small, small_ranges, target="tensorrt")
    assert {node.input[0] for node in quantisers(made) if node.op_type == "QuantizeLinear"} == {
        *("x", "r1", "f"),
        *("w1", "w2", "w3"),
    }
    assert quantizable(small, "tensorrt") == ("/stem/Conv", "/body/Conv", "/head/Gemm")


# -- for ONNX Runtime on a CPU -----------------------------------------------------------------------------------
def test_the_file_for_a_cpu_has_unsigned_activations_and_tensorrt_refuses_it(
    pills_graph: ModelProto, pills_ranges: Ranges
) -> None:
    head = post_processing(pills_graph)
    made = quantize_static(pills_graph, pills_ranges, target="onnxruntime-cpu", exclude_nodes=head)
    values = constants(made)
    kinds = {values[node.input[2]].dtype for node in quantisers(made) if node.op_type == "QuantizeLinear"}
    assert kinds == {np.dtype(np.uint8)}
    assert all(lint(made).refused_by(release) for release in RELEASES)
    assert made.metadata_props == pills_graph.metadata_props
    assert len(made.SerializeToString()) < 0.35 * len(pills_graph.SerializeToString())


def test_a_quantised_head_scores_nothing_which_is_why_it_is_left_out(
    pills_graph: ModelProto, pills_ranges: Ranges
) -> None:
    head = post_processing(pills_graph)
    options: dict[str, Any] = {"target": "onnxruntime-cpu"}
    wanted = run(pills_graph, IMAGES[0])[:, 4:].max()
    left_out = run(quantize_static(pills_graph, pills_ranges, exclude_nodes=head, **options), IMAGES[0])[:, 4:].max()
    included = run(quantize_static(pills_graph, pills_ranges, **options), IMAGES[0])[:, 4:].max()
    assert abs(left_out - wanted) < 0.2
    assert included == 0


def test_the_convolution_on_the_image_stays_fp32_on_a_cpu(pills_graph: ModelProto, pills_ranges: Ranges) -> None:
    made = quantize_static(pills_graph, pills_ranges, target="onnxruntime-cpu")
    assert nodes_of(made)["/model.0/conv/Conv"].input[1] in constants(pills_graph)
    assert "/model.0/conv/Conv" not in quantizable(pills_graph, "onnxruntime-cpu")
    assert "/model.0/conv/Conv" in quantizable(pills_graph, "tensorrt")


# -- both --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("target", TARGETS)
def test_excluded_nodes_and_the_head_stay_floating(
    pills_graph: ModelProto, pills_ranges: Ranges, target: Target
) -> None:
    kept = (*post_processing(pills_graph), *matching(pills_graph, ["/model.0/conv/Conv", "/model.22/cv3*"]))
    before = pills_graph.SerializeToString()
    made = quantize_static(pills_graph, pills_ranges, target=target, exclude_nodes=kept)
    assert pills_graph.SerializeToString() == before, "repair quantises the same graph again and again"
    weights, old, new = constants(pills_graph), nodes_of(pills_graph), nodes_of(made)
    for name in kept:
        assert [one for one in new[name].input if one in weights] == [one for one in old[name].input if one in weights]
    assert new["/model.1/conv/Conv"].input[1] not in weights, "and what is not excluded is quantised"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_the_answers_stay_near(small: ModelProto, target: Target, method: Method) -> None:
    ranges = collect_ranges(small, noise(8), method=method, threads=1)
    made = quantize_static(small, ranges, target=target, exclude_nodes=post_processing(small))
    feed = noise(1, seed=9)[0]
    assert np.abs(run(made, feed) - run(small, feed)).max() < 0.05


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_tensors_that_are_always_zero_get_a_usable_scale(target: Target, method: Method) -> None:
    model = prepared(small_network(silent=True))
    black = [np.zeros((1, 3, 8, 8), np.float32)] * 6
    ranges = collect_ranges(model, black, method=method, threads=1)
    assert ranges.tensors["x"] == (0.0, 0.0) == ranges.tensors["r1"]
    made = quantize_static(model, ranges, target=target)
    values = constants(made)
    scales = [values[node.input[1]] for node in quantisers(made)]
    assert all(np.all((scale > 0) & np.isfinite(scale)) for scale in scales)
    assert np.abs(run(made, black[0]) - run(model, black[0])).max() < 0.02


# -- dynamic -----------------------------------------------------------------------------------------------------
def test_dynamic_quantisation_needs_no_images_and_suits_no_tensorrt(pills_graph: ModelProto) -> None:
    head = post_processing(pills_graph)
    made = quantize_dynamic(pills_graph, exclude_nodes=head)
    count = sum(node.op_type == "ConvInteger" for node in made.graph.node)
    assert count == 63
    assert nodes_of(made)["/model.22/dfl/conv/Conv"].op_type == "Conv"
    report = lint(made)
    assert all(report.refused_by(release) for release in RELEASES)
    found = next(one for one in report.findings if one.rule == "DYNAMIC_QUANTIZATION")
    assert "importer" in found.says["8.6"] and "Plugin not found" in found.says["10"]
    assert made.metadata_props == pills_graph.metadata_props
    difference = np.abs(run(made, IMAGES[0])[:, 4:] - run(pills_graph, IMAGES[0])[:, 4:])
    assert difference.mean() < 0.001


# -- NVIDIA's quantiser ------------------------------------------------------------------------------------------
IMAGES_OF_ONE = np.concatenate(noise(2))


def test_modelopt_never_calibrates_on_nothing_and_not_by_percentile(small: ModelProto) -> None:
    with pytest.raises(NoImages):
        modelopt.quantize_with_modelopt(small, IMAGES_OF_ONE[:0], method="entropy")
    with pytest.raises(RequestError, match="percentile"):
        modelopt.quantize_with_modelopt(small, IMAGES_OF_ONE, method="percentile")


@pytest.mark.skipif(modelopt.available(), reason="nvidia-modelopt is installed here")
def test_where_modelopt_is_missing_the_error_says_how_to_get_it(small: ModelProto) -> None:
    with pytest.raises(RuntimeUnavailable) as caught:
        modelopt.quantize_with_modelopt(small, IMAGES_OF_ONE, method="minmax")
    assert "nvidia-modelopt" in caught.value.hint


@pytest.mark.skipif(not modelopt.available(), reason="nvidia-modelopt is not installed here")
@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_modelopt_makes_a_file_for_tensorrt(small: ModelProto, method: Method) -> None:
    made = modelopt.quantize_with_modelopt(small, IMAGES_OF_ONE, method=method, exclude_nodes=["/stem/Conv"])
    assert not [one for one in lint(made).findings if one.severity == "error"]
    assert quantisers(made)
    assert nodes_of(made)["/stem/Conv"].input[1] == "w1"
    assert made.metadata_props == small.metadata_props
    check(made)


@pytest.mark.skipif(not modelopt.available(), reason="nvidia-modelopt is not installed here")
def test_modelopt_casts_to_fp16_and_leaves_inputs_and_outputs(small: ModelProto) -> None:
    made = modelopt.cast_with_modelopt(small)
    kinds = {tensor.data_type for tensor in made.graph.initializer}
    assert TensorProto.FLOAT16 in kinds
    ends = (*made.graph.input, *made.graph.output)
    assert {value.type.tensor_type.elem_type for value in ends} == {TensorProto.FLOAT}
    assert np.abs(run(made, IMAGES_OF_ONE[:1]) - run(small, IMAGES_OF_ONE[:1])).max() < 0.01
