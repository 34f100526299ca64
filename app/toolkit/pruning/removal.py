"""Channels that leave for good.

A float32 copy of the network has its blocks split (`split`), its channels grouped by what depends on them (`groups`),
each channel scored (`importance`), widths chosen (`widths`) and the lowest channels removed; then the blocks are merged
again. The result is made of the classes it came with, in evaluation mode, with its statistics cut, not recomputed.

`YOLO(file).train()` builds the full network again from the checkpoint's yaml, silently, and loads the weights that
still fit: the pruned widths are lost. Only a trainer that keeps the given network trains a pruned model on.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from ultralytics.nn.modules import Detect
from ultralytics.nn.modules.block import Attention
from ultralytics.nn.tasks import BaseModel

from app.toolkit.errors import UnknownModelFamily
from app.toolkit.macs import macs_by_layer
from app.toolkit.pruning.errors import InvalidPruning, StructureNotPrunable
from app.toolkit.pruning.groups import ChannelGraph, Unit, not_prunable
from app.toolkit.pruning.importance import IMPORTANCES, Importance, scorer
from app.toolkit.pruning.names import check_patterns, refuse_quantised
from app.toolkit.pruning.split import merge_blocks, original_name, split_blocks
from app.toolkit.pruning.widths import (
    MEASURES,
    SCOPES,
    CostModel,
    Costs,
    Measure,
    Plan,
    Scope,
    plan_for_target,
    plan_widths,
)

TRACE_SIZE = 64  # px; which channels depend on which does not change with the input's size
REBUILD_WARNING = (
    "Ultralytics' own train() silently rebuilds the full model from the checkpoint's yaml; "
    "train this model on with this service's finetune, which keeps the pruned widths"
)
ODD_WIDTHS_WARNING = (
    "widths that are no multiples of 8 leave vector units idle: for speed take round_to 8, or 16 for ONNX Runtime on a "
    "CPU with AVX-512"
)


@dataclass(frozen=True)
class RemovalOptions:
    """What shall leave: either `ratio`, the fraction of channels to remove, or `target`, the fraction of cost to leave.

    `target` is {"macs": f} or {"params": f}, 0 < f < 1. `scope` "layer" takes the ratio of every layer, "global" of all
    channels together. `include` (all, if empty) and `exclude` are patterns of layer names, see `names`; a group of
    channels is included if all layers that make it are. `head` lets the inner layers of a detection or classification
    head lose channels too; what it answers with never does.
    """

    ratio: float | None = None
    target: Mapping[str, float] | None = None
    scope: Scope = "layer"
    importance: Importance = "l2"
    round_to: int = 8
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    head: bool = False


@dataclass(frozen=True)
class LayerWidth:
    """Channels that a convolution or linear layer makes (and reads), before and after."""

    name: str
    before: int
    after: int
    reads_before: int
    reads_after: int


@dataclass(frozen=True)
class RemovalReport:
    """What left. `ratio` is the one used, found or given; `layers` are those that changed."""

    options: RemovalOptions
    ratio: float
    before: Costs
    after: Costs
    layers: tuple[LayerWidth, ...]
    left_alone: tuple[str, ...]
    floored: tuple[str, ...]
    warnings: tuple[str, ...]
    input_size: tuple[int, int]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        options = self.options
        made_before, made_after = (sum(getattr(one, key) for one in self.layers) for key in ("before", "after"))
        return {
            "kind": "removal",
            "ratio": round(self.ratio, 6),
            "target": dict(options.target) if options.target else None,
            "scope": options.scope,
            "importance": options.importance,
            "round_to": options.round_to,
            "include": list(options.include),
            "exclude": list(options.exclude),
            "head": options.head,
            "params_before": self.before.params,
            "params_after": self.after.params,
            "params_left": round(self.after.params / self.before.params, 4),
            "macs_before": self.before.macs,
            "macs_after": self.after.macs,
            "macs_left": round(self.after.macs / self.before.macs, 4),
            "input_size": list(self.input_size),
            "channels_removed": made_before - made_after,
            "layers": [vars(one) for one in self.layers],
            "left_alone": list(self.left_alone),
            "floored": list(self.floored),
            "warnings": list(self.warnings),
            "seconds": round(self.seconds, 3),
        }


def remove_channels(
    network: nn.Module,
    options: RemovalOptions,
    *,
    input_size: tuple[int, int] = (640, 640),
    images: Sequence[torch.Tensor] = (),
) -> tuple[nn.Module, RemovalReport]:
    """A smaller float32 copy of an Ultralytics network, in evaluation mode, without gradients, and what was done.

    `input_size` is (H, W) in px, for counting multiply-accumulates. `images` are preprocessed float32 [N, C, H, W] in
    0..1, for importance "taylor". The network given is not changed.

    Raises InvalidPruning, UnknownLayer, AlreadyQuantised, UnknownModelFamily, InvalidInputSize, NoImages,
    TargetUnreachable, or StructureNotPrunable for a structure that cannot be followed or leaves nothing to prune.
    """
    begun = time.perf_counter()
    _check(network, options)
    pruned = copy.deepcopy(network).float().eval().requires_grad_(True)
    channels = input_channels(pruned)
    example = torch.zeros(1, channels, TRACE_SIZE, TRACE_SIZE)
    with _one_thread():
        macs = macs_by_layer(pruned, torch.zeros(1, channels, *input_size))
        widths_before = _widths(pruned)
        answers = _shapes(pruned, example)
        split_blocks(pruned)
        graph = ChannelGraph(pruned, example)
    score = scorer(pruned, options.importance, images)
    with _one_thread():
        units, left_alone = graph.units(score, include=options.include, exclude=options.exclude, head=options.head)
        _refuse_nothing(units, options)
        costs = CostModel(pruned, _split_macs(pruned, macs))
        before = costs.now()
        plan = _plan(units, costs, options)
        _apply(graph, units, plan)
        after = _finish(pruned, example, answers, input_size)
    changed = _changes(widths_before, _widths(pruned))
    warnings = _warnings(options, plan, before, after, changed)
    seconds = time.perf_counter() - begun
    report = RemovalReport(
        options, plan.ratio, before, after, changed, left_alone, plan.floored, warnings, input_size, seconds
    )
    return pruned, report


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Thousands of tiny operations: on a busy machine, threads that wait for each other make them ten times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(network: nn.Module, options: RemovalOptions) -> None:
    if (options.ratio is None) == (options.target is None):
        raise InvalidPruning(
            "give either a ratio or a target",
            expected='ratio = 0.3, or target = {"macs": 0.6}',
            received="both" if options.target is not None else "neither",
        )
    if options.ratio is not None and not 0 < options.ratio < 1:
        raise InvalidPruning(
            "ratio is the fraction of channels that leave",
            expected="above 0 and below 1",
            received=f"ratio = {options.ratio}",
            hint="0 would change nothing and 1 leave no network",
        )
    target = options.target
    if target is not None and (len(target) != 1 or not all(k in MEASURES and 0 < v < 1 for k, v in target.items())):
        raise InvalidPruning(
            "target is one fraction of the cost, to be left",
            expected='{"macs": f} or {"params": f} with f above 0 and below 1',
            received=str(dict(target)),
        )
    if options.scope not in SCOPES or options.importance not in IMPORTANCES:
        raise InvalidPruning(
            "unknown scope or importance",
            expected=f"scope {' or '.join(SCOPES)}; importance {', '.join(IMPORTANCES)}",
            received=f"{options.scope!r}, {options.importance!r}",
        )
    if isinstance(options.round_to, bool) or options.round_to < 1:
        raise InvalidPruning("round_to is a whole number", expected="1 or more", received=str(options.round_to))
    _check_network(network)
    check_patterns((*options.include, *options.exclude), network)


def _check_network(network: nn.Module) -> None:
    refuse_quantised(network)
    if not isinstance(network, BaseModel):
        raise UnknownModelFamily(
            "channels are removed from Ultralytics networks only",
            expected="a YOLO of Ultralytics",
            received=f"{type(network).__module__}.{type(network).__qualname__}",
        )
    for name, module in network.named_modules():
        # The dependency graph follows channels through attention for minutes and gigabytes. `groups` keeps it out of
        # YOLO11's; other kinds are refused before it starts.
        if not isinstance(module, Attention) and (hasattr(module, "num_heads") or hasattr(module, "nh")):
            raise not_prunable(ValueError(f"{name} is attention of another kind, {type(module).__name__}"))


def _refuse_nothing(units: Sequence[Unit], options: RemovalOptions) -> None:
    if units:
        return
    raise StructureNotPrunable(
        "no channel may be removed",
        expected="layers that are included, not excluded, and not an answer of the network",
        received=f"include {list(options.include)}, exclude {list(options.exclude)}",
        hint="a group of channels is included only if all layers that make it are",
    )


def _plan(units: Sequence[Unit], costs: CostModel, options: RemovalOptions) -> Plan:
    if options.target is None:
        assert options.ratio is not None  # noqa: S101 - _check has seen to it
        return plan_widths(units, options.ratio, options.scope, options.round_to)
    ((measure, fraction),) = options.target.items()
    key: Measure = "macs" if measure == "macs" else "params"
    return plan_for_target(units, costs, key, fraction, scope=options.scope, round_to=options.round_to)


def _apply(graph: ChannelGraph, units: Sequence[Unit], plan: Plan) -> None:
    try:
        for unit, width in zip(units, plan.widths, strict=True):
            if width < unit.width:
                graph.remove(unit, width)
    except (IndexError, RuntimeError, AttributeError, AssertionError, ValueError) as error:
        raise not_prunable(error) from error


def _finish(
    pruned: nn.Module, example: torch.Tensor, answers: list[tuple[int, ...]], input_size: tuple[int, int]
) -> Costs:
    """Merge, clear what tracing left behind, and see that the network still answers in the same shapes."""
    merge_blocks(pruned)
    pruned.requires_grad_(False).eval()
    for module in pruned.modules():
        if isinstance(module, Detect):
            for name in ("anchors", "strides", "shape"):  # made from the last input; the class has the defaults
                vars(module).pop(name, None)
    for layer in pruned.model:  # type: ignore[union-attr]
        layer.np = sum(p.numel() for p in layer.parameters())
    try:
        now = _shapes(pruned, example)
    except RuntimeError as error:
        raise not_prunable(error) from error
    if now != answers:
        raise not_prunable(ValueError(f"the answers' shapes changed from {answers} to {now}"))
    macs = macs_by_layer(pruned, torch.zeros(1, input_channels(pruned), *input_size))
    return Costs(sum(p.numel() for p in pruned.parameters()), sum(macs.values()))


def _shapes(network: nn.Module, example: torch.Tensor) -> list[tuple[int, ...]]:
    """Of every tensor that the network answers with; a head's "feats" are what it was given."""
    found: list[tuple[int, ...]] = []

    def walk(value: object) -> None:
        if isinstance(value, torch.Tensor):
            found.append(tuple(value.shape))
        elif isinstance(value, Mapping):
            walk([one for key, one in value.items() if key != "feats"])
        elif isinstance(value, (list, tuple)):
            for one in value:
                walk(one)

    with torch.no_grad():
        walk(network(example))
    return found


