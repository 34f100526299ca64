"""Naming layers: as `named_modules()` has them, everything under a name, or a pattern with `*`.

`model.9` is that block and all in it, `model.*.m.*.cv1` the first convolution of every bottleneck. A `*` matches dots.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from app.toolkit.errors import AlreadyQuantised, UnknownLayer


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Is the layer of this name meant by one of the patterns, or does it lie under one that is?"""
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for pattern in patterns)


def check_patterns(patterns: Sequence[str], network: nn.Module) -> None:
    """Raise UnknownLayer, with the nearest names, for a pattern that means no layer of the network."""
    names = [name for name, _ in network.named_modules() if name]
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        nearest = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5) or names[:3]
        raise UnknownLayer(
            f"the network has no layer {pattern!r}",
            expected="a name as the network's named_modules() has it, or a pattern with *",
            received=repr(pattern),
            hint=f"the nearest are {', '.join(nearest)}",
        )


def refuse_quantised(network: nn.Module) -> None:
    """Raise AlreadyQuantised for integer weights, torch's quantised layers or fake quantisation."""
    for name, module in network.named_modules():
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        by_class = any(word in kind.lower() for word in ("quantized", "fake_quant", "fakequant", "quantizer"))
        integer = any(not p.is_floating_point() or p.is_quantized for p in module.parameters(recurse=False))
        if by_class or integer:
            raise AlreadyQuantised(
                "the model is quantised already",
                expected="floating weights: prune first, quantise what came out",
                received=f"{name}: {kind}",
                hint="give the model that the quantised one was made from",
            )
