"""The seam to a model family: everything that the rest of the toolkit may know about a network.

One adapter for each family, in a file of its own. An adapter owns a loaded network and never changes it: what is run as
the reference and what is exported are copies that share its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from app.toolkit.detections import Detections, NmsSettings
from app.toolkit.images import LetterboxFrame, Uint8Array
from app.toolkit.runtimes.base import TensorSpec

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class HeadPart:
    """A slice of an output that means one thing, so that parity can judge it in its own unit.

    `unit` is "px" (network pixels), "score" (0..1) or "value" (unbounded, judged relative to its largest magnitude).
    """

    name: str
    output: str
    unit: Literal["px", "score", "value"]
    start: int = 0
    stop: int | None = None
    axis: int = 1

    def of(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """This part of the output's array."""
        index: list[slice] = [slice(None)] * array.ndim
        index[self.axis] = slice(self.start, self.stop)
        return array[tuple(index)]


class ImageModel(Protocol):
    """What a model says of its images and answers, whatever runs it: a network, or the file exported from one.

    Sizes are (H, W) in px; images are [h, w, 3] uint8 RGB.
    """

    family: str
    task: str
    names: dict[int, str]
    channels: int

    def preprocess(self, image: Uint8Array, input_size: tuple[int, int]) -> tuple[Float32Array, LetterboxFrame]:
        """One image as [1, C, H, W] float32, and where it lies in it."""
        ...

    def postprocess(
        self, outputs: Mapping[str, npt.NDArray[Any]], frames: Sequence[LetterboxFrame], settings: NmsSettings
    ) -> list[Detections]:
        """Detections of each image of a batch. Raises UnsupportedTask where the task has no upright boxes."""
        ...


class ModelAdapter(ImageModel, Protocol):
    """One loaded network of a known family."""

    stride: int
    output_names: tuple[str, ...]
    parts: tuple[HeadPart, ...]

    def check_input(self, input_size: tuple[int, int], channels: int) -> None:
        """Raise InvalidInputSize or ChannelsMismatch for an input that the network cannot take."""
        ...

    def input_specs(self, input_size: tuple[int, int], batch_size: int) -> tuple[TensorSpec, ...]:
        """Names, dtypes and shapes of the inputs."""
        ...

    def output_specs(self) -> tuple[TensorSpec, ...]:
        """Names and dtypes of the outputs, their axes free."""
        ...

    def example_input(self, input_size: tuple[int, int], batch_size: int) -> torch.Tensor:
        """A [N, C, H, W] float32 tensor that the exporter may trace with."""
        ...

    def reference_module(self) -> nn.Module:
        """The network as it was trained, returning its raw outputs in the order of `output_names`."""
        ...

    def export_module(self, *, dynamic: bool) -> nn.Module:
        """The network made ready for the ONNX exporter: layers fused, the head in export mode."""
        ...

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """The axes that a dynamic export frees, by tensor name."""
        ...

    def metadata(
        self, input_size: tuple[int, int], batch_size: int, *, dynamic: bool, half: bool, opset: int
    ) -> dict[str, str]:
        """What the ONNX file says about itself, under the keys that the family's own tools read."""
        ...
