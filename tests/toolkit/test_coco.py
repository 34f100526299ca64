"""The COCO figure, against pycocotools on the same predictions."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from app.toolkit.coco import CocoData, evaluate, predict, read_coco, score
from app.toolkit.errors import InvalidAnnotations, UnsupportedTask
from app.toolkit.models.base import ModelAdapter
from app.toolkit.models.open_model import open_model
from app.toolkit.pipeline import ExportResult
from app.toolkit.runtimes.ort_runtime import OrtRuntime
from tests.toolkit.conftest import MakeModel
from tests.toolkit.scenes import make_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> CocoData:
    folder = make_scenes(tmp_path_factory.mktemp("scenes"), images=8, seed=9_001)
    return read_coco(folder / "instances.json", folder / "images")


def _pycocotools(predictions: list[dict[str, object]], annotations: Path) -> tuple[float, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluator = COCOeval(truth, truth.loadRes(predictions), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return float(evaluator.stats[1]), float(evaluator.stats[0])


def test_the_figures_are_those_of_pycocotools(scenes: CocoData, adapter: ModelAdapter, exported: ExportResult) -> None:
    with OrtRuntime(exported.path) as runtime:
        predictions = predict(adapter, runtime, scenes, input_size=(640, 640))
    rng = np.random.default_rng(0)  # perfect predictions would agree by being 1.0
    worse = [{**p, "bbox": (np.array(p["bbox"]) + rng.normal(0, 6, 4)).clip(1).tolist()} for p in predictions]
    for some in (predictions, worse):
        ours, theirs = score(some, scenes), _pycocotools(some, scenes.annotations)
        assert (round(ours.map50, 4), round(ours.map50_95, 4)) == (round(theirs[0], 4), round(theirs[1], 4))
    assert 0.1 < score(worse, scenes).map50_95 < 0.9


def test_a_trained_model_finds_its_pills(scenes: CocoData, adapter: ModelAdapter, exported: ExportResult) -> None:
    with OrtRuntime(exported.path) as runtime:
        result = evaluate(adapter, runtime, scenes, input_size=(640, 640))
    assert result.map50_95 > 0.95 and result.map50 > 0.99
    assert result.images == 8
    assert result.as_dict()["map50"] == result.map50


def test_nothing_found_is_zero(scenes: CocoData) -> None:
    assert score([], scenes).map50_95 == 0.0


def test_the_first_images_can_be_taken_alone(scenes: CocoData) -> None:
    assert read_coco(scenes.annotations, scenes.images, limit=3).image_ids == scenes.image_ids[:3]


def test_other_classes_than_the_models_are_refused(
    scenes: CocoData, make_model: MakeModel, exported: ExportResult
) -> None:
    with OrtRuntime(exported.path) as runtime, pytest.raises(InvalidAnnotations, match="80 categories"):
        evaluate(open_model(make_model("yolov8n")), runtime, scenes, input_size=(640, 640))


def test_a_task_without_upright_boxes_says_so(make_model: MakeModel) -> None:
    adapter = open_model(make_model("yolo11n-cls"))
    image, frame = adapter.preprocess(np.zeros((64, 64, 3), np.uint8), (64, 64))
    with pytest.raises(UnsupportedTask, match="classify"):
        adapter.postprocess({"output0": image}, [frame], settings=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["not json", "[]", "{}", '{"images": [], "categories": [], "annotations": []}'])
def test_a_file_that_is_not_coco_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InvalidAnnotations):
        read_coco(tmp_path / "a.json", tmp_path)


def test_missing_images_are_named(scenes: CocoData, tmp_path: Path) -> None:
    names = json.loads(scenes.annotations.read_text())["images"]
    with pytest.raises(InvalidAnnotations, match=names[0]["file_name"]):
        read_coco(scenes.annotations, tmp_path)
