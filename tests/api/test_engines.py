"""Engines through the service, with a double of trtexec: S0's examples, what is refused, and what is said."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.toolkit.export import onnx_from_torch
from app.toolkit.models.open_model import open_model
from tests.harness import Service, eventually
from tests.toolkit.scenes import make_scenes
from tests.toolkit.trt import trtexec

RELEASES = ("8.2", "8.5", "8.6", "10.3", "11.1")
PID = "P0001"
ROOT = Path(__file__).parents[2]
PACKAGE = """
import sys
from tests.doubles.tensorrt.module import make
sys.modules[__name__] = make("{release}", dla_cores=2)
"""
Machine = Callable[..., Service]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, pills_model: Path) -> bytes:
    data: bytes = onnx_from_torch(open_model(pills_model), input_size=(608, 608), opset=13).SerializeToString()
    return data


@pytest.fixture
def machine(make_service: Machine, tmp_path: Path) -> Machine:
    """A service on a machine with a trtexec: `machine("10.3", scenario="oom", DLA_CORES="2")`."""

    def make(
        release: str = "10.3",
        scenario: str = "success",
        dla_cores: int = 0,
        pause_sec: float = 0.0,
        **environment: str,
    ) -> Service:
        place = trtexec(tmp_path, release, scenario, dla_cores=dla_cores, pause_sec=pause_sec).parent
        path = f"{place}{os.pathsep}{os.environ['PATH']}"
        return make_service(PATH=path, DLA_CORES=str(dla_cores), **environment)

    return make


@pytest.fixture(scope="module")
def jetson(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A machine with TensorRT 10.3 and two DLA cores, for the tests that break nothing."""
    folder = tmp_path_factory.mktemp("jetson")
    place = trtexec(folder, "10.3", dla_cores=2).parent
    service = Service(folder / "service", {"PATH": f"{place}{os.pathsep}{os.environ['PATH']}", "DLA_CORES": "2"})
    service.start()
    yield service
    service.close()


@pytest.fixture(scope="module")
def key(jetson: Service, graph: bytes) -> str:
    return jetson.upload(PID, "best.onnx", graph)


def _artifact(service: Service, job: dict[str, Any], name: str) -> bytes:
    answer = service.client.get(f"/optimizing/jobs/{job['pid']}/{job['oid']}/artifacts/{name}")
    assert answer.status_code == 200, answer.text
    return answer.content


@pytest.mark.parametrize("release", [RELEASES[0], *(pytest.param(one, marks=pytest.mark.slow) for one in RELEASES[1:])])
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


def test_s0_s_example_for_a_dla_core_names_what_runs_where(jetson: Service, key: str) -> None:
    job = jetson.run("onnx_to_trt", PID, {"input_path": key, "precision": "fp16", "device": "dla0"})
    assert job["status"] == "completed", job["error"]
    assert job["metrics"]["manifest"]["device"] == "dla0"
    command = job["metrics"]["build"]["command"]
    assert {"--useDLACore=0", "--allowGPUFallback"} <= set(command)
    assert job["metrics"]["preflight"]["dla"] is not None


@pytest.mark.slow
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


def test_what_would_be_of_no_use_is_refused_before_the_build(jetson: Service, key: str) -> None:
    asked = {"input_path": key, "precision": "int8", "input_size": [608, 608]}
    without = jetson.run("onnx_to_trt_int8", PID, asked)
    assert without["error"]["code"] == "PREFLIGHT_FAILED"
    assert "INT8_WITHOUT_RANGES" in without["error"]["received"]
    assert "best_int8_preflight.json" in without["artifact_files"]
    no_images = jetson.run("onnx_to_trt_int8", PID, {**asked, "device": "dla"})
    assert no_images["error"]["code"] == "PREFLIGHT_FAILED"
    strict = jetson.run(
        "onnx_to_trt", PID, {"input_path": key, "precision": "fp16", "device": "dla1", "dla_policy": "strict"}
    )
    assert "DLA_FALLBACK" in strict["error"]["received"]
    fp32 = jetson.post("onnx_to_trt", PID, {"input_path": key, "precision": "fp32", "device": "dla"})
    assert fp32.status_code == 422


