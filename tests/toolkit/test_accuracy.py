"""The exported pills models find as much as the checkpoint does, on 300 images that no training saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.toolkit.coco import CocoData, CocoResult, evaluate, read_coco
from app.toolkit.models.base import ModelAdapter
from app.toolkit.pipeline import ExportResult
from app.toolkit.runtimes.ort_runtime import OrtRuntime
from app.toolkit.runtimes.torch_runtime import TorchRuntime
from tests.toolkit.scenes import make_scenes

SIZE = (640, 640)


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> CocoData:
    folder = make_scenes(tmp_path_factory.mktemp("unseen"), images=300, seed=20_261)
    return read_coco(folder / "instances.json", folder / "images")


@pytest.fixture(scope="module")
def torch_result(adapter: ModelAdapter, unseen: CocoData) -> CocoResult:
    specs = adapter.input_specs(SIZE, 1)
    with TorchRuntime(adapter.reference_module(), specs, adapter.output_specs()) as runtime:
        return evaluate(adapter, runtime, unseen, input_size=SIZE)


def _through_onnx_runtime(path: Path, adapter: ModelAdapter, unseen: CocoData) -> CocoResult:
    with OrtRuntime(path) as runtime:
        return evaluate(adapter, runtime, unseen, input_size=SIZE)


@pytest.mark.slow
def test_the_checkpoint_is_as_accurate_as_its_training_said(torch_result: CocoResult) -> None:
    print(torch_result)
    assert torch_result.map50_95 > 0.99  # 0.994 by Ultralytics' own interpolation


@pytest.mark.slow
def test_fp32_keeps_the_accuracy(
    adapter: ModelAdapter, exported: ExportResult, unseen: CocoData, torch_result: CocoResult
) -> None:
    result = _through_onnx_runtime(exported.path, adapter, unseen)
    print(result)
    assert result.map50_95 == pytest.approx(torch_result.map50_95, abs=0.005)


@pytest.mark.slow
def test_fp16_keeps_the_accuracy(
    adapter: ModelAdapter, exported_fp16: ExportResult, unseen: CocoData, torch_result: CocoResult
) -> None:
    result = _through_onnx_runtime(exported_fp16.path, adapter, unseen)
    print(result)
    assert result.map50_95 == pytest.approx(torch_result.map50_95, abs=0.005)
