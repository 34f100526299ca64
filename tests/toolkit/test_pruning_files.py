"""Pruned networks as files: they open everywhere, hold nothing new, export with proof; and what measuring says."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.utils.torch_utils import get_num_params

from app.toolkit import errors
from app.toolkit.checkpoint import Checkpoint, model_from_checkpoint, open_checkpoint
from app.toolkit.coco import CocoResult, read_coco
from app.toolkit.images import DEFAULT_IMAGES
from app.toolkit.pipeline import export_and_prove
from app.toolkit.pruning.errors import InvalidPruning
from app.toolkit.pruning.masks import mask_structured, mask_unstructured
from app.toolkit.pruning.measuring import Comparison, Facts, compare, verdict
from app.toolkit.pruning.removal import RemovalOptions, remove_channels
from app.toolkit.pruning.saving import network_to_prune, notes_of, save_checkpoint
from app.toolkit.race import Race, RaceSettings, race
from app.toolkit.stats import model_stats
from tests.toolkit.conftest import MakeModel
from tests.toolkit.scenes import make_scenes

SMALL = (320, 320)
QUICK = RaceSettings(rounds=3, calls=4)


@pytest.fixture(scope="module")
def source(pills: Path) -> Checkpoint:
    return open_checkpoint(pills)


@pytest.fixture(scope="module")
def removed(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pills model with 30 % of its channels gone."""
    network, report = remove_channels(model_from_checkpoint(source), RemovalOptions(ratio=0.3))
    path = tmp_path_factory.mktemp("removed") / "pills_pruned.pt"
    save_checkpoint(source, network, path, report.as_dict())
    return path


