"""Ultralytics' detection trainer on a network that is given, instead of one that it builds.

`YOLO(path).train()` rebuilds the network from its yaml and copies over what fits: a pruned network silently gets its
full widths back, with mostly random weights. Here the given network itself is trained. Beside that, all that the
trainer does to the world is left out: it fetches nothing (fonts, the weights of its AMP check), reports nothing
(analytics, integrations), writes no checkpoints, labels or caches, and repairs no images in place.

Written against ultralytics 8.4.190, `engine/trainer.py`, `models/yolo/detect/train.py` and `data/base.py`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from ultralytics.data.dataset import YOLODataset
from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator

from app.toolkit.errors import OutOfMemory, TrainingDiverged, TrainingStopped
from app.toolkit.finetuning.data import LabelledImage, Split

MAP50 = "metrics/mAP50(B)"
MAP50_95 = "metrics/mAP50-95(B)"

AMPERE = 8
"""The compute capability from which bfloat16 is the hardware's own."""

Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class TrainerSettings:
    """`imgsz` in px, square. `device` is "cpu" or "cuda:N". `validate_every` n epochs, and after the last."""

    epochs: int
    imgsz: int
    batch: int
    seed: int
    lr: float
    device: str
    workers: int
    validate_every: int


@dataclass(frozen=True)
class Epoch:
    """`epoch` counts from 1. `metrics` holds the losses, and map50 and map50_95 where the epoch was validated."""

    epoch: int
    metrics: dict[str, float]


class LinkedDataset(YOLODataset):  # type: ignore[misc]
    """Images through links of our own, with labels from memory.

    The links matter: beside an image's real path Ultralytics looks for `NAME.npy`, which it would load, and delete if
    it cannot; and for some endings, and every file that Pillow does not know, it installs a plugin by pip. Labels from
    memory matter: its scan of label files rewrites JPEGs that it takes for damaged.
    """

    def __init__(self, images: Sequence[LabelledImage], folder: Path, **options: Any) -> None:
        folder.mkdir(parents=True)
        self._given = list(images)
        self._links = [folder / f"{number:07d}.jpg" for number in range(len(images))]  # decoded by content
        for link, image in zip(self._links, self._given, strict=True):
            link.symlink_to(image.path.resolve())
        super().__init__(img_path=str(folder), **options)

    def get_img_files(self, _: str) -> list[str]:
        """The links."""
        return [str(link) for link in self._links]

    def get_labels(self) -> list[dict[str, Any]]:
        """What a scan of label files would give."""
        return [
            {
                "im_file": str(link),
                "shape": image.size_px,
                "cls": image.classes.reshape(-1, 1).copy(),
                "bboxes": image.boxes.copy(),
                "segments": [],
                "keypoints": None,
                "normalized": True,
                "bbox_format": "xywh",
            }
            for link, image in zip(self._links, self._given, strict=True)
        ]


