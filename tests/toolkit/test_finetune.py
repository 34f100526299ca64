"""Recovery training on real networks and drawn pictures: widths kept, accuracy found again, nothing left behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from app.toolkit.coco import CocoData, read_coco
from app.toolkit.errors import (
    InvalidInputSize,
    InvalidTrainingSettings,
    RuntimeUnavailable,
    ToolkitError,
    TrainingDiverged,
    TrainingStopped,
    UnsupportedTask,
)
from app.toolkit.finetuning.data import TrainingData
from app.toolkit.finetuning.finetune import FinetuneResult, FinetuneSettings, _for_trainer, epoch_line, finetune
from app.toolkit.finetuning.trainer import free_workers, out_of_memory
from app.toolkit.pruning.removal import RemovalOptions, remove_channels
from tests.toolkit.conftest import MakeModel
from tests.toolkit.recovery import SHORT, network_of, shapes
from tests.toolkit.scenes import make_scenes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def told() -> list[tuple[int, int, Mapping[str, float]]]:
    """What `recovered` said on its way."""
    return []


@pytest.fixture(scope="module")
def recovered(
    pruned: nn.Module, scenes: CocoData, told: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> FinetuneResult:
    settings = FinetuneSettings(epochs=6, imgsz=160, batch=4)
    return finetune(
        pruned,
        TrainingData(scenes),
        settings,
        tmp_path_factory.mktemp("work"),
        progress=lambda *news: told.append(news),
    )


@pytest.mark.slow
def test_every_weight_keeps_its_shape_and_the_given_network_its_values(
    pills: Path, pruned: nn.Module, recovered: FinetuneResult
) -> None:
    full, kept = network_of(pills), shapes(pruned)
    assert shapes(recovered.network) == kept != shapes(full)
    assert not recovered.network.training
    assert {tensor.dtype for tensor in recovered.network.parameters()} == {torch.float32}
    assert {tensor.device.type for tensor in recovered.network.parameters()} == {"cpu"}
    names = {
        name
        for name, tensor in recovered.network.named_parameters()
        if not torch.equal(tensor, dict(pruned.named_parameters())[name])
    }
    assert len(names) > 100
    dfl = "model.22.dfl.conv.weight"
    assert torch.equal(recovered.network.state_dict()[dfl], full.state_dict()[dfl])
    assert recovered.network.args == full.args and recovered.network.names == full.names


def test_map_rises_from_nothing(recovered: FinetuneResult) -> None:
    print(json.dumps(recovered.as_dict()))
    assert recovered.before.map50_95 < 0.01
    assert recovered.after.map50_95 > recovered.before.map50_95 + 0.03


def test_each_epoch_is_told_once_with_its_losses_and_its_map(
    recovered: FinetuneResult, told: list[tuple[int, int, Mapping[str, float]]]
) -> None:
    assert [news[:2] for news in told] == [(number, 6) for number in range(1, 7)]
    assert [dict(news[2]) for news in told] == [entry.metrics for entry in recovered.history]
    assert all({"box_loss", "cls_loss", "dfl_loss", "lr", "map50", "map50_95"} == set(news[2]) for news in told)
    assert epoch_line(*told[0]).startswith("epoch 1/6: box_loss ")


def test_the_best_epoch_is_the_one_with_the_highest_map(recovered: FinetuneResult) -> None:
    best = max(recovered.history, key=lambda entry: (entry.metrics["map50_95"], entry.epoch))
    assert recovered.best_epoch == best.epoch
    assert recovered.after.map50_95 == pytest.approx(best.metrics["map50_95"], abs=0.03)


def test_weights_that_no_epoch_improves_come_back_as_they_were(pills: Path, scenes: CocoData, tmp_path: Path) -> None:
    network = network_of(pills)
    settings = FinetuneSettings(epochs=1, imgsz=320, batch=4, lr=0.1)
    few = replace(scenes, image_ids=scenes.image_ids[:9], file_names=scenes.file_names[:9])
    result = finetune(network, TrainingData(few), settings, tmp_path)
    assert result.best_epoch == 0 and result.after == result.before and result.before.map50_95 > 0.5
    given = network.state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in result.network.state_dict().items())


def test_the_same_seed_gives_the_same_weights_and_leaves_the_random_states(
    pruned: nn.Module, few: CocoData, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    runs = [finetune(pruned, TrainingData(few), replace(SHORT, seed=seed), tmp_path) for seed in (3, 3, 4)]
    first, second, third = (run.network.state_dict() for run in runs)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, third[name]) for name, tensor in first.items())
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_batch_larger_than_the_data_and_an_epoch_not_validated(
    pruned: nn.Module, few: CocoData, tmp_path: Path
) -> None:
    result = finetune(pruned, TrainingData(few), replace(SHORT, epochs=2, batch=64, validate_every=2), tmp_path)
    assert [set(entry.metrics) >= {"map50"} for entry in result.history] == [False, True]
    assert (result.train_images, result.validation_images) == (6, 1)


def test_a_stop_ends_it_at_the_next_batch_and_leaves_nothing(pruned: nn.Module, few: CocoData, tmp_path: Path) -> None:
    before, asked = threading.active_count(), []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(TrainingStopped, match="epoch 2 of 50"):
        finetune(pruned, TrainingData(few), replace(SHORT, epochs=50), tmp_path, should_stop=should_stop)
    assert len(asked) == 3
    assert threading.active_count() == before and not multiprocessing.active_children()
    assert not list(tmp_path.iterdir())


def test_an_error_in_progress_ends_it_as_it_is(pruned: nn.Module, few: CocoData, tmp_path: Path) -> None:
    def progress(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(pruned, TrainingData(few), SHORT, tmp_path, progress=progress)
    assert not list(tmp_path.iterdir())


PROBE = """
import json, sys
from pathlib import Path
from app.toolkit.checkpoint import model_from_checkpoint, open_checkpoint
from app.toolkit.coco import read_coco
from app.toolkit.finetuning.data import TrainingData
from app.toolkit.finetuning.finetune import FinetuneSettings, finetune
import threading