def input_channels(network: nn.Module) -> int:
    """How many channels the first convolution reads."""
    return next(one.in_channels for one in network.modules() if isinstance(one, nn.Conv2d))


def _split_macs(split: nn.Module, macs: Mapping[str, int]) -> dict[str, int]:
    """By layer of the split network: each half of a block's first convolution does half of its work."""
    names = [name for name, _ in split.named_modules()]
    shares = {name: 1 if original_name(name) == name else 2 for name in names}
    return {name: macs[original_name(name)] // shares[name] for name in names if original_name(name) in macs}


def _widths(network: nn.Module) -> dict[str, tuple[int, int]]:
    widths = {}
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            widths[name] = (module.out_channels, module.in_channels)
        elif isinstance(module, nn.Linear):
            widths[name] = (module.out_features, module.in_features)
    return widths


def _changes(before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]) -> tuple[LayerWidth, ...]:
    return tuple(
        LayerWidth(name, made, after[name][0], read, after[name][1])
        for name, (made, read) in before.items()
        if after[name] != (made, read)
    )


def _warnings(
    options: RemovalOptions, plan: Plan, before: Costs, after: Costs, changed: Sequence[LayerWidth]
) -> tuple[str, ...]:
    if not changed:
        return (f"nothing was removed: ratio {plan.ratio:g} is less than half a step of round_to {options.round_to}",)
    found = [
        REBUILD_WARNING,
        "the weights that are left were not trained together: expect no accuracy before fine-tuning",
    ]
    if options.round_to % 8:
        found.append(ODD_WIDTHS_WARNING)
    if plan.floored:
        found.append(f"{len(plan.floored)} layers were kept at their least width instead of vanishing")
    for measure, fraction in (options.target or {}).items():
        left = after.fraction_of(before, "macs" if measure == "macs" else "params")
        if fraction - left > 0.02:
            found.append(
                f"widths go in steps of {options.round_to}: {left:.3f} of the {measure} is left, not {fraction:g}"
            )
    return tuple(found)
