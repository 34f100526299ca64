"""Which channels must leave together: Torch-Pruning's dependency graph, read into units that have one width each.

A group is all that depends on one set of channels (a convolution's outputs, its normalisation, the layers that read
them, whatever is added to them). A unit is one group, or the two groups that are the halves of a split block and must
keep equal widths. What is protected makes the whole unit stay as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp  # type: ignore[import-untyped]
from torch import nn
from torch.nn.modules.conv import _ConvNd
from ultralytics.nn.modules import Classify, Detect
from ultralytics.nn.modules.block import DFL, Attention, PSABlock

from app.toolkit.pruning.errors import StructureNotPrunable
from app.toolkit.pruning.names import matches
from app.toolkit.pruning.split import SplitBlock, original_name

Score = Callable[[Any], torch.Tensor]


@dataclass(frozen=True)
class Effect:
    """What one layer loses: of side "out" or "in", the channel `indices[k]` goes if the group's `roots[k]` goes."""

    layer: str
    side: str
    indices: torch.Tensor
    roots: torch.Tensor


@dataclass
class Group:
    """Channels that leave together: their root layer, what leaves with them, and a score of each (float32 [W])."""

    root: nn.Module
    prune: Any
    width: int
    effects: tuple[Effect, ...]
    scores: torch.Tensor
    makers: tuple[str, ...]

    def lowest(self, count: int) -> list[int]:
        """The `count` channels with the lowest scores."""
        order: list[int] = torch.argsort(self.scores, stable=True)[:count].tolist()
        return sorted(order)


@dataclass
class Unit:
    """Groups that keep one width between them."""

    groups: tuple[Group, ...]

    @property
    def width(self) -> int:
        """Channels in each of the groups."""
        return self.groups[0].width

    @property
    def name(self) -> str:
        """The first layer that makes these channels."""
        return original_name(self.groups[0].makers[0])

    @property
    def scores(self) -> torch.Tensor:
        """Ascending: the k-th is what the unit loses with its k-th channel, on average over its groups. float32 [W]."""
        return torch.stack([torch.sort(group.scores).values for group in self.groups]).mean(0)


