"""The table of layers that stats have, of each format, and its text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization
from torch import nn

from app.toolkit import errors
from app.toolkit.images import DEFAULT_IMAGES, read_image, tensor_from_image
from app.toolkit.onnx_file import load_onnx
from app.toolkit.pipeline import ExportResult, export_and_prove
from app.toolkit.stats import MAX_ROWS, LayerStats, ModelStats, model_stats, stats_text
from app.toolkit.stats.text import shortened, table_lines
from tests.toolkit.conftest import MakeModel

PLAN = b"ftrt" + bytes(20) + bytes([10, 3, 0, 26]) + bytes(100)


def _saved(network: nn.Module, path: Path, **content: Any) -> Path:
    torch.save({"model": network, **content}, path)
    return path


def _by_name(stats: ModelStats) -> dict[str, LayerStats]:
    return {layer.name: layer for layer in stats.table}


def _sums_agree(stats: ModelStats) -> bool:
    sums = [sum(layer.params for layer in stats.table), sum(layer.nonzero for layer in stats.table)]
    return sums == [stats.total_params, stats.nonzero_params]


# -- checkpoints --------------------------------------------------------------------------------------------------
def test_a_network_is_told_layer_by_layer(pills: Path) -> None:
    stats = model_stats(pills)
    rows = _by_name(stats)
    assert len(rows) == len(stats.table) == 64 + 57
    assert _sums_agree(stats)
    assert rows["model.0.conv"].as_dict() == {
        "name": "model.0.conv",
        "type": "Conv2d",
        "weight_shape": [16, 3, 3, 3],
        "dtype": "float16",
        "params": 432,
        "nonzero": 432,
        "sparsity_pct": 0.0,
        "macs": 16 * 27 * 320 * 320,
    }
    assert rows["model.0.bn"].params == 32 and rows["model.0.bn"].macs == 0
    document = stats.as_dict()
    assert document["macs"] == sum(row["macs"] for row in document["layer_table"]) == 4_047_283_200
    assert (document["gmacs"], document["macs_input"]) == (4.047, [1, 3, 640, 640])
    assert document["layer_table_left_out"] == 0


def test_the_zeros_of_a_layer_are_its_own(pills: Path, tmp_path: Path) -> None:
    content = torch.load(pills, weights_only=False)
    weight = content["model"].model[1].conv.weight.data
    weight.fill_(1)
    weight.view(-1)[: weight.numel() // 4] = 0
    torch.save(content, tmp_path / "m.pt")
    rows = _by_name(model_stats(tmp_path / "m.pt"))
    assert rows["model.1.conv"].sparsity_pct == 25.0
    assert rows["model.2.cv1.conv"].sparsity_pct == 0.0


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"imgsz": 320}, [1, 3, 320, 320]),
        ({"imgsz": 330}, [1, 3, 352, 352]),
        ({"imgsz": [320, 640]}, [1, 3, 320, 640]),
        ({"imgsz": 10**9}, [1, 3, 640, 640]),
        ({"imgsz": "large"}, [1, 3, 640, 640]),
        ({"imgsz": None}, [1, 3, 640, 640]),
        ({}, [1, 3, 640, 640]),
    ],
)
def test_the_work_is_that_of_the_size_which_the_file_tells(
    arguments: dict[str, object], shape: list[int], make_model: MakeModel, tmp_path: Path
) -> None:
    content = torch.load(make_model("yolov8n"), weights_only=False)
    stats = model_stats(_saved(content["model"], tmp_path / "m.pt", train_args=arguments))
    assert stats.as_dict()["macs_input"] == shape
    assert (stats.macs or 0) * 640 * 640 == pytest.approx(4_371_993_600 * shape[2] * shape[3])
    assert ("trained at" in stats.notes[0]) == (shape[2] != 640 or shape[3] != 640)


def test_attention_has_a_row_for_its_products(make_model: MakeModel) -> None:
    row = _by_name(model_stats(make_model("yolo11n")))["model.10.m.0.attn"]
    assert (row.type, row.shape, row.params, row.sparsity_pct, row.macs) == ("Attention", None, 0, None, 30_720_000)


def test_a_network_that_takes_no_image_is_counted_without_its_work(tmp_path: Path) -> None:
    stats = model_stats(_saved(nn.Sequential(nn.Linear(7, 3)), tmp_path / "m.pt"))
    assert (stats.total_params, stats.macs) == (24, None)
    assert [layer.macs for layer in stats.table] == [None]
    assert "[1, 3, 640, 640]" in stats.notes[0]
    assert "macs: unknown" in stats_text(stats)


def test_a_shared_weight_counts_once(tmp_path: Path) -> None:
    first, second = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
    second.weight = first.weight
    stats = model_stats(_saved(nn.Sequential(first, second), tmp_path / "m.pt"))
    assert stats.total_params == 9
    assert _sums_agree(stats)
    assert [layer.macs for layer in stats.table] == [9 * 640 * 640] * 2


def test_a_state_dict_is_told_tensor_by_tensor(classifier: Path) -> None:
    stats = model_stats(classifier)
    weights = torch.load(classifier, weights_only=True)["state_dict"]
    assert _sums_agree(stats)
    assert stats.macs is None and {layer.macs for layer in stats.table} == {None}
    assert _by_name(stats)["conv_stem.weight"].shape == tuple(weights["conv_stem.weight"].shape)
    assert not any("running" in layer.name for layer in stats.table)


# -- graphs -------------------------------------------------------------------------------------------------------
def test_a_graph_is_told_node_by_node(exported: ExportResult) -> None:
    stats = exported.model_stats
    rows = _by_name(stats)
    assert _sums_agree(stats)
    assert stats.macs == 4_047_283_200
    first = rows["/model.0/conv/Conv"]
    assert (first.type, first.shape, first.dtype) == ("Conv", (16, 3, 3, 3), "float32")
    assert (first.params, first.macs) == (16 * 27 + 16, 16 * 27 * 320 * 320)


def test_free_axes_leave_the_work_of_a_graph_open(make_model: MakeModel, tmp_path: Path) -> None:
    source = make_model("yolo11n")
    stats = model_stats(export_and_prove(source, tmp_path / "m.onnx", input_size=(128, 128), dynamic=True).path)
    assert stats.macs is None and stats.as_dict()["macs_input"] is None
    assert "free" in stats.notes[0]
    assert _sums_agree(stats)
    assert stats_text(stats).splitlines()[-1].endswith("?")


class _Images(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter(
            {"images": tensor_from_image(read_image(path), (160, 160), 3)[0]} for path in DEFAULT_IMAGES
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


@pytest.mark.parametrize("layout", ["QDQ", "QOperator"])
def test_a_quantised_graph_has_the_parameters_of_the_one_it_came_from(layout: str, pills: Path, tmp_path: Path) -> None:
    source = export_and_prove(pills, tmp_path / "m.onnx", input_size=(160, 160)).path
    target = tmp_path / "q.onnx"
    quantization.quantize_static(
        source,
        target,
        _Images(),
        quant_format=quantization.QuantFormat[layout],
        activation_type=quantization.QuantType.QInt8,
        op_types_to_quantize=["Conv"],
        per_channel=layout == "QDQ",
    )
    before, after = model_stats(source), model_stats(target)
    assert after.total_params == before.total_params
    assert _sums_agree(after)
    assert after.macs == before.macs
    assert set(after.dtypes) == {"int8", "int32"}  # the weights and the biases; no scale, no zero point
    convolutions = [layer for layer in after.table if layer.type in ("Conv", "QLinearConv")]
    assert len(convolutions) == len(after.table) == 64
    assert {layer.dtype for layer in convolutions} == {"int8"}
    assert [layer.shape for layer in convolutions] == [layer.shape for layer in before.table]


def _graph(nodes: list[onnx.NodeProto], shape: list[int], **weights: np.ndarray[Any, Any]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_a_weight_belongs_to_what_works_with_it_and_an_idle_one_to_itself(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["half"], ["full"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["full"], ["turned"]),
        helper.make_node("MatMul", ["x", "turned"], ["m"], name="same"),
        helper.make_node("Add", ["m", "bias"], ["y"], name="same"),
    ]
    idle = np.zeros(4, np.float32)
    onnx.save(
        _graph(nodes, [2, 3], half=np.ones((5, 3), np.float16), bias=np.ones(5, np.float32), idle=idle),
        tmp_path / "m.onnx",
    )
    stats = model_stats(tmp_path / "m.onnx")
    assert [(row.name, row.type, row.shape, row.dtype, row.params, row.macs) for row in stats.table] == [
        ("same", "MatMul", (5, 3), "float16", 15, 2 * 3 * 5),
        ("same #3", "Add", (5,), "float32", 5, 0),
        ("idle", "initializer", (4,), "float32", 4, 0),
    ]
    assert _sums_agree(stats)


def test_a_broken_node_is_counted_as_unknown(tmp_path: Path) -> None:
    onnx.save(_graph([helper.make_node("Conv", [], [])], [1]), tmp_path / "m.onnx")
    stats = model_stats(tmp_path / "m.onnx")
    assert [(row.name, row.macs) for row in stats.table] == [("Conv", None)]


# -- engines ------------------------------------------------------------------------------------------------------
def test_an_engine_tells_what_its_headers_hold(tmp_path: Path) -> None:
    text = json.dumps({"task": "detect", "imgsz": [640, 640], "names": {"0": "a", "1": "b"}, "dla": 1}).encode()
    (tmp_path / "m.engine").write_bytes(len(text).to_bytes(4, "little") + text + PLAN)
    stats = model_stats(tmp_path / "m.engine")
    assert stats.details == {
        "header": "Ultralytics",
        "task": "detect",
        "imgsz": "[640, 640]",
        "dla": "1",
        "classes": "2",
        "tensorrt_version": "10.3.0.26",
        "serialization_version": "0",
    }
    assert (stats.table, stats.macs, stats.manifest) == ((), None, None)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b'{"precision": "fp16", "gpu": "Orin"}', {"precision": "fp16", "gpu": "Orin"}),
        (b"[1]", None),
        (b"{", None),
        (b"[" * 100_000, None),
        (b"\xff", None),
    ],
)
def test_the_manifest_beside_an_engine_is_told(content: bytes, wanted: object, tmp_path: Path) -> None:
    (tmp_path / "m.engine").write_bytes(PLAN)
    (tmp_path / "m_manifest.json").write_bytes(content)
    stats = model_stats(tmp_path / "m.engine")
    assert stats.as_dict()["manifest"] == wanted
    assert ("  precision: fp16" in stats_text(stats).splitlines()) == (wanted is not None)


def test_an_engine_that_is_cut_within_its_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.engine").write_bytes(PLAN[:26])
    with pytest.raises(errors.CorruptFile):
        model_stats(tmp_path / "m.engine")


# -- the table as text and as JSON ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["yolov8n", "yolo11n"])
def test_the_table_is_aligned_and_fits_a_terminal(name: str, make_model: MakeModel) -> None:
    stats = model_stats(make_model(name))
    lines = stats_text(stats).splitlines()
    heading = next(index for index, line in enumerate(lines) if line.startswith("layer "))
    table = lines[heading:]
    assert len(table) == len(stats.table) + 4
    assert max(map(len, lines)) <= 120
    edge = table[0].index("MACs") + 4
    assert {len(line) for line in table} == {edge}
    assert table[-1].split() == [
        str(len(stats.table)), "in", "all", str(stats.total_params), str(stats.nonzero_params),
        f"{stats.sparsity_pct:.2f}", str(stats.macs),
    ]  # fmt: skip


def test_a_long_name_loses_its_middle() -> None:
    assert shortened("short", 10) == "short"
    assert shortened("a" * 50 + "." + "b" * 50, 20) == "aaaaaa...bbbbbbbbbbb"
    assert shortened("two\nlines\x1b[0m", 40) == "two?lines?[0m"
    row = LayerStats("n" * 300, "T" * 300, (2048, 2048, 33, 33), "float32", 10**10, 10**10, 10**13)
    lines = table_lines([row])
    assert max(map(len, lines)) <= 120
    assert "10000000000000" in lines[2]


def test_a_huge_table_is_cut_in_the_record_and_whole_in_the_text(tmp_path: Path) -> None:
    count = MAX_ROWS + 100
    network = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(count)))
    stats = model_stats(_saved(network, tmp_path / "m.pt"))
    document = stats.as_dict()
    assert (len(document["layer_table"]), document["layer_table_left_out"]) == (MAX_ROWS, 100)
    assert document["macs"] == count * 9 * 640 * 640
    assert f"\n{count - 1} " in stats_text(stats)


def test_half_precision_files_say_so(exported_fp16: ExportResult) -> None:
    stats = model_stats(exported_fp16.path)
    assert {layer.dtype for layer in stats.table} == {"float16"}
    assert stats.macs == 4_047_283_200
    assert load_onnx(exported_fp16.path).graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert [spec.dtype for spec in stats.inputs] == ["float32"]
