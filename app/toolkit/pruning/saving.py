"""Writing a network back into a checkpoint like the one it came from.

The file has the keys that Ultralytics' own `strip_optimizer` leaves (8.4.190), the network under `model`, in the dtype
that the source file had, and nothing but classes that `allow_list` knows. What described the unpruned model's training
(fitness, metrics, optimizer, an interrupted run's state) is dropped, so that nobody resumes or quotes it.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import ultralytics
from torch import nn

from app.toolkit.checkpoint import Checkpoint, model_from_checkpoint
from app.toolkit.errors import AlreadyQuantised
from app.toolkit.onnx_file import write_whole
from app.toolkit.pruning.errors import InvalidPruning
from app.toolkit.pruning.names import refuse_quantised

NOTE = "pruning"
STALE = ("optimizer", "best_fitness", "stopper", "ema", "updates", "scaler", "train_metrics", "train_results")


def save_checkpoint(source: Checkpoint, network: nn.Module, target: Path, note: Mapping[str, Any]) -> None:
    """Write `network` to `target` in the source's checkpoint, whole or not at all. The network is not changed.

    `note` is plain data (dict, list, str, numbers, None); it goes to the end of the list under "pruning", which
    `notes_of` reads, and the network's yaml gets `pruned: True`. The yaml still describes the full network.
    Raises InvalidPruning for a note of anything else, and OSError.
    """
    _check_plain(note)
    content = dict(source.content) if isinstance(source.content, Mapping) else {}
    original = model_from_checkpoint(source)
    saved = copy.deepcopy(network).cpu().to(_dtype(original)).to(memory_format=torch.contiguous_format)
    saved.requires_grad_(False)
    if hasattr(saved, "criterion"):
        setattr(saved, "criterion", None)  # noqa: B010 - a plain attribute, of no declared type
    _as_it_was(saved, original)
    yaml: Any = getattr(saved, "yaml", None)
    if isinstance(yaml, dict):
        yaml["pruned"] = True
    content.update(
        dict.fromkeys(STALE),
        epoch=-1,
        model=saved,
        train_args=dict(content.get("train_args") or {}),
        date=datetime.now(timezone.utc).isoformat(),
        version=ultralytics.__version__,
        license="AGPL-3.0 License (https://ultralytics.com/license)",
        docs="https://docs.ultralytics.com",
    )
    content[NOTE] = [*notes_of(source), dict(note)]
    buffer = io.BytesIO()
    torch.save(content, buffer)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(buffer.getvalue(), target)


def network_to_prune(source: Checkpoint) -> nn.Module:
    """The checkpoint's network. Raises what `model_from_checkpoint` raises, and AlreadyQuantised.

    Ultralytics stores a network trained for quantisation as an ordinary one, with its scales beside it ("modelopt").
    """
    if isinstance(source.content, Mapping) and source.content.get("modelopt"):
        raise AlreadyQuantised(
            "the checkpoint was trained for quantisation; its scales would not fit other widths",
            expected="a checkpoint without 'modelopt'",
            received="'modelopt' beside the model",
            hint="prune the model first, then train it for quantisation",
        )
    network = model_from_checkpoint(source)
    refuse_quantised(network)
    return network


def notes_of(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """What was pruned from this checkpoint's network before, the oldest first; empty for an unpruned one."""
    notes = checkpoint.content.get(NOTE) if isinstance(checkpoint.content, Mapping) else None
    return [note for note in notes if isinstance(note, dict)] if isinstance(notes, list) else []


def _dtype(network: nn.Module) -> torch.dtype:
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


def _as_it_was(saved: nn.Module, original: nn.Module) -> None:
    """Classes' names, strides and task, should the network given lack them; strides keep float32, as in every file."""
    for name in ("names", "stride", "task", "args"):
        if not hasattr(saved, name) and hasattr(original, name):
            setattr(saved, name, getattr(original, name))


def _check_plain(value: object, path: str = "note") -> None:
    if value is None or isinstance(value, (str, bool, int, float)):
        return
    if isinstance(value, Mapping):
        for key, one in value.items():
            _check_plain(one, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, one in enumerate(value):
            _check_plain(one, f"{path}[{index}]")
    else:
        raise InvalidPruning(
            "a checkpoint's note is plain data",
            expected="dict, list, str, int, float, bool, None",
            received=f"{path}: {type(value).__name__}",
        )