model, images, work = sys.argv[1:]
reached = []

def audit(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.posix_spawn"):
        reached.append(f"{event} {arguments!r}"[:200])
        raise ConnectionRefusedError(event)

sys.addaudithook(audit)
data = read_coco(images + "/instances.json", images + "/images", limit=7)
network = model_from_checkpoint(open_checkpoint(model))
result = finetune(network, TrainingData(data), FinetuneSettings(epochs=2, imgsz=96, batch=4), Path(work))
print(json.dumps({"reached": reached, "threads": threading.active_count(), "epochs": len(result.history)}))
"""


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file under a folder with its size and its time."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.mark.slow
def test_nothing_is_fetched_and_nothing_is_written_outside(pills: Path, scenes: CocoData, tmp_path: Path) -> None:
    home, cwd, work = (tmp_path / name for name in ("home", "cwd", "work"))
    for folder in (home, cwd, work):
        folder.mkdir()
    pictures = tree(scenes.images.parent)
    # No switch of the service's: a plain process, in which Ultralytics may do what it likes.
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment = {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), "YOLO_CONFIG_DIR": str(tmp_path / "config")}
    # The first settings file is Ultralytics' import's; what counts is what training adds.
    command = [sys.executable, "-B", "-c", PROBE, str(pills), str(scenes.images.parent), str(work)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report == {"reached": [], "threads": 1, "epochs": 2}
    assert tree(home) == tree(cwd) == tree(work) == {}
    assert tree(scenes.images.parent) == pictures
    assert set(tree(tmp_path / "config")) <= {"Ultralytics/settings.json", "Ultralytics/persistent_cache.json"}
    said = [line for line in done.stderr.splitlines() + done.stdout.splitlines()[:-1] if "epoch" in line.lower()]
    assert not said


def _in_child(model: str, images: str, work: str) -> None:
    data = read_coco(f"{images}/instances.json", f"{images}/images", limit=7)
    result = finetune(network_of(Path(model)), TrainingData(data), replace(SHORT, workers=2), Path(work))
    Path(work, "done").write_text(str(result.train_images))


@pytest.mark.slow
def test_it_runs_in_a_daemonic_process_forked_from_one_that_loaded_torch(
    pills: Path, scenes: CocoData, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["app.toolkit.finetuning.finetune"])
    child = context.Process(target=_in_child, args=(str(pills), str(scenes.images.parent), str(tmp_path)), daemon=True)
    child.start()
    child.join(120)
    assert child.exitcode == 0
    assert (tmp_path / "done").read_text() == "6"


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (replace(SHORT, epochs=0), InvalidTrainingSettings),
        (replace(SHORT, batch=0), InvalidTrainingSettings),
        (replace(SHORT, lr=0.0), InvalidTrainingSettings),
        (replace(SHORT, lr=float("nan")), InvalidTrainingSettings),
        (replace(SHORT, imgsz=32), InvalidTrainingSettings),
        (replace(SHORT, imgsz=100), InvalidInputSize),
        (replace(SHORT, device="cuda:99"), RuntimeUnavailable),
        (replace(SHORT, device="toaster"), RuntimeUnavailable),
    ],
)
def test_settings_that_cannot_train_are_refused(
    pruned: nn.Module, few: CocoData, settings: FinetuneSettings, error: type[ToolkitError], tmp_path: Path
) -> None:
    with pytest.raises(error) as raised:
        finetune(pruned, TrainingData(few), settings, tmp_path)
    assert raised.value.expected and raised.value.received


def test_only_detectors_are_trained(make_model: MakeModel, few: CocoData, tmp_path: Path) -> None:
    for network in (network_of(make_model("yolo11n-cls")), network_of(make_model("yolov8n-seg")), nn.Conv2d(3, 8, 3)):
        with pytest.raises(UnsupportedTask) as raised:
            finetune(network, TrainingData(few), SHORT, tmp_path)
        assert raised.value.received


def test_weights_that_are_not_finite_are_told_as_a_divergence(pills: Path, few: CocoData, tmp_path: Path) -> None:
    network = network_of(pills)
    next(network.parameters()).data[0] = float("nan")
    with pytest.raises(TrainingDiverged, match="epoch 1: the loss is nan") as raised:
        finetune(network, TrainingData(few), SHORT, tmp_path)
    assert "0.0001" in raised.value.hint


@pytest.mark.slow
def test_memory_that_runs_out_says_which_batch_to_try(pills: Path, scenes: CocoData, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HUNGRY, str(pills), str(scenes.images.parent), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.stdout.splitlines() == ["OUT_OF_MEMORY batch 8"], done.stderr[-2000:]
    assert not list(tmp_path.iterdir())


HUNGRY = """
import resource, sys
from pathlib import Path
from app.toolkit.checkpoint import model_from_checkpoint, open_checkpoint
from app.toolkit.coco import read_coco
from app.toolkit.errors import OutOfMemory
from app.toolkit.finetuning.data import TrainingData
from app.toolkit.finetuning.finetune import FinetuneSettings, finetune

model, images, work = sys.argv[1:]
data = TrainingData(read_coco(images + "/instances.json", images + "/images", limit=20))
network = model_from_checkpoint(open_checkpoint(model))
finetune(network, data, FinetuneSettings(epochs=1, imgsz=64, batch=4), Path(work))  # what libraries take at first
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (700 << 20),) * 2)
try:
    finetune(network, data, FinetuneSettings(epochs=1, imgsz=640, batch=16), Path(work))
