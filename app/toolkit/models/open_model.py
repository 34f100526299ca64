"""From a file to the adapter that knows it."""

from __future__ import annotations

from pathlib import Path

from app.toolkit.checkpoint import model_from_checkpoint, open_checkpoint
from app.toolkit.errors import InvalidQueries, UnknownModelFamily
from app.toolkit.models.base import ModelAdapter
from app.toolkit.models.dfine import DFineModel
from app.toolkit.models.timm import TimmModel
from app.toolkit.models.ultralytics import UltralyticsModel


def open_model(path: Path | str, *, trusted: bool = False, num_queries: int | None = None) -> ModelAdapter:
    """Open a `.pt`, or a D-FINE checkpoint's folder or archive, and put the adapter of its family around it.

    `trusted` as in `checkpoint.open_checkpoint`; `num_queries` is D-FINE's, fewer than it was trained with. Raises what
    opening and `TimmModel` raise, StateDictWithoutModel for weights that no network is named for, UnknownModelFamily
    for a network that no adapter knows, and InvalidQueries.
    """
    path = Path(path)
    if DFineModel.recognises(path):
        from app.toolkit.models.dfine_checkpoint import open_dfine  # noqa: PLC0415 - transformers takes seconds

        return open_dfine(path, num_queries=num_queries)
    if num_queries is not None:
        raise InvalidQueries(
            "only D-FINE answers with queries",
            expected="a D-FINE checkpoint's folder or archive",
            received=f"{path.name} with num_queries {num_queries}",
            hint="leave num_queries out",
        )
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
