"""D-FINE checkpoints with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DFineConfig, DFineForObjectDetection, RTDetrImageProcessor

TINY_BACKBONE = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 16, 16, 32],
    "stage_mid_channels": [8, 8, 16, 16],
    "stage_out_channels": [16, 16, 32, 32],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
    "hidden_sizes": [16, 16, 32, 32],
    "depths": [1, 1, 1, 1],
    "out_indices": [2, 3, 4],
}
TINY = {
    "backbone_config": TINY_BACKBONE,
    "encoder_in_channels": [16, 32, 32],
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "d_model": 32,
    "decoder_in_channels": [32, 32, 32],
    "decoder_ffn_dim": 64,
    "decoder_attention_heads": 4,
    "decoder_layers": 2,
    "depth_mult": 0.34,
    "lqe_hidden_dim": 16,
    "max_num_bins": 16,
    "num_queries": 30,
    "id2label": {0: "pill", 1: "capsule", 2: "blister", 3: "bottle", 4: "box"},
}


def save_dfine(folder: Path, *, side_px: int = 128, **words: Any) -> Path:
    """A checkpoint's folder: the tiny network, or one of other words."""
    return _saved(folder, DFineConfig(**{**TINY, **words}), side_px)


def save_full_size(folder: Path) -> Path:
    """D-FINE L as transformers' defaults describe it: 31 M parameters, 300 queries, 80 classes."""
    return _saved(folder, DFineConfig(id2label={index: f"class{index}" for index in range(80)}), 640)


def _saved(folder: Path, config: DFineConfig, side_px: int) -> Path:
    torch.manual_seed(0)
    network = DFineForObjectDetection(config)
    _enliven(network)
    network.save_pretrained(folder)
    RTDetrImageProcessor(size={"height": side_px, "width": side_px}).save_pretrained(folder)
    return folder


def _enliven(network: nn.Module) -> None:
    """Weights that let an image through.

    transformers' own fade from layer to layer until every token of the encoder is the same, and begin with zeros in
    what refines a box: all queries tie, and nothing of a wrong graph would show.
    """
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015
                module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=noise)
            elif isinstance(module, nn.Linear):
                module.weight.add_(torch.empty_like(module.weight).normal_(0, 0.02, generator=noise))
