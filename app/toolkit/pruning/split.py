"""C2f and C3k2 taken apart for pruning, and put together again.

Their first convolution makes two halves that `chunk` separates; Torch-Pruning (1.6.1) cannot follow channels through
that (IndexError on YOLOv8, minutes and swap on YOLO11). So each half gets a convolution of its own, which computes the
very same numbers, and afterwards the two become one again, in the block's own object: the file that is saved holds
Ultralytics' classes only. Merging needs halves of one width, which `groups` sees to.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn
from ultralytics.nn.modules import C2f, Conv

HALVES = ("cv1_first", "cv1_second")


class SplitBlock(nn.Module):
    """A C2f whose first convolution is two. It keeps the block it stands for, hidden from `named_modules()`."""

    def __init__(self, block: C2f) -> None:
        super().__init__()
        width = block.c
        self.cv1_first = _part_of(block.cv1, slice(0, width))
        self.cv1_second = _part_of(block.cv1, slice(width, 2 * width))
        self.cv2, self.m = block.cv2, block.m
        object.__setattr__(self, "block", block)
        for name in ("i", "f", "type", "np"):  # what Ultralytics' forward reads
            if hasattr(block, name):
                setattr(self, name, getattr(block, name))
        self.train(block.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] to [N, C', H, W], as C2f.forward."""
        parts = [self.cv1_first(x), self.cv1_second(x)]
        parts.extend(inner(parts[-1]) for inner in self.m)
        result: torch.Tensor = self.cv2(torch.cat(parts, 1))
        return result

    def merged(self) -> C2f:
        """The block itself, with whatever widths its parts have now."""
        block: C2f = self.block
        block.cv1 = _joined(self.cv1_first, self.cv1_second)
        block.c = self.cv1_first.conv.out_channels
        return block


def is_splittable(module: nn.Module) -> bool:
    """A C2f or a block that computes as C2f does (C3k2 among them); not those with a forward of their own."""
    return isinstance(module, C2f) and type(module).forward is C2f.forward


def split_blocks(network: nn.Module) -> None:
    """Replace every such block by its SplitBlock, in place."""
    for parent, name, child in list(_children(network)):
        if is_splittable(child):
            setattr(parent, name, SplitBlock(child))


def merge_blocks(network: nn.Module) -> None:
    """Put every block together again, in place."""
    for parent, name, child in list(_children(network)):
        if isinstance(child, SplitBlock):
            setattr(parent, name, child.merged())


def original_name(name: str) -> str:
    """The name of a split network's layer in the network itself: both halves are `cv1`."""
    for half in HALVES:
        name = name.replace(f".{half}", ".cv1")
    return name


def _children(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in network.modules():
        for name, child in parent.named_children():
            yield parent, name, child


def _part_of(source: Conv, rows: slice) -> Conv:
    """A Conv that makes some of another's channels; it has no normalisation where that one is fused."""
    part = copy.deepcopy(source)
    weight = source.conv.weight
    part.conv = _convolution_like(
        source.conv, weight[rows], None if source.conv.bias is None else source.conv.bias[rows]
    )
    if hasattr(source, "bn"):
        part.bn = _normalisation_like(source.bn, {key: value[rows] for key, value in _rows_of(source.bn).items()})
    return part


def _joined(first: Conv, second: Conv) -> Conv:
    both = copy.deepcopy(first)
    weight = torch.cat([first.conv.weight, second.conv.weight])
    bias = None if first.conv.bias is None else torch.cat([first.conv.bias, second.conv.bias])
    both.conv = _convolution_like(first.conv, weight, bias)
    if hasattr(first, "bn"):
        rows, more = _rows_of(first.bn), _rows_of(second.bn)
        both.bn = _normalisation_like(first.bn, {key: torch.cat([rows[key], more[key]]) for key in rows})
    return both


def _convolution_like(source: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Conv2d:
    made = copy.deepcopy(source)
    made.out_channels = weight.shape[0]
    made.weight = _parameter(weight, source.weight.requires_grad)
    made.bias = None if bias is None else _parameter(bias, source.weight.requires_grad)
    return made


def _rows_of(bn: nn.BatchNorm2d) -> dict[str, torch.Tensor]:
    return {
        key: value
        for key in ("weight", "bias", "running_mean", "running_var")
        if (value := getattr(bn, key)) is not None
    }


def _normalisation_like(source: nn.BatchNorm2d, rows: dict[str, torch.Tensor]) -> nn.BatchNorm2d:
    made = copy.deepcopy(source)
    made.num_features = next(iter(rows.values())).shape[0]
    for key, value in rows.items():
        trained = isinstance(getattr(source, key), nn.Parameter)
        setattr(made, key, _parameter(value, source.weight.requires_grad) if trained else value.detach().clone())
    return made


def _parameter(values: torch.Tensor, requires_grad: bool) -> nn.Parameter:
    return nn.Parameter(values.detach().clone(), requires_grad=requires_grad)