except OutOfMemory as error:
    print(error.code, error.hint)
"""


def test_too_large_a_batch_says_which_to_try() -> None:
    error = out_of_memory(16)
    assert error.code == "OUT_OF_MEMORY" and "batch 8" in error.hint
    assert "input size" in out_of_memory(1).hint


def test_the_batch_is_small_where_steps_would_be_few(pruned: nn.Module, few: CocoData, tmp_path: Path) -> None:
    assert [_for_trainer(FinetuneSettings(epochs=10), "cpu", images).batch for images in (700, 800, 1600)] == [4, 8, 16]
    assert finetune(pruned, TrainingData(few), replace(SHORT, batch=None), tmp_path).batch == 4


def test_loader_processes_are_used_only_beside_a_gpu() -> None:
    assert free_workers("cpu", daemonic=False) == free_workers("cuda:0", daemonic=True) == 0
    assert free_workers("cuda:0", daemonic=False) <= 8


@pytest.mark.slow
def test_a_pruned_pills_model_finds_most_of_what_it_found(
    pills: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A third of the work removed, 108 images, 8 epochs at 320; `benchmarks.prune_recovery` goes further."""
    folder = make_scenes(tmp_path_factory.mktemp("more"), images=120, seed=77_002)
    pruned, report = remove_channels(network_of(pills), RemovalOptions(target={"macs": 0.66}), input_size=(320, 320))
    data = TrainingData(read_coco(folder / "instances.json", folder / "images"))
    result = finetune(pruned, data, FinetuneSettings(epochs=8, imgsz=320), tmp_path_factory.mktemp("work"))
    print(report.as_dict()["macs_left"], result.as_dict())
    assert result.before.map50_95 < 0.05
    assert result.after.map50_95 > 0.6
    assert shapes(result.network) == shapes(pruned)