@pytest.fixture(scope="module")
def masked(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pills model with a fifth of its weights zero."""
    network, report = mask_unstructured(model_from_checkpoint(source), 0.2)
    path = tmp_path_factory.mktemp("masked") / "pills_pruned.pt"
    save_checkpoint(source, network, path, report.as_dict())
    return path


def test_the_file_holds_nothing_that_its_source_did_not(source: Checkpoint, removed: Path, masked: Path) -> None:
    for path in (removed, masked):
        saved = open_checkpoint(path)
        assert set(saved.names) <= set(source.names)
        assert set(saved.content) == {*source.content, "pruning"}
        assert saved.content["train_args"] == source.content["train_args"]
        assert saved.content["ema"] is None and saved.content["epoch"] == -1
        network = model_from_checkpoint(saved)
        assert {p.dtype for p in network.parameters()} == {torch.float16}
        assert not any(p.requires_grad for p in network.parameters())
        assert network.names == model_from_checkpoint(source).names
        assert network.yaml["pruned"] is True  # type: ignore[index]
        assert not list(path.parent.glob("*.part"))


def test_a_plain_yolo_opens_and_runs_them(removed: Path, masked: Path) -> None:
    for path, params in ((removed, 1_715_068), (masked, 3_013_188)):
        model = YOLO(path)
        assert model.task == "detect" and len(model.names) == 12
        assert get_num_params(model.model) == params
        assert len(model.predict(DEFAULT_IMAGES[0], imgsz=320, verbose=False, device="cpu")) == 1


def test_the_zeros_in_the_file_are_a_fifth_of_the_masked_weights(masked: Path) -> None:
    network = torch.load(masked, weights_only=False)["model"]
    layers = [one for name, one in network.named_modules() if isinstance(one, nn.Conv2d) and ".dfl." not in name]
    zeros = sum(int((one.weight == 0).sum()) for one in layers)
    assert zeros / sum(one.weight.numel() for one in layers) == pytest.approx(0.2, abs=1e-5)
    stats = model_stats(masked).as_dict()["stats"]
    assert stats["total_params"] == 3_013_188
    assert stats["total_params"] - stats["nonzero_params"] == pytest.approx(zeros, abs=200)


def test_what_is_read_back_is_what_was_written(source: Checkpoint, removed: Path, tmp_path: Path) -> None:
    first = open_checkpoint(removed)
    save_checkpoint(first, model_from_checkpoint(first), tmp_path / "again.pt", {"kind": "copy"})
    second = open_checkpoint(tmp_path / "again.pt")
    one, two = (model_from_checkpoint(checkpoint).state_dict() for checkpoint in (first, second))
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert [note["kind"] for note in notes_of(second)] == ["removal", "copy"]
    assert notes_of(source) == []
    assert notes_of(first)[0]["params_after"] == 1_715_068


def test_what_is_pruned_again_keeps_its_history(removed: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(removed)
    network, report = remove_channels(model_from_checkpoint(checkpoint), RemovalOptions(ratio=0.3))
    save_checkpoint(checkpoint, network, tmp_path / "twice.pt", report.as_dict())
    assert [note["params_before"] for note in notes_of(open_checkpoint(tmp_path / "twice.pt"))] == [
        3_013_188,
        1_715_068,
    ]
    twice, _ = mask_structured(network, 0.2)
    save_checkpoint(checkpoint, twice, tmp_path / "masked.pt", {})
    assert YOLO(tmp_path / "masked.pt").task == "detect"


def test_a_note_that_is_not_plain_data_is_refused_and_nothing_written(source: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InvalidPruning) as caught:
        save_checkpoint(source, model_from_checkpoint(source), tmp_path / "x.pt", {"a": [{"b": Path("c")}]})
    assert caught.value.received == "note.a[0].b: PosixPath"
    assert not list(tmp_path.iterdir())


def test_a_full_precision_checkpoint_stays_one(source: Checkpoint, tmp_path: Path) -> None:
    network = copy.deepcopy(model_from_checkpoint(source)).float()
    torch.save({"model": network, "train_args": {}}, tmp_path / "full.pt")
    full = open_checkpoint(tmp_path / "full.pt")
    save_checkpoint(full, network, tmp_path / "saved.pt", {})
    saved = model_from_checkpoint(open_checkpoint(tmp_path / "saved.pt"))
    assert {p.dtype for p in saved.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["pills", "yolo11n"])
def test_what_is_left_exports_with_proof(source: Checkpoint, make_model: MakeModel, name: str, tmp_path: Path) -> None:
    checkpoint = source if name == "pills" else open_checkpoint(make_model(name))
    options = RemovalOptions(ratio=0.3, head=name == "yolo11n")
    network, report = remove_channels(model_from_checkpoint(checkpoint), options, input_size=SMALL)
    save_checkpoint(checkpoint, network, tmp_path / "p.pt", report.as_dict())
    result = export_and_prove(tmp_path / "p.pt", tmp_path / "p.onnx", input_size=SMALL, images=DEFAULT_IMAGES[:1])
    assert result.parity["passed"]
    assert result.stats["total_params"] < report.after.params  # normalisations are in the convolutions


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("name", ["yolov8n", "yolov8s", "yolo11n", "yolo11n-pose", "yolov8n-seg", "yolo11n-cls"])
def test_every_export_passes_the_proof(name: str, ratio: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = YOLO(f"{name}.yaml")
    torch.save({"model": model.model, "ema": None, "train_args": {}}, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    network, _ = remove_channels(model_from_checkpoint(checkpoint), RemovalOptions(ratio=ratio))
    save_checkpoint(checkpoint, network, tmp_path / "p.pt", {})
    assert export_and_prove(tmp_path / "p.pt", tmp_path / "p.onnx").parity["passed"]


def test_a_race_of_a_model_with_itself_has_no_winner(pills: Path, removed: Path) -> None:
    same = compare(pills, pills, input_size=SMALL, settings=QUICK)
    assert same.before == same.after
    assert same.races[0].speedup == pytest.approx(1, abs=0.35)
    assert "removed: nothing" in verdict("removal", same)
    assert "masked: nothing" in verdict("mask", same)


def test_both_models_are_measured_and_the_smaller_one_is_faster(pills: Path, removed: Path) -> None:
    comparison = compare(pills, removed, input_size=SMALL, settings=RaceSettings(rounds=5, calls=5))
    report = comparison.as_dict()
    assert report["before"]["total_params"] == 3_013_188 and report["after"]["total_params"] == 1_715_068
    assert report["after"]["macs"] < 0.65 * report["before"]["macs"]
    assert report["after"]["size_mb"] < 0.65 * report["before"]["size_mb"]
    assert report["after"]["sparsity_pct"] < 0.1
    assert comparison.races[0].speedup > 1
    assert report["before"]["latency_p50_ms"] == report["latency"][0]["before_p50_ms"]
    assert json.loads(json.dumps(report)) == report
    sentence = verdict("removal", comparison)
    assert sentence.startswith("removed: 37 % fewer MACs, 43 % fewer parameters, ")
    assert sentence.endswith("accuracy was not measured, fine-tune before use")


def test_without_threads_there_is_no_race(pills: Path, masked: Path) -> None:
    comparison = compare(pills, masked, input_size=SMALL, threads=())
    assert comparison.races == () and "latency_p50_ms" not in comparison.as_dict()["before"]
    sentence = verdict("mask", comparison)
    assert sentence.startswith("masked: 19.9 % of all parameters are zero now, but zeros are stored")
    assert "no dense runtime gets faster;" in sentence


@pytest.mark.slow
def test_accuracy_of_both_is_measured_on_coco_data(pills: Path, removed: Path, tmp_path: Path) -> None:
    folder = make_scenes(tmp_path / "scenes", images=6, seed=31)
    data = read_coco(folder / "instances.json", folder / "images")
    comparison = compare(pills, removed, threads=(), data=data)
    before, after = (one.accuracy for one in (comparison.before, comparison.after))
    assert before is not None and before.map50_95 > 0.95
    assert after is not None and after.map50_95 < before.map50_95
    assert "fine-tune before use" in verdict("removal", comparison)


def _facts(params: int = 100, nonzero: int | None = None, macs: int = 100, score: float | None = None) -> Facts:
    accuracy = None if score is None else CocoResult(score, score, 10, 20)
    nonzero = params if nonzero is None else nonzero
    return Facts(params, nonzero, 100 * (1 - nonzero / params), 1.5, macs, accuracy)


def _comparison(before: Facts, after: Facts, *speedups: tuple[float, float, float]) -> Comparison:
    races = tuple(Race(1, 10.0, 10.0 / speed, speed, low, high) for speed, low, high in speedups)
    return Comparison(before, after, SMALL, races)


@pytest.mark.parametrize(
    ("kind", "comparison", "finetuned", "expected"),
    [
        (
            "removal",
            _comparison(_facts(score=0.994), _facts(75, macs=69, score=0.99), (1.38, 1.35, 1.41)),
            True,
            (
                "removed: 31 % fewer MACs, 25 % fewer parameters, 1.38x faster here on 1 thread (1.35 to 1.41); "
                "mAP50-95 0.994 before, 0.990 after (fine-tuned)"
            ),
        ),
        (
            "removal",
            _comparison(_facts(score=0.9), _facts(75, macs=69, score=0.1), (0.9, 0.85, 0.95)),
            False,
            (
                "removed: 31 % fewer MACs, 25 % fewer parameters, but slower here on 1 thread (0.90x, 0.85 to 0.95); "
                "mAP50-95 0.900 before, 0.100 after: 0.800 lost, fine-tune before use"
            ),
        ),
        (
            "removal",
            _comparison(_facts(), _facts(75, macs=69), (1.05, 0.95, 1.1)),
            False,
            (
                "removed: 31 % fewer MACs, 25 % fewer parameters, but no faster here on 1 thread "
                "(1.05x, 0.95 to 1.10); accuracy was not measured, fine-tune before use"
            ),
        ),
        (
            "mask",
            _comparison(_facts(score=0.9), _facts(nonzero=80, score=0.85), (1.0, 0.99, 1.01)),
            False,
            (
                "masked: 20.0 % of all parameters are zero now, but zeros are stored: the file stays 1.5 MB and no "
                "dense runtime gets faster (1.00x here); to be smaller and faster, remove channels; "
                "mAP50-95 0.900 before, 0.850 after: 0.050 lost, fine-tune before use"
            ),
        ),
        (
            "mask",
            _comparison(_facts(), _facts(nonzero=1)),
            False,
            (
                "masked: 99.0 % of all parameters are zero now, which leaves a model that answers nothing, but zeros "
                "are stored: the file stays 1.5 MB and no dense runtime gets faster; to be smaller and faster, remove "
                "channels; accuracy was not measured"
            ),
        ),
    ],
)
def test_the_verdict_says_what_was_gained_and_lost(
    kind: Any, comparison: Comparison, finetuned: bool, expected: str
) -> None:
    assert verdict(kind, comparison, finetuned=finetuned) == expected


def test_a_race_refuses_what_onnx_runtime_refuses() -> None:
    with pytest.raises(errors.RuntimeUnavailable):
        race(b"no model", b"none either")


def test_weights_alone_are_no_model_to_prune(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.StateDictWithoutModel):
        model_from_checkpoint(open_checkpoint(classifier))


def test_a_checkpoint_with_quantised_layers_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to drop these layers; files with them will stay
        quantised = torch.ao.nn.quantized.Conv2d(3, 8, 3)  # type: ignore[no-untyped-call]
        torch.save({"model": nn.Sequential(quantised), "train_args": {}}, tmp_path / "q.pt")
    with pytest.raises(errors.UnsafeCheckpoint) as caught:
        open_checkpoint(tmp_path / "q.pt")
    assert "torch.ao.nn.quantized" in caught.value.received


def test_a_checkpoint_trained_for_quantisation_is_refused(source: Checkpoint) -> None:
    qat = Checkpoint(source.path, {**source.content, "modelopt": {"scales": 1}}, source.names)
    with pytest.raises(errors.AlreadyQuantised, match="trained for quantisation"):
        network_to_prune(qat)
    assert network_to_prune(source) is model_from_checkpoint(source)
