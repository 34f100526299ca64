"""Ultralytics YOLO (v8, 11): detect, and with raw outputs segment, pose, obb and classify.

What is done to the network before export follows `ultralytics.engine.exporter.Exporter` (8.4.190), without its dry run,
its requirement checks (which may install packages) and its settings file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import ultralytics
from torch import nn
from ultralytics.nn.modules import OBB, C2f, Classify, Detect, Pose, Segment
from ultralytics.nn.tasks import BaseModel

from app.toolkit.detections import Detections, NmsSettings, detections_from_raw
from app.toolkit.errors import ChannelsMismatch, InvalidInputSize, UnknownModelFamily, UnsupportedTask
from app.toolkit.images import LetterboxFrame, Uint8Array
from app.toolkit.models.base import Head, HeadPart, class_probabilities, on_same_weights
from app.toolkit.preprocessing import Preprocessing
from app.toolkit.runtimes.base import TensorSpec

Float32Array = npt.NDArray[np.float32]

INPUT = "images"
OUTPUT = "output0"
PROTOTYPES = "output1"
DEFAULT_SIZE = (640, 640)

# The most derived head first: Segment, Pose and OBB are Detects too.
TASK_OF_HEAD: tuple[tuple[type[nn.Module], str], ...] = (
    (OBB, "obb"),
    (Pose, "pose"),
    (Segment, "segment"),
    (Detect, "detect"),
    (Classify, "classify"),
)


class UltralyticsModel:
    """The `ModelAdapter` of Ultralytics networks."""

    family = "ultralytics"
    default_input_size = DEFAULT_SIZE

    def __init__(self, network: nn.Module) -> None:
        """Take over a network that `recognises` accepted: float32, evaluation mode, no gradients."""
        network = network.float().eval().requires_grad_(False)
        # The layout that convolves without reordering, for the reference and the exporter's trace alike.
        self._network = network.to(memory_format=torch.channels_last)
        self._head = _head_of(network)
        self.task = next(task for kind, task in TASK_OF_HEAD if isinstance(self._head, kind))
        self.backbone = _backbone_of(network)
        self.names = _names_of(network, self._head)
        self.stride = int(_stride_of(network))
        self.channels = _first_convolution(network).in_channels
        self.preprocessing = preprocessing_of(self.task)
        self.head: Head = head_of(self.task, end2end=_is_end_to_end(self._head))
        self.output_names: tuple[str, ...] = (OUTPUT, PROTOTYPES) if self.task == "segment" else (OUTPUT,)
        self.parts = parts_of(self.task, len(self.names), self.output_names, end2end=_is_end_to_end(self._head))

    @staticmethod
    def recognises(network: nn.Module) -> bool:
        """Is this a network of Ultralytics, whatever its task?"""
        return isinstance(network, BaseModel)

    def check_input(self, input_size: tuple[int, int], channels: int) -> None:
        """Each side must be a multiple of the largest stride; the channels are the first convolution's."""
        if channels != self.channels:
            raise ChannelsMismatch(
                f"the model's first layer takes {self.channels} channels",
                expected=f"channels = {self.channels}",
                received=f"channels = {channels}",
                hint=f"ask for channels {self.channels}, or export a model trained on {channels} channels",
            )
        if any(side < 1 or side % self.stride for side in input_size):
            below, above = (_nearest(input_size, self.stride, up) for up in (False, True))
            raise InvalidInputSize(
                f"each side of the input must be a multiple of the model's stride {self.stride}",
                expected=f"[H, W] in multiples of {self.stride} px",
                received=str(list(input_size)),
                hint=f"{below} or {above}" if below != above else str(above),
            )

    def input_specs(self, input_size: tuple[int, int], batch_size: int) -> tuple[TensorSpec, ...]:
        """`images`, float32 [N, C, H, W]."""
        return (TensorSpec(INPUT, "float32", (batch_size, self.channels, *input_size)),)

    def output_specs(self) -> tuple[TensorSpec, ...]:
        """`output0`, and the prototypes of a segmenter as `output1`, float32."""
        axes = {PROTOTYPES: ("batch", "masks", "mask_height", "mask_width")}
        first = ("batch", "classes") if self.task == "classify" else ("batch", "values", "anchors")
        return tuple(TensorSpec(name, "float32", axes.get(name, first)) for name in self.output_names)

    def preprocess(self, image: Uint8Array, input_size: tuple[int, int]) -> tuple[Float32Array, LetterboxFrame]:
        """A letterbox; a classifier's centre crop."""
        return self.preprocessing.apply(image, input_size, self.channels)

    def postprocess(
        self, outputs: Mapping[str, npt.NDArray[Any]], frames: Sequence[LetterboxFrame], settings: NmsSettings
    ) -> list[Detections]:
        """Upright boxes of detect, segment and pose heads, which carry them in the same rows of `output0`."""
        check_boxes(self.head, self.task)
        return upright_boxes(outputs[OUTPUT], frames, settings, len(self.names))

    def probabilities(self, outputs: Mapping[str, npt.NDArray[Any]]) -> Float32Array:
        """A classifier's `output0`, whose exported head ends in a softmax. Raises UnsupportedTask."""
        return class_probabilities(outputs, self.head)

    def reference_module(self) -> nn.Module:
        """Unfused, so that the proof covers the fusion too; the head only drops its training outputs."""
        network = on_same_weights(self._network)
        _set(_head_of(network), export=True)
        return network

    def export_module(self, *, dynamic: bool) -> nn.Module:
        """Convolutions fused with their normalisations, C2f split so that the graph has one Split."""
        network = on_same_weights(self._network)
        network.fuse(verbose=False)  # type: ignore[operator]
        for module in network.modules():
            if isinstance(module, (Detect, Classify)):
                _set(module, export=True, format="onnx")
            if isinstance(module, Detect):
                _set(module, dynamic=dynamic, shape=None)  # no anchors kept from another input size
            elif isinstance(module, C2f):
                _set(module, forward=module.forward_split)
        return network

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """Batch, height and width, and what follows from them, named as Ultralytics names them."""
        axes: dict[str, dict[int, str]] = {INPUT: {0: "batch", 2: "height", 3: "width"}}
        if self.task == "classify" or _is_end_to_end(self._head):
            axes[OUTPUT] = {0: "batch"}
        else:
            axes[OUTPUT] = {0: "batch", 2: "anchors"}
        if self.task == "segment":
            axes[PROTOTYPES] = {0: "batch", 2: "mask_height", 3: "mask_width"}
        return axes

    def metadata(
        self, input_size: tuple[int, int], batch_size: int, *, dynamic: bool, half: bool, opset: int
    ) -> dict[str, str]:
        """The keys that Ultralytics' AutoBackend reads, so that `YOLO("x.onnx")` knows the file."""
        entries: dict[str, object] = {
            "description": f"Ultralytics {self.backbone} model",
            "author": "Ultralytics",
            "date": datetime.now(timezone.utc).isoformat(),
            "version": ultralytics.__version__,
            "license": "AGPL-3.0 License (https://ultralytics.com/license)",
            "docs": "https://docs.ultralytics.com",
            "stride": self.stride,
            "task": self.task,
            "head": type(self._head).__name__,
            "batch": batch_size,
            "imgsz": list(input_size),
            "names": self.names,
            "args": {"batch": batch_size, "dynamic": dynamic, "half": half, "simplify": True, "opset": opset},
            "channels": self.channels,
            "end2end": _is_end_to_end(self._head),
            "preprocessing": json.dumps(self.preprocessing.as_dict()),
        }
        if self.task == "pose":
            entries["kpt_shape"] = list(self._head.kpt_shape)  # type: ignore[arg-type]
        return {key: str(value) for key, value in entries.items()}


