"""The seam to a model family: everything that the rest of the toolkit may know about a network.

One adapter for each family, in a file of its own. An adapter owns a loaded network and never changes it: what is run as
the reference and what is exported are copies that share its weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch import nn

from app.toolkit.detections import Detections, NmsSettings
from app.toolkit.errors import UnsupportedTask
from app.toolkit.images import LetterboxFrame, Uint8Array
from app.toolkit.preprocessing import Preprocessing
from app.toolkit.runtimes.base import TensorSpec

Float32Array = npt.NDArray[np.float32]

Head = Literal["boxes", "probabilities", "logits", "raw"]
"""What answers are: boxes before suppression, [N, classes] that sum to 1 or do not yet, or tensors and nothing more."""


@dataclass(frozen=True)
class HeadPart:
    """A slice of an output that means one thing, so that parity can judge it in its own unit.

    `unit` is "px" (network pixels), "score" (0..1), "class" (an index) or "value" (unbounded, judged relative to its
    largest magnitude).
    Where `is_set`, the rows along axis 1 may come in any order, the same one in each such part.
    """

    name: str
    output: str
    unit: Literal["px", "score", "class", "value"]
    start: int = 0
    stop: int | None = None
    axis: int = 1
    is_set: bool = False

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
    preprocessing: Preprocessing
    head: Head
    parts: tuple[HeadPart, ...]

    def preprocess(self, image: Uint8Array, input_size: tuple[int, int]) -> tuple[Float32Array, LetterboxFrame]:
        """One image as [1, C, H, W] float32, as `preprocessing` says, and where it lies in it."""
        ...

    def postprocess(
        self, outputs: Mapping[str, npt.NDArray[Any]], frames: Sequence[LetterboxFrame], settings: NmsSettings
    ) -> list[Detections]:
        """Detections of each image of a batch. Raises UnsupportedTask where the task has no upright boxes."""
        ...

    def probabilities(self, outputs: Mapping[str, npt.NDArray[Any]]) -> Float32Array:
        """[N, classes] float32 of a classifier's answers. Raises UnsupportedTask where it is none."""
        ...


class ModelAdapter(ImageModel, Protocol):
    """One loaded network of a known family; `backbone` is the network's name in it."""

    backbone: str
    stride: int
    default_input_size: tuple[int, int]
    output_names: tuple[str, ...]

    def check_input(self, input_size: tuple[int, int], channels: int) -> None:
        """Raise InvalidInputSize or ChannelsMismatch for an input that the network cannot take."""
        ...

    def input_specs(self, input_size: tuple[int, int], batch_size: int) -> tuple[TensorSpec, ...]:
        """Names, dtypes and shapes of the inputs."""
        ...

    def output_specs(self) -> tuple[TensorSpec, ...]:
        """Names and dtypes of the outputs, their axes free."""
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


def class_probabilities(outputs: Mapping[str, npt.NDArray[Any]], head: Head) -> Float32Array:
    """The first output as [N, classes] float32 probabilities: as they are, or the softmax of logits.

    What is NaN or infinite becomes NaN, for the caller to count. Raises UnsupportedTask for other heads.
    """
    if head not in ("probabilities", "logits"):
        raise UnsupportedTask(
            "the model's answers are no classes' scores", expected="a classifier", received=f"a head of {head}"
        )
    scores: Float32Array = np.asarray(next(iter(outputs.values())), dtype=np.float32)
    if head == "probabilities":
        return scores
    with np.errstate(invalid="ignore"):  # infinity less infinity
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def on_same_weights(network: nn.Module) -> nn.Module:
    """Another network on the same weights: only the objects around the tensors are copied."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
