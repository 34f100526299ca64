"""What an ONNX file says of itself: how images become its input and its answers become detections.

Ultralytics' exporter and this service write the family's metadata into the file. A file without it still runs: its
images get the shared letterbox, and its answers stay the tensors that they are.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from app.toolkit.detections import Detections, NmsSettings
from app.toolkit.errors import ChannelsMismatch, InvalidInputSize, NotAModel
from app.toolkit.images import LetterboxFrame, Uint8Array, tensor_from_image
from app.toolkit.models.ultralytics import upright_boxes
from app.toolkit.onnx_file import input_specs
from app.toolkit.runtimes.base import TensorSpec

Float32Array = npt.NDArray[np.float32]
DEFAULT_SIZE = (640, 640)
IMAGE_AXES = 4


class ExportedModel:
    """An exported file's images and answers. `described` is whether it says itself what family it is of.

    `batch` is None where it is free; `input_size` (H, W) in px is the graph's, else the metadata's, else 640 x 640.
    """

    def __init__(self, model: ModelProto) -> None:
        entries = {entry.key: entry.value for entry in model.metadata_props}
        self.described = {"task", "names", "stride"} <= entries.keys()
        self.family = "ultralytics" if self.described else "unknown"
        self.task = entries.get("task", "unknown")
        names = _literal(entries, "names")
        self.names: dict[int, str] = {int(key): str(name) for key, name in names.items()} if names else {}
        self._end2end = bool(_literal(entries, "end2end"))
        self.input = _image_input(model)
        batch, channels, *sides = self.input.shape
        self.batch = batch if isinstance(batch, int) else None
        self.channels = channels if isinstance(channels, int) else int(_literal(entries, "channels") or 3)
        self._fixed = (_size(sides[0]), _size(sides[1]))
        stated = _literal(entries, "imgsz") or DEFAULT_SIZE
        self.input_size = (self._fixed[0] or int(stated[0]), self._fixed[1] or int(stated[1]))

    @property
    def has_boxes(self) -> bool:
        """Whether `postprocess` can read its answers."""
        return self.described and self.task in ("detect", "segment", "pose") and not self._end2end

    def check_size(self, asked: tuple[int, int] | None) -> tuple[int, int]:
        """The input's size, as asked where the file leaves it free. Raises InvalidInputSize where it does not."""
        if asked is None:
            return self.input_size
        if any(fixed is not None and fixed != side for fixed, side in zip(self._fixed, asked, strict=True)):
            raise InvalidInputSize(
                "the file's input has a fixed size",
                expected=str(list(self.input_size)),
                received=str(list(asked)),
                hint="leave input_size out, or export the model at that size",
            )
        return asked

    def preprocess(self, image: Uint8Array, input_size: tuple[int, int]) -> tuple[Float32Array, LetterboxFrame]:
        """The shared letterbox: [1, C, H, W] float32 in 0..1."""
        return tensor_from_image(image, input_size, self.channels)

    def postprocess(
        self, outputs: Mapping[str, npt.NDArray[Any]], frames: Sequence[LetterboxFrame], settings: NmsSettings
    ) -> list[Detections]:
        """Upright boxes. Raises UnsupportedTask where the file has none."""
        return upright_boxes(outputs, frames, settings, self.task, len(self.names), end2end=self._end2end)


def _image_input(model: ModelProto) -> TensorSpec:
    inputs = input_specs(model)
    if len(inputs) != 1 or len(inputs[0].shape) != IMAGE_AXES:
        raise NotAModel(
            "the graph is no image model",
            expected="one input [N, C, H, W]",
            received="; ".join(f"{spec.name} {list(spec.shape)}" for spec in inputs) or "no input",
        )
    channels = inputs[0].shape[1]
    if isinstance(channels, int) and channels < 1:
        raise ChannelsMismatch("the input has no channel", expected="1 or more", received=str(channels))
    return inputs[0]


def _size(axis: int | str) -> int | None:
    return axis if isinstance(axis, int) and axis > 0 else None


def _literal(entries: Mapping[str, str], key: str) -> Any:
    """A metadata value, which Ultralytics writes as Python's text of it; None where it is missing or no such text."""
    try:
        return ast.literal_eval(entries[key])
    except (KeyError, ValueError, SyntaxError):
        return None
