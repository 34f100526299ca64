"""The documented examples of S0, sections 1, 2 and 5, pasted as they stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Service
from tests.services import by_hand

pytestmark = pytest.mark.every_store

EXAMPLES = {
    "pt_to_onnx_fp32": """
{
  "pid": "P0001",
  "parameters": {
    "kind": "pt_to_onnx",
    "input_path": "artifacts/P0001/optimizing/O0001/best.pt",
    "input_size": [640, 640],
    "batch_size": 1
  }
}
""",
    "pt_to_onnx_fp16": """
{
  "pid": "P0001",
  "parameters": {
    "kind": "pt_to_onnx",
    "input_path": "artifacts/P0001/optimizing/O0001/yolov8n.pt",
    "output_path": "yolov8n_fp16.onnx",
    "input_size": [640, 640],
    "batch_size": 1
  }
}
""",
    "prune_unstructured": """
{
  "pid": "P0001",
  "parameters": {
    "kind": "prune_unstructured",
    "input_path": "artifacts/P0001/optimizing/O0001/best.pt",
    "amount": 0.2,
    "pruning_type": "l1_unstructured"
  }
}
""",
    "prune_structured": """
{
  "pid": "P0001",
  "parameters": {
    "kind": "prune_structured",
    "input_path": "artifacts/P0001/optimizing/O0001/best.pt",
    "amount": 0.2,
    "pruning_type": "ln_structured",
    "n": 2,
    "dim": 0
  }
}
""",
    "check_model_stats": """
{
  "pid": "P0001",
  "parameters": {
    "kind": "check_model_stats",
    "input_path": "artifacts/P0001/optimizing/O0001/best.pt"
  }
}
""",
}
KINDS = {action: "pt_to_onnx" if action.startswith("pt_to_onnx") else action for action in EXAMPLES}
FILES = {
    "pt_to_onnx_fp32": ["best_fp32.onnx", "best_fp32_stats.txt", "job.log"],
    "pt_to_onnx_fp16": ["job.log", "yolov8n_fp16.onnx", "yolov8n_fp16_stats.txt"],
    "prune_unstructured": ["best_pruned.pt", "best_pruned_stats.txt", "job.log"],
    "prune_structured": ["best_pruned.pt", "best_pruned_stats.txt", "job.log"],
    "check_model_stats": ["best_stats.txt", "job.log"],
}
STATS = {"size_mb", "total_params", "nonzero_params", "sparsity_pct"}


@pytest.fixture(scope="module")
def pasted(service: Service, pills_model: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """Action -> the 202's body and the job's path, all running beside each other."""
    key = service.upload("P0001", "best.pt", pills_model)
    assert key == "artifacts/P0001/optimizing/O0001/best.pt"
    # The second example names another file at the same place: one that the platform put there itself.
    by_hand.put(service, key.replace("best.pt", "yolov8n.pt"), pills_model.read_bytes())
    answers = {}
    for action, text in EXAMPLES.items():
        answer = service.client.post(
            f"/optimizing/{action}", content=text.encode(), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 202, answer.text
        answers[action] = (answer.json(), answer.headers["location"])
    return answers


@pytest.mark.parametrize("action", EXAMPLES)
def test_the_answer_has_exactly_the_documented_keys(
    pasted: dict[str, tuple[dict[str, Any], str]], service: Service, action: str
) -> None:
    body, location = pasted[action]
    assert body == {
        "uid": "0001",
        "pid": "P0001",
        "oid": body["oid"],
        "action": action,
        "status": "started",
        "details": {"kind": KINDS[action]},
        "info": {"workdir": str(service.workspace / "jobs" / "0001" / "P0001" / body["oid"])},
    }
    assert location == f"/optimizing/jobs/P0001/{body['oid']}"


@pytest.mark.parametrize("action", EXAMPLES)
def test_the_job_completes_with_the_documented_files_in_their_place(
    pasted: dict[str, tuple[dict[str, Any], str]], service: Service, action: str
) -> None:
    body, location = pasted[action]
    job = service.wait(location)
    assert job["status"] == "completed", (job["error"], service.job_log(location))
    place = f"artifacts/P0001/optimizing/{body['oid']}/"
    assert job["artifacts_path"] == place
    assert set(FILES[action]) <= set(job["artifact_files"])
    assert set(job["metrics"]["stats"]) >= STATS
    for name in FILES[action]:
        stored = by_hand.read(service, place + name)
        assert service.client.get(f"{location}/artifacts/{name}").content == stored
    assert not Path(body["info"]["workdir"]).exists()


def test_fp16_is_half_the_size_and_both_are_proven(
    pasted: dict[str, tuple[dict[str, Any], str]], service: Service
) -> None:
    jobs = {action: service.wait(pasted[action][1]) for action in ("pt_to_onnx_fp32", "pt_to_onnx_fp16")}
    sizes = {action: job["metrics"]["stats"]["size_mb"] for action, job in jobs.items()}
    assert 0.45 < sizes["pt_to_onnx_fp16"] / sizes["pt_to_onnx_fp32"] < 0.55
    for job in jobs.values():
        assert job["metrics"]["parity"]
        assert job["metrics"]["onnx"]["opset"] == 17
        inputs = job["metrics"]["onnx"]["inputs"]
        assert [spec["dtype"] for spec in inputs] == ["float32"]
        assert [spec["shape"] for spec in inputs] == [[1, 3, 640, 640]]


def test_the_examples_here_are_the_examples_of_the_kinds(service: Service) -> None:
    kinds = {kind["action"]: kind for kind in service.client.get("/optimizing/kinds").json()["kinds"]}
    for action, text in EXAMPLES.items():
        given = json.loads(text)
        shown = kinds[action]["example"]
        assert set(shown["parameters"]) <= set(given["parameters"])
        assert shown["parameters"]["kind"] == given["parameters"]["kind"]
