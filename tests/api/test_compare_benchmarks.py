"""`compare_benchmarks` through the service."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.harness import Service
from tests.toolkit.benchmark_results import benchmark_of, timed


def _benchmark(p50_ms: float) -> bytes:
    return json.dumps(benchmark_of(timed("onnxruntime", 1, p50_ms)).as_dict()).encode()


def _stored(service: Service, pid: str, *contents: bytes) -> dict[str, Any]:
    """The parameters that name these contents, which lie in two uploads of the same name."""
    keys = [service.upload(pid, "benchmark.json", content) for content in contents]
    return dict(zip(("before_path", "after_path"), keys, strict=True))


def test_a_regression_is_answered_at_once_and_its_files_are_kept(service: Service, pid: str) -> None:
    answer = service.post("compare_benchmarks", pid, _stored(service, pid, _benchmark(10.0), _benchmark(12.0)))
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["status"] == "completed", job["error"]
    assert job["metrics"]["regression"] is True
    assert job["metrics"]["verdict"].startswith("Regression beyond 5 %: rows judged 1, 1 slower")
    assert job["metrics"]["comparison"]["rows"][0]["ratio"] == pytest.approx(1.2)
    place = f"/optimizing/jobs/{pid}/{job['oid']}/artifacts/"
    assert json.loads(service.client.get(f"{place}comparison.json").content) == job["metrics"]["comparison"]
    assert service.client.get(f"{place}comparison.md").text == job["metrics"]["table"]


def test_what_is_not_decided_is_no_answer(service: Service, pid: str) -> None:
    stored = _stored(service, pid, _benchmark(10.0), _benchmark(10.5))
    metrics = service.post("compare_benchmarks", pid, stored).json()["metrics"]
    assert metrics["regression"] is None and metrics["comparison"]["regression"] is None
    assert metrics["verdict"] == "Undecided: no row is slower beyond 5 %, but 1 may be: rows judged 1, 1 undecided."


def test_the_tolerance_is_the_request_s(service: Service, pid: str) -> None:
    stored = _stored(service, pid, _benchmark(10.0), _benchmark(12.0))
    asked = service.post("compare_benchmarks", pid, {**stored, "tolerance": 0.3}).json()
    assert asked["metrics"]["regression"] is False
    for tolerance in (-0.1, 1.1, "wide"):
        assert service.post("compare_benchmarks", pid, {**stored, "tolerance": tolerance}).status_code == 422


@pytest.mark.parametrize("content", [b"{}", b"no json"])
def test_what_is_no_benchmark_fails_and_says_which_of_the_two(service: Service, pid: str, content: bytes) -> None:
    job = service.post("compare_benchmarks", pid, _stored(service, pid, _benchmark(10.0), content)).json()
    assert job["error"]["code"] == "CORRUPT_FILE"
    assert "the benchmark after" in job["error"]["message"]


def test_only_json_files_are_taken(service: Service, pid: str) -> None:
    asked = {"before_path": "a.onnx", "after_path": "b.json"}
    assert service.post("compare_benchmarks", pid, asked).status_code == 422


def test_the_same_question_is_answered_from_the_first_answer(service: Service, pid: str) -> None:
    stored = _stored(service, pid, _benchmark(10.0), _benchmark(12.0))
    first, second = (service.post("compare_benchmarks", pid, stored).json() for _ in range(2))
    assert second["metrics"] == first["metrics"]
    assert second["cached_from"] is not None
