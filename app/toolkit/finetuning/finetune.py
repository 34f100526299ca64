"""Recovery training: a detector with whatever widths it has, trained on, its best weights returned.

Learning from the unpruned network's answers as well was measured and left out: at equal epochs it gained 0.003 to 0.01
mAP50-95 (batch 4 and 8), but an epoch took some 1.4 times as long, in which plain training gained 0.014 to 0.04.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import multiprocessing
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER

from app.toolkit.coco import CocoData, CocoResult, evaluate
from app.toolkit.errors import (
    InvalidTrainingSettings,
    RuntimeUnavailable,
    TrainingDiverged,
    UnsupportedTask,
)
from app.toolkit.finetuning.data import TrainingData, split_data
from app.toolkit.finetuning.trainer import (
    Epoch,
    KeptWidths,
    Progress,
    TrainerSettings,
    free_workers,
    out_of_memory,
    weights_are_finite,
)
from app.toolkit.models.ultralytics import UltralyticsModel
from app.toolkit.runtimes.torch_runtime import TorchRuntime

EVALUATED_IMAGES = 500
"""At most so many validation images are evaluated before and after, one by one on the CPU."""

ENOUGH_STEPS = 1000
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class FinetuneSettings:
    """How to train. `imgsz` is the side of the square input in px, `lr` AdamW's highest learning rate.

    `batch` None takes the largest of 16, 8 and 4 that leaves 1000 steps: a short training needs steps more than it
    needs smooth ones. Pills YOLOv8n, 0.66 of the MACs left, 200 images, 5 epochs at 320: mAP50-95 0.67 with 16, 0.83
    with 8, 0.86 with 4; with 16 at a learning rate of 4e-4 0.57, at 2e-3 0.71; with 8 at 2e-3 0.80.

    `device` is "auto" (the first GPU, if there is one), "cpu" or "cuda:N". `workers` are processes that load images;
    None takes none on a CPU and up to 8 beside a GPU.
    """

    epochs: int
    imgsz: int = 640
    batch: int | None = None
    seed: int = 0
    lr: float = 1e-3
    device: str = "auto"
    workers: int | None = None
    validate_every: int = 1


@dataclass(frozen=True)
class FinetuneResult:
    """`network` is a new one: float32, on the CPU, in evaluation mode, every weight of the shape it had.

    `best_epoch` counts from 1; 0 says that no epoch was as good as the weights that were given, which are then
    returned. `before` and `after` are mAP on the validation images by `app.toolkit.coco`; the figures in `history` are
    Ultralytics', which interpolates otherwise.
    """

    network: nn.Module
    best_epoch: int
    history: tuple[Epoch, ...]
    before: CocoResult
    after: CocoResult
    train_images: int
    validation_images: int
    batch: int
    device: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape, without the network."""
        return {
            "best_epoch": self.best_epoch,
            "history": [{"epoch": entry.epoch, **entry.metrics} for entry in self.history],
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "train_images": self.train_images,
            "validation_images": self.validation_images,
            "batch": self.batch,
            "device": self.device,
            "seconds": round(self.seconds, 3),
        }


def epoch_line(epoch: int, epochs: int, metrics: Mapping[str, float]) -> str:
    """One line for a log, of what `progress` is given."""
    return f"epoch {epoch}/{epochs}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def finetune(
    network: nn.Module,
    data: TrainingData,
    settings: FinetuneSettings,
    workdir: Path,
    *,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> FinetuneResult:
    """Train a copy of an Ultralytics detector on the data; the network itself is left as it is.

    `progress(epoch, epochs, metrics)` is called after each epoch. `should_stop` is asked after each batch; an exception
    that either of them raises ends the training too, and is passed on. Everything is written to a hidden folder in
    `workdir`, which is gone afterwards. On a CPU the same seed, data, threads and torch give the same weights.

    Raises InvalidTrainingSettings, InvalidInputSize, UnsupportedTask, InvalidAnnotations, UnreadableImage,
    RuntimeUnavailable (no such device), OutOfMemory, TrainingDiverged, TrainingStopped.
    """
    begun = time.monotonic()
    _check_settings(settings)
    adapter = _detector(network)
    adapter.check_input((settings.imgsz, settings.imgsz), adapter.channels)
    device = _device(settings.device)
    split = split_data(data, adapter.names, seed=settings.seed)
    before = _evaluate(adapter, split.validation_coco, settings.imgsz)
    for_trainer = _for_trainer(settings, device, len(split.train))
    with tempfile.TemporaryDirectory(prefix=".finetune-", dir=workdir) as folder, _left_as_found():
        subject = copy.deepcopy(network).float().requires_grad_(True)
        trainer = KeptWidths(subject, split, for_trainer, Path(folder), progress=progress, should_stop=should_stop)
        _train(trainer, for_trainer)
    best = _restored(network, trainer.best_weights)
    after = _evaluate(_detector(best), split.validation_coco, settings.imgsz)
    best_epoch = trainer.best_epoch
    if after.map50_95 < before.map50_95:
        best, after, best_epoch = _restored(network, network.state_dict()), before, 0
    return FinetuneResult(
        network=best,
        best_epoch=best_epoch,
        history=tuple(trainer.history),
        before=before,
        after=after,
        train_images=len(split.train),
        validation_images=len(split.validation),
        batch=for_trainer.batch,
        device=device,
        seconds=time.monotonic() - begun,
    )


