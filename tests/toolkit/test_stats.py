"""What stats say of each format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from app.toolkit import errors
from app.toolkit.onnx_file import load_onnx
from app.toolkit.pipeline import ExportResult
from app.toolkit.stats import model_stats, stats_text

PLAN = b"ftrt" + bytes(20) + bytes([10, 3, 0, 26]) + bytes(100)


def test_a_checkpoint_is_counted(pills: Path) -> None:
    stats = model_stats(pills)
    assert stats.as_dict()["stats"] == {
        "size_mb": 6.26,
        "total_params": 3_013_188,
        "nonzero_params": stats.nonzero_params,
        "sparsity_pct": 0.0,
    }
    assert 3_013_000 < (stats.nonzero_params or 0) <= 3_013_188
    assert stats.layers["Conv2d"] == 64
    assert sum(stats.dtypes.values()) == 3_013_188


def test_zeroed_weights_show_as_sparsity(pills: Path, tmp_path: Path) -> None:
    content = torch.load(pills, weights_only=False)
    weights = [p for p in content["model"].parameters() if p.ndim == 4]
    for weight in weights:
        weight.data.view(-1)[::2] = 0
    torch.save(content, tmp_path / "sparse.pt")
    stats = model_stats(tmp_path / "sparse.pt")
    zeroed = sum((weight.numel() + 1) // 2 for weight in weights)
    assert stats.nonzero_params == pytest.approx(3_013_188 - zeroed, abs=200)
    assert 49 < (stats.sparsity_pct or 0) < 50


def test_a_state_dict_without_a_network_is_counted_too(classifier: Path) -> None:
    stats = model_stats(classifier)
    weights = torch.load(classifier, weights_only=True)["state_dict"]
    wanted = sum(t.numel() for n, t in weights.items() if "running" not in n and "tracked" not in n)
    assert stats.total_params == wanted
    assert stats.details["holds"] == "a state dict without its network"


def test_an_onnx_file_is_counted_as_its_export_was(exported: ExportResult) -> None:
    stats = model_stats(exported.path)
    assert stats.as_dict() == exported.model_stats.as_dict()
    assert stats.opset == 17
    assert stats.inputs[0].shape == (1, 3, 640, 640)
    assert stats.layers["Conv"] == 64


def test_the_parameters_of_an_onnx_file_are_the_fused_networks(exported: ExportResult, pills: Path) -> None:
    network = torch.load(pills, weights_only=False)["model"].float().fuse(verbose=False)
    assert exported.stats["total_params"] == sum(parameter.numel() for parameter in network.parameters())


def test_zeros_in_an_onnx_file_show_as_sparsity(exported: ExportResult, tmp_path: Path) -> None:
    model = load_onnx(exported.path)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            values = numpy_helper.to_array(tensor).copy()
            values.reshape(-1)[: values.size // 4] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "s.onnx")
    assert 24 < (model_stats(tmp_path / "s.onnx").sparsity_pct or 0) < 26


@pytest.mark.parametrize("ultralytics_header", [False, True])
def test_an_engine_tells_its_version_and_size(ultralytics_header: bool, tmp_path: Path) -> None:
    text = json.dumps({"task": "detect", "imgsz": [640, 640], "names": {}}).encode()
    header = len(text).to_bytes(4, "little") + text if ultralytics_header else b""
    path = tmp_path / "m.engine"
    path.write_bytes(header + PLAN)
    stats = model_stats(path)
    assert stats.details["tensorrt_version"] == "10.3.0.26"
    assert stats.details.get("task") == ("detect" if ultralytics_header else None)
    assert stats.total_params is None and stats.sparsity_pct is None
    assert stats.size_bytes == len(header) + len(PLAN)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("m.engine", b"no plan at all", errors.CorruptFile),
        ("m.engine", b"", errors.EmptyFile),
        ("m.engine", None, errors.FileMissing),
        ("m.onnx", b"", errors.EmptyFile),
        ("m.onnx", b"certainly no protobuf", errors.CorruptFile),
        ("m.onnx", b"\x08\x08", errors.NotAModel),
        ("m.onnx", None, errors.FileMissing),
        ("m.h5", b"x", errors.NotAModel),
        ("m", b"x", errors.NotAModel),
    ],
)
def test_a_bad_file_has_its_own_error(name: str, content: bytes | None, error: type, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error):
        model_stats(tmp_path / name)


def test_the_text_has_a_line_for_each_number(exported: ExportResult) -> None:
    text = stats_text(exported.model_stats)
    lines = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    assert lines["total_params"] == str(exported.stats["total_params"])
    assert lines["sparsity_pct"] == str(exported.stats["sparsity_pct"])
    assert lines["input"] == "images float32 [1, 3, 640, 640]"
    assert lines["  Conv"] == "64"


def test_the_text_says_where_a_number_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "m.plan").write_bytes(PLAN)
    assert "total_params: unknown" in stats_text(model_stats(tmp_path / "m.plan"))


def test_counting_is_exact_in_every_dtype(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "half": np.array([0, 1, 2], np.float16),
        "byte": np.array([0, 0, 3], np.int8),
        "shape": np.array([1, 2], np.int64),
        "/a/Constant_output_0": np.ones(5, np.float32),
    }
    graph = onnx.helper.make_graph([], "g", [], [], [numpy_helper.from_array(a, n) for n, a in arrays.items()])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "t.onnx")
    stats = model_stats(tmp_path / "t.onnx")
    assert (stats.total_params, stats.nonzero_params) == (6, 3)
    assert stats.dtypes == {"float16": 3, "int8": 3}


def test_a_normalisation_folded_into_a_weight_leaves_it_a_weight(tmp_path: Path) -> None:
    arrays = {"/a/Mul_output_0": np.ones((2, 3, 1, 1), np.float32), "/b/Constant_output_0": np.ones(5, np.float32)}
    node = onnx.helper.make_node("Conv", ["x", "/a/Mul_output_0"], ["y"], kernel_shape=[1, 1])
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph([node], "g", [], [], tensors)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "t.onnx")
    assert model_stats(tmp_path / "t.onnx").total_params == 6
