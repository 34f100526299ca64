"""What the tests of recovery training share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from app.toolkit.checkpoint import model_from_checkpoint, open_checkpoint
from app.toolkit.coco import CocoData, read_coco
from app.toolkit.finetuning.finetune import FinetuneSettings

SHORT = FinetuneSettings(epochs=1, imgsz=96, batch=4)


def network_of(path: Path) -> nn.Module:
    """A checkpoint's network, float32."""
    return model_from_checkpoint(open_checkpoint(path)).float().eval()


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    """Every tensor of the network by name."""
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def edited(data: CocoData, target: Path, **changes: Any) -> CocoData:
    """The data with other annotations, written to the target."""
    content = json.loads(data.annotations.read_text())
    target.write_text(json.dumps({**content, **changes}))
    return read_coco(target, data.images)
