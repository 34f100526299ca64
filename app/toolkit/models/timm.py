"""Classifiers of timm (1.0), from a checkpoint that names the network and holds its weights.

    {"backbone": "mobilenetv3_small_050", "num_classes": 12, "state_dict": {...}, "class_names": [...],
     "input_size": [96, 96], "mean": [...], "std": [...], "crop_pct": 1.0, "interpolation": "bicubic"}

What follows the state dict may be left out, each word for itself. timm's own trainer calls the first `arch` and says no
number of classes, which the weights then tell. Nothing is fetched: a network is made with `pretrained=False`, and only
by a name that timm has registered.
"""

# ruff: noqa: ARG002 - the seam's arguments, of which a classifier needs fewer than a detector

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from torch import nn

from app.toolkit.detections import Detections, NmsSettings
from app.toolkit.errors import (
    ChannelsMismatch,
    InvalidCheckpoint,
    InvalidInputSize,
    StateDictMismatch,
    UnknownBackbone,
    UnsupportedTask,
)
from app.toolkit.images import LetterboxFrame, Uint8Array
from app.toolkit.models.base import Head, HeadPart, class_probabilities, on_same_weights
from app.toolkit.preprocessing import Preprocessing
from app.toolkit.runtimes.base import TensorSpec

Float32Array = npt.NDArray[np.float32]
Weights = Mapping[str, torch.Tensor]

INPUT = "input"
OUTPUT = "logits"
SMALLEST_SIDE_PX = 32  # these networks halve five times

BACKBONE_KEYS = ("backbone", "arch", "model_name")
WEIGHTS_KEYS = ("state_dict_ema", "state_dict", "model_state_dict", "model")  # averaged first, as timm's own loader
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile
NAMED = 4  # tensors that a message names; the error carries all


