"""Before and after, measured the same way in the same run, and one sentence that says what it comes to.

Both models run in ONNX Runtime as FP32 exports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from app.toolkit.checkpoint import model_from_checkpoint, open_checkpoint
from app.toolkit.coco import CocoData, CocoResult, evaluate
from app.toolkit.export import onnx_from_torch
from app.toolkit.macs import macs_by_layer
from app.toolkit.models.open_model import open_model
from app.toolkit.pruning.removal import input_channels
from app.toolkit.race import Race, RaceSettings, race
from app.toolkit.runtimes.ort_runtime import OrtRuntime
from app.toolkit.stats import stats_of_checkpoint

Kind = Literal["mask", "removal"]


@dataclass(frozen=True)
class Facts:
    """One `.pt`: of its network, its file, and, where data was given, what it scores. MACs are for one image."""

    params: int
    nonzero: int
    sparsity_pct: float
    size_mb: float
    macs: int
    accuracy: CocoResult | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape, with S0's names."""
        return {
            "total_params": self.params,
            "nonzero_params": self.nonzero,
            "sparsity_pct": self.sparsity_pct,
            "size_mb": self.size_mb,
            "macs": self.macs,
            **({} if self.accuracy is None else self.accuracy.as_dict()),
        }


@dataclass(frozen=True)
class Comparison:
    """Two models. `as_dict` puts the first race's latency into `before` and `after`, and all under `latency`."""

    before: Facts
    after: Facts
    input_size: tuple[int, int]
    races: tuple[Race, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        before, after = self.before.as_dict(), self.after.as_dict()
        if self.races:
            before["latency_p50_ms"] = round(self.races[0].before_ms, 3)
            after["latency_p50_ms"] = round(self.races[0].after_ms, 3)
        return {
            "before": before,
            "after": after,
            "input_size": list(self.input_size),
            "latency": [race.as_dict() for race in self.races],
        }


def compare(
    before: Path,
    after: Path,
    *,
    input_size: tuple[int, int] = (640, 640),
    threads: Sequence[int] = (1,),
    data: CocoData | None = None,
    settings: RaceSettings | None = None,
    trusted: bool = False,
) -> Comparison:
    """Measure two `.pt` files of one family. `input_size` is (H, W) in px, multiples of the stride.

    `threads`: a race for each number of ONNX Runtime threads; none, no race. `data`: mAP of both in ONNX Runtime.
    `trusted` is for the first file alone, as in `checkpoint.open_checkpoint`; the second is ours.
    Raises the ModelFileErrors, InvalidInputSize, ExportFailed, InvalidAnnotations, UnsupportedTask.
    """
    files = ((before, trusted), (after, False))
    facts = [facts_of(path, input_size, trusted=trust) for path, trust in files]
    races: list[Race] = []
    if threads or data is not None:
        graphs = [graph_of(path, input_size, trusted=trust) for path, trust in files]
        races = [race(*graphs, threads=count, settings=settings) for count in threads]
        if data is not None:
            adapters = [open_model(path, trusted=trust) for path, trust in files]
            for index, (adapter, graph) in enumerate(zip(adapters, graphs, strict=True)):
                with OrtRuntime(graph) as runtime:
                    scored = evaluate(adapter, runtime, data, input_size=input_size)
                facts[index] = Facts(**{**vars(facts[index]), "accuracy": scored})
    return Comparison(facts[0], facts[1], input_size, tuple(races))


def facts_of(path: Path, input_size: tuple[int, int], *, trusted: bool = False) -> Facts:
    """Read a `.pt` anew and count. Raises the ModelFileErrors, InvalidInputSize."""
    checkpoint = open_checkpoint(path, trusted=trusted)
    stats = stats_of_checkpoint(checkpoint).as_dict()["stats"]
    network = model_from_checkpoint(checkpoint)
    macs = sum(macs_by_layer(network, torch.zeros(1, input_channels(network), *input_size)).values())
    return Facts(
        stats["total_params"], stats["nonzero_params"], float(stats["sparsity_pct"]), float(stats["size_mb"]), macs
    )


def graph_of(path: Path, input_size: tuple[int, int], *, trusted: bool = False) -> bytes:
    """A `.pt` as FP32 ONNX of batch size 1, in memory. Raises the ModelFileErrors, InvalidInputSize, ExportFailed."""
    adapter = open_model(path, trusted=trusted)
    adapter.check_input(input_size, adapter.channels)
    data: bytes = onnx_from_torch(adapter, input_size=input_size).SerializeToString()
    return data


def verdict(kind: Kind, comparison: Comparison, *, finetuned: bool = False) -> str:
    """One sentence: what was gained, what was lost, what is left to do."""
    gains = _mask_gains(comparison) if kind == "mask" else _removal_gains(comparison)
    return "; ".join(part for part in (gains, _accuracy(comparison, kind, finetuned)) if part)


def _mask_gains(comparison: Comparison) -> str:
    before, after = comparison.before, comparison.after
    if after.nonzero == before.nonzero:
        return "masked: nothing, the model is what it was"
    measured = f" ({comparison.races[0].speedup:.2f}x here)" if comparison.races else ""
    share = f"{after.sparsity_pct:.1f} % of all parameters are zero now"
    if after.nonzero < 0.05 * after.params:
        share += ", which leaves a model that answers nothing"
    return (
        f"masked: {share}, but zeros are stored: the file stays {after.size_mb:g} MB"
        f" and no dense runtime gets faster{measured}; to be smaller and faster, remove channels"
    )


def _removal_gains(comparison: Comparison) -> str:
    before, after = comparison.before, comparison.after
    if after.params == before.params:
        return "removed: nothing, the widths' steps are coarser than what was asked for"
    macs, params = (100 * (1 - new / old) for new, old in ((after.macs, before.macs), (after.params, before.params)))
    parts = [f"removed: {macs:.0f} % fewer MACs", f"{params:.0f} % fewer parameters"]
    return ", ".join(parts + [_speed(one) for one in comparison.races])


def _speed(one: Race) -> str:
    threads = "1 thread" if one.threads == 1 else f"{one.threads} threads"
    spread = f"{one.speedup_low:.2f} to {one.speedup_high:.2f}"
    if one.word == "faster":
        return f"{one.speedup:.2f}x faster here on {threads} ({spread})"
    return f"but {one.word} here on {threads} ({one.speedup:.2f}x, {spread})"


def _accuracy(comparison: Comparison, kind: Kind, finetuned: bool) -> str:
    before, after = comparison.before.accuracy, comparison.after.accuracy
    changed = comparison.after.nonzero != comparison.before.nonzero
    if before is None or after is None:
        if not changed or finetuned:
            return "accuracy was not measured" if changed else ""
        return "accuracy was not measured" + (", fine-tune before use" if kind == "removal" else "")
    text = f"mAP50-95 {before.map50_95:.3f} before, {after.map50_95:.3f} after"
    loss = before.map50_95 - after.map50_95
    if loss > 0.01:
        text += f": {loss:.3f} lost" + ("" if finetuned else ", fine-tune before use")
    return text + (" (fine-tuned)" if finetuned else "")
