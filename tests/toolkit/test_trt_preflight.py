"""What is said of a build before it starts, on real exports, for machines that are not here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from app.toolkit import errors
from app.toolkit.fp16 import fp16_from_fp32
from app.toolkit.tensorrt.preflight import Preflight, Wish, built_from, preflight, stride_of
from app.toolkit.tensorrt.request import InputShapes
from app.toolkit.tensorrt.targets import PROFILES, Target
from tests.toolkit.trt_exports import pills_at, yolo11

PC = Target((10, 3, 0, 26), (8, 9), "NVIDIA GeForce RTX 4070", 46, "linux", "x86_64", "", 0, 12282, 11000)
ORIN = Target((8, 6, 2, 3), (8, 7), "NVIDIA Jetson AGX Orin", 16, "linux", "aarch64", "36.3.0", 2, 30536, 20000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """640.onnx, 608.onnx, fp16.onnx, dynamic.onnx."""
    folder = tmp_path_factory.mktemp("preflight")
    models = {
        "640": pills_at(640),
        "608": pills_at(608),
        "fp16": fp16_from_fp32(pills_at(640)),
        "dynamic": pills_at(640, dynamic=True),
    }
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
    return folder


def rules(found: Iterable[object]) -> list[str]:
    return [vars(one)["rule"] for one in found]


def quantised(zero_point: int = 0) -> ModelProto:
    """An image, quantised to INT8 and dequantised."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantise"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "dequantise"),
    ]
    shape = [1, 3, 64, 64]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.float32(0.5), "s"), numpy_helper.from_array(np.int8(zero_point), "z")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def checked(model: ModelProto, folder: Path, wish: Wish, target: Target = PC) -> Preflight:
    onnx.save(model, folder / "q.onnx")
    return preflight(folder / "q.onnx", wish, target)


# -- static, dynamic, FP16 --------------------------------------------------------------------------------------------
def test_a_plain_build_has_nothing_in_its_way(folder: Path) -> None:
    found = preflight(folder / "640.onnx", Wish("fp16"), PC)
    assert found.found == ()
    assert found.verdict == ("640.onnx to a fp16 engine on gpu, TensorRT 10.3.0.26: nothing known stands in the way")
    assert (found.shapes, found.dla, found.built_from) == ((), None, "fp32 onnx")
    document = found.as_dict()
    assert json.loads(json.dumps(document)) == document
    assert (document["ok"], document["dynamic"], document["workspace_mib"]) == (True, False, 2048)
    assert document["lint"]["clean"] == {"10": True}


def test_the_profile_of_a_dynamic_graph_is_told(folder: Path) -> None:
    found = preflight(folder / "dynamic.onnx", Wish("fp16", input_size=(480, 640), max_batch=4), PC)
    assert found.shapes == (InputShapes("images", (1, 3, 256, 320), (1, 3, 480, 640), (4, 3, 480, 640)),)
    assert found.found == (), "the profile answers the lint's warning of free axes"
    assert found.as_dict()["profile"]["images"]["opt"] == [1, 3, 480, 640]


def test_on_a_dla_the_profile_has_one_shape(folder: Path) -> None:
    found = preflight(folder / "dynamic.onnx", Wish("fp16", "dla0", max_batch=4), ORIN)
    assert found.shapes[0].fixed
    assert found.shapes[0].maximum == (1, 3, 640, 640)


def test_a_size_that_the_network_cannot_take_is_refused(folder: Path) -> None:
    found = preflight(folder / "dynamic.onnx", Wish("fp16", input_size=(500, 640)), PC)
    assert rules(found.problems) == ["SIZE_NOT_A_MULTIPLE"]
    assert "500 is not" in found.problems[0].what
    assert preflight(folder / "640.onnx", Wish("fp16", input_size=(500, 640)), PC).problems == ()