def preprocessing_of(task: str) -> Preprocessing:
    """What Ultralytics does to images: a letterbox, and for a classifier `classify_transforms`."""
    return Preprocessing(resize="center_crop") if task == "classify" else Preprocessing()


def head_of(task: str, *, end2end: bool) -> Head:
    """What an exported head's answers are."""
    if task == "classify":
        return "probabilities"
    return "boxes" if task in ("detect", "segment", "pose") and not end2end else "raw"


def check_boxes(head: Head, task: str) -> None:
    """Raise UnsupportedTask unless the head gives boxes."""
    if head != "boxes":
        raise UnsupportedTask(
            f"a model of task {task} gives no upright boxes before suppression",
            expected="detect, segment or pose, not end to end",
            received=task,
        )


def upright_boxes(
    raw: npt.NDArray[Any], frames: Sequence[LetterboxFrame], settings: NmsSettings, class_count: int
) -> list[Detections]:
    """Detections of each image from a raw output [N, 4 + classes (+ more), anchors]."""
    return [detections_from_raw(raw[index], frame, class_count, settings) for index, frame in enumerate(frames)]


def _set(module: nn.Module, **switches: object) -> None:
    """Ultralytics' switches are plain attributes, which the types of `nn.Module` do not know."""
    for name, value in switches.items():
        setattr(module, name, value)