class TimmModel:
    """The `ModelAdapter` of timm's classifiers."""

    family = "timm"
    task = "classify"
    stride = 1
    head: Head = "logits"
    parts: tuple[HeadPart, ...] = (HeadPart("logits", OUTPUT, "value"),)
    output_names: tuple[str, ...] = (OUTPUT,)

    def __init__(self, checkpoint: Mapping[str, Any]) -> None:
        """Make the network that a checkpoint names and give it its weights: float32, evaluation mode, no gradients.

        Raises UnknownBackbone, InvalidCheckpoint, InvalidPreprocessing, StateDictMismatch.
        """
        weights = _weights(checkpoint)
        self.backbone = _known_name(checkpoint)
        defaults = vars(timm.get_pretrained_cfg(self.backbone))
        self.channels, *size = _input_size(checkpoint.get("input_size", defaults["input_size"]))
        self.default_input_size = (size[0], size[1])
        self.names = _names(checkpoint, _class_count(checkpoint, weights, defaults))
        self.preprocessing = _preprocessing(checkpoint, defaults)
        self._fixed = bool(defaults["fixed_input_size"])
        network = self._make(defaults)
        _load(network, weights, self.backbone)
        self._network = network.float().eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @staticmethod
    def recognises(content: object) -> bool:
        """Does a checkpoint's content name a network and hold weights?"""
        return isinstance(content, Mapping) and _stated_name(content) is not None and bool(_weights(content))

    def check_input(self, input_size: tuple[int, int], channels: int) -> None:
        """A network of a fixed size (ViT, Swin) takes that alone, any other from 32 px on."""
        if channels != self.channels:
            raise ChannelsMismatch(
                f"the model's first layer takes {self.channels} channels",
                expected=f"channels = {self.channels}",
                received=f"channels = {channels}",
                hint=f"ask for channels {self.channels}, or export a model trained on {channels} channels",
            )
        if self._fixed and input_size != self.default_input_size:
            raise InvalidInputSize(
                f"{self.backbone} takes one input size",
                expected=str(list(self.default_input_size)),
                received=str(list(input_size)),
                hint="leave input_size out",
            )
        if min(input_size) < SMALLEST_SIDE_PX:
            raise InvalidInputSize(
                f"each side of the input must be at least {SMALLEST_SIDE_PX} px",
                expected=f"[H, W] of {SMALLEST_SIDE_PX} px or more",
                received=str(list(input_size)),
                hint=f"leave input_size out for {list(self.default_input_size)}",
            )

    def input_specs(self, input_size: tuple[int, int], batch_size: int) -> tuple[TensorSpec, ...]:
        """`input`, float32 [N, C, H, W]."""
        return (TensorSpec(INPUT, "float32", (batch_size, self.channels, *input_size)),)

    def output_specs(self) -> tuple[TensorSpec, ...]:
        """`logits`, float32 [N, classes]."""
        return (TensorSpec(OUTPUT, "float32", ("batch", len(self.names))),)

    def preprocess(self, image: Uint8Array, input_size: tuple[int, int]) -> tuple[Float32Array, LetterboxFrame]:
        """A centre crop, normalised as in training."""
        return self.preprocessing.apply(image, input_size, self.channels)

    def postprocess(
        self,
        outputs: Mapping[str, npt.NDArray[Any]],
        frames: Sequence[LetterboxFrame],
        settings: NmsSettings,
    ) -> list[Detections]:
        """Raises UnsupportedTask: a classifier has no boxes."""
        raise UnsupportedTask("a classifier gives no boxes", expected="a detector", received=self.backbone)

    def probabilities(self, outputs: Mapping[str, npt.NDArray[Any]]) -> Float32Array:
        """[N, classes] float32, the softmax of `logits`."""
        return class_probabilities(outputs, self.head)

    def reference_module(self) -> nn.Module:
        """The network as it was trained."""
        return on_same_weights(self._network)

    def export_module(self, *, dynamic: bool) -> nn.Module:
        """The same: the exporter folds normalisations into convolutions by itself."""
        return on_same_weights(self._network)

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """The batch alone (S4 E-1)."""
        return {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}

    def metadata(
        self, input_size: tuple[int, int], batch_size: int, *, dynamic: bool, half: bool, opset: int
    ) -> dict[str, str]:
        """Ultralytics' keys where they fit, and `family`, `backbone`, `head` and `preprocessing`."""
        entries: dict[str, object] = {
            "description": f"timm {self.backbone} model",
            "date": datetime.now(timezone.utc).isoformat(),
            "version": timm.__version__,
            "stride": self.stride,
            "task": self.task,
            "head": self.head,
            "batch": batch_size,
            "imgsz": list(input_size),
            "names": self.names,
            "args": {"batch": batch_size, "dynamic": dynamic, "half": half, "simplify": True, "opset": opset},
            "channels": self.channels,
            "family": self.family,
            "backbone": self.backbone,
            "preprocessing": json.dumps(self.preprocessing.as_dict()),
        }
        return {key: str(value) for key, value in entries.items()}

    def _make(self, defaults: Mapping[str, Any]) -> nn.Module:
        other = self._fixed and self.default_input_size != tuple(defaults["input_size"][1:])
        size: dict[str, Any] = {"img_size": self.default_input_size} if other else {}
        try:
            return timm.create_model(
                self.backbone, pretrained=False, num_classes=len(self.names), in_chans=self.channels, **size
            )
        except Exception as error:  # each network has checks of its own
            raise InvalidCheckpoint(
                f"timm cannot make {self.backbone} as the checkpoint describes it",
                expected=f"an input size and a number of classes that {self.backbone} takes",
                received=f"{type(error).__name__}: {error}".splitlines()[0],
            ) from error


def _stated_name(checkpoint: Mapping[str, Any]) -> str | None:
    return next((checkpoint[key] for key in BACKBONE_KEYS if isinstance(checkpoint.get(key), str)), None)


def _known_name(checkpoint: Mapping[str, Any]) -> str:
    """timm's own name of the network. torchvision writes `efficientnet_v2_s` where timm writes `efficientnetv2_s`.

    `tf_efficientnetv2_s` pads otherwise and has tensors of the same shapes: only its full name can tell it.
    """
    stated = _stated_name(checkpoint) or ""
    name = stated.replace("efficientnet_v2_", "efficientnetv2_")
    if timm.is_model(name) and ("." not in name or timm.is_model_pretrained(name)):  # arch, or arch.tag
        return name
    near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
    raise UnknownBackbone(
        f"timm has no network called {stated}",
        expected="a name of timm.list_models()",
        received=stated,
        hint=f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()",
    )


def _weights(checkpoint: Mapping[str, Any]) -> Weights:
    """The state dict, without the prefixes of what the network was wrapped in; empty where there is none."""
    for key in WEIGHTS_KEYS:
        found = checkpoint.get(key)
        if isinstance(found, Mapping) and found and all(isinstance(value, torch.Tensor) for value in found.values()):
            return {_unwrapped(str(name)): tensor for name, tensor in found.items()}
    return {}


