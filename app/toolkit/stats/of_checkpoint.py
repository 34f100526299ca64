"""Stats of a `.pt`: of its network, layer by layer, or of a state dict, tensor by tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from app.toolkit.checkpoint import Checkpoint, find_state_dict, model_from_checkpoint
from app.toolkit.errors import InvalidInputSize
from app.toolkit.macs import macs_by_layer
from app.toolkit.stats.base import LayerStats, ModelStats, count_by_dtype

NOT_TRAINED = ("running_mean", "running_var", "num_batches_tracked")
DEFAULT_SIDE = 640
MAX_SIDE = 8192


def stats_of_checkpoint(checkpoint: Checkpoint) -> ModelStats:
    """Stats of an open checkpoint: of its network, or of a state dict alone. Raises NotAModel for neither."""
    weights = find_state_dict(checkpoint.content)
    if weights is None:
        return _stats_of_network(checkpoint, model_from_checkpoint(checkpoint))
    tensors = {n: t for n, t in weights.items() if t.is_floating_point() and not n.endswith(NOT_TRAINED)}
    table = tuple(_row(name, "tensor", [tensor], None) for name, tensor in tensors.items())
    return ModelStats(
        checkpoint.path,
        "pt",
        checkpoint.path.stat().st_size,
        total_params=sum(row.params for row in table),
        nonzero_params=sum(row.nonzero for row in table),
        dtypes=count_by_dtype((str(row.dtype), row.params) for row in table),
        details={"holds": "a state dict without its network"},
        table=table,
        notes=("MACs unknown: without the network nobody can say how often a weight is used",),
    )


def _stats_of_network(checkpoint: Checkpoint, network: nn.Module) -> ModelStats:
    macs, shape, note = _macs(checkpoint.content, network)
    table = tuple(_rows(network, macs))
    leaves = (module for module in network.modules() if not any(True for _ in module.children()))
    parameters = list(network.parameters())
    return ModelStats(
        checkpoint.path,
        "pt",
        checkpoint.path.stat().st_size,
        total_params=sum(row.params for row in table),
        nonzero_params=sum(row.nonzero for row in table),
        dtypes=count_by_dtype((_dtype(parameter), parameter.numel()) for parameter in parameters),
        layers=dict(Counter(type(leaf).__name__ for leaf in leaves).most_common()),
        details=_describe_network(network),
        table=table,
        macs=None if macs is None else sum(macs.values()),
        macs_input=None if macs is None else shape,
        notes=(note,),
    )


def _describe_network(network: nn.Module) -> dict[str, str]:
    details = {"network": f"{type(network).__module__}.{type(network).__qualname__}"}
    names = getattr(network, "names", None)
    if isinstance(names, (dict, list)):
        details["classes"] = str(len(names))
    return details


def _macs(content: Any, network: nn.Module) -> tuple[dict[str, int] | None, tuple[int, ...], str]:
    """By layer, for one image of which shape, and where that comes from; None where the network does not run on it."""
    (height, width), source = _input_size(content, network)
    channels = next((m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d)), 3)
    shape = (1, channels, height, width)
    try:
        counts = macs_by_layer(network, torch.empty(shape, device="meta"))
    except InvalidInputSize as error:
        return None, shape, f"MACs unknown: {error}"
    return counts, shape, f"MACs of one image of {height} x {width}, {source}"


def _input_size(content: Any, network: nn.Module) -> tuple[tuple[int, int], str]:
    """(H, W) in px, up to the next multiple of the stride, as Ultralytics trains; and where it is from."""
    arguments = content.get("train_args") if isinstance(content, Mapping) else None
    size = arguments.get("imgsz") if isinstance(arguments, Mapping) else None
    sides: list[Any] = list(size) if isinstance(size, (list, tuple)) and len(size) == 2 else [size, size]
    if not all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in sides):
        return (DEFAULT_SIDE, DEFAULT_SIDE), "the default: the file tells no size"
    stride = getattr(network, "stride", None)
    step = max(int(stride.max()), 1) if isinstance(stride, torch.Tensor) and stride.numel() else 1
    height, width = (-(-side // step) * step for side in sides)
    return (height, width), "the size it was trained at"


def _rows(network: nn.Module, macs: Mapping[str, int] | None) -> Iterator[LayerStats]:
    """A row for each module that has parameters of its own or multiplies; what is shared counts where it is first."""
    seen: set[int] = set()
    for name, module in network.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, own))
        if own or (macs and macs.get(name)):
            yield _row(name or "(root)", type(module).__name__, own, None if macs is None else macs.get(name, 0))


def _row(name: str, kind: str, tensors: list[Any], macs: int | None) -> LayerStats:
    # The weight is what multiplies: the first tensor of two axes or more, else (a normalisation) the first.
    weight = next((tensor for tensor in tensors if tensor.ndim > 1), tensors[0] if tensors else None)
    return LayerStats(
        name,
        kind,
        None if weight is None else tuple(weight.shape),
        None if weight is None else _dtype(weight),
        sum(tensor.numel() for tensor in tensors),
        sum(int(torch.count_nonzero(tensor)) for tensor in tensors),
        macs,
    )


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
