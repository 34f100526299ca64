"""What the two pruning handlers share: save the result, measure it beside the original, say what it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from app.jobs.context import JobContext
from app.jobs.handlers._data import coco_data
from app.schemas.kinds._pruning import PruneMetrics, PruneParameters
from app.toolkit.checkpoint import Checkpoint, open_checkpoint
from app.toolkit.finetuning.finetune import FinetuneResult
from app.toolkit.models.open_model import open_model
from app.toolkit.pruning.masks import MaskReport
from app.toolkit.pruning.measuring import compare, verdict
from app.toolkit.pruning.removal import RemovalReport
from app.toolkit.pruning.saving import network_to_prune, save_checkpoint
from app.toolkit.race import RaceSettings
from app.toolkit.stats import model_stats, stats_text

QUICK = RaceSettings(rounds=4, calls=5)
"""Enough to tell 1.1x from 1.0x in some seconds; a benchmark job takes its time."""


def opened(context: JobContext, parameters: PruneParameters) -> tuple[Checkpoint, nn.Module]:
    """The checkpoint to prune and its network. Raises InvalidInputSize and AlreadyQuantised before anything is done."""
    context.phase("load", 0.0)
    path, trusted = context.input("input_path"), context.options["trust_checkpoints"]
    adapter = open_model(path, trusted=trusted)
    adapter.check_input(parameters.input_size, adapter.channels)
    checkpoint = open_checkpoint(path, trusted=trusted)
    return checkpoint, network_to_prune(checkpoint)


def finished(
    context: JobContext,
    parameters: PruneParameters,
    checkpoint: Checkpoint,
    network: nn.Module,
    report: MaskReport | RemovalReport,
    trained: FinetuneResult | None = None,
    threads: Sequence[int] = (1,),
) -> PruneMetrics:
    """Writes `<output>.pt` and its stats; measures both files in ONNX Runtime, in turns."""
    done = report.as_dict()
    save_checkpoint(checkpoint, network, context.output, _note(done, trained))
    context.phase("measure", 0.7)
    compared = compare(
        context.input("input_path"),
        context.output,
        input_size=parameters.input_size,
        threads=tuple(dict.fromkeys(threads)),
        data=coco_data(context, "data"),
        settings=QUICK,
        trusted=context.options["trust_checkpoints"],
    )
    found = model_stats(context.output)
    context.output.with_name(f"{context.output.stem}_stats.txt").write_text(stats_text(found), encoding="utf-8")
    document = compared.as_dict()
    return PruneMetrics(
        stats=found.as_dict()["stats"],
        verdict=verdict(done["kind"], compared, finetuned=trained is not None),
        before=document["before"],
        after=document["after"],
        latency=document["latency"],
        pruning=done,
        finetune=trained.as_dict() if trained else None,
    )


def _note(done: dict[str, Any], trained: FinetuneResult | None) -> dict[str, Any]:
    """What the checkpoint says of how it came about; the layers are in the metrics."""
    note = {name: value for name, value in done.items() if name != "layers"}
    return {**note, "finetuned_epochs": len(trained.history) if trained else 0}
