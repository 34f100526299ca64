"""Pruning through the service: what the result is, what it says of itself, and what is refused at once."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics import YOLO

from tests.harness import Service
from tests.toolkit.scenes import make_scenes

PID = "P000777"
SMALL = {"input_size": [320, 320]}
"""What a result is measured at; a quarter of the work."""


@pytest.fixture(scope="module")
def key(service: Service, pills_model: Path) -> str:
    return service.upload(PID, "best.pt", pills_model)


def _result(service: Service, job: dict[str, Any], tmp_path: Path) -> nn.Module:
    """The network of a job's `best_pruned.pt`, as a plain `YOLO` opens it."""
    path = tmp_path / "best_pruned.pt"
    url = f"/optimizing/jobs/{job['pid']}/{job['oid']}/artifacts/best_pruned.pt"
    path.write_bytes(service.client.get(url).content)
    return YOLO(str(path)).model  # type: ignore[no-any-return]


def _weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: module.weight.detach()
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and not name.endswith("dfl.conv")
    }


def test_a_fifth_of_the_weights_are_zero(service: Service, key: str, tmp_path: Path) -> None:
    job = service.run("prune_unstructured", PID, {"input_path": key, "amount": 0.2, **SMALL})
    assert job["status"] == "completed", job["error"]
    tensors = _weights(_result(service, job, tmp_path)).values()
    zeros, count = (sum(f(tensor) for tensor in tensors) for f in (lambda t: int((t == 0).sum()), torch.numel))
    assert zeros / count == pytest.approx(0.2, abs=1e-3)
    metrics = job["metrics"]
    assert "no dense runtime gets faster" in metrics["verdict"]
    assert metrics["after"]["total_params"] == metrics["before"]["total_params"]
    assert metrics["after"]["nonzero_params"] < metrics["before"]["nonzero_params"]
    assert metrics["finetune"] is None


def test_whole_filters_are_zero(service: Service, key: str, tmp_path: Path) -> None:
    job = service.run("prune_structured", PID, {"input_path": key, "amount": 0.25, "n": 1, **SMALL})
    assert job["status"] == "completed", job["error"]
    weight = _weights(_result(service, job, tmp_path))["model.0.conv"]
    assert int((weight.flatten(1).abs().sum(1) == 0).sum()) == round(0.25 * weight.shape[0])


@pytest.mark.slow
def test_channels_leave_and_the_result_goes_on_its_way(service: Service, key: str, tmp_path: Path) -> None:
    scenes = make_scenes(tmp_path / "scenes", images=8, seed=5)
    annotations = service.upload(PID, "instances.json", scenes / "instances.json")
    images = service.workspace / "scenes"
    if not images.exists():
        (scenes / "images").rename(images)
    data = {"images": str(images), "annotations": annotations}
    parameters = {"input_path": key, "remove": True, "target": {"macs": 0.65}, "data": data, "output_path": "small.pt"}
    job = service.run("prune_structured", PID, parameters)
    assert job["status"] == "completed", (job["error"], service.job_log(f"/optimizing/jobs/{PID}/{job['oid']}"))
    metrics = job["metrics"]
    assert metrics["after"]["macs"] / metrics["before"]["macs"] == pytest.approx(0.65, abs=0.03)
    assert metrics["after"]["size_mb"] < 0.8 * metrics["before"]["size_mb"]
    assert metrics["verdict"].startswith("removed: ")
    assert metrics["before"]["map50_95"] > 0.9 > metrics["after"]["map50_95"]
    assert any("train()" in warning for warning in metrics["pruning"]["warnings"])
    small = f"{job['artifacts_path']}small.pt"
    exported = service.run("pt_to_onnx_fp32", PID, {"kind": "pt_to_onnx", "input_path": small})
    assert (exported["status"], exported["metrics"]["parity"]["passed"]) == ("completed", True)
    again = service.run("prune_structured", PID, {"input_path": small, "remove": True, "amount": 0.2, **SMALL})
    assert again["status"] == "completed", again["error"]
    assert again["metrics"]["after"]["total_params"] < metrics["after"]["total_params"]


