"""What an exported file says of itself: how images become its input and its answers become detections or classes.

Ultralytics' exporter and this service write the family's metadata into an ONNX file; an engine's stands beside it. A
file without any still runs: its images get the letterbox. A lone [N, classes] answer is then taken for classes, any
other stays the tensors that it is.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from app.toolkit.detections import Detections, NmsSettings
from app.toolkit.errors import ChannelsMismatch, InvalidInputSize, InvalidPreprocessing, NotAModel
from app.toolkit.images import LetterboxFrame, Uint8Array
from app.toolkit.models import dfine
from app.toolkit.models.base import Head, HeadPart, class_probabilities
from app.toolkit.models.ultralytics import (
    DEFAULT_SIZE,
    check_boxes,
    head_of,
    parts_of,
    preprocessing_of,
    upright_boxes,
)
from app.toolkit.onnx_file import input_specs, output_specs
from app.toolkit.preprocessing import Preprocessing
from app.toolkit.runtimes.base import TensorSpec

Float32Array = npt.NDArray[np.float32]
IMAGE_AXES = 4
CLASS_AXES = 2


class ExportedModel:
    """An exported file's images and answers. `described` is whether it says itself what family it is of.

    `entries` is its metadata. `batch` is None where it is free; `fixed_size` is the graph's (H, W) in px, None where a
    side is free; `input_size` is the graph's, else the metadata's, else 640 x 640.
    Raises NotAModel for what takes no image, ChannelsMismatch, InvalidPreprocessing for a broken entry.
    """

    def __init__(self, entries: Mapping[str, str], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self.described = {"task", "names", "stride"} <= entries.keys()
        self.family = entries.get("family", "ultralytics") if self.described else "unknown"
        self.task = entries.get("task", "unknown")
        self.input = _image_input(inputs)
        self.head = _head(entries, outputs, described=self.described)
        self.names = _names(entries, outputs, self.head)
        self.parts = self._parts(outputs, end2end=_end_to_end(entries))
        self.preprocessing = _preprocessing(entries)
        batch, channels, *sides = self.input.shape
        self.batch = _size(batch)
        self.channels = _size(channels) or _stated_channels(entries)
        self._sides = (_size(sides[0]), _size(sides[1]))
        stated = _stated_size(entries)
        self.input_size = (self._sides[0] or stated[0], self._sides[1] or stated[1])
        self.fixed_size = None if None in self._sides else self.input_size

    @classmethod
    def of_onnx(cls, model: ModelProto) -> ExportedModel:
        """An ONNX graph's. Without metadata its last node tells probabilities from logits. Raises as the class."""
        entries = {entry.key: entry.value for entry in model.metadata_props}
        if _ends_in_softmax(model):
            entries.setdefault("head", "probabilities")
        return cls(entries, input_specs(model), output_specs(model))

    def check_size(self, asked: tuple[int, int] | None) -> tuple[int, int]:
        """The input's size, as asked where the file leaves it free. Raises InvalidInputSize where it does not."""
        if asked is None:
            return self.input_size
        if any(fixed is not None and fixed != side for fixed, side in zip(self._sides, asked, strict=True)):
            raise InvalidInputSize(
                "the file's input has a fixed size",
                expected=str(list(self.input_size)),
                received=str(list(asked)),
                hint="leave input_size out, or export the model at that size",
            )
        return asked

    def preprocess(self, image: Uint8Array, input_size: tuple[int, int]) -> tuple[Float32Array, LetterboxFrame]:
        """[1, C, H, W] float32, as `preprocessing` says."""
        return self.preprocessing.apply(image, input_size, self.channels)

    def postprocess(
        self, outputs: Mapping[str, npt.NDArray[Any]], frames: Sequence[LetterboxFrame], settings: NmsSettings
    ) -> list[Detections]:
        """Upright boxes. Raises UnsupportedTask where the file has none."""
        check_boxes(self.head, self.task)
        if self.family == dfine.FAMILY:
            return dfine.detections_from_queries(outputs, frames, settings)
        return upright_boxes(outputs[self.parts[0].output], frames, settings, len(self.names))

    def probabilities(self, outputs: Mapping[str, npt.NDArray[Any]]) -> Float32Array:
        """[N, classes] float32. Raises UnsupportedTask where the file is no classifier."""
        return class_probabilities(outputs, self.head)

    def _parts(self, outputs: Sequence[TensorSpec], *, end2end: bool) -> tuple[HeadPart, ...]:
        names = [spec.name for spec in outputs]
        if self.head == "probabilities":
            return (HeadPart("scores", names[0], "score"),)
        if self.family == "ultralytics":
            return parts_of(self.task, len(self.names), names, end2end=end2end)
        if self.family == dfine.FAMILY:
            return dfine.PARTS
        return tuple(HeadPart(name, name, "value") for name in names)