class ChannelGraph:
    """The dependency graph of a split network in evaluation mode, whose parameters must want gradients."""

    def __init__(self, network: nn.Module, example: torch.Tensor) -> None:
        self.network = network
        self.names = {module: name for name, module in network.named_modules()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells of parameters outside of layers, which stay as they are
            try:
                self.graph = tp.DependencyGraph().build_dependency(network, example_inputs=example)
            except Exception as error:  # whatever its tracer meets in an unknown network
                raise not_prunable(error) from error

    def units(
        self, score: Score, *, include: Sequence[str], exclude: Sequence[str], head: bool
    ) -> tuple[list[Unit], tuple[str, ...]]:
        """The units that may lose channels, and the names of the convolutions and linear layers that keep theirs."""
        protected = protected_layers(self.network, exclude, head=head)
        groups = [group for group in self._groups(score, protected) if _included(group, include)]
        by_maker = {maker: group for group in groups for maker in group.makers}
        units, halves = [], set()
        for name, module in self.network.named_modules():
            if isinstance(module, SplitBlock):
                pair = [f"{name}.cv1_first.conv", f"{name}.cv1_second.conv"]
                halves.update(pair)
                if all(half in by_maker for half in pair):
                    units.append(Unit(tuple(by_maker[half] for half in pair)))
        units += [Unit((group,)) for group in groups if not halves.intersection(group.makers)]
        makers = {original_name(maker) for unit in units for group in unit.groups for maker in group.makers}
        every = (original_name(name) for name, one in self.network.named_modules() if isinstance(one, _MAKERS))
        return units, tuple(name for name in dict.fromkeys(every) if name not in makers)

    def remove(self, unit: Unit, keep: int) -> None:
        """Take the lowest channels of each group of the unit out of the network, so that `keep` of them stay."""
        for group in unit.groups:
            self.graph.get_pruning_group(group.root, group.prune, group.lowest(group.width - keep)).prune()

    def _groups(self, score: Score, protected: set[nn.Module]) -> Iterator[Group]:
        try:
            for found in self.graph.get_all_groups(ignored_layers=list(protected), root_module_types=_MAKERS):
                if not any(_is_grouped(dep.target.module) for dep, _ in found):
                    yield self._read(found, score)
        except (IndexError, RuntimeError, AttributeError, AssertionError, ValueError) as error:
            raise not_prunable(error) from error

    def _read(self, found: Any, score: Score) -> Group:
        effects, makers = [], []
        for item in found:
            module, handler = item.dep.target.module, item.dep.handler
            if module not in self.names or not isinstance(module, _COUNTED):
                continue
            side = "out" if self.graph.is_out_channel_pruning_fn(handler) else "in"
            effects.append(Effect(self.names[module], side, torch.tensor(item.idxs), torch.tensor(item.root_idxs)))
            if side == "out" and isinstance(module, _MAKERS) and not _is_depthwise(module):
                makers.append(self.names[module])
        root = found[0].dep
        width = len(found[0].idxs)
        return Group(root.target.module, root.handler, width, tuple(effects), score(found), tuple(makers))


_MAKERS = (_ConvNd, nn.Linear)
_COUNTED = (*_MAKERS, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001 - the base of the normalisations


def protected_layers(network: nn.Module, exclude: Sequence[str], *, head: bool) -> set[nn.Module]:
    """Layers whose outputs stay: the head's (of `head` only its answers), attention's, and what `exclude` names.

    Blocks of which the forward cuts channels in a way that the graph does not follow keep their first convolution.
    Depthwise layers of a head follow the channels that come in, as they make none of their own.
    """
    protected: set[nn.Module] = set()
    for name, module in network.named_modules():
        if exclude and matches(original_name(name), exclude):
            protected.update(module.modules())
        if isinstance(module, (Detect, Classify)):
            protected.update(_answers(module, head=head))
        elif isinstance(module, (Attention, DFL)):
            protected.update(module.modules())
        elif isinstance(module, PSABlock):  # its sums tie the second layer of the feed-forward part to attention
            protected.update(module.ffn[1].modules())
        elif hasattr(module, "c") and hasattr(module, "cv1") and not isinstance(module, SplitBlock):
            protected.update(module.cv1.modules())
    return protected


def _answers(module: nn.Module, *, head: bool) -> Iterator[nn.Module]:
    """The layers of a head that keep what they make: all, or with `head` those that no layer of its branch follows."""
    inner: set[nn.Module] = set()
    if head and isinstance(module, Classify):
        inner.update(module.conv.modules())
    elif head:
        lists = (branches for branches in module.children() if isinstance(branches, nn.ModuleList))
        branches = (branch for one in lists for branch in one if isinstance(branch, nn.Sequential))
        inner.update(one for branch in branches for part in branch[:-1] for one in part.modules())
    return (one for one in module.modules() if isinstance(one, _MAKERS) and one not in inner and not _is_depthwise(one))


def _included(group: Group, include: Sequence[str]) -> bool:
    names = [original_name(name) for name in group.makers]
    return bool(names) and (not include or all(matches(name, include) for name in names))


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd) and module.groups == module.out_channels > 1


def _is_grouped(module: object) -> bool:
    return isinstance(module, _ConvNd) and module.groups > 1 and not _is_depthwise(module)


def not_prunable(error: Exception) -> StructureNotPrunable:
    """What the dependency graph met, as an error of ours."""
    return StructureNotPrunable(
        "channels cannot be removed from this network: its structure is not one that the dependency graph follows",
        expected="YOLOv8 or YOLO11 of Ultralytics (C2f, C3k2, SPPF, C2PSA, Detect)",
        received=f"{type(error).__name__}: {error}".strip().splitlines()[0],
        hint="exclude the blocks that are special, or mask the weights instead (remove: false)",
    )
