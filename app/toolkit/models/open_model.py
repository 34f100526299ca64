"""From a file to the adapter that knows it."""

from __future__ import annotations

from pathlib import Path

from app.toolkit.checkpoint import model_from_checkpoint, open_checkpoint
from app.toolkit.errors import UnknownModelFamily
from app.toolkit.models.base import ModelAdapter
from app.toolkit.models.timm import TimmModel
from app.toolkit.models.ultralytics import UltralyticsModel


def open_model(path: Path | str, *, trusted: bool = False) -> ModelAdapter:
    """Open a `.pt` and put the adapter of its family around it.

    `trusted` as in `checkpoint.open_checkpoint`. Raises what that and `TimmModel` raise, StateDictWithoutModel for
    weights that no network is named for, and UnknownModelFamily for a network that no adapter knows.
    """
    checkpoint = open_checkpoint(path, trusted=trusted)
    if TimmModel.recognises(checkpoint.content):
        return TimmModel(checkpoint.content)
    network = model_from_checkpoint(checkpoint)
    if UltralyticsModel.recognises(network):
        return UltralyticsModel(network)
    raise UnknownModelFamily(
        f"{checkpoint.path.name} holds a network of an unknown family",
        expected="an Ultralytics model (detect, segment, pose, obb or classify), or a timm checkpoint",
        received=f"{type(network).__module__}.{type(network).__qualname__}",
        hint="a timm checkpoint is a dictionary of backbone, num_classes and state_dict",
    )
