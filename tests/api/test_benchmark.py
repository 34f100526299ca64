"""`benchmark` through the service: what it keeps, what it refuses, and a D-FINE checkpoint from upload to figures."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from tests.harness import Service
from tests.toolkit.dfines import save_dfine
from tests.toolkit.scenes import ASSETS, make_scenes

PID = "P000909"
WAYS = ["torch_fp32", "onnxruntime", "tensorrt_fp16"]


def _benchmark(service: Service, **parameters: Any) -> dict[str, Any]:
    job = service.run("benchmark", PID, {"ways": WAYS, "batch_sizes": [1, 2], **parameters})
    assert job["status"] == "completed", job["error"]
    return job


def _file(service: Service, job: dict[str, Any], name: str) -> bytes:
    answer = service.client.get(f"/optimizing/jobs/{job['pid']}/{job['oid']}/artifacts/{name}")
    assert answer.status_code == 200, answer.text
    return bytes(answer.content)


@pytest.mark.slow
def test_a_classifier_s_tables_page_and_pictures_are_kept(service: Service) -> None:
    pills = make_scenes(service.workspace / "benchmark", images=2, seed=78)
    checkpoint = service.upload(PID, "classification_best.pt", ASSETS / "pills_classifier.pt")
    job = _benchmark(service, input_path=checkpoint, data={"images": str(pills / "crops"), "sample": 24})
    document = json.loads(_file(service, job, "benchmark.json"))
    metrics = job["metrics"]
    assert metrics["rows"] == document["rows"] and metrics["accuracy"] == document["accuracy"]
    timed = [(row["way"], row["batch_size"]) for row in document["rows"] if row["parts"]]
    assert timed == [(way, size) for way in WAYS[:2] for size in (1, 2)]
    (lacking,) = [row["why_not"] for row in document["rows"] if not row["parts"]]
    assert "GPU" in lacking
    assert document["accuracy"]["torch_fp32"] == document["accuracy"]["onnxruntime"]
    assert document["accuracy"]["onnxruntime"]["images"] == 24
    assert _file(service, job, "benchmark.md").decode() == metrics["table"]
    page = _file(service, job, "benchmark.html").decode()
    assert "<table" in page and "data:image/png;base64," in page and "http://" not in page
    pictures = [name for name in job["artifact_files"] if name.endswith(".png")]
    assert sorted(pictures) == ["benchmark_accuracy.png", "benchmark_latency.png", "benchmark_throughput.png"]
    assert all(_file(service, job, name).startswith(b"\x89PNG") for name in pictures)


@pytest.mark.slow
def test_a_d_fine_archive_is_exported_with_fewer_queries_and_timed(service: Service, tmp_path: Path) -> None:
    folder = save_dfine(tmp_path / "tiny")
    with tarfile.open(tmp_path / "tiny.tar.gz", "w:gz") as archive:
        archive.add(folder, "tiny")
    key = service.upload(PID, "tiny.tar.gz", tmp_path / "tiny.tar.gz")
    exported = service.run("pt_to_onnx_fp32", PID, {"kind": "pt_to_onnx", "input_path": key, "num_queries": 20})
    assert exported["status"] == "completed", exported["error"]
    session = ort.InferenceSession(_file(service, exported, "tiny_fp32.onnx"), providers=["CPUExecutionProvider"])
    (spec,) = session.get_inputs()
    answers = session.run(None, {spec.name: np.zeros(spec.shape, np.float32)})
    assert [answer.shape for answer in answers] == [(1, 20, 5), (1, 20, 4)]
    job = _benchmark(service, input_path=key, batch_sizes=[1], num_queries=20)
    assert [bool(row["parts"]) for row in job["metrics"]["rows"]] == [True, True, False]
    assert job["metrics"]["model"]["family"] == "d_fine"


def test_words_that_do_not_fit_are_refused_at_once(service: Service) -> None:
    wrong: list[dict[str, Any]] = [{"ways": []}, {"ways": ["fast"]}, {"batch_sizes": [2, 1]}, {"batch_sizes": [1, 1]}]
    for words in wrong:
        answer = service.post("benchmark", PID, {"input_path": "best.pt", **words})
        assert answer.status_code == 422, answer.text


@pytest.mark.parametrize("name", ["best.engine", "BEST.PLAN"])
@pytest.mark.parametrize("device", [{}, {"device": "cpu"}], ids=["default", "cpu"])
def test_an_engine_without_the_gpu_is_refused_at_once(service: Service, name: str, device: dict[str, str]) -> None:
    answer = service.post("benchmark", PID, {"input_path": name, **device})
    assert answer.status_code == 422, answer.text
    assert "device: an engine runs on the GPU alone; set device to gpu" in answer.text
