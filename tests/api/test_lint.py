"""`lint_onnx` through the service."""

from __future__ import annotations

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.harness import Service


def _asymmetric() -> bytes:
    """One tensor quantised with a zero point of 3."""
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], "quantise")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT8, [1, 4])],
        [numpy_helper.from_array(np.float32(0.5), "s"), numpy_helper.from_array(np.int8(3), "z")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    data: bytes = model.SerializeToString()
    return data


def test_what_tensorrt_would_refuse_is_told_before_a_build(service: Service, pid: str) -> None:
    key = service.upload(pid, "model.onnx", _asymmetric())
    job = service.run("lint_onnx", pid, {"input_path": key, "tensorrt": ["8.6", "10"]})
    assert job["status"] == "completed", job["error"]
    assert job["metrics"]["verdict"] == "TensorRT 8.6, 10 would refuse it: ZERO_POINT_NOT_ZERO"
    (finding,) = job["metrics"]["lint"]["findings"]
    assert finding["nodes"] == ["quantise (QuantizeLinear)"]
    assert job["metrics"]["lint"]["clean"] == {"8.6": False, "10": False}
    stored = service.client.get(f"/optimizing/jobs/{pid}/{job['oid']}/artifacts/model_lint.json")
    assert json.loads(stored.content) == job["metrics"]["lint"]


def test_a_release_that_is_not_known_is_refused_at_once(service: Service, pid: str) -> None:
    for releases in (["7"], [], "10"):
        assert service.post("lint_onnx", pid, {"input_path": "a.onnx", "tensorrt": releases}).status_code == 422


def test_a_file_that_is_no_graph_fails_with_a_word_on_it(service: Service, pid: str) -> None:
    key = service.upload(pid, "model.onnx", b"no graph")
    job = service.run("lint_onnx", pid, {"input_path": key})
    assert job["error"]["code"] in {"CORRUPT_FILE", "NOT_A_MODEL"}
