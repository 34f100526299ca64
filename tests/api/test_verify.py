"""`verify` through the service: what passes, what fails and by which of the two answers, and what is kept."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.harness import Service
from tests.toolkit.scenes import ASSETS, make_scenes

PID = "P000808"


@pytest.fixture(scope="module")
def pills(service: Service) -> Path:
    """Twelve scenes, labelled, and crops by class, where requests may read."""
    return make_scenes(service.workspace / "verify", images=12, seed=77)


@pytest.fixture(scope="module")
def data(pills: Path) -> dict[str, str]:
    return {"images": str(pills / "images"), "annotations": str(pills / "instances.json")}


@pytest.fixture(scope="module")
def reference(service: Service) -> str:
    return service.upload(PID, "detection_best.pt", ASSETS / "pills_yolov8n.pt")


@pytest.fixture(scope="module")
def candidate(service: Service, reference: str) -> str:
    """The service's own export."""
    job = service.run("pt_to_onnx_fp32", PID, {"kind": "pt_to_onnx", "input_path": reference})
    assert job["status"] == "completed", job["error"]
    (name,) = [name for name in job["artifact_files"] if name.endswith(".onnx")]
    return f"{_prefix(job)}{name}"


def _prefix(job: dict[str, Any]) -> str:
    return f"artifacts/{job['pid']}/optimizing/{job['oid']}/"


def _file(service: Service, job: dict[str, Any], name: str) -> bytes:
    answer = service.client.get(f"/optimizing/jobs/{job['pid']}/{job['oid']}/artifacts/{name}")
    assert answer.status_code == 200, answer.text
    return bytes(answer.content)


def test_a_good_export_passes_both_answers_and_says_so(
    service: Service, reference: str, candidate: str, data: dict[str, str]
) -> None:
    asked = {"reference_path": reference, "candidate_path": candidate, "data": data, "mode": "full"}
    job = service.run("verify", PID, asked)
    assert job["status"] == "completed", job["error"]
    metrics = job["metrics"]
    assert metrics["verdict"] == "passed" and not metrics["undecided"]
    assert metrics["kernel"]["verdict"] == metrics["pipeline"]["verdict"] == "passed"
    assert {"export_report.json", "report.html"} <= set(job["artifact_files"])
    report = json.loads(_file(service, job, "export_report.json"))
    assert report == metrics["report"]
    assert (report["ckpt_path"], report["onnx_path"]) == (reference, candidate)
    assert report["compare"]["sampled_images"] == 12 and report["compare"]["failed"] is False
    assert abs(report["compare"]["deltas"]["map_0_5_0_95"]) <= 0.01
    assert report["providers"] == ["CPUExecutionProvider"]


def test_another_preprocessing_fails_the_pipeline_and_not_the_kernel(
    service: Service, reference: str, candidate: str, data: dict[str, str]
) -> None:
    asked = {
        "reference_path": reference,
        "candidate_path": candidate,
        "data": data,
        "mode": "full",
        "preprocessing": {"candidate": {"channel_order": "BGR"}},
    }
    job = service.run("verify", PID, asked)
    assert job["status"] == "failed"
    assert job["error"]["code"] == "VERIFICATION_FAILED"
    assert "pipeline" in job["error"]["received"] and "kernel" not in job["error"]["received"]
    assert "RGB" in job["error"]["hint"]
    report = json.loads(_file(service, job, "export_report.json"))
    assert report["compare"]["failed"] is True and report["compare"]["failure_reason"]
    assert b"<html" in _file(service, job, "report.html")


def test_a_changed_weight_fails_the_kernel(
    service: Service, reference: str, candidate: str, data: dict[str, str]
) -> None:
    pid, _, oid, name = candidate.split("/")[1:]
    graph = onnx.load_model_from_string(_file(service, {"pid": pid, "oid": oid}, name))
    weight = max(graph.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(0.2), weight.name))
    key = service.upload(PID, "changed.onnx", graph.SerializeToString())
    asked = {"reference_path": reference, "candidate_path": key, "data": data, "mode": "full"}
    job = service.run("verify", PID, asked)
    assert (job["status"], job["error"]["code"]) == ("failed", "VERIFICATION_FAILED")
    assert "kernel" in job["error"]["received"]


@pytest.mark.slow
def test_a_classifier_is_verified_on_an_archive_of_class_folders(service: Service, pills: Path) -> None:
    checkpoint = service.upload(PID, "classification_best.pt", ASSETS / "pills_classifier.pt")
    job = service.run("pt_to_onnx_fp16", PID, {"kind": "pt_to_onnx", "input_path": checkpoint})
    assert job["status"] == "completed", job["error"]
    (name,) = [name for name in job["artifact_files"] if name.endswith(".onnx")]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted((pills / "crops").rglob("*.png")):
            archive.write(path, path.relative_to(pills))
    images = service.upload(PID, "crops.zip", packed.getvalue())
    asked = {"reference_path": checkpoint, "candidate_path": f"{_prefix(job)}{name}", "data": {"images": images}}
    verified = service.run("verify", PID, {**asked, "per_class_k": 4})
    assert verified["status"] == "completed", verified["error"]
    compare = verified["metrics"]["report"]["compare"]
    assert (compare["sampled_classes"], compare["sampled_images"]) == (12, 48)
    assert 0 < compare["mse_mean"] <= 5e-4 and compare["deltas"]["map_0_5"] is None
    assert "12" in compare["notes"], "min_classes is capped, and the report says so"


def test_words_that_do_not_fit_together_are_refused_at_once(
    service: Service, reference: str, data: dict[str, str]
) -> None:
    asked = {"reference_path": reference, "candidate_path": reference, "data": data}
    for wrong in ({"strict": True}, {"hardness_bins": [0.5, 0.2]}, {"mode": "auto", "hardness_bins": [0, 1]}):
        assert service.post("verify", PID, {**asked, **wrong}).status_code == 422