class KeptWidths(DetectionTrainer):  # type: ignore[misc]
    """The trainer. Its name must not hold "Trainer": by that Ultralytics knows whom to attach its integrations to.

    After `train()`: `best_weights` (of the averaged network, on the CPU, float32), `best_epoch` and `history`.
    """

    def __init__(
        self,
        network: nn.Module,
        split: Split,
        settings: TrainerSettings,
        folder: Path,
        *,
        progress: Progress | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self._network = network
        self._split = split
        self._folder = folder
        self._batch = settings.batch
        self._validate_every = settings.validate_every
        self._progress = progress
        self._should_stop = should_stop
        self._validated: dict[str, float] = {}
        self.best_weights: dict[str, torch.Tensor] = {}
        self.best_epoch = 0
        self.best_score = -1.0
        self.history: list[Epoch] = []
        threads = torch.get_num_threads()
        super().__init__(overrides=_arguments(settings, folder))
        torch.set_num_threads(threads)  # choosing the CPU as device sets one less than the machine has

    def close(self) -> None:
        """End the data loaders' processes."""
        for name in ("train_loader", "test_loader"):
            loader = getattr(self, name, None)
            if loader is not None:
                loader.close()

    # What Ultralytics calls, in the order in which it does

    def run_callbacks(self, event: str) -> None:
        """Nobody but us listens."""
        if event == "on_train_epoch_start":
            self.args.val = (self.epoch + 1) % self._validate_every == 0
        elif event == "on_train_batch_end":
            self._after_batch()
        elif event == "on_fit_epoch_end":
            self._after_epoch()

    def get_dataset(self) -> dict[str, Any]:
        """The description that a data.yaml would give, without the font that reading one fetches."""
        names: dict[int, str] = dict(self._network.names)  # type: ignore[arg-type]
        channels = next(m.in_channels for m in self._network.modules() if isinstance(m, nn.Conv2d))
        return {"train": "train", "val": "val", "nc": len(names), "names": names, "channels": channels}

    def setup_model(self) -> None:
        """The network as it is: nothing is built and nothing is loaded."""
        self.model = self._network

    def get_model(self, *_: object, **__: object) -> nn.Module:
        """The network as it is, for whoever else asks."""
        return self._network

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> LinkedDataset:
        """Training images augmented, validation images in a square of `imgsz`, as they are inferred."""
        return LinkedDataset(
            self._split.train if mode == "train" else self._split.validation,
            self._folder / "images" / img_path,
            imgsz=self.args.imgsz,
            batch_size=batch,
            augment=mode == "train",
            hyp=self.args,
            rect=False,
            stride=self.stride,
            task="detect",
            data=self.data,
        )

    def _build_train_pipeline(self) -> None:
        if self.optimizer is not None:  # called a second time: to go on with half the batch, which nobody asked for
            raise out_of_memory(self._batch)
        super()._build_train_pipeline()

    def get_validator(self) -> Any:
        """Ultralytics' validator without its listeners."""
        return DetectionValidator(self.test_loader, save_dir=self.save_dir, args=vars(self.args), _callbacks={"": []})

    def validate(self) -> tuple[dict[str, float], float]:
        """Validate the averaged weights and keep them if they are the best so far, the later of equals."""
        metrics, _ = super().validate()
        score = float(metrics[MAP50_95])
        self._validated = {"map50": float(metrics[MAP50]), "map50_95": score}
        if score >= self.best_score:
            weights = self.ema.ema.state_dict()
            self.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
            self.best_score, self.best_epoch = score, self.epoch + 1
        return metrics, score

    def _handle_nan_recovery(self, epoch: int) -> bool:  # noqa: ARG002 - Ultralytics' signature
        return False  # it starts over from a checkpoint that is not written here; _after_batch() has ended such a run

    def save_metrics(self, metrics: Mapping[str, float]) -> None:
        """No results.csv: `history` has them."""

    def save_model(self) -> bool:
        """No checkpoint: the best weights are in memory."""
        return False

    def final_eval(self) -> None:
        """None on a checkpoint read back: `finetune` evaluates the best weights itself."""

    # What is ours

    def _after_batch(self) -> None:
        if not torch.isfinite(self.loss):
            raise TrainingDiverged(
                f"the training diverged in epoch {self.epoch + 1}: the loss is {float(self.loss)}",
                expected="a finite loss",
                received=", ".join(f"{name} {float(value)}" for name, value in self.loss_items.items()),
                hint=f"a lower learning rate, {self.args.lr0 / 10:g} for example",
            )
        if self._should_stop is not None and self._should_stop():
            raise TrainingStopped(f"the training was stopped in epoch {self.epoch + 1} of {self.epochs}")

    def _after_epoch(self) -> None:
        metrics = {name: round(float(value), 5) for name, value in self.tloss.items()}
        metrics |= {"lr": float(f"{max(self.lr.values()):.4g}"), **self._validated}
        self._validated = {}
        self.history.append(Epoch(self.epoch + 1, metrics))
        if self._progress is not None:
            self._progress(self.epoch + 1, self.epochs, metrics)


def out_of_memory(batch: int) -> OutOfMemory:
    """The error for a batch that does not fit."""
    return OutOfMemory(
        f"training needs more memory than the device has with {batch} images in a batch",
        expected="a batch that fits into the device's memory",
        received=f"batch {batch}",
        hint=f"batch {batch // 2}" if batch > 1 else "a smaller input size",
    )


def _arguments(settings: TrainerSettings, folder: Path) -> dict[str, Any]:
    """Ultralytics' arguments. What is not said here is its default (8.4.190, cfg/default.yaml)."""
    on_gpu = settings.device.startswith("cuda")
    return {
        "task": "detect",
        "mode": "train",
        "model": "given",  # a name that is no file; `setup_model` has the network
        "project": str(folder),
        "name": "run",
        "exist_ok": True,
        "epochs": settings.epochs,
        "imgsz": settings.imgsz,
        "batch": settings.batch,
        "nbs": settings.batch,  # a step for each batch: a short recovery has none to save up
        "seed": settings.seed,
        "device": settings.device.removeprefix("cuda:"),
        "workers": settings.workers,
        # Its check of FP16 downloads a model to compare with; bfloat16 needs no such check.
        "amp": "bf16" if on_gpu and torch.cuda.get_device_capability(settings.device)[0] >= AMPERE else False,
        "optimizer": "AdamW",
        "lr0": settings.lr,
        "lrf": 0.01,
        "cos_lr": True,
        "momentum": 0.9,
        "warmup_epochs": min(1.0, settings.epochs / 10),
        "warmup_bias_lr": 0.0,
        "mosaic": 0.5,
        "close_mosaic": math.ceil(settings.epochs / 3),
        "patience": 0,
        "save": False,
        "plots": False,
        "val": True,
        "verbose": False,
    }


def free_workers(device: str, daemonic: bool) -> int:
    """How many loader processes may be used: none on a CPU, in a daemonic process, or without shared memory."""
    if device == "cpu" or daemonic:  # multiprocessing lets no daemonic process have children
        return 0
    shared = os.statvfs("/dev/shm")  # noqa: S108 - where torch's loaders pass their batches
    gib = shared.f_bavail * shared.f_frsize / 1024**3
    return min(8, len(os.sched_getaffinity(0)) - 1) if gib >= 2 else 0


def weights_are_finite(weights: Mapping[str, torch.Tensor]) -> bool:
    """Is there no NaN and no infinity in any tensor?"""
    return all(bool(np.isfinite(tensor.numpy()).all()) for tensor in weights.values())
