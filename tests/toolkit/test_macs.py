"""Multiply-accumulates against sums done by hand, Ultralytics' count, Torch-Pruning's, and the exported graph's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn.utils import prune
from ultralytics.nn import tasks
from ultralytics.utils.torch_utils import get_flops

from app.toolkit.errors import InvalidInputSize
from app.toolkit.macs import macs_by_layer, macs_of_onnx
from app.toolkit.onnx_file import load_onnx
from app.toolkit.pipeline import ExportResult, export_and_prove
from tests.toolkit.conftest import NETWORKS, MakeModel

SIZE = (1, 3, 640, 640)
torch_pruning = pytest.importorskip("torch_pruning")


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = NETWORKS[name](f"{name}.yaml", verbose=False)
    return network.eval()


def _values_into(network: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...], of: str) -> int:
    """How many values all layers of these kinds take (`of` "input") or give ("output") in one run."""
    seen: list[int] = []
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda m, i, o: seen.append((i[0] if of == "input" else o).numel()))
    with torch.no_grad():
        copied(torch.zeros(SIZE))
    return sum(seen)


@pytest.mark.parametrize(
    ("layer", "wanted"),
    [
        (nn.Conv2d(8, 16, 3, padding=1), 16 * 32 * 32 * 8 * 9),
        (nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), 16 * 16 * 16 * 8 * 9),
        (nn.Conv2d(8, 16, 3, padding=1, groups=4), 16 * 32 * 32 * 2 * 9),
        (nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8), 8 * 32 * 32 * 9),
        (nn.ConvTranspose2d(8, 16, 2, stride=2), 8 * 32 * 32 * 16 * 4),
        (nn.ConvTranspose2d(8, 16, 2, stride=2, groups=2), 8 * 32 * 32 * 8 * 4),
        (nn.Linear(32, 5), 8 * 32 * 32 * 5),
    ],
    ids=lambda value: "" if isinstance(value, int) else str(value),
)
def test_a_layer_is_counted_as_by_hand(layer: nn.Module, wanted: int) -> None:
    assert macs_by_layer(nn.Sequential(layer), torch.zeros(1, 8, 32, 32)) == {"0": wanted}
    assert macs_by_layer(nn.Sequential(layer), torch.zeros(3, 8, 32, 32)) == {"0": 3 * wanted}


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(4, 4, 1)
        self.idle = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared(self.shared(x))  # type: ignore[no-any-return]


class _ReadsValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return y if float(y.detach().sum()) > 0 else -y


def test_a_layer_that_runs_twice_counts_twice_and_an_idle_one_nothing() -> None:
    assert macs_by_layer(_Twice(), torch.zeros(1, 4, 8, 8)) == {"shared": 2 * 4 * 4 * 64, "idle": 0}


def test_a_network_that_reads_values_while_it_runs_is_counted_all_the_same() -> None:
    network = _ReadsValues().half()
    assert macs_by_layer(network, torch.zeros(1, 3, 8, 8)) == {"conv": 3 * 4 * 64}
    assert next(network.parameters()).dtype == torch.float16


def test_a_pruning_mask_that_is_not_permanent_is_no_obstacle() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    prune.L1Unstructured.apply(network[0], "weight", amount=0.5)  # type: ignore[no-untyped-call]
    assert macs_by_layer(network, torch.zeros(1, 3, 8, 8)) == {"0": 3 * 4 * 64}


def test_an_input_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidInputSize) as caught:
        macs_by_layer(_network("yolov8n"), torch.zeros(1, 5, 640, 640))
    assert "[1, 5, 640, 640]" in caught.value.received


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n-pose"])
def test_the_network_stays_as_it_was(name: str) -> None:
    network = _network(name)
    with torch.no_grad():
        network(torch.zeros(1, 3, 128, 128))  # the head now keeps anchors of this size
    network.train()
    head: Any = network.model[-1]  # type: ignore[index]
    before = (head.shape, head.anchors, head.strides, head.stride)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    first = macs_by_layer(network, torch.zeros(SIZE))
    assert first == macs_by_layer(network, torch.zeros(SIZE))
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())
    assert all(x is y for x, y in zip(before, (head.shape, head.anchors, head.strides, head.stride), strict=True))
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolov8n-seg", "yolo11n-pose", "yolov8n-obb"])
def test_ultralytics_counts_the_same_where_normalisations_are_fused(name: str) -> None:
    network = _network(name).fuse(verbose=False)  # type: ignore[operator]
    assert round(get_flops(network, 640) / 2 * 1e9) == sum(macs_by_layer(network, torch.zeros(SIZE)).values())


def test_unfused_ultralytics_adds_four_for_each_normalised_value() -> None:
    network = _network("yolo11n")
    normalised = _values_into(network, nn.BatchNorm2d, "input")
    ours = sum(macs_by_layer(network, torch.zeros(SIZE)).values())
    assert round(get_flops(network, 640) / 2 * 1e9) == ours + 4 * normalised


def test_of_a_classifier_ultralytics_adds_the_pooling() -> None:
    network = _network("yolo11n-cls").fuse(verbose=False)  # type: ignore[operator]
    pooled = [_values_into(network, nn.AdaptiveAvgPool2d, of) for of in ("input", "output")]
    ours = sum(macs_by_layer(network, torch.zeros(SIZE)).values())
    assert round(get_flops(network, 640) / 2 * 1e9) == ours + sum(pooled)


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolov8n-seg", "yolo11n-cls"])
def test_torch_pruning_counts_the_same_and_what_is_named(name: str) -> None:
    network = _network(name)
    ours = macs_by_layer(network, torch.zeros(SIZE))
    theirs, parameters = torch_pruning.utils.count_ops_and_params(network, torch.zeros(SIZE))
    assert parameters == sum(parameter.numel() for parameter in network.parameters())
    biased = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) and m.bias is not None]
    marked = copy.deepcopy(network)
    extra = 2 * _values_into(marked, nn.BatchNorm2d, "input")
    extra += _values_into(marked, (nn.MaxPool2d, nn.AdaptiveAvgPool2d), "input")
    extra += _values_into(marked, nn.Upsample, "output")
    extra += _bias_values(network, biased) + sum(m.out_features for m in network.modules() if isinstance(m, nn.Linear))
    for layer, module in network.named_modules():
        if isinstance(module, nn.ConvTranspose2d):  # counted by its output's size
            extra += ours[layer] * (module.stride[0] * module.stride[1] - 1)
    extra -= sum(count for layer, count in ours.items() if layer.endswith(".attn"))
    assert int(theirs) == sum(ours.values()) + extra


def _bias_values(network: nn.Module, layers: list[nn.Conv2d | nn.ConvTranspose2d]) -> int:
    seen: list[int] = []
    hooks = [layer.register_forward_hook(lambda m, i, o: seen.append(o.numel())) for layer in layers]
    with torch.no_grad():
        network(torch.zeros(SIZE))
    for hook in hooks:
        hook.remove()
    return sum(seen)


def test_torch_pruning_agrees_layer_by_layer() -> None:
    network = _network("yolov8n")
    ours = macs_by_layer(network, torch.zeros(SIZE))
    _, _, theirs, _ = torch_pruning.utils.count_ops_and_params(network, torch.zeros(SIZE), layer_wise=True)
    checked = 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            assert theirs[module] == ours[name], name
            checked += 1
    assert checked > 50


def test_the_exported_graph_takes_what_the_network_takes(exported: ExportResult, pills: Path) -> None:
    network = torch.load(pills, weights_only=False)["model"]
    ours = macs_by_layer(network, torch.zeros(SIZE))
    graph = macs_of_onnx(load_onnx(exported.path))
    assert sum(ours.values()) == sum(count or 0 for count in graph.values()) == 4_047_283_200
    assert len(graph) == len(ours) == 64


@pytest.mark.parametrize("name", ["yolo11n", "yolov8n-seg", "yolo11n-cls"])
def test_attention_and_transposed_layers_are_in_the_graph_as_in_the_network(
    name: str, make_model: MakeModel, tmp_path: Path
) -> None:
    source = make_model(name)
    graph = macs_of_onnx(load_onnx(export_and_prove(source, tmp_path / "m.onnx", input_size=(192, 256)).path))
    network = torch.load(source, weights_only=False)["model"]
    ours = macs_by_layer(network, torch.zeros(1, 3, 192, 256))
    assert sum(ours.values()) == sum(count or 0 for count in graph.values())


def test_attention_s_products_are_booked_under_its_block() -> None:
    """400 positions, 2 heads, keys of 32 and values of 64."""
    counts = macs_by_layer(_network("yolo11n"), torch.zeros(SIZE))
    assert counts["model.10.m.0.attn"] == 2 * 400 * 400 * (32 + 64)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.attention(x, x + 1, x, need_weights=False)[0]
        return nn.functional.scaled_dot_product_attention(y, y, y)


def test_attention_by_functions_is_counted_as_by_hand() -> None:
    assert macs_by_layer(_Attention(), torch.zeros(2, 10, 16)) == {
        "": 2 * 10 * 10 * 32,
        "attention": 2 * (4 * 10 * 16 * 16 + 10 * 10 * 32),
        "attention.out_proj": 0,
    }


def test_free_axes_leave_the_count_open(pills: Path, tmp_path: Path) -> None:
    model = load_onnx(export_and_prove(pills, tmp_path / "m.onnx", input_size=(128, 128), dynamic=True).path)
    counts = macs_of_onnx(model)
    assert len(counts) == 64
    assert set(counts.values()) == {None}


def _graph(op: str, shapes: dict[str, tuple[int, list[int]]], out: list[int], **attributes: Any) -> onnx.ModelProto:
    """One node; `x` is the input, every other operand an initializer of zeros."""
    given = helper.make_tensor_value_info("x", *shapes["x"])
    made = helper.make_tensor_value_info("y", TensorProto.UNDEFINED, out)
    weights = [
        numpy_helper.from_array(np.zeros(shape, helper.tensor_dtype_to_np_dtype(dtype)), name)
        for name, (dtype, shape) in shapes.items()
        if name != "x"
    ]
    node = helper.make_node(op, list(shapes), ["y"], **attributes)
    graph = helper.make_graph([node], "g", [given], [made], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


FLOAT, INT8, UINT8 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8
SCALES: dict[str, tuple[int, list[int]]] = {"s": (FLOAT, []), "z": (UINT8, [])}


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (_graph("Gemm", {"x": (FLOAT, [2, 6]), "w": (FLOAT, [5, 6])}, [2, 5], transB=1), 2 * 6 * 5),
        (_graph("Gemm", {"x": (FLOAT, [6, 2]), "w": (FLOAT, [6, 5])}, [2, 5], transA=1), 2 * 6 * 5),
        (_graph("MatMul", {"x": (FLOAT, [3, 2, 6]), "w": (FLOAT, [6, 5])}, [3, 2, 5]), 3 * 2 * 6 * 5),
        (_graph("MatMulInteger", {"x": (UINT8, [2, 6]), "w": (UINT8, [6, 5])}, [2, 5]), 2 * 6 * 5),
        (
            _graph(
                "ConvTranspose",
                {"x": (FLOAT, [1, 4, 8, 8]), "w": (FLOAT, [4, 6, 2, 2])},
                [1, 6, 16, 16],
                strides=[2, 2],
            ),
            4 * 64 * 6 * 4,
        ),
        (
            _graph("ConvInteger", {"x": (UINT8, [1, 4, 8, 8]), "w": (UINT8, [6, 2, 1, 1])}, [1, 6, 8, 8], group=2),
            6 * 64 * 2,
        ),
        (
            _graph(
                "QLinearConv",
                {
                    "x": (UINT8, [1, 4, 8, 8]),
                    "s": (FLOAT, []),
                    "z": (UINT8, []),
                    "w": (INT8, [6, 4, 3, 3]),
                    "ws": (FLOAT, []),
                    "wz": (INT8, []),
                    "ys": (FLOAT, []),
                    "yz": (UINT8, []),
                },
                [1, 6, 6, 6],
            ),
            6 * 36 * 4 * 9,
        ),
    ],
    ids=lambda value: value.graph.node[0].op_type if isinstance(value, onnx.ModelProto) else "",
)
def test_an_operator_is_counted_as_by_hand(model: onnx.ModelProto, wanted: int) -> None:
    del model.graph.output[0].type.tensor_type.shape.dim[:]  # inferred, not told
    model.graph.output[0].ClearField("type")
    model.graph.output[0].type.tensor_type.elem_type = 0
    assert macs_of_onnx(model) == {"y": wanted}


def test_detection_models_of_this_module_are_the_family_s(make_model: MakeModel) -> None:
    """YOLOv8n with 80 classes: the figure that everyone knows, 8.7 GFLOPs."""
    network = torch.load(make_model("yolov8n"), weights_only=False)["model"]
    assert isinstance(network, tasks.DetectionModel)
    assert round(2 * sum(macs_by_layer(network, torch.zeros(SIZE)).values()) / 1e9, 1) == 8.7
