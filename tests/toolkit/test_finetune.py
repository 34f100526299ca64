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

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from app.toolkit.checkpoint import model_from_checkpoint, open_checkpoint
from app.toolkit.coco import CocoData, read_coco
from app.toolkit.errors import (
    InvalidAnnotations,
    InvalidInputSize,
    InvalidTrainingSettings,
    RuntimeUnavailable,
    ToolkitError,
    TrainingDiverged,
    TrainingStopped,
    UnreadableImage,
    UnsupportedTask,
)
from app.toolkit.finetuning.data import TrainingData, split_data
from app.toolkit.finetuning.finetune import FinetuneResult, FinetuneSettings, _for_trainer, epoch_line, finetune
from app.toolkit.finetuning.trainer import free_workers, out_of_memory
from app.toolkit.pruning.removal import RemovalOptions, remove_channels
from tests.toolkit.conftest import MakeModel
from tests.toolkit.scenes import make_scenes

ROOT = Path(__file__).resolve().parents[2]
SHORT = FinetuneSettings(epochs=1, imgsz=96, batch=4)


def network_of(path: Path) -> nn.Module:
    """A checkpoint's network, float32."""
    return model_from_checkpoint(open_checkpoint(path)).float().eval()


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    """Every tensor of the network by name."""
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def edited(data: CocoData, target: Path, **changes: Any) -> CocoData:
    """The data with other annotations, written to the target."""
    content = json.loads(data.annotations.read_text())
    target.write_text(json.dumps({**content, **changes}))
    return read_coco(target, data.images)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> CocoData:
    folder = make_scenes(tmp_path_factory.mktemp("train"), images=36, seed=77_001)
    return read_coco(folder / "instances.json", folder / "images")


@pytest.fixture(scope="module")
def few(scenes: CocoData) -> CocoData:
    return replace(scenes, image_ids=scenes.image_ids[:7], file_names=scenes.file_names[:7])


@pytest.fixture(scope="module")
def content(scenes: CocoData) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(scenes.annotations.read_text())
    return loaded


@pytest.fixture(scope="module")
def pruned(pills: Path) -> nn.Module:
    """The pills network without a fifth of its channels."""
    return remove_channels(network_of(pills), RemovalOptions(ratio=0.2), input_size=(320, 320))[0]


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


def test_classes_are_matched_by_name_crowds_left_out_and_empty_images_kept(
    pills: Path, few: CocoData, content: dict[str, Any], tmp_path: Path
) -> None:
    names: dict[int, str] = dict(network_of(pills).names)  # type: ignore[arg-type]
    renumbered = {entry["id"]: 500 - 7 * entry["id"] for entry in content["categories"]}
    first, second, third = few.image_ids[:3]
    boxes = [{**box, "category_id": renumbered[box["category_id"]]} for box in content["annotations"]]
    for box in boxes:
        box["iscrowd"] = int(box["image_id"] == second)
    boxes.append({**next(box for box in boxes if box["image_id"] == first), "bbox": [700.0, 10.0, 20.0, 20.0]})
    boxes = [box for box in boxes if box["image_id"] != third]
    categories = [{**entry, "id": renumbered[entry["id"]]} for entry in content["categories"]]
    unused = {"id": 9, "name": "a shoe"}
    data = edited(few, tmp_path / "a.json", categories=[unused, *categories], annotations=boxes)
    data = replace(data, image_ids=few.image_ids, file_names=few.file_names)
    plain = {image.image_id: image for part in _parts(TrainingData(few), names) for image in part}
    found = {image.image_id: image for part in _parts(TrainingData(data), names) for image in part}
    assert found.keys() == plain.keys()
    assert len(found[second].classes) == len(found[third].classes) == 0 < len(plain[second].classes)
    for image_id in set(found) - {second, third}:
        np.testing.assert_array_equal(found[image_id].classes, plain[image_id].classes)
        np.testing.assert_array_equal(found[image_id].boxes, plain[image_id].boxes)
    split = split_data(TrainingData(data), names, seed=0)
    assert split.validation_coco.category_ids == tuple(renumbered[index] for index in range(12))


def _parts(data: TrainingData, names: Mapping[int, str]) -> tuple[Any, ...]:
    split = split_data(data, names, seed=0)
    return split.train, split.validation


