"""D-FINE of transformers (5.23): a detector that answers with a set of queries, each a box and a logit for each class.

Its encoder scores a token for each cell of three feature maps; the best `num_queries` of them go through the decoder,
best first. So there is no suppression, and fewer queries are only a smaller K of that TopK (S1, script 04: they save
the decoder's part of the time). And so the answers are a set: two tokens that score alike to within rounding change
places from one runtime to the next, and their rows with them (`query_pairing` compares them nevertheless).

Nothing here imports transformers: files exported from a D-FINE are read without it. `dfine_checkpoint` opens the rest.
"""

# ruff: noqa: ARG002 - the seam's arguments

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from app.toolkit.detections import Detections, NmsSettings, xyxy_from_xywh
from app.toolkit.errors import ChannelsMismatch, InvalidInputSize, InvalidQueries
from app.toolkit.images import LetterboxFrame, Uint8Array
from app.toolkit.models.base import Head, HeadPart, class_probabilities, on_same_weights
from app.toolkit.preprocessing import Preprocessing
from app.toolkit.runtimes.base import TensorSpec

Float32Array = npt.NDArray[np.float32]

FAMILY = "d_fine"
INPUT = "pixel_values"
LOGITS = "logits"
BOXES = "pred_boxes"
PARTS = (HeadPart(LOGITS, LOGITS, "value", is_set=True), HeadPart(BOXES, BOXES, "value", is_set=True))
ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")


