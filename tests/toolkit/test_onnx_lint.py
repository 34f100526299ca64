"""What the lint finds in graphs that were quantised as users quantise them, and in small ones made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader

from app.toolkit.onnx_file import load_onnx
from app.toolkit.onnx_lint import RELEASES, LintReport, lint
from app.toolkit.pipeline import ExportResult

RECIPE = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "AddQDQPairToWeight": True,
    "QuantizeBias": False,
    "DedicatedQDQPair": True,
}


def rules(report: LintReport) -> dict[str, int]:
    return {finding.rule: finding.count for finding in report.findings}


# -- as users quantise -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two convolutions with biases and a product of matrices."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(size=(8, 3, 3, 3)),
        "b1": rng.normal(size=8),
        "w2": rng.normal(size=(8, 8, 3, 3)),
        "b2": rng.normal(size=8),
        "w3": rng.normal(size=(4, 5)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], "relu"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "second", pads=[1] * 4),
        helper.make_node("MatMul", ["c2", "w3"], ["y"], "product"),
    ]
    return _saved(tmp_path_factory.mktemp("small") / "small.onnx", nodes, [1, 3, 4, 4], [1, 8, 4, 5], weights)


def _saved(path: Path, nodes: Sequence[NodeProto], x: list[Any], y: list[int], weights: dict[str, Any]) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


class Noise(CalibrationDataReader):  # type: ignore[misc]  # its library has no types
    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self._feeds = iter([{"x": rng.random((1, 3, 4, 4), dtype=np.float32) - 0.3} for _ in range(4)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def _static(source: Path, target: Path, **options: Any) -> LintReport:
    quantize_static(source, target, Noise(), quant_format=QuantFormat.QDQ, **options)
    return lint(load_onnx(target), target.parent)


def test_an_export_of_ours_is_clean(exported: ExportResult, exported_fp16: ExportResult) -> None:
    for result in (exported, exported_fp16):
        report = lint(load_onnx(result.path), result.path.parent)
        assert rules(report) == {"OPSET_TOO_NEW": 0}, "opset 17 is newer than 8.2's 13, and that is a warning"
        assert report.findings[0].releases == ("8.2",)
        assert report.verdict().startswith("clean")


def test_dynamic_quantisation_is_refused_in_the_words_of_each_release(small: Path, tmp_path: Path) -> None:
    for symmetric in (False, True):  # "symmetric" weights do not help: it is the activations that are dynamic
        target = tmp_path / f"{symmetric}.onnx"
        quantize_dynamic(small, target, weight_type=QuantType.QInt8, extra_options={"WeightSymmetric": symmetric})
        report = lint(load_onnx(target), tmp_path)
        assert {"DYNAMIC_QUANTIZATION", "INTEGER_OPERATORS"} <= set(rules(report))
        assert all(report.refused_by(release) for release in RELEASES)
        found = next(one for one in report.findings if one.rule == "DYNAMIC_QUANTIZATION")
        assert (
            found.says["8.6"] == "No importer registered for op: DynamicQuantizeLinear. Attempting to import as plugin."
        )
        assert found.says["10"].startswith("Plugin not found")
        assert "DynamicQuantizeLinear" in found.nodes[0]
        assert "static" in found.instead


def test_the_defaults_of_static_quantisation_are_refused(small: Path, tmp_path: Path) -> None:
    report = _static(small, tmp_path / "q.onnx", activation_type=QuantType.QInt8, weight_type=QuantType.QInt8)
    assert {"ZERO_POINT_NOT_ZERO", "INT32_DEQUANTIZED"} <= set(rules(report))
    found = next(one for one in report.findings if one.rule == "ZERO_POINT_NOT_ZERO")
    assert "must be all zeros" in found.says["8.2"] and "must be all zeros" in found.says["10"]
    assert "INT32_DEQUANTIZED" in report.verdict()


def test_unsigned_activations_are_refused(small: Path, tmp_path: Path) -> None:
    report = _static(small, tmp_path / "q.onnx", activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    assert {"ZERO_POINT_NOT_ZERO", "ZERO_POINT_UINT8"} & set(rules(report))
    assert all(report.refused_by(release) for release in RELEASES)


def test_the_recipe_for_tensorrt_is_clean(small: Path, tmp_path: Path) -> None:
    report = _static(
        small,
        tmp_path / "q.onnx",
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        extra_options=RECIPE,
    )
    assert not [one for one in report.findings if one.severity == "error"], report.findings


def test_the_form_of_operators_is_refused(small: Path, tmp_path: Path) -> None:
    target = tmp_path / "q.onnx"
    quantize_static(small, target, Noise(), quant_format=QuantFormat.QOperator)
    found = next(one for one in lint(load_onnx(target)).findings if one.rule == "INTEGER_OPERATORS")
    assert any("QLinearConv" in node for node in found.nodes)


# -- by hand ------------------------------------------------------------------------------------------------------
def _pair(scale: Any, zero_point: Any, opset: int = 17, x: Any = 4) -> ModelProto:
    """`x` quantised and dequantised along the second axis."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantise"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "dequantise"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, x])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, x])],
        [numpy_helper.from_array(np.asarray(scale, np.float32), "s"), numpy_helper.from_array(zero_point, "z")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


ZERO = np.int8(0)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: _pair(0.5, ZERO), set()),
        (lambda: _pair(0.0, ZERO), {"SCALE_NOT_POSITIVE"}),
        (lambda: _pair(-1.0, ZERO), {"SCALE_NOT_POSITIVE"}),
        (lambda: _pair(float("nan"), ZERO), {"SCALE_NOT_POSITIVE"}),
        (lambda: _pair(0.5, np.int8(3)), {"ZERO_POINT_NOT_ZERO"}),
        (lambda: _pair(0.5, np.uint8(0)), {"ZERO_POINT_UINT8"}),
        (lambda: _pair([0.5] * 4, np.zeros(4, np.int8)), {"ACTIVATION_PER_CHANNEL"}),
        (lambda: _pair([0.5] * 4, ZERO), {"ACTIVATION_PER_CHANNEL", "SCALE_AND_ZERO_POINT_DIFFER"}),
        (lambda: _pair([0.5] * 4, np.zeros(4, np.int8), 11), {"ACTIVATION_PER_CHANNEL", "PER_CHANNEL_BEFORE_OPSET_13"}),
        (lambda: _pair(0.5, ZERO, x="n"), {"DYNAMIC_AXES"}),
    ],
)
def test_each_rule_finds_what_it_is_for_and_nothing_else(model: Callable[[], ModelProto], expected: set[str]) -> None:
    assert set(rules(lint(model()))) - {"OPSET_TOO_NEW"} == expected


