"""Models and files that the toolkit's tests share. Everything is made from seeds or stands in tests/assets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics.nn import tasks

from app.toolkit.coco import CocoData, read_coco
from app.toolkit.models.base import ModelAdapter
from app.toolkit.models.open_model import open_model
from app.toolkit.pipeline import ExportResult, export_and_prove
from app.toolkit.pruning.removal import RemovalOptions, remove_channels
from tests.toolkit.recovery import network_of
from tests.toolkit.scenes import ASSETS, make_scenes

NETWORKS = {
    "yolov8n": tasks.DetectionModel,
    "yolo11n": tasks.DetectionModel,
    "yolov8n-seg": tasks.SegmentationModel,
    "yolo11n-pose": tasks.PoseModel,
    "yolov8n-obb": tasks.OBBModel,
    "yolo11n-cls": tasks.ClassificationModel,
    "yolo26n": tasks.DetectionModel,
    "yolo26n-seg": tasks.SegmentationModel,
    "yolo26n-pose": tasks.PoseModel,
    "yolo26n-obb": tasks.OBBModel,
    "yolov10n": tasks.DetectionModel,
}

MakeModel = Callable[..., Path]


@pytest.fixture(scope="session")
def pills() -> Path:
    """YOLOv8n trained on the pills, 12 classes."""
    return ASSETS / "pills_yolov8n.pt"


@pytest.fixture(scope="session")
def classifier() -> Path:
    """A timm checkpoint: a dictionary with a state dict and no network."""
    return ASSETS / "pills_classifier.pt"


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """`make_model(name, channels=3)`: an untrained checkpoint, saved as Ultralytics saves them; each is made once."""
    folder = tmp_path_factory.mktemp("models")

    def make(name: str, channels: int = 3) -> Path:
        path = folder / f"{name}-{channels}.pt"
        if not path.exists():
            torch.manual_seed(0)
            network = NETWORKS[name](f"{name}.yaml", ch=channels, verbose=False)
            torch.save({"model": network.half(), "ema": None, "train_args": {}, "version": "8.4.190"}, path)
        return path

    return make


@pytest.fixture(scope="session")
def adapter(pills: Path) -> ModelAdapter:
    """The pills model, open."""
    return open_model(pills)


@pytest.fixture(scope="session")
def exported(pills: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """The pills model as FP32 ONNX at 640."""
    return export_and_prove(pills, tmp_path_factory.mktemp("fp32") / "pills_fp32.onnx")


@pytest.fixture(scope="session")
def exported_fp16(pills: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """The pills model as FP16 ONNX at 640."""
    return export_and_prove(pills, tmp_path_factory.mktemp("fp16") / "pills_fp16.onnx", precision="fp16")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> CocoData:
    folder = make_scenes(tmp_path_factory.mktemp("train"), images=36, seed=77_001)
    return read_coco(folder / "instances.json", folder / "images")


@pytest.fixture(scope="session")
def few(scenes: CocoData) -> CocoData:
    return replace(scenes, image_ids=scenes.image_ids[:7], file_names=scenes.file_names[:7])


@pytest.fixture(scope="session")
def content(scenes: CocoData) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(scenes.annotations.read_text())
    return loaded


@pytest.fixture(scope="session")
def pruned(pills: Path) -> nn.Module:
    """The pills network without a fifth of its channels."""
    return remove_channels(network_of(pills), RemovalOptions(ratio=0.2), input_size=(320, 320))[0]