class DFineModel:
    """The `ModelAdapter` of `transformers.DFineForObjectDetection`."""

    family = FAMILY
    task = "detect"
    head: Head = "boxes"
    parts: tuple[HeadPart, ...] = PARTS
    output_names: tuple[str, ...] = (LOGITS, BOXES)

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        input_size: tuple[int, int],
        num_queries: int | None = None,
    ) -> None:
        """Take over a `DFineForObjectDetection`: float32, evaluation mode, no gradients.

        `input_size` is its processor's (H, W) in px; `num_queries` is as trained where None. Raises InvalidQueries.
        """
        config: Any = network.config
        self.backbone = str(config.backbone_config.model_type)
        self.names = {int(index): str(name) for index, name in config.id2label.items()}
        self.channels = int(config.backbone_config.num_channels)
        self.stride = int(max(config.feat_strides))
        self.preprocessing = preprocessing
        self.default_input_size = input_size
        self.num_queries = config.num_queries = _checked_queries(num_queries, int(config.num_queries))
        self._strides = [int(stride) for stride in config.feat_strides]
        self._fixed = config.anchor_image_size is not None
        network = network.float().eval().requires_grad_(False)
        self._network = network.to(memory_format=torch.channels_last)

    @staticmethod
    def recognises(path: Path) -> bool:
        """May this be a D-FINE checkpoint: a folder, or an archive of one?"""
        return path.is_dir() or path.name.lower().endswith(ARCHIVE_ENDINGS)

    def check_input(self, input_size: tuple[int, int], channels: int) -> None:
        """Sides are multiples of the largest stride, with a cell for each query; anchors may fix the size."""
        if channels != self.channels:
            raise ChannelsMismatch(
                f"the model's first layer takes {self.channels} channels",
                expected=f"channels = {self.channels}",
                received=f"channels = {channels}",
                hint=f"ask for channels {self.channels}",
            )
        cells = sum((input_size[0] // stride) * (input_size[1] // stride) for stride in self._strides)
        whole = all(side > 0 and side % self.stride == 0 for side in input_size)
        fits = input_size == self.default_input_size if self._fixed else whole and cells >= self.num_queries
        if not fits:
            raise InvalidInputSize(
                "D-FINE cannot take this input size",
                expected="the size of its anchors"
                if self._fixed
                else f"[H, W] in multiples of {self.stride} px with {self.num_queries} cells, one for each query",
                received=str(list(input_size)),
                hint=f"leave input_size out for {list(self.default_input_size)}",
            )

    def input_specs(self, input_size: tuple[int, int], batch_size: int) -> tuple[TensorSpec, ...]:
        """`pixel_values`, float32 [N, C, H, W]."""
        return (TensorSpec(INPUT, "float32", (batch_size, self.channels, *input_size)),)

    def output_specs(self) -> tuple[TensorSpec, ...]:
        """`logits` [N, queries, classes] and `pred_boxes` [N, queries, 4], float32."""
        return (
            TensorSpec(LOGITS, "float32", ("batch", self.num_queries, len(self.names))),
            TensorSpec(BOXES, "float32", ("batch", self.num_queries, 4)),
        )

    def preprocess(self, image: Uint8Array, input_size: tuple[int, int]) -> tuple[Float32Array, LetterboxFrame]:
        """As `RTDetrImageProcessor`, which is D-FINE's."""
        return self.preprocessing.apply(image, input_size, self.channels)

    def postprocess(
        self, outputs: Mapping[str, npt.NDArray[Any]], frames: Sequence[LetterboxFrame], settings: NmsSettings
    ) -> list[Detections]:
        """As the processor's `post_process_object_detection` (`detections_from_queries`)."""
        return detections_from_queries(outputs, frames, settings)

    def probabilities(self, outputs: Mapping[str, npt.NDArray[Any]]) -> Float32Array:
        """Raises UnsupportedTask: a detector has no class of the whole image."""
        return class_probabilities(outputs, self.head)

    def reference_module(self) -> nn.Module:
        """The network as transformers runs it, answering with (logits, boxes)."""
        return _Answers(on_same_weights(self._network))

    def export_module(self, *, dynamic: bool) -> nn.Module:
        """The same, but to a tracer what depends on the input's size alone is a constant.

        Traced, the position embedding's `10000 ** omega` becomes ONNX's Pow of an integer, whose result is one too: the
        encoder would get other positions, and every answer would be wrong. The anchors only save nodes.
        """
        network: Any = on_same_weights(self._network)
        for layer in network.model.encoder.aifi:
            layer.position_embedding = _Constant(layer.position_embedding)
        network.model.generate_anchors = _constants(network.model.generate_anchors)
        return _Answers(network)

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """The batch alone: positions and anchors belong to one input size."""
        return {name: {0: "batch"} for name in (INPUT, *self.output_names)}

    def metadata(
        self, input_size: tuple[int, int], batch_size: int, *, dynamic: bool, half: bool, opset: int
    ) -> dict[str, str]:
        """Ultralytics' keys where they fit, and `family`, `backbone`, `num_queries` and `preprocessing`."""
        entries: dict[str, object] = {
            "description": f"D-FINE model with {self.backbone}",
            "date": datetime.now(timezone.utc).isoformat(),
            "stride": self.stride,
            "task": self.task,
            "batch": batch_size,
            "imgsz": list(input_size),
            "names": self.names,
            "args": {"batch": batch_size, "dynamic": dynamic, "half": half, "simplify": True, "opset": opset},
            "channels": self.channels,
            "family": self.family,
            "backbone": self.backbone,
            "num_queries": self.num_queries,
            "preprocessing": json.dumps(self.preprocessing.as_dict()),
        }
        return {key: str(value) for key, value in entries.items()}


class _Answers(nn.Module):
    """The network as a function of one tensor, with the two outputs that a detection is made of."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        answers = self.network(pixel_values=pixel_values)
        return answers.logits, answers.pred_boxes


class _Constant(nn.Module):
    """A module whose answer is a constant to a tracer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any, **named: Any) -> torch.Tensor:
        return _untraced(self.module(*arguments, **named))


def _constants(function: Callable[..., Sequence[torch.Tensor]]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The same for a function that gives several tensors."""
    return lambda *arguments, **named: tuple(_untraced(tensor) for tensor in function(*arguments, **named))


def _untraced(tensor: torch.Tensor) -> torch.Tensor:
    """By a way through NumPy, which a tracer cannot follow."""
    return torch.from_numpy(tensor.numpy()) if torch.onnx.is_in_onnx_export() else tensor


def _checked_queries(asked: int | None, trained: int) -> int:
    if asked is None:
        return trained
    if not 1 <= asked <= trained:
        raise InvalidQueries(
            "the detector cannot answer with that many queries",
            expected=f"num_queries from 1 to {trained}, which it was trained with",
            received=str(asked),
            hint="leave num_queries out for all of them",
        )
    return asked


def detections_from_queries(
    outputs: Mapping[str, npt.NDArray[Any]], frames: Sequence[LetterboxFrame], settings: NmsSettings
) -> list[Detections]:
    """Detections of a batch from `logits` [N, Q, C] and `pred_boxes` [N, Q, 4], xywh in parts of the input.

    The Q best of all pairs of a query and a class, by the sigmoid of their logit, as RT-DETR's processor picks them:
    one query may speak for several classes, and nothing is suppressed. Of `settings`, `conf` and `max_det` apply.
    Boxes are cut at the image's edges, which the processor's are not.
    """
    return [
        _detections(np.asarray(logits, dtype=np.float32), np.asarray(boxes, dtype=np.float32), frame, settings)
        for logits, boxes, frame in zip(outputs[LOGITS], outputs[BOXES], frames, strict=True)
    ]


def _detections(
    logits: Float32Array, boxes_xywh: Float32Array, frame: LetterboxFrame, settings: NmsSettings
) -> Detections:
    query_count, class_count = logits.shape
    best_first = np.argsort(-logits, axis=None, kind="stable")[: min(query_count, settings.max_det)]
    with np.errstate(over="ignore"):  # the exponential of a very unlikely class: 1 / infinity is its 0
        scores: Float32Array = np.reciprocal(1 + np.exp(-logits.ravel()[best_first]))
    likely = scores > settings.conf
    queries, classes = np.divmod(best_first[likely], class_count)
    boxes_px = xyxy_from_xywh(boxes_xywh[queries]) * _input_size_px(frame)
    return Detections(frame.boxes_in_image(boxes_px), scores[likely], classes.astype(np.int64))


def _input_size_px(frame: LetterboxFrame) -> Float32Array:
    """[W, H, W, H] of the input that an image was placed in."""
    height, width = frame.image_size_px
    scale_y = frame.scale if frame.scale_y is None else frame.scale_y
    size = (width * frame.scale + 2 * frame.left_px, height * scale_y + 2 * frame.top_px)
    return np.array([*size, *size], dtype=np.float32)
