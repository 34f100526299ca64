"""How much a channel matters: three scores, each over all layers that the channel runs through.

`l1`, `l2`: the mean over the group's layers of the sum of |w|^p of the channel's weights, divided by the group's mean
(Torch-Pruning's GroupMagnitudeImportance, "DepGraph", Fang et al. 2023, arXiv 2301.12900).

`taylor`: what the answers on real images would lose, to first order. After Molchanov et al. 2019 ("Importance
Estimation for Neural Network Pruning", arXiv 1906.10771, gates after the normalisation): for an image,
(gamma * dL/dgamma + beta * dL/dbeta)^2, averaged over the images and summed over the group's normalisations. Labels are
not needed: L is the squared norm of the network's own answers, as in Aljundi et al. 2018 ("Memory Aware Synapses",
arXiv 1711.09601); of a detection head the scores, and the boxes (in units of the input's size) weighted with their best
score, so that the thousands of boxes that hold nothing do not outvote those that hold something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch_pruning as tp  # type: ignore[import-untyped]
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from ultralytics.nn.modules import Detect

from app.toolkit.errors import NoImages
from app.toolkit.pruning.errors import InvalidPruning, StructureNotPrunable

Importance = Literal["l1", "l2", "taylor"]
IMPORTANCES: tuple[Importance, ...] = ("l1", "l2", "taylor")
BOX_ROWS = 4


def scorer(network: nn.Module, kind: Importance, images: Sequence[torch.Tensor]) -> Callable[[Any], torch.Tensor]:
    """A function from a Torch-Pruning group to its channels' scores, float32 [W], of mean 1 (all 1 where all are 0).

    `network` is split, in evaluation mode, with gradients on; `images` are preprocessed float32 [N, C, H, W] in 0..1,
    used by "taylor" alone. Raises InvalidPruning for another kind, NoImages, StructureNotPrunable.
    """
    if kind == "taylor":
        losses = channel_losses(network, images)
        return lambda group: _normalised(_summed(group, losses))
    if kind not in IMPORTANCES:
        raise InvalidPruning("unknown importance", expected=", ".join(IMPORTANCES), received=repr(kind))
    magnitude = tp.importance.GroupMagnitudeImportance(p=1 if kind == "l1" else 2, normalizer=None)
    return lambda group: _normalised(magnitude(group).float())


def channel_losses(network: nn.Module, images: Sequence[torch.Tensor]) -> dict[nn.Module, torch.Tensor]:
    """The first-order loss of each channel of each normalisation, float32 [C], averaged over the images.

    Raises NoImages for none, StructureNotPrunable for a network without normalisations (a fused one).
    """
    if not images:
        raise NoImages(
            "importance taylor is measured on images",
            expected="some calibration images, like those that the model will see",
            received="none",
            hint="give images, or take importance l2",
        )
    layers = [one for one in network.modules() if isinstance(one, _BatchNorm) and one.affine]
    if not layers:
        raise StructureNotPrunable(
            "importance taylor needs normalisations", expected="a network that is not fused", received="none of them"
        )
    sums = {layer: torch.zeros(layer.num_features) for layer in layers}
    count = 0
    for batch in images:
        for image in torch.split(batch, 1):
            network.zero_grad(set_to_none=True)
            _answer_norm(network, image).backward()  # type: ignore[no-untyped-call]
            for layer in layers:
                sums[layer] += _gate(layer)
            count += 1
    network.zero_grad(set_to_none=True)
    return {layer: total / count for layer, total in sums.items()}


def _gate(layer: _BatchNorm) -> torch.Tensor:
    if layer.weight.grad is None or layer.bias.grad is None:  # a branch that this answer does not use
        return torch.zeros(layer.num_features)
    slope = layer.weight * layer.weight.grad + layer.bias * layer.bias.grad
    return slope.detach().square()


def _answer_norm(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    answer = network(image)
    answer = answer[0] if isinstance(answer, (tuple, list)) else answer
    head = next((one for one in network.modules() if isinstance(one, Detect)), None)
    if head is None or answer.ndim != 3 or answer.shape[1] < BOX_ROWS + head.nc:
        norm: torch.Tensor = answer.float().square().sum()
        return norm
    scores = answer[:, BOX_ROWS : BOX_ROWS + head.nc]
    boxes = answer[:, :BOX_ROWS] / max(image.shape[2:])
    weights = scores.detach().amax(1, keepdim=True)
    total: torch.Tensor = scores.square().sum() + (weights * boxes.square()).sum()
    return total


def _summed(group: Any, losses: dict[nn.Module, torch.Tensor]) -> torch.Tensor:
    scores = torch.zeros(len(group[0].idxs))
    for item in group:
        layer = item.dep.target.module
        if layer in losses and None not in item.root_idxs:
            scores.scatter_add_(0, torch.tensor(item.root_idxs), losses[layer][item.idxs])
    return scores


def _normalised(scores: torch.Tensor) -> torch.Tensor:
    mean = scores.mean()
    return scores / mean if torch.isfinite(mean) and mean > 0 else torch.ones_like(scores)
