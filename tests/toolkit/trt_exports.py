"""Exports that several tests on TensorRT read; each is made once in a process and must not be changed."""

from __future__ import annotations

import functools

from onnx import ModelProto
from ultralytics.nn import tasks

from app.toolkit.export import onnx_from_torch
from app.toolkit.models.open_model import open_model
from app.toolkit.models.ultralytics import UltralyticsModel
from tests.toolkit.scenes import ASSETS


@functools.cache
def pills_at(side: int, *, dynamic: bool = False) -> ModelProto:
    """The pills YOLOv8n with a square input, in px."""
    return onnx_from_torch(open_model(ASSETS / "pills_yolov8n.pt"), input_size=(side, side), dynamic=dynamic)


@functools.cache
def yolo11(scale: str) -> ModelProto:
    """An untrained YOLO11 at 640 px, whose attention has its sizes baked in. `scale` is n, s, m, l or x."""
    return onnx_from_torch(
        UltralyticsModel(tasks.DetectionModel(f"yolo11{scale}.yaml", verbose=False)), input_size=(640, 640)
    )