def test_boxes_are_fractions_of_the_image_and_cut_at_its_edges(pills: Path, tmp_path: Path) -> None:
    names: dict[int, str] = dict(network_of(pills).names)  # type: ignore[arg-type]
    for name in ("a.png", "b.png"):
        Image.new("RGB", (200, 100)).save(tmp_path / name)
    boxes = [{"id": n, "image_id": n, "category_id": 4, "bbox": [-20, 50, 40, 100]} for n in (1, 2)]
    document = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png", "width": 200, "height": 100}],
        "annotations": boxes,
        "categories": [{"id": 4, "name": names[7]}],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    split = split_data(TrainingData(read_coco(tmp_path / "a.json", tmp_path)), names, seed=0)
    assert len(split.train) == len(split.validation) == 1
    np.testing.assert_allclose(split.train[0].boxes, [[0.05, 0.75, 0.1, 0.5]], rtol=1e-6)
    assert split.train[0].classes.tolist() == [7.0]


def test_the_split_is_stable_by_seed_and_validation_data_is_taken_as_it_is(pills: Path, scenes: CocoData) -> None:
    names: dict[int, str] = dict(network_of(pills).names)  # type: ignore[arg-type]
    picked = [{image.image_id for image in _parts(TrainingData(scenes), names)[1]} for _ in range(2)]
    other = {image.image_id for image in split_data(TrainingData(scenes), names, seed=1).validation}
    assert picked[0] == picked[1] != other and len(other) == 4
    first = replace(scenes, image_ids=scenes.image_ids[:5], file_names=scenes.file_names[:5])
    rest = replace(scenes, image_ids=scenes.image_ids[5:8], file_names=scenes.file_names[5:8])
    train, validation = _parts(TrainingData(first, rest), names)
    assert tuple(image.image_id for image in train) == first.image_ids
    assert tuple(image.image_id for image in validation) == rest.image_ids


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


def test_annotations_that_cannot_teach_are_refused(
    pruned: nn.Module, few: CocoData, content: dict[str, Any], tmp_path: Path
) -> None:
    shoes = [{**entry, "name": "a shoe"} if entry["id"] == 3 else entry for entry in content["categories"]]
    boxes = content["annotations"]
    cases: dict[str, dict[str, Any]] = {
        "does not know 1 .*'a shoe'": {"categories": shoes},
        "holds no box": {"annotations": []},
        "has no box": {"annotations": [{**boxes[0], "bbox": None}]},
        "is no COCO": {"annotations": [[1, 2]]},
        "has no image_id": {"annotations": [{"id": 1}]},
        "cannot be both": {"annotations": boxes[:1]},
        "another version": {"images": [{**entry, "width": 641} for entry in content["images"]]},
    }
    for text, changes in cases.items():
        with pytest.raises(InvalidAnnotations, match=text) as raised:
            finetune(pruned, TrainingData(edited(few, tmp_path / "x.json", **changes)), SHORT, tmp_path)
        assert raised.value.expected and raised.value.received
    with pytest.raises(InvalidAnnotations) as raised:
        finetune(pruned, TrainingData(edited(few, tmp_path / "x.json", categories=shoes)), SHORT, tmp_path)
    assert "641100040" in raised.value.expected and "a shoe" in raised.value.received


def test_a_file_that_is_no_picture_is_named(
    pruned: nn.Module, few: CocoData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in few.file_names:
        (folder / name).write_bytes((few.images / name).read_bytes())
    data = replace(few, images=folder)
    (folder / few.file_names[2]).write_bytes(b"no picture")
    with pytest.raises(UnreadableImage, match=few.file_names[2]):
        finetune(pruned, TrainingData(data), SHORT, tmp_path)
    assert not capsys.readouterr().out  # Ultralytics' way to open it would have called pip
    # A whole header before a broken body.
    Image.new("RGB", (640, 640)).save(folder / "whole.png")
    (folder / few.file_names[2]).write_bytes((folder / "whole.png").read_bytes()[:60])
    with pytest.raises(UnreadableImage, match=few.file_names[2]):
        finetune(pruned, TrainingData(data), SHORT, tmp_path)


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