def test_int8_on_a_dla_cannot_be_calibrated_by_trtexec_alone(jetson: Service, key: str) -> None:
    scenes = make_scenes(jetson.workspace / "few", images=2, seed=52) / "images"
    asked = {"input_path": key, "calib_dir": str(scenes), "precision": "int8", "input_size": [608, 608]}
    job = jetson.run("onnx_to_trt_int8", PID, {**asked, "device": "dla"})
    assert job["error"]["code"] == "TENSORRT_MISSING"
    assert "calibration" in job["error"]["hint"]


@pytest.mark.parametrize("release", [pytest.param("8.6.1", marks=pytest.mark.slow), "10.3.0"])
def test_s0_s_int8_example_is_calibrated_by_the_python_package(
    make_service: Machine, tmp_path: Path, graph: bytes, release: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(PACKAGE.format(release=release))
    path = os.pathsep.join(map(str, (tmp_path, ROOT / "tests" / "doubles", ROOT)))
    service = make_service(PYTHONPATH=path, DLA_CORES="2")
    scenes = make_scenes(service.workspace / "calib", images=4, seed=53) / "images"
    asked = {
        "input_path": service.upload(PID, "best.onnx", graph),
        "calib_dir": str(scenes),
        "device": "dla",
        "mixed_fp16": False,
        "sparse": False,
        "precision": "int8",
        "int8_max_batches": 10,
        "input_size": [608, 608],
    }
    job = service.run("onnx_to_trt_int8", PID, asked)
    assert job["status"] == "completed", job["error"]
    metrics = job["metrics"]
    assert metrics["manifest"]["builder"] == "python"
    assert metrics["manifest"]["quantization"] == "calibrated"
    assert metrics["manifest"]["device"] == "dla0"
    assert metrics["tensorrt_version"].startswith(release)
    calibration = metrics["build"]["calibration"]
    assert (calibration["method"], calibration["batches"], calibration["batch_size"]) == ("entropy", 4, 1)
    assert any("int8_calibrator = entropy" in call for call in metrics["manifest"]["command"])
    assert "best_int8_calib.cache" in job["artifact_files"], "another build can be calibrated with it"


def test_int8_on_a_dla_from_a_calibration_cache_of_an_earlier_build(jetson: Service, key: str) -> None:
    cache = jetson.upload(PID, "best.cache", b"TRT-100300-EntropyCalibration2\nimages: 3c010a14\n")
    asked = {"input_path": key, "calibration_cache": cache, "precision": "int8", "input_size": [608, 608]}
    job = jetson.run("onnx_to_trt_int8", PID, {**asked, "device": "dla1"})
    assert job["status"] == "completed", job["error"]
    command = job["metrics"]["build"]["command"]
    assert {"--int8", "--useDLACore=1", "--allowGPUFallback"} <= set(command)
    assert any(part.startswith("--calib=") and part.endswith("best.cache") for part in command)
    assert job["metrics"]["manifest"]["quantization"] == "calibrated"
    broken = jetson.upload(PID, "other.cache", b"no cache")
    refused = jetson.run("onnx_to_trt_int8", PID, {**asked, "calibration_cache": broken})
    assert refused["error"]["code"] == "CALIBRATION_MISSING"


def test_an_engine_for_another_machine_comes_as_the_line_to_run_there(jetson: Service, key: str) -> None:
    job = jetson.run("onnx_to_trt", PID, {"input_path": key, "precision": "fp16", "profile": "jetson-nano"})
    assert job["error"]["code"] == "BUILD_ELSEWHERE"
    assert "trtexec --onnx=best.onnx" in job["error"]["hint"]
    assert "--workspace=128" in job["error"]["hint"]
    assert "--fp16" in job["error"]["hint"]


def test_a_preflight_is_answered_at_once(jetson: Service, key: str) -> None:
    answer = jetson.post("preflight", PID, {"input_path": key, "precision": "fp16", "device": "dla0"})
    assert answer.status_code == 200
    metrics = answer.json()["metrics"]
    assert metrics["ok"]
    assert metrics["preflight"]["target"]["tensorrt"] == "10.3.0"
    old = jetson.post("preflight", PID, {"input_path": key, "precision": "fp16", "tensorrt": "7.1.3"})
    assert not old.json()["metrics"]["ok"]


def test_an_engine_tells_where_it_loads_from_its_header_and_manifest(jetson: Service, key: str) -> None:
    job = jetson.run("onnx_to_trt", PID, {"input_path": key, "precision": "fp16"})
    engine = f"{job['artifacts_path']}best_fp16.engine"

    def verdict(target: dict[str, Any] | None) -> tuple[bool | None, str]:
        asked = {"input_path": engine} | ({"target": target} if target else {})
        answer = jetson.post("compat", PID, asked)
        assert answer.status_code == 200, answer.text
        metrics = answer.json()["metrics"]
        return metrics["loads"], metrics["verdict"]

    loads, why = verdict({"tensorrt": "8.6.1.6", "compute_capability": "8.7"})
    assert loads is False
    assert "10.3.0" in why
    assert "8.6.1" in why
    assert "best.onnx" in why, "the manifest was staged with the engine, and says what to rebuild from"
    assert verdict(None)[0] is not False
    inspected = jetson.run("inspect_engine", PID, {"input_path": engine})["metrics"]["engine"]
    assert inspected["manifest"]["engine_name"] == "best_fp16.engine"
    assert not inspected["opened"], "there is no TensorRT here that could"
    assert inspected["inputs"][0]["shape"] == [1, 3, 608, 608]
    stats = jetson.run("check_model_stats", PID, {"input_path": engine})
    assert stats["metrics"]["model"]["manifest"]["precision"] == "fp16"


@pytest.mark.slow
def test_twelve_builds_never_take_more_than_their_slots(machine: Machine, graph: bytes) -> None:
    service = machine("10.3", dla_cores=2, ENGINE_BUILD_CONCURRENCY="3", JOB_CPU_CONCURRENCY="2")
    key = service.upload(PID, "best.onnx", graph)
    jobs = [
        service.submit(
            "onnx_to_trt", PID, {"input_path": key, "precision": "fp16", "device": device, "workspace_mib": 64 + index}
        )
        for index in range(4)
        for device in ("gpu", "dla0", "dla1")
    ]
    device_of = {job.rpartition("/")[2]: service.job(job)["parameters"]["device"] for job in jobs}
    most: Counter[str] = Counter()
    while any(service.job(job)["status"] in {"queued", "running"} for job in jobs):
        listed = service.client.get("/optimizing/jobs", params={"status": "running"}).json()["jobs"]  # at one moment
        most |= Counter(device_of[one["oid"]] for one in listed) + Counter(all=len(listed))
    assert most["dla0"] <= 1
    assert most["dla1"] <= 1
    assert most["all"] <= 3
    assert max(service.job(job)["metrics"]["other_builds_meanwhile"] for job in jobs) == 2


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["start", "parse", "build"])
def test_a_build_is_cancelled_in_any_phase_and_leaves_nothing(machine: Machine, graph: bytes, phase: str) -> None:
    service = machine("10.3", pause_sec=1.0)
    key = service.upload(PID, "best.onnx", graph)
    job = service.submit("onnx_to_trt", PID, {"input_path": key, "precision": "fp16"})
    eventually(lambda: service.job(job)["phase"] == phase, 20, what=f"phase {phase}")
    service.client.post(f"{job}/cancel")
    ended = service.wait(job)
    assert ended["status"] == "cancelled"
    eventually(lambda: not [one for one in service.processes() if "trtexec" in _command(one)], 10, what="trtexec gone")


@pytest.mark.slow
def test_a_service_killed_in_the_middle_of_a_build_builds_again(machine: Machine, graph: bytes) -> None:
    service = machine("10.3", pause_sec=0.5)
    key = service.upload(PID, "best.onnx", graph)
    job = service.submit("onnx_to_trt", PID, {"input_path": key, "precision": "fp16"})
    eventually(lambda: service.job(job)["phase"] == "build", 20, what="the build begun")
    service.kill()
    service.start()
    ended = service.wait(job)
    assert (ended["status"], ended["attempt"]) == ("completed", 2), ended["error"]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_builds_on_the_gpu_go_one_by_one_where_that_is_set(machine: Machine, graph: bytes) -> None:
    service = machine("10.3", GPU_EXCLUSIVE_BUILDS="true")
    key = service.upload(PID, "best.onnx", graph)
    jobs = [
        service.submit("onnx_to_trt", PID, {"input_path": key, "precision": "fp16", "workspace_mib": 100 + index})
        for index in range(3)
    ]
    ended = [service.wait(job) for job in jobs]
    assert [one["metrics"]["other_builds_meanwhile"] for one in ended] == [0, 0, 0]