def _train(trainer: KeptWidths, settings: TrainerSettings) -> None:
    try:
        trainer.train()
    except RuntimeError as error:
        if any(text in str(error) for text in OUT_OF_MEMORY):
            raise out_of_memory(settings.batch) from error
        raise
    finally:
        trainer.close()
    if not weights_are_finite(trainer.best_weights):
        raise TrainingDiverged(
            "the training diverged: the best weights are not finite",
            expected="finite weights",
            received="NaN or infinity",
            hint=f"a lower learning rate, {settings.lr / 10:g} for example",
        )


def _restored(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of the network with the weights. RuntimeError, a defect of ours, if any has another shape."""
    restored = copy.deepcopy(network).float().cpu().eval()
    restored.load_state_dict(weights, strict=True)
    return restored


def _check_settings(settings: FinetuneSettings) -> None:
    limits = (("epochs", 1), ("batch", 1), ("imgsz", 64), ("validate_every", 1), ("seed", 0))
    for name, least in limits:
        value = getattr(settings, name)
        if value is not None and value < least:
            raise InvalidTrainingSettings(
                f"{name} is too small", expected=f"{name} of at least {least}", received=str(value)
            )
    if not 0 < settings.lr <= 1:
        raise InvalidTrainingSettings(
            "the learning rate is out of range", expected="more than 0 and at most 1", received=str(settings.lr)
        )


def _detector(network: nn.Module) -> UltralyticsModel:
    """An adapter around a copy. Raises UnsupportedTask for anything but a detector that is suppressed afterwards."""
    if isinstance(network, DetectionModel):
        adapter = UltralyticsModel(copy.deepcopy(network).cpu())
        if adapter.task == "detect" and not getattr(network.model[-1], "end2end", False):
            return adapter
        received = f"task {adapter.task}" if adapter.task != "detect" else "a detector without suppression"
    else:
        received = type(network).__name__
    raise UnsupportedTask(
        "this network cannot be trained on here",
        expected="an Ultralytics detector (YOLOv8, YOLO11)",
        received=received,
        hint="prune without finetune, and train it with your own code",
    )


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if asked == "cpu":
        return asked
    kind, _, index = asked.partition(":")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and (index or "0").isdigit() and int(index or 0) < count:
        return f"cuda:{int(index or 0)}"
    raise RuntimeUnavailable(
        f"there is no device {asked}",
        expected=", ".join(["auto", "cpu", *(f"cuda:{number}" for number in range(count))]),
        received=asked,
        hint="ask for auto",
    )


def _for_trainer(settings: FinetuneSettings, device: str, images: int) -> TrainerSettings:
    batch = settings.batch
    if batch is None:
        batch = next((size for size in (16, 8) if images * settings.epochs >= size * ENOUGH_STEPS), 4)
    workers = settings.workers
    if workers is None:
        workers = free_workers(device, multiprocessing.current_process().daemon)
    return TrainerSettings(
        epochs=settings.epochs,
        imgsz=settings.imgsz,
        batch=batch,
        seed=settings.seed,
        lr=settings.lr,
        device=device,
        workers=workers,
        validate_every=settings.validate_every,
    )


def _evaluate(adapter: UltralyticsModel, data: CocoData, imgsz: int) -> CocoResult:
    limited = replace(data, image_ids=data.image_ids[:EVALUATED_IMAGES], file_names=data.file_names[:EVALUATED_IMAGES])
    size = (imgsz, imgsz)
    specs = adapter.input_specs(size, 1)
    with TorchRuntime(adapter.reference_module(), specs, adapter.output_specs()) as runtime:
        return evaluate(adapter, runtime, limited, input_size=size)


@contextlib.contextmanager
def _left_as_found() -> Iterator[None]:
    """Keeps Ultralytics quiet, and gives back the random states that seeding a training replaces."""
    level = LOGGER.level
    states = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    LOGGER.setLevel(logging.CRITICAL)  # its progress bars look at this too
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that are not deterministic on a GPU, and the like
            yield
    finally:
        LOGGER.setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