def _unwrapped(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def _input_size(stated: object) -> tuple[int, int, int]:
    """(C, H, W) of what a checkpoint may write: [C, H, W], [H, W], [side] or a number."""
    sides = [stated] if isinstance(stated, int) else list(stated) if isinstance(stated, (list, tuple)) else []
    if not 1 <= len(sides) <= 3 or not all(type(side) is int and 0 < side <= 8192 for side in sides):
        raise _invalid("input_size", "[H, W] or [C, H, W] in px", stated)
    if len(sides) == 1:
        sides *= 2
    channels, height, width = sides if len(sides) == 3 else (3, *sides)
    return channels, height, width


def _class_count(checkpoint: Mapping[str, Any], weights: Weights, defaults: Mapping[str, Any]) -> int:
    """`num_classes`, which the classifier's weight must agree with, and which that gives where it is missing."""
    layer = defaults.get("classifier")
    layer = layer[0] if isinstance(layer, (list, tuple)) and layer else layer
    tensor = weights.get(f"{layer}.weight")
    seen = None if tensor is None or tensor.ndim == 0 else int(tensor.shape[0])
    stated = checkpoint.get("num_classes", seen)
    if type(stated) is not int or stated < 1:
        raise _invalid("num_classes", "a whole number, 1 or more", stated)
    if seen is not None and stated != seen:
        raise StateDictMismatch(
            f"the weights are of {seen} classes, not of {stated}",
            names=(f"{layer}.weight",),
            expected=f"{layer}.weight of {stated} rows, as num_classes says",
            received=f"{seen} rows",
            hint=f"set num_classes to {seen} where the checkpoint is written",
        )
    return stated


def _names(checkpoint: Mapping[str, Any], class_count: int) -> dict[int, str]:
    stated = checkpoint.get("class_names")
    if stated is None:
        return {index: f"class{index}" for index in range(class_count)}
    if not isinstance(stated, (list, tuple)) or len(stated) != class_count:
        received = f"{len(stated)} names" if isinstance(stated, (list, tuple)) else stated
        raise _invalid("class_names", f"a list of {class_count} names, one for each class", received)
    return {index: str(name) for index, name in enumerate(stated)}


def _preprocessing(checkpoint: Mapping[str, Any], defaults: Mapping[str, Any]) -> Preprocessing:
    """The checkpoint's words, then the backbone's; but nothing is cut off unless the checkpoint says so."""

    def told(name: str) -> Any:
        value = checkpoint.get(name, defaults[name])
        return tuple(value) if isinstance(value, (list, tuple)) else value

    return Preprocessing(
        resize="center_crop",
        mean=told("mean"),
        std=told("std"),
        crop_pct=checkpoint.get("crop_pct", 1.0),
        interpolation=told("interpolation"),
    )


def _load(network: nn.Module, weights: Weights, backbone: str) -> None:
    """Give the network exactly these weights. Raises StateDictMismatch, which says how they differ."""
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in weights]
    unexpected = [name for name in weights if name not in wanted]
    reshaped = [name for name in wanted if name in weights and wanted[name].shape != weights[name].shape]
    if not missing and not unexpected and not reshaped:
        network.load_state_dict(weights)
        return
    shapes = [f"{name} {list(weights[name].shape)} for {list(wanted[name].shape)}" for name in reshaped]
    groups = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    raise StateDictMismatch(
        f"the weights do not fit {backbone}",
        names=(*missing, *unexpected, *reshaped),
        expected=f"the {len(wanted)} tensors of {backbone}",
        received="; ".join(_listed(words, names) for words, names in groups if names),
        hint=_mismatch_hint(len(missing), len(wanted), backbone),
    )


def _listed(words: str, names: Sequence[str]) -> str:
    more = ", ..." if len(names) > NAMED else ""
    return f"{len(names)} {words}: {', '.join(names[:NAMED])}{more}"


def _mismatch_hint(missing: int, wanted: int, backbone: str) -> str:
    if missing == wanted:
        return f"no name fits: is it another network than {backbone}, or one of another library (torchvision)?"
    return "check backbone, num_classes and input_size, and that the file is whole: state_dict() of the same network"


def _invalid(name: str, expected: str, received: object) -> InvalidCheckpoint:
    return InvalidCheckpoint(
        f"the checkpoint's {name} cannot be used",
        expected=expected,
        received=repr(received)[:200],
        hint=f"correct {name}",
    )
