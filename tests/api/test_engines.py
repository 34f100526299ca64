"""Engines through the service, with a double of trtexec: S0's examples, what is refused, and what is said."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from app.toolkit.export import onnx_from_torch
from app.toolkit.models.open_model import open_model
from tests.harness import Service
from tests.toolkit.scenes import make_scenes
from tests.toolkit.trt import trtexec

RELEASES = ("8.2", "8.5", "8.6", "10.3", "11.1")
PID = "P0001"
Machine = Callable[..., Service]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, pills_model: Path) -> bytes:
    data: bytes = onnx_from_torch(open_model(pills_model), input_size=(608, 608), opset=13).SerializeToString()
    return data


@pytest.fixture
def machine(make_service: Machine, tmp_path: Path) -> Machine:
    """A service on a machine with a trtexec: `machine("10.3", scenario="oom", DLA_CORES="2")`."""

    def make(release: str = "10.3", scenario: str = "success", dla_cores: int = 0, **environment: str) -> Service:
        place = trtexec(tmp_path, release, scenario, dla_cores=dla_cores).parent
        path = f"{place}{os.pathsep}{os.environ['PATH']}"
        return make_service(PATH=path, DLA_CORES=str(dla_cores), **environment)

    return make


def _artifact(service: Service, job: dict[str, Any], name: str) -> bytes:
    answer = service.client.get(f"/optimizing/jobs/{job['pid']}/{job['oid']}/artifacts/{name}")
    assert answer.status_code == 200, answer.text
    return answer.content


@pytest.mark.parametrize("release", RELEASES)
def test_s0_s_example_for_the_gpu_gives_an_engine_with_its_manifest(
    machine: Machine, graph: bytes, release: str
) -> None:
    service = machine(release)
    key = service.upload(PID, "best.onnx", graph)
    job = service.run("onnx_to_trt", PID, {"input_path": key, "precision": "fp16", "device": "gpu"})
    assert job["status"] == "completed", job["error"]
    names = {"best_fp16.engine", "best_fp16_stats.txt", "best_fp16_manifest.json", "best_fp16_preflight.json"}
    assert names | {"job.log"} == set(job["artifact_files"])
    metrics = job["metrics"]
    manifest = json.loads(_artifact(service, job, "best_fp16_manifest.json"))
    assert manifest == metrics["manifest"]
    assert metrics["tensorrt_version"].startswith(release)
    assert manifest["built_from"] == ("fp16 onnx" if release.startswith("11") else "fp32 onnx")
    assert metrics["stats"]["size_mb"] >= 0
    assert metrics["inputs"][0]["shape"] == [1, 3, 608, 608]
    assert metrics["other_builds_meanwhile"] == 0
    assert "&&&& PASSED TensorRT.trtexec" in _artifact(service, job, "job.log").decode()


@pytest.mark.parametrize("release", ["8.5", "10.3"])
def test_s0_s_example_for_a_dla_core_names_what_runs_where(machine: Machine, graph: bytes, release: str) -> None:
    service = machine(release, dla_cores=2)
    key = service.upload(PID, "best.onnx", graph)
    job = service.run("onnx_to_trt", PID, {"input_path": key, "precision": "fp16", "device": "dla0"})
    assert job["status"] == "completed", job["error"]
    assert job["metrics"]["manifest"]["device"] == "dla0"
    command = job["metrics"]["build"]["command"]
    assert {"--useDLACore=0", "--allowGPUFallback"} <= set(command)
    assert job["metrics"]["preflight"]["dla"] is not None


@pytest.mark.parametrize("release", ["8.5", "10.3", "11.1"])
def test_int8_without_the_python_package_is_quantised_first(machine: Machine, graph: bytes, release: str) -> None:
    service = machine(release)
    scenes = make_scenes(service.workspace / "pills", images=4, seed=51) / "images"
    key = service.upload(PID, "best.onnx", graph)
    job = service.run(
        "onnx_to_trt_int8",
        PID,
        {"input_path": key, "calib_dir": str(scenes), "precision": "int8", "input_size": [608, 608]},
    )
    assert job["status"] == "completed", job["error"]
    metrics = job["metrics"]
    assert metrics["manifest"]["built_from"] == "qdq onnx"
    assert metrics["manifest"]["quantization"] == "qdq"
    assert metrics["calibration"]["used"] == 4
    assert ("--int8" in metrics["build"]["command"]) == (not release.startswith("11"))
    assert any("mixed_fp16" in note for note in metrics["notes"])


def test_what_would_be_of_no_use_is_refused_before_the_build(machine: Machine, graph: bytes) -> None:
    service = machine("10.3")
    key = service.upload(PID, "best.onnx", graph)
    without = service.run("onnx_to_trt_int8", PID, {"input_path": key, "precision": "int8", "input_size": [608, 608]})
    assert without["error"]["code"] == "PREFLIGHT_FAILED"
    assert "INT8_WITHOUT_RANGES" in without["error"]["received"]
    no_core = service.run("onnx_to_trt", PID, {"input_path": key, "precision": "fp16", "device": "dla1"})
    assert "NO_DLA" in no_core["error"]["received"]
    assert "best_fp16_preflight.json" in no_core["artifact_files"]
    fp32 = service.post("onnx_to_trt", PID, {"input_path": key, "precision": "fp32", "device": "dla"})
    assert fp32.status_code == 422


def test_an_engine_for_another_machine_comes_as_the_line_to_run_there(machine: Machine, graph: bytes) -> None:
    service = machine("10.3")
    key = service.upload(PID, "best.onnx", graph)
    job = service.run("onnx_to_trt", PID, {"input_path": key, "precision": "fp16", "profile": "jetson-nano"})
    assert job["status"] == "failed"
    assert "trtexec --onnx=best.onnx" in job["error"]["hint"]
    assert "--workspace=128" in job["error"]["hint"]
    assert "--fp16" in job["error"]["hint"]


@pytest.mark.parametrize(
    ("scenario", "code"),
    [("out_of_memory", "OUT_OF_MEMORY"), ("parser_error", "UNSUPPORTED_OPERATOR"), ("killed", "BUILD_KILLED")],
)
def test_a_build_that_fails_says_why(machine: Machine, graph: bytes, scenario: str, code: str) -> None:
    service = machine("10.3", scenario)
    key = service.upload(PID, "best.onnx", graph)
    job = service.run("onnx_to_trt", PID, {"input_path": key, "precision": "fp16"})
    assert job["error"]["code"] == code, job["error"]
    assert not any(name.endswith(".engine") for name in job["artifact_files"])


def test_a_hung_trtexec_is_ended_at_its_limit(machine: Machine, graph: bytes) -> None:
    service = machine("10.3", "hang", TRTEXEC_TIMEOUT_SEC="1")
    key = service.upload(PID, "best.onnx", graph)
    job = service.run("onnx_to_trt", PID, {"input_path": key, "precision": "fp16"})
    assert job["error"]["code"] == "BUILD_TIMED_OUT"


def test_without_tensorrt_the_answer_is_at_once(service: Service, pid: str) -> None:
    answer = service.post("onnx_to_trt", pid, {"input_path": "artifacts/P1/optimizing/O1/a.onnx", "precision": "fp16"})
    assert answer.status_code == 409
    problem = answer.json()
    assert problem["code"] == "MACHINE_LACKS_LIBRARY"
    assert "trtexec or tensorrt" in problem["received"]
    assert "Dockerfile.jetson" in problem["hint"]


def test_builds_on_the_gpu_go_one_by_one_where_that_is_set(machine: Machine, graph: bytes) -> None:
    service = machine("10.3", GPU_EXCLUSIVE_BUILDS="true")
    key = service.upload(PID, "best.onnx", graph)
    jobs = [
        service.submit("onnx_to_trt", PID, {"input_path": key, "precision": "fp16", "workspace_mib": 100 + index})
        for index in range(3)
    ]
    ended = [service.wait(job) for job in jobs]
    assert [one["metrics"]["other_builds_meanwhile"] for one in ended] == [0, 0, 0]


def test_the_example_file_of_the_kind_is_a_graph_that_onnx_takes(graph: bytes) -> None:
    onnx.checker.check_model(graph)