def test_a_branch_is_read_too() -> None:
    inner = _pair(0.5, np.int8(3)).graph
    del inner.input[:]
    branch = helper.make_node("If", ["c"], ["y"], "if", then_branch=inner, else_branch=inner)
    graph = helper.make_graph(
        [branch],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("x", 1, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    report = lint(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert rules(report)["ZERO_POINT_NOT_ZERO"] == 4


def test_texts_are_no_tensors_for_tensorrt() -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["t"], ["y"])],
        "g",
        [helper.make_tensor_value_info("t", TensorProto.STRING, [1])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, [1])],
    )
    assert set(rules(lint(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])))) == {"TYPE_NOT_TAKEN"}


def test_weights_that_lie_elsewhere_must_be_there(small: Path, tmp_path: Path) -> None:
    target = tmp_path / "outside.onnx"
    onnx.save(onnx.load(small), target, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert "EXTERNAL_DATA_MISSING" not in rules(lint(load_onnx(target), tmp_path))
    (tmp_path / "weights.bin").unlink()
    report = lint(load_onnx(target), tmp_path)
    assert rules(report)["EXTERNAL_DATA_MISSING"] == 5
    assert "EXTERNAL_DATA_MISSING" not in rules(lint(load_onnx(target)))


def test_a_report_speaks_of_the_releases_that_were_asked_for() -> None:
    report = lint(_pair(0.5, np.int8(3))).restricted_to(("10",))
    assert report.as_dict()["clean"] == {"10": False}
    assert [finding.rule for finding in report.findings] == ["ZERO_POINT_NOT_ZERO"]
    assert report.verdict() == "TensorRT 10 would refuse it: ZERO_POINT_NOT_ZERO"
