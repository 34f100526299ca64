"""`check_model_stats` through the service: the text, the picture beside it, and the same as JSON."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image

from tests.harness import Service


def _get(service: Service, path: str, name: str) -> bytes:
    answer = service.client.get(f"{path}/artifacts/{name}")
    assert answer.status_code == 200
    return answer.content


def test_a_checkpoint_is_told_in_words_in_numbers_and_in_a_picture(
    service: Service, pid: str, pills_model: Path, tmp_path: Path
) -> None:
    content = torch.load(pills_model, weights_only=False)
    weight = content["model"].model[3].conv.weight.data
    weight.fill_(1)
    weight.view(-1)[: weight.numel() // 2] = 0
    torch.save(content, tmp_path / "sparse.pt")
    key = service.upload(pid, "sparse.pt", tmp_path / "sparse.pt")
    path = service.submit("check_model_stats", pid, {"kind": "check_model_stats", "input_path": key})
    job = service.wait(path)
    assert job["status"] == "completed", job["error"]
    assert {"sparse_stats.txt", "sparse_stats.png", "job.log"} == set(job["artifact_files"])
    model = job["metrics"]["model"]
    row = next(row for row in model["layer_table"] if row["name"] == "model.3.conv")
    assert (row["sparsity_pct"], row["params"], row["macs"]) == (50.0, 18_432, 64 * 32 * 9 * 80 * 80)
    assert model["macs"] == 4_047_283_200
    assert sum(row["params"] for row in model["layer_table"]) == job["metrics"]["stats"]["total_params"]
    line = next(
        line for line in _get(service, path, "sparse_stats.txt").decode().splitlines() if "model.3.conv" in line
    )
    assert line.split() == [
        "model.3.conv",
        "Conv2d",
        "64x32x3x3",
        "float16",
        "18432",
        "9216",
        "50.00",
        str(row["macs"]),
    ]
    assert Image.open(io.BytesIO(_get(service, path, "sparse_stats.png"))).size[0] == 1200


def test_an_engine_has_a_text_and_no_picture(service: Service, pid: str) -> None:
    key = service.upload(pid, "m.engine", b"ftrt" + bytes(20) + bytes([8, 6, 1, 6]) + bytes(100))
    job = service.run("check_model_stats", pid, {"kind": "check_model_stats", "input_path": key})
    assert job["status"] == "completed", job["error"]
    assert {"m_stats.txt", "job.log"} == set(job["artifact_files"])
    assert job["metrics"]["stats"] == {
        "size_mb": 0.0,
        "total_params": None,
        "nonzero_params": None,
        "sparsity_pct": None,
    }
    assert job["metrics"]["model"]["details"]["tensorrt_version"] == "8.6.1.6"
    assert job["metrics"]["model"]["layer_table"] == []
