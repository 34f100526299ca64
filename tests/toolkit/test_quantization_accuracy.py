"""What INT8 costs the pills model: at most 0.01 mAP50-95 on 200 scenes that neither trained nor calibrated it."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import ModelProto

from app.toolkit.coco import CocoData, evaluate, read_coco
from app.toolkit.export import onnx_from_torch
from app.toolkit.images import list_images, read_image, tensor_from_image
from app.toolkit.models.base import ModelAdapter
from app.toolkit.onnx_lint import lint
from app.toolkit.quantization.graph import post_processing, prepared
from app.toolkit.quantization.operators import Target
from app.toolkit.quantization.ranges import Method, Ranges, collect_ranges
from app.toolkit.quantization.static import quantize_static
from app.toolkit.runtimes.ort_runtime import OrtRuntime
from tests.toolkit.scenes import make_scenes

pytestmark = pytest.mark.slow

SIZE = (640, 640)


@pytest.fixture(scope="module")
def graph(adapter: ModelAdapter) -> ModelProto:
    return prepared(onnx_from_torch(adapter, input_size=SIZE))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> CocoData:
    folder = make_scenes(tmp_path_factory.mktemp("held_out"), images=200, seed=9001)
    return read_coco(folder / "instances.json", folder / "images")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return list_images(make_scenes(tmp_path_factory.mktemp("calibration"), images=50, seed=5001) / "images")


def _map50_95(adapter: ModelAdapter, model: ModelProto, data: CocoData) -> float:
    with OrtRuntime(model.SerializeToString(), threads=2) as runtime:
        return evaluate(adapter, runtime, data, input_size=SIZE).map50_95


@pytest.fixture(scope="module")
def before(adapter: ModelAdapter, graph: ModelProto, held_out: CocoData) -> float:
    return _map50_95(adapter, graph, held_out)


@pytest.fixture(scope="module", params=["minmax", "entropy"])
def ranges(request: pytest.FixtureRequest, graph: ModelProto, calibration: list[Path]) -> Ranges:
    method: Method = request.param
    tensors = (tensor_from_image(read_image(path), SIZE)[0] for path in calibration)
    return collect_ranges(graph, tensors, method=method, threads=2)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime-cpu"])
def test_a_hundredth_is_lost_at_most(
    adapter: ModelAdapter, graph: ModelProto, held_out: CocoData, before: float, ranges: Ranges, target: Target
) -> None:
    made = quantize_static(graph, ranges, target=target, exclude_nodes=post_processing(graph))
    assert _map50_95(adapter, made, held_out) > before - 0.01
    assert lint(made).refused_by("10") == (target == "onnxruntime-cpu")