@pytest.mark.slow
def test_a_removal_is_trained_back(service: Service, key: str, tmp_path: Path) -> None:
    scenes = make_scenes(tmp_path / "scenes", images=48, seed=6)
    annotations = service.upload(PID, "train.json", scenes / "instances.json")
    images = service.workspace / "train-scenes"
    (scenes / "images").rename(images)
    data = {"images": str(images), "annotations": annotations}
    parameters = {
        "input_path": key,
        "remove": True,
        "amount": 0.2,
        "input_size": [320, 320],
        "data": data,
        "importance": "taylor",
        "calibration": {"images": str(images), "sample": 8},
        "finetune": {"data": data, "epochs": 4, "batch": 4},
    }
    path = service.submit("prune_structured", PID, parameters)
    job = service.wait(path, 280)
    assert job["status"] == "completed", (job["error"], service.job_log(path))
    trained = job["metrics"]["finetune"]
    assert len(trained["history"]) == 4
    assert job["metrics"]["after"]["map50_95"] > 0.3
    assert "epoch 4/4: " in service.job_log(path)
    network = _result(service, job, tmp_path)
    assert sum(parameter.numel() for parameter in network.parameters()) == job["metrics"]["after"]["total_params"]
    key = f"{job['artifacts_path']}best_pruned.pt"
    exported = service.run("pt_to_onnx_fp32", PID, {"kind": "pt_to_onnx", "input_path": key, **SMALL})
    assert exported["metrics"]["parity"]["passed"]


REMOVE = {"remove": True}
FINETUNE = {"data": {"images": "artifacts/P1/images"}, "epochs": 1}


@pytest.mark.parametrize(
    ("action", "parameters", "words"),
    [
        ("prune_unstructured", {"amount": 1.1}, "less than or equal to 1"),
        ("prune_unstructured", {"amount": -0.1}, "greater than or equal to 0"),
        ("prune_unstructured", {"pruning_type": "ln_structured"}, "l1_unstructured"),
        ("prune_unstructured", {"remove": True}, "unknown field"),
        ("prune_unstructured", {"output_path": "best.onnx"}, "ends in .pt"),
        ("prune_structured", {"n": 0}, "greater than or equal to 1"),
        ("prune_structured", {"dim": 7}, "less than or equal to 3"),
        ("prune_structured", {"round_to": 4}, "only with `remove`"),
        ("prune_structured", {"target": {"macs": 0.5}}, "only with `remove`"),
        ("prune_structured", {**REMOVE, "dim": 1}, "whole output channels"),
        ("prune_structured", {**REMOVE, "n": 1}, "ranked by `importance`"),
        ("prune_structured", {**REMOVE, "amount": 1.0}, "leaves nothing"),
        ("prune_structured", {**REMOVE, "amount": 0.0}, "removes nothing"),
        ("prune_structured", {**REMOVE, "target": {}}, "either"),
        ("prune_structured", {**REMOVE, "target": {"macs": 0.5, "params": 0.5}}, "either"),
        ("prune_structured", {**REMOVE, "amount": 0.5, "target": {"macs": 0.5}}, "either `amount` or `target`"),
        ("prune_structured", {**REMOVE, "importance": "taylor"}, "belong together"),
        ("prune_structured", {**REMOVE, "finetune": FINETUNE}, "COCO annotations"),
        ("prune_structured", {**REMOVE, "finetune": {**FINETUNE, "epochs": 0}}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    service: Service, key: str, action: str, parameters: dict[str, Any], words: str
) -> None:
    answer = service.post(action, PID, {"input_path": key, **parameters})
    assert answer.status_code == 422
    assert words in answer.text


@pytest.mark.parametrize(
    ("action", "parameters", "code", "words"),
    [
        ("prune_unstructured", {"exclude": ["model.99"]}, "UNKNOWN_LAYER", "model.9"),
        ("prune_structured", {**REMOVE, "include": ["nothing"]}, "UNKNOWN_LAYER", "nothing"),
        ("prune_structured", {**REMOVE, "target": {"params": 0.001}}, "TARGET_UNREACHABLE", "params"),
        ("prune_structured", {**REMOVE, "input_size": [100, 100]}, "INVALID_INPUT_SIZE", "32"),
    ],
)
def test_what_only_the_model_can_tell_fails_with_a_word_on_it(
    service: Service, key: str, action: str, parameters: dict[str, Any], code: str, words: str
) -> None:
    job = service.run(action, PID, {"input_path": key, **parameters})
    assert (job["status"], job["error"]["code"]) == ("failed", code)
    assert words in str(job["error"])


def test_a_checkpoint_without_a_network_is_told_apart(service: Service) -> None:
    buffer = io.BytesIO()
    torch.save({"layer.weight": torch.zeros(3)}, buffer)
    weights = service.upload(PID, "weights.pt", buffer.getvalue())
    job = service.run("prune_unstructured", PID, {"input_path": weights})
    assert job["error"]["code"] == "STATE_DICT_WITHOUT_MODEL"