def _head_of(network: nn.Module) -> nn.Module:
    layers = getattr(network, "model", None)
    head = layers[-1] if isinstance(layers, nn.Sequential) and len(layers) else None
    if not isinstance(head, tuple(kind for kind, _ in TASK_OF_HEAD)):
        raise UnknownModelFamily(
            "the network ends in a head that is not known here",
            expected="Detect, Segment, Pose, OBB or Classify",
            received=type(head).__name__,
        )
    return head  # type: ignore[return-value]


def _backbone_of(network: nn.Module) -> str:
    yaml_file = str((getattr(network, "yaml", None) or {}).get("yaml_file", "model"))
    return Path(yaml_file).stem.replace("yolo", "YOLO")


def _names_of(network: nn.Module, head: nn.Module) -> dict[int, str]:
    names = getattr(network, "names", None)
    if isinstance(names, dict) and names:
        return {int(key): str(value) for key, value in names.items()}
    if isinstance(names, (list, tuple)) and names:
        return {index: str(value) for index, value in enumerate(names)}
    count = head.linear.out_features if isinstance(head, Classify) else int(head.nc)  # type: ignore[arg-type]
    return {index: f"class{index}" for index in range(count)}


def _stride_of(network: nn.Module) -> float:
    stride = getattr(network, "stride", None)
    return float(stride.max()) if isinstance(stride, torch.Tensor) else 32.0


def _first_convolution(network: nn.Module) -> nn.Conv2d:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            return module
    raise UnknownModelFamily("the network has no convolution", expected="a convolutional network", received="none")


def _is_end_to_end(head: nn.Module) -> bool:
    return bool(getattr(head, "end2end", False))


def parts_of(task: str, class_count: int, outputs: Sequence[str], *, end2end: bool) -> tuple[HeadPart, ...]:
    """What the rows of the raw outputs mean; `outputs` are their names in order."""
    first = outputs[0]
    if task == "classify":
        return (HeadPart("scores", first, "score"),)
    if end2end:  # [N, detections, 6 and more]: x1, y1, x2, y2, score, class, ...; best first, near ties in any order
        part = partial(HeadPart, output=first, axis=2, is_set=True)
        parts = [part("boxes", unit="px", stop=4), part("scores", unit="score", start=4, stop=5)]
        parts.append(part("classes", unit="class", start=5, stop=6))
        extra = 6
    else:
        part = partial(HeadPart, output=first)
        extra = 4 + class_count
        parts = [part("boxes", unit="px", stop=4), part("scores", unit="score", start=4, stop=extra)]
    if task == "pose":
        parts.append(part("keypoints", unit="px", start=extra))
    elif task == "obb":
        parts.append(part("angle", unit="value", start=extra))
    elif task == "segment":
        parts.append(part("mask_coefficients", unit="value", start=extra))
        parts += [HeadPart("prototypes", name, "value") for name in outputs[1:2]]
    return tuple(parts)


def _nearest(input_size: Sequence[int], stride: int, up: bool) -> list[int]:
    steps = [max(-(-side // stride) if up else side // stride, 1) for side in input_size]
    return [step * stride for step in steps]
