"""S0's pruning to the letter: `torch.nn.utils.prune`, layer by layer, made permanent.

Zeros are written over weights of convolutions and linear layers; shapes, file size and the time of a dense runtime stay
what they were. torch rounds for each tensor on its own: `round(amount * n)` of its n weights (or of its slices along
`dim`), so a layer with one slice along `dim` (a depthwise one, dim 1) keeps it up to 0.5 and loses all of it above.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.prune import l1_unstructured, ln_structured, random_unstructured
from torch.nn.utils.prune import remove as make_permanent
from ultralytics.nn.modules.block import DFL

from app.toolkit.pruning.errors import InvalidPruning, StructureNotPrunable
from app.toolkit.pruning.names import check_patterns, matches, refuse_quantised

UnstructuredMethod = Literal["l1_unstructured", "random_unstructured"]
Layer: TypeAlias = _ConvNd | nn.Linear
UNSTRUCTURED: tuple[UnstructuredMethod, ...] = ("l1_unstructured", "random_unstructured")


@dataclass(frozen=True)
class MaskedLayer:
    """One weight tensor: its shape, and how many of its values were zero before and are now."""

    name: str
    shape: tuple[int, ...]
    zeros_before: int
    zeros_after: int

    @property
    def weights(self) -> int:
        """How many values the tensor has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class MaskReport:
    """What a mask did. `left_alone` names the convolutions and linear layers that it did not touch."""

    method: str
    amount: float
    layers: tuple[MaskedLayer, ...]
    left_alone: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    options: dict[str, int] = field(default_factory=dict)

    @property
    def weights(self) -> int:
        """Values in the tensors that were touched."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros_before(self) -> int:
        """Of these, zeros before."""
        return sum(layer.zeros_before for layer in self.layers)

    @property
    def zeros_after(self) -> int:
        """Of these, zeros now."""
        return sum(layer.zeros_after for layer in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {
            "kind": "mask",
            "method": self.method,
            "amount": self.amount,
            **self.options,
            "masked_weights": self.weights,
            "zeros_before": self.zeros_before,
            "zeros_after": self.zeros_after,
            "zeros_pct": round(100 * self.zeros_after / self.weights, 4) if self.weights else 0.0,
            "left_alone": list(self.left_alone),
            "warnings": list(self.warnings),
            "layers": [
                {"name": one.name, "shape": list(one.shape), "zeros": one.zeros_after, "zeros_before": one.zeros_before}
                for one in self.layers
            ],
        }


def mask_unstructured(
    network: nn.Module,
    amount: float = 0.2,
    method: UnstructuredMethod = "l1_unstructured",
    *,
    seed: int = 0,
    exclude: Sequence[str] = (),
) -> tuple[nn.Module, MaskReport]:
    """A float32 copy of the network with `amount` (0..1) of each layer's weights zero: the smallest, or random ones.

    `seed` decides the random ones and leaves torch's own generator alone. `exclude` as in `names.matches`. The fixed
    DFL convolution is never touched: its weights are the numbers 0..15, and each zero among them bends every box.
    Raises InvalidPruning, UnknownLayer, AlreadyQuantised, or StructureNotPrunable where nothing is left to mask.
    """
    if method not in UNSTRUCTURED:
        raise InvalidPruning("unknown way of masking", expected=" or ".join(UNSTRUCTURED), received=repr(method))

    def mask(module: nn.Module) -> None:
        if method == "l1_unstructured":
            # An int would be a count of weights to torch, so 1 would mean one of them.
            l1_unstructured(module, "weight", float(amount))  # type: ignore[no-untyped-call]
        else:
            random_unstructured(module, "weight", float(amount))  # type: ignore[no-untyped-call]

    _check_amount(amount)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        masked, layers, left_alone = _mask(network, mask, exclude)
    options = {"seed": seed} if method == "random_unstructured" else {}
    return masked, MaskReport(method, amount, layers, left_alone, _warnings(amount, layers), options)


def mask_structured(
    network: nn.Module, amount: float = 0.2, n: int = 2, dim: int = 0, *, exclude: Sequence[str] = ()
) -> tuple[nn.Module, MaskReport]:
    """A float32 copy of the network with `amount` (0..1) of each layer's slices along `dim` zero: the least L-n norms.

    `n` is the norm, 1 or more. `dim` 0 is what a convolution or linear layer makes, 1 what it reads, 2 and 3 a
    kernel's rows and columns, which linear layers do not have.
    Raises InvalidPruning, UnknownLayer, AlreadyQuantised, or StructureNotPrunable where nothing is left to mask.
    """
    _check_amount(amount)
    if isinstance(n, bool) or n < 1:
        raise InvalidPruning("n is the norm by which slices are ranked", expected="n = 1, 2, ...", received=f"n = {n}")

    def mask(module: nn.Module) -> None:
        ln_structured(module, "weight", float(amount), n=n, dim=dim)  # type: ignore[no-untyped-call]

    _check_dim(network, dim, exclude)
    masked, layers, left_alone = _mask(network, mask, exclude)
    warnings = list(_warnings(amount, layers))
    emptied = [one.name for one in layers if one.zeros_after == one.weights > one.zeros_before]
    if emptied and amount < 1:
        warnings.append(
            f"{len(emptied)} layers lost all their weights, having too few slices: {', '.join(emptied[:5])}"
        )
    return masked, MaskReport("ln_structured", amount, layers, left_alone, tuple(warnings), {"n": n, "dim": dim})


def _check_amount(amount: float) -> None:
    if isinstance(amount, bool) or not 0 <= amount <= 1:  # nan is refused too
        raise InvalidPruning(
            "amount is the fraction of each layer's weights", expected="0.0 to 1.0", received=f"amount = {amount}"
        )


def _check_dim(network: nn.Module, dim: int, exclude: Sequence[str]) -> None:
    """The smallest number of dimensions decides, as the mask goes over every layer."""
    chosen, _ = _layers(network, exclude)
    ranks = {name: module.weight.ndim for name, module in chosen}
    name = min(ranks, key=lambda key: ranks[key])
    if not isinstance(dim, bool) and 0 <= dim < ranks[name]:
        return
    linear = [other for other, rank in ranks.items() if rank == 2]
    raise InvalidPruning(
        "dim is the axis of a layer's weights along which slices are ranked",
        expected=f"dim = 0 to {ranks[name] - 1}: {name} has {ranks[name]} dimensions",
        received=f"dim = {dim}",
        hint=f"exclude the linear layers ({', '.join(linear[:3])}) for dim 2 and 3" if linear else "0 is usual",
    )


def _warnings(amount: float, layers: Sequence[MaskedLayer]) -> tuple[str, ...]:
    found = []
    if amount == 0:
        found.append("amount 0.0 masks nothing: the model is what it was")
    if amount == 1:
        found.append("amount 1.0 zeroes every weight that it reaches: the model no longer answers anything")
    before = sum(layer.zeros_before for layer in layers)
    if before > 0.01 * sum(layer.weights for layer in layers):
        found.append(f"{before} weights were zero before; those count towards the amount where they rank lowest")
    return tuple(found)


def _mask(
    network: nn.Module, mask: Callable[[nn.Module], None], exclude: Sequence[str]
) -> tuple[nn.Module, tuple[MaskedLayer, ...], tuple[str, ...]]:
    check_patterns(exclude, network)
    refuse_quantised(network)
    masked = copy.deepcopy(network).float().eval()
    chosen, left_alone = _layers(masked, exclude)
    layers = []
    for name, module in chosen:
        trained = module.weight.requires_grad
        before = _zeros(module)
        mask(module)
        make_permanent(module, "weight")  # type: ignore[no-untyped-call]
        module.weight.requires_grad_(trained)
        layers.append(MaskedLayer(name, tuple(module.weight.shape), before, _zeros(module)))
    return masked, tuple(layers), left_alone


def _layers(network: nn.Module, exclude: Sequence[str]) -> tuple[list[tuple[str, Layer]], tuple[str, ...]]:
    """The layers to mask, and the names of those of the same kinds that are left alone."""
    fixed = tuple(name for name, module in network.named_modules() if isinstance(module, DFL))
    all_layers = [(name, one) for name, one in network.named_modules() if isinstance(one, (_ConvNd, nn.Linear))]
    chosen = [(name, module) for name, module in all_layers if not matches(name, (*fixed, *exclude))]
    if not chosen:
        raise StructureNotPrunable(
            "nothing is left to mask",
            expected="convolutions or linear layers that are not excluded",
            received=f"{len(all_layers)} such layers, all of them excluded" if all_layers else "none",
        )
    kept = {name for name, _ in chosen}
    return chosen, tuple(name for name, _ in all_layers if name not in kept)


def _zeros(module: Layer) -> int:
    return module.weight.numel() - int(torch.count_nonzero(module.weight))
