"""From a ratio, or a target, to the width of every unit; and what those widths cost, counted without pruning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from app.toolkit.pruning.errors import TargetUnreachable
from app.toolkit.pruning.groups import Unit

Scope = Literal["layer", "global"]
Measure = Literal["macs", "params"]
SCOPES: tuple[Scope, ...] = ("layer", "global")
MEASURES: tuple[Measure, ...] = ("macs", "params")
GLOBAL_FLOOR = 0.1  # of a layer's channels stay, however low they score against other layers'
HIGHEST_RATIO = 0.999
BISECTIONS = 24


@dataclass(frozen=True)
class Plan:
    """Widths for the units, in their order; `floored` are the units that would have lost more but for the floor."""

    ratio: float
    widths: tuple[int, ...]
    floored: tuple[str, ...]


def plan_widths(units: Sequence[Unit], ratio: float, scope: Scope, round_to: int) -> Plan:
    """What each unit keeps when `ratio` of its channels (scope "layer"), or of all units' channels, shall leave.

    Widths are rounded to the nearest multiple of `round_to`, halves down, at least `round_to`; a unit that would not
    change, or is narrower than `round_to`, keeps its width. In scope "global" all scores are compared at once, and a
    unit keeps at least `GLOBAL_FLOOR` of its channels.
    """
    wishes = _global_wishes(units, ratio) if scope == "global" else [unit.width * (1 - ratio) for unit in units]
    widths, floored = [], []
    for unit, wish in zip(units, wishes, strict=True):
        least = math.ceil(GLOBAL_FLOOR * unit.width) if scope == "global" else 1
        floor = -(-max(least, round_to) // round_to) * round_to
        width = min(max(_nearest(wish, round_to), floor), unit.width)
        if ratio > 0 and wish < min(floor, unit.width) - 0.5 * round_to:
            floored.append(unit.name)
        widths.append(width)
    return Plan(ratio, tuple(widths), tuple(floored))


def _nearest(wish: float, round_to: int) -> int:
    return math.ceil(round(wish / round_to, 9) - 0.5) * round_to


def _global_wishes(units: Sequence[Unit], ratio: float) -> list[float]:
    """How many channels of each unit are not among the lowest of all; halves' channels leave, and count, in pairs."""
    scores = [unit.scores for unit in units]
    weights = [torch.full((unit.width,), len(unit.groups)) for unit in units]
    order = torch.argsort(torch.cat(scores), stable=True)
    gone = torch.cumsum(torch.cat(weights)[order], 0) <= ratio * sum(int(one.sum()) for one in weights)
    owners = torch.cat([torch.full((unit.width,), index) for index, unit in enumerate(units)])[order]
    lost = torch.bincount(owners[gone], minlength=len(units)).tolist()
    return [unit.width - count for unit, count in zip(units, lost, strict=True)]


@dataclass(frozen=True)
class Costs:
    """Parameters, and multiply-accumulates for one image."""

    params: int
    macs: int

    def fraction_of(self, other: Costs, measure: Measure) -> float:
        """Of another network's cost, by one measure."""
        return self.macs / other.macs if measure == "macs" else self.params / other.params


class CostModel:
    """Counts what a network would cost at other widths: exactly, and without touching it."""

    def __init__(self, network: nn.Module, macs: Mapping[str, int]) -> None:
        """`macs` is by layer, as `macs.macs_by_layer` gives it."""
        self._network = network
        self._layers = dict(network.named_modules())
        self._macs = dict(macs)
        self._params = sum(parameter.numel() for parameter in network.parameters())

    def now(self) -> Costs:
        """As it stands."""
        return Costs(self._params, sum(self._macs.values()))

    def at(self, units: Sequence[Unit], widths: Sequence[int]) -> Costs:
        """With each unit at the width given."""
        params, macs = self._params, sum(self._macs.values())
        for name, lost in _losses(units, widths).items():
            layer = self._layers[name]
            left = _share_left(layer, lost)
            params -= _params_lost(layer, lost, left)
            macs -= self._macs.get(name, 0) - round(self._macs.get(name, 0) * left)
        return Costs(params, macs)


def _losses(units: Sequence[Unit], widths: Sequence[int]) -> dict[str, dict[str, int]]:
    """How many channels each layer loses on its sides."""
    losses: dict[str, dict[str, int]] = {}
    for unit, width in zip(units, widths, strict=True):
        if width == unit.width:
            continue
        for group in unit.groups:
            gone = torch.zeros(group.width, dtype=torch.bool)
            gone[group.lowest(group.width - width)] = True
            for effect in group.effects:
                sides = losses.setdefault(effect.layer, {"out": 0, "in": 0})
                sides[effect.side] += int(gone[effect.roots].sum())
    return losses


def _share_left(layer: nn.Module, lost: Mapping[str, int]) -> float:
    """Of a layer's weights, and so of its multiply-accumulates."""
    if isinstance(layer, _BatchNorm):
        return 1 - lost["out"] / layer.num_features
    if isinstance(layer, _ConvNd) and layer.groups > 1:  # depthwise: each channel has one kernel
        return 1 - lost["out"] / layer.out_channels
    made, read = _sides(layer)
    return (1 - lost["out"] / made) * (1 - lost["in"] / read)


def _params_lost(layer: nn.Module, lost: Mapping[str, int], left: float) -> int:
    if isinstance(layer, _BatchNorm):
        return 2 * lost["out"] if layer.affine else 0
    assert isinstance(layer, (_ConvNd, nn.Linear))  # noqa: S101 - effects are of these, and of normalisations
    weights = layer.weight.numel()
    return weights - round(weights * left) + (lost["out"] if layer.bias is not None else 0)


def _sides(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    assert isinstance(layer, _ConvNd)  # noqa: S101 - effects are of convolutions, linear layers, normalisations
    return layer.out_channels, layer.in_channels


def plan_for_target(
    units: Sequence[Unit], costs: CostModel, measure: Measure, fraction: float, *, scope: Scope, round_to: int
) -> Plan:
    """The smallest ratio that leaves at most `fraction` of the parameters or multiply-accumulates, by bisection.

    Widths go in steps, so what is left may be less than was asked for; it is never more. Raises TargetUnreachable with
    the least that can be left.
    """
    start = costs.now()

    def left_at(plan: Plan) -> float:
        return costs.at(units, plan.widths).fraction_of(start, measure)

    best = plan_widths(units, HIGHEST_RATIO, scope, round_to)
    if left_at(best) > fraction:
        raise TargetUnreachable(
            f"no ratio leaves as little as {fraction:g} of the {measure}",
            expected=f"{measure} of at least {math.ceil(1000 * left_at(best)) / 1000:g}, the least reachable",
            received=f"{measure} = {fraction:g}",
            hint="allow the head to be pruned (head: true), a smaller round_to, or fewer excluded layers",
        )
    low, high = 0.0, HIGHEST_RATIO
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        plan = plan_widths(units, middle, scope, round_to)
        if left_at(plan) <= fraction:
            best, high = plan, middle
        else:
            low = middle
    return best
