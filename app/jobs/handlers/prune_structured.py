"""Runs `prune_structured`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from app.jobs.context import JobContext, JobFailed
from app.jobs.handlers._data import coco_data
from app.jobs.handlers._pruning import finished, opened
from app.schemas.kinds._pruning import PruneMetrics
from app.schemas.kinds.prune_structured import Finetune, PruneStructured
from app.toolkit.finetuning.data import TrainingData
from app.toolkit.finetuning.finetune import FinetuneResult, FinetuneSettings, epoch_line, finetune
from app.toolkit.images import list_images, read_image, sample_images, tensor_from_image
from app.toolkit.pruning.masks import mask_structured
from app.toolkit.pruning.removal import RemovalOptions, RemovalReport, input_channels, remove_channels

CALIBRATION_IMAGES = 32
"""Taken where the request does not say how many."""

TRAINING = (0.2, 0.7)
"""The part of a job's progress that its training is."""


def run(parameters: PruneStructured, context: JobContext) -> PruneMetrics:
    checkpoint, network = opened(context, parameters)
    context.phase("prune", 0.1)
    if not parameters.remove:
        masked, mask = mask_structured(
            network, parameters.amount, parameters.n, parameters.dim, exclude=parameters.exclude
        )
        return finished(context, parameters, checkpoint, masked, mask)
    pruned, report = _removed(parameters, context, network)
    trained = None
    if parameters.finetune is not None:
        trained = _trained(parameters.finetune, max(parameters.input_size), context, pruned)
        pruned = trained.network
    return finished(context, parameters, checkpoint, pruned, report, trained, threads=(1, context.threads))


def _removed(parameters: PruneStructured, context: JobContext, network: nn.Module) -> tuple[nn.Module, RemovalReport]:
    target = parameters.target.model_dump(exclude_none=True) if parameters.target else None
    options = RemovalOptions(
        ratio=None if target else parameters.amount,
        target=target,
        scope=parameters.scope,
        importance=parameters.importance,
        round_to=parameters.round_to,
        include=parameters.include,
        exclude=parameters.exclude,
        head=parameters.head,
    )
    return remove_channels(
        network, options, input_size=parameters.input_size, images=_calibration(context, network, parameters.input_size)
    )


def _calibration(context: JobContext, network: nn.Module, input_size: tuple[int, int]) -> list[torch.Tensor]:
    given = context.images("calibration")
    if given is None:
        return []
    folder, sample = given
    chosen: list[Path] = sample_images(list_images(folder), sample or CALIBRATION_IMAGES)
    channels = input_channels(network)
    return [torch.from_numpy(tensor_from_image(read_image(path), input_size, channels)[0]) for path in chosen]


def _trained(asked: Finetune, imgsz: int, context: JobContext, pruned: nn.Module) -> FinetuneResult:
    data = coco_data(context, "finetune.data")
    if data is None:
        raise JobFailed("INVALID_ANNOTATIONS", "the training has no data", expected="finetune.data")

    def progress(epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        begin, end = TRAINING
        context.phase(f"epoch {epoch} of {epochs}", begin + (end - begin) * epoch / epochs)
        print(epoch_line(epoch, epochs, metrics))  # noqa: T201 - this is the job's log

    settings = FinetuneSettings(
        epochs=asked.epochs,
        imgsz=imgsz,
        batch=asked.batch,
        seed=asked.seed,
        device="cuda:0" if asked.device == "gpu" else "cpu",
    )
    context.phase("finetune", TRAINING[0])
    return finetune(pruned, TrainingData(data), settings, context.workdir, progress=progress)
