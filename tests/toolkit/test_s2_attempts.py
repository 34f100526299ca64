"""S2's way to TensorRT: its three attempts, each refused before a build as its report met it, and what is accepted.

The calls stand here as the report has them. It blamed the first failure on zero points and called the second result
symmetric because its weights' are zero: what TensorRT refuses in both is that activations are quantised as it runs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from app.toolkit.export import onnx_from_torch
from app.toolkit.images import DEFAULT_IMAGES, read_image, tensor_from_image
from app.toolkit.models.open_model import open_model
from app.toolkit.onnx_file import load_onnx
from app.toolkit.onnx_lint import RELEASES, lint
from app.toolkit.quantization.graph import post_processing, prepared
from app.toolkit.quantization.ranges import collect_ranges
from app.toolkit.quantization.static import quantize_static

SIZE = (320, 320)


@pytest.fixture(scope="module")
def model_input(pills: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("s2") / "model.onnx"
    onnx.save(onnx_from_torch(open_model(pills), input_size=SIZE), path)
    return path


@pytest.fixture(scope="module")
def first(model_input: Path) -> Path:
    model_output = model_input.with_name("model_dynamic_int8.onnx")
    quantize_dynamic(model_input, model_output, weight_type=QuantType.QInt8)
    return model_output


@pytest.fixture(scope="module")
def second(model_input: Path) -> Path:
    output_path = model_input.with_name("model_dynamic_symmetric_int8.onnx")
    quantize_dynamic(model_input=model_input, model_output=output_path, weight_type=QuantType.QInt8, reduce_range=False)
    return output_path


def _weights_zero_points(model: ModelProto) -> list[int]:
    tensors = [tensor for tensor in model.graph.initializer if tensor.name.endswith("weight_zero_point")]
    return [int(numpy_helper.to_array(tensor).ravel()[0]) for tensor in tensors]


def test_the_first_attempt_is_refused_by_every_release(first: Path) -> None:
    report = lint(load_onnx(first), first.parent)
    assert all(report.refused_by(release) for release in RELEASES)
    assert {"DYNAMIC_QUANTIZATION", "INTEGER_OPERATORS"} <= {one.rule for one in report.findings}


def test_the_second_attempt_forces_nothing_symmetric_it_is_the_first_again(first: Path, second: Path) -> None:
    assert load_onnx(second).graph == load_onnx(first).graph
    assert set(_weights_zero_points(load_onnx(second))) == {0}, "all zero, as the report saw: of the weights"
    activations = [node for node in load_onnx(second).graph.node if node.op_type == "DynamicQuantizeLinear"]
    assert len(activations) > 50, "whose zero points no file holds"


def test_the_third_attempt_fails_in_tensorrt_s_own_words_before_the_build(second: Path) -> None:
    report = lint(load_onnx(second), second.parent)
    found = next(one for one in report.findings if one.rule == "DYNAMIC_QUANTIZATION")
    assert found.says["8.5"].startswith("No importer registered for op: DynamicQuantizeLinear")
    assert found.says["10"].startswith("Plugin not found")
    assert "target tensorrt" in found.instead


def test_static_for_tensorrt_is_what_was_wanted_symmetric_and_accepted(model_input: Path) -> None:
    model = prepared(load_onnx(model_input))
    images = [tensor_from_image(read_image(path), SIZE)[0] for path in DEFAULT_IMAGES]
    ranges = collect_ranges(model, images, method="entropy", threads=2)
    made = quantize_static(model, ranges, target="tensorrt", exclude_nodes=post_processing(model))
    report = lint(made)
    assert not any(report.refused_by(release) for release in RELEASES)
    points = [tensor for tensor in made.graph.initializer if tensor.name.endswith("zero_point")]
    assert len(points) > 100
    assert {tensor.data_type for tensor in points} == {TensorProto.INT8}
    assert not any(np.any(numpy_helper.to_array(tensor)) for tensor in points)