def test_free_axes_without_a_rule_are_named(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["tokens"], ["y"])],
        "g",
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["batch", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    found = checked(model, tmp_path, Wish("fp16"))
    assert rules(found.problems) == ["SHAPES_NEEDED"]
    assert found.problems[0].where == ("tokens",)


def test_an_fp16_graph_is_known_as_one(folder: Path) -> None:
    assert preflight(folder / "fp16.onnx", Wish("fp16"), PC).built_from == "fp16 onnx"
    assert rules(preflight(folder / "fp16.onnx", Wish("fp32"), PC).warnings) == ["FP16_GRAPH"]


def test_from_11_on_the_precision_is_in_the_onnx(folder: Path) -> None:
    newest = replace(PC, tensorrt=(11, 1, 0, 106))
    assert rules(preflight(folder / "640.onnx", Wish("fp16"), newest).warnings) == ["CAST_FIRST"]
    assert preflight(folder / "fp16.onnx", Wish("fp16"), newest).found == ()
    found = preflight(folder / "640.onnx", Wish("int8", int8_from="calibrator"), newest)
    assert rules(found.problems) == ["CALIBRATION_GONE"]


def test_memory_is_counted_at_the_largest_shape_and_in_the_precision(folder: Path) -> None:
    half, full = (preflight(folder / "640.onnx", Wish(precision), PC).memory for precision in ("fp16", "fp32"))
    weights = sum(np.prod(tensor.dims) for tensor in pills_at(640).graph.initializer if tensor.data_type == 1)
    assert full.weights_mib == pytest.approx(4 * weights / 2**20, abs=0.1)
    assert half.weights_mib == pytest.approx(full.weights_mib / 2, abs=0.1)
    # The first block at 320x320 with 16 channels: its sum, its sigmoid and their product.
    assert full.activations_mib == pytest.approx(3 * 16 * 320 * 320 * 4 / 2**20, abs=0.1)
    batches = preflight(folder / "dynamic.onnx", Wish("fp32", max_batch=8), PC).memory
    assert batches.activations_mib == pytest.approx(8 * full.activations_mib, rel=0.01)


def test_too_little_memory_is_told(folder: Path) -> None:
    assert rules(preflight(folder / "640.onnx", Wish("fp32"), replace(PC, memory_free_mib=20)).problems) == [
        "NOT_ENOUGH_MEMORY"
    ]
    tight = preflight(folder / "640.onnx", Wish("fp32"), replace(PC, memory_free_mib=1000))
    assert rules(tight.warnings) == ["WORKSPACE_OVER_FREE"]
    assert tight.warnings[0].instead == f"workspace_mib {int(1000 - tight.memory.total_mib)} or less"


# -- INT8 -----------------------------------------------------------------------------------------------------------
def test_int8_without_ranges_is_always_refused(folder: Path) -> None:
    for target in (PC, ORIN, Target()):
        found = preflight(folder / "640.onnx", Wish("int8"), target)
        assert rules(found.problems) == ["INT8_WITHOUT_RANGES"]
        assert "would invent them" in found.verdict
    assert preflight(folder / "640.onnx", Wish("int8", int8_from="calibrator"), PC).problems == ()


def test_a_quantised_graph_brings_its_ranges(tmp_path: Path) -> None:
    assert checked(quantised(), tmp_path, Wish("int8")).problems == ()
    assert built_from(quantised()) == "qdq onnx"
    assert rules(checked(quantised(), tmp_path, Wish("fp16")).problems) == ["QDQ_NEEDS_INT8"]
    both = checked(quantised(), tmp_path, Wish("int8", int8_from="calibrator"))
    assert rules(both.warnings) == ["CALIBRATION_NOT_USED"]


def test_s2_an_asymmetric_graph_is_refused_before_the_build(tmp_path: Path) -> None:
    found = checked(quantised(3), tmp_path, Wish("int8"))
    assert rules(found.problems) == ["ZERO_POINT_NOT_ZERO"]
    assert "asymmetric" in found.verdict


def test_s2_a_dynamically_quantised_graph_is_refused_before_the_build(folder: Path, tmp_path: Path) -> None:
    quantize_dynamic(folder / "640.onnx", tmp_path / "d.onnx", weight_type=QuantType.QInt8)
    for target in (ORIN, PC, replace(PC, tensorrt=(11, 1, 0, 106))):
        found = preflight(tmp_path / "d.onnx", Wish("int8", int8_from="calibrator"), target)
        assert {"DYNAMIC_QUANTIZATION", "INTEGER_OPERATORS"} <= set(rules(found.problems))


def test_without_a_version_only_what_every_release_refuses_is_an_error(tmp_path: Path) -> None:
    found = checked(quantised(3), tmp_path, Wish("int8"), replace(PC, tensorrt=None))
    assert rules(found.problems) == ["ZERO_POINT_NOT_ZERO"]
    assert "TENSORRT_UNKNOWN" in rules(found.warnings)
    old = checked(quantised(), tmp_path, Wish("int8"), replace(PC, tensorrt=(7, 2, 3)))
    assert "TENSORRT_UNSUPPORTED" in rules(old.problems)


# -- DLA --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("policy", "severity"), [("prefer", "warning"), ("strict", "error")])
def test_the_policy_decides_whether_a_fallback_fails_the_build(policy: str, severity: str, folder: Path) -> None:
    wish = Wish("fp16", "dla1", "strict" if policy == "strict" else "prefer")
    found = preflight(folder / "640.onnx", wish, ORIN)
    fallback = next(one for one in found.found if one.rule == "DLA_FALLBACK")
    assert fallback.severity == severity
    assert "output0 has an axis of 8400 (over 8192)" in fallback.what
    assert "608x608 gives 7581, 576x576 gives 6804" in fallback.what
    assert "/model.22/Concat_7 (Concat)" in fallback.where
    smaller = preflight(folder / "608.onnx", wish, ORIN)
    assert "8192" not in next(one for one in smaller.found if one.rule == "DLA_FALLBACK").what


@pytest.mark.slow
def test_yolo11m_is_answered_too(tmp_path: Path) -> None:
    found = checked(yolo11("m"), tmp_path, Wish("fp16", "dla"), ORIN)
    assert "608x608 gives 7581" in found.warnings[0].what
    assert found.memory.weights_mib == pytest.approx(20.1e6 * 2 / 2**20, rel=0.02)


def test_a_dla_computes_in_fp16_and_int8_and_must_be_there(folder: Path) -> None:
    path = folder / "608.onnx"
    assert rules(preflight(path, Wish("fp32", "dla0"), ORIN).problems) == ["DLA_NO_FP32"]
    assert rules(preflight(path, Wish("fp16", "dla0"), PC).problems) == ["NO_DLA"]
    one_core = preflight(path, Wish("fp16", "dla1"), replace(ORIN, dla_cores=1))
    assert rules(one_core.problems) == ["NO_SUCH_DLA_CORE"]
    assert one_core.problems[0].instead == "dla0"
    unknown = preflight(path, Wish("fp16", "dla0"), replace(ORIN, dla_cores=None))
    assert unknown.problems == () and "DLA_UNKNOWN" in rules(unknown.warnings)
    gone = preflight(path, Wish("fp16", "dla0"), replace(ORIN, tensorrt=(11, 1, 0)))
    assert "TensorRT 11.1.0 has no DLA" in gone.verdict


def test_a_dla_takes_no_qdq(tmp_path: Path) -> None:
    found = checked(quantised(), tmp_path, Wish("int8", "dla0"), ORIN)
    assert rules(found.problems) == ["DLA_NO_QDQ"]
    assert "calibration images" in found.problems[0].instead


# -- other machines ---------------------------------------------------------------------------------------------------
def test_s2_a_build_for_a_nano_is_refused_on_a_pc_with_the_line_to_run_there(folder: Path) -> None:
    line = "trtexec --onnx=640.onnx --saveEngine=640.engine --workspace=128 --fp16 --buildOnly"
    found = preflight(folder / "640.onnx", Wish("fp16", profile=PROFILES["jetson-nano"]), PC, command_line=line)
    assert rules(found.problems) == ["OTHER_MACHINE"]
    assert found.problems[0].instead == f"copy 640.onnx to a Jetson Nano, Nano 2GB and build it there: {line}"
    assert found.target.tensorrt == (8, 2), "its rules are those that apply"
    assert rules(found.warnings) == ["OPSET_TOO_NEW"]
    assert found.as_dict()["workspace_mib"] == 128


def test_a_profile_has_limits(folder: Path) -> None:
    nano = Target((8, 2, 1, 8), (5, 3), "NVIDIA Jetson Nano", None, "linux", "aarch64", "32.7.1", 0, 1979, 1205)
    wish = Wish(
        "int8", "dla0", workspace_mib=1024, max_batch=2, int8_from="calibrator", profile=PROFILES["jetson-nano"]
    )
    found = preflight(folder / "640.onnx", wish, nano)
    assert {"PRECISION_NOT_THERE", "BATCH_TOO_LARGE", "NO_DLA"} == set(rules(found.problems))
    assert "WORKSPACE_TOO_LARGE" in rules(found.warnings)
    assert preflight(folder / "640.onnx", Wish("fp16", profile=PROFILES["jetson-nano"]), nano).problems == ()


@pytest.mark.parametrize(
    ("content", "error"), [(None, errors.FileMissing), (b"", errors.EmptyFile), (b"no protobuf", errors.CorruptFile)]
)
def test_a_file_that_is_no_onnx_has_its_own_error(content: bytes | None, error: type, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(error):
        preflight(tmp_path / "m.onnx", Wish("fp16"), PC)


def test_the_stride_is_the_exports_or_32() -> None:
    assert stride_of(pills_at(640)) == 32
    model = quantised()
    assert stride_of(model) == 32
    helper.set_model_props(model, {"stride": "16"})
    assert stride_of(model) == 16