def _image_input(inputs: Sequence[TensorSpec]) -> TensorSpec:
    if len(inputs) != 1 or len(inputs[0].shape) != IMAGE_AXES:
        raise NotAModel(
            "the graph is no image model",
            expected="one input [N, C, H, W]",
            received="; ".join(f"{spec.name} {list(spec.shape)}" for spec in inputs) or "no input",
        )
    if inputs[0].shape[1] == 0:
        raise ChannelsMismatch("the input has no channel", expected="1 or more", received="0")
    return inputs[0]


def _head(entries: Mapping[str, str], outputs: Sequence[TensorSpec], *, described: bool) -> Head:
    stated = entries.get("head")
    lone = len(outputs) == 1 and len(outputs[0].shape) == CLASS_AXES
    if described and stated != "logits":  # the timm adapter states it; in Ultralytics' files it is a class's name
        return head_of(entries["task"], end2end=_end_to_end(entries))
    if not lone:
        return "raw"
    return "probabilities" if stated == "probabilities" else "logits"


def _names(entries: Mapping[str, str], outputs: Sequence[TensorSpec], head: Head) -> dict[int, str]:
    names = _literal(entries, "names")
    if isinstance(names, (list, tuple)):  # as YOLOv5 wrote them first
        names = dict(enumerate(names))
    if names:
        try:
            return {int(key): str(name) for key, name in names.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise _strange(entries, "names", "{0: 'name', ...} or ['name', ...]") from error
    count = _size(outputs[0].shape[1]) if head in ("probabilities", "logits") else None
    return {index: f"class{index}" for index in range(count or 0)}


def _stated_size(entries: Mapping[str, str]) -> tuple[int, int]:
    """`imgsz`, one side for both or (H, W), in px."""
    stated = _literal(entries, "imgsz") or DEFAULT_SIZE
    try:
        height, width = (stated, stated) if isinstance(stated, int) else map(int, stated)
    except (TypeError, ValueError) as error:
        raise _strange(entries, "imgsz", "[height, width] in px") from error
    return height, width


def _stated_channels(entries: Mapping[str, str]) -> int:
    stated = _literal(entries, "channels") or 3
    if type(stated) is not int:
        raise _strange(entries, "channels", "an integer")
    return stated


def _strange(entries: Mapping[str, str], key: str, expected: str) -> NotAModel:
    return NotAModel(
        f"the file's metadata entry `{key}` is no such thing",
        expected=expected,
        received=entries[key][:200],
        hint="export the model again, or correct the entry",
    )


def _preprocessing(entries: Mapping[str, str]) -> Preprocessing:
    stated = entries.get("preprocessing")
    if stated is None:
        return preprocessing_of(entries.get("task", "unknown"))
    try:
        found = json.loads(stated)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidPreprocessing(
            "the file's metadata entry `preprocessing` is no description",
            expected="a JSON object, as an export of this service writes it",
            received=stated[:200],
            hint="export the model again, or remove the entry",
        )
    return Preprocessing.from_dict(found)


def _ends_in_softmax(model: ModelProto) -> bool:
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    return len(model.graph.output) == 1 and made_by.get(model.graph.output[0].name) == "Softmax"


def _end_to_end(entries: Mapping[str, str]) -> bool:
    return bool(_literal(entries, "end2end"))


def _size(axis: int | str) -> int | None:
    return axis if isinstance(axis, int) and axis > 0 else None


def _literal(entries: Mapping[str, str], key: str) -> Any:
    """A metadata value, which Ultralytics writes as Python's text of it; None where it is missing or no such text."""
    try:
        return ast.literal_eval(entries[key])
    except (KeyError, ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
