"""Builds through the double of trtexec: what comes back, what is left behind, and the error for each way to fail."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from app.toolkit.errors import (
    EmptyFile,
    InvalidBuild,
    OnnxRefused,
    OutOfMemory,
    ReleaseUnsupported,
    ToolkitError,
    UnsupportedOperator,
)
from app.toolkit.tensorrt.build_log import PHASES
from app.toolkit.tensorrt.dialects import dialect_of
from app.toolkit.tensorrt.errors import (
    BuildKilled,
    BuildTimedOut,
    CudaUnusable,
    DlaUnavailable,
    EngineBuildFailed,
    TrtexecMissing,
    TrtexecOptionRefused,
)
from app.toolkit.tensorrt.request import BuildRequest, InputShapes
from app.toolkit.tensorrt.trtexec import Trtexec, TrtexecBuild, build, find_trtexec, probe
from tests.doubles.trtexec_double.releases import RELEASES, VERSIONS
from tests.toolkit.trt import trtexec, write_onnx

IMAGES = InputShapes("images", (1, 3, 64, 64), (2, 3, 64, 64), (4, 3, 64, 64))


@pytest.fixture
def request_(tmp_path: Path) -> BuildRequest:
    return BuildRequest(write_onnx(tmp_path / "m.onnx"), tmp_path / "m.engine")


def failed(
    request: BuildRequest, found: Trtexec, error: type[ToolkitError], *, timeout_sec: float = 60
) -> ToolkitError:
    """The error of a build that leaves nothing behind."""
    before = sorted(request.engine.parent.iterdir())
    with pytest.raises(error) as caught:
        build(request, found, timeout_sec=timeout_sec)
    assert type(caught.value) is error
    assert sorted(request.engine.parent.iterdir()) == before
    return caught.value


def gone(process: psutil.Process) -> bool:
    """Within a second; who has lost its parent waits as a zombie for whoever collects them."""
    for _ in range(50):
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def run(tmp_path: Path, request: BuildRequest, release: str = "10.3", scenario: str = "success") -> TrtexecBuild:
    return build(request, probe(trtexec(tmp_path, release, scenario)))


@pytest.mark.parametrize("name", RELEASES)
def test_each_release_is_probed_and_builds(tmp_path: Path, request_: BuildRequest, name: str) -> None:
    found = probe(trtexec(tmp_path, name))
    assert found.dialect.version == VERSIONS[name]
    lines: list[str] = []
    progress: list[tuple[str, float]] = []
    done = build(request_, found, on_line=lines.append, progress=lambda *step: progress.append(step))
    assert done.engine.read_bytes()[:4] == b"ftrt"
    assert done.command == (str(found.path), *done.command[1:])
    assert f"--saveEngine={request_.engine}" in done.command
    assert progress == [(phase, fraction) for phase in PHASES for fraction in (0.0, 1.0)]
    assert lines[0].startswith("&&&& RUNNING") and lines[-1].startswith("&&&& PASSED")
    assert any("[W] [TRT] Skipping tactic" in line for line in lines), "stderr is heard too"
    assert done.log.tactics_skipped == 1
    assert done.log.numbers["build_seconds"] == 10.7204
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["m.engine", "m.onnx"]


def test_lines_come_while_it_runs(tmp_path: Path, request_: BuildRequest) -> None:
    heard: list[float] = []
    begun = time.monotonic()
    build(request_, probe(trtexec(tmp_path, pause_sec=0.5)), on_line=lambda _: heard.append(time.monotonic() - begun))
    assert heard[-1] - heard[0] >= 0.9


def test_a_dynamic_model_gets_its_shapes(tmp_path: Path, request_: BuildRequest) -> None:
    write_onnx(request_.onnx, ("batch", 3, 64, 64))
    done = run(tmp_path, replace(request_, shapes=(IMAGES,)))
    assert done.engine.is_file()


def test_a_dynamic_model_without_shapes_is_no_success(tmp_path: Path, request_: BuildRequest) -> None:
    write_onnx(request_.onnx, ("batch", 3, "height", "width"))
    error = failed(request_, probe(trtexec(tmp_path)), InvalidBuild)
    assert error.expected == "shapes for images"


def test_a_static_model_takes_no_shapes(tmp_path: Path, request_: BuildRequest) -> None:
    error = failed(replace(request_, shapes=(IMAGES,)), probe(trtexec(tmp_path)), InvalidBuild)
    assert error.expected == "no shapes"


def test_shapes_for_an_input_that_is_not_there(tmp_path: Path, request_: BuildRequest) -> None:
    write_onnx(request_.onnx, ("batch", 3, 64, 64))
    wrong = replace(request_, shapes=(replace(IMAGES, name="x"),))
    assert failed(wrong, probe(trtexec(tmp_path)), InvalidBuild).received == "shapes for x"


@pytest.mark.parametrize("name", ["8.2", "8.6", "10.3", "11.0", "11.1"])
def test_an_unknown_option_is_told(tmp_path: Path, request_: BuildRequest, name: str) -> None:
    wrong = replace(dialect_of(VERSIONS[name]), build_only="--onlyBuild")
    error = failed(request_, Trtexec(trtexec(tmp_path, name), wrong), TrtexecOptionRefused)
    assert error.received == "Unknown option: --onlyBuild "


@pytest.mark.parametrize("name", ["8.5", "10.3"])
def test_an_unsupported_operator_is_named_with_its_node(tmp_path: Path, request_: BuildRequest, name: str) -> None:
    write_onnx(request_.onnx, last="DynamicQuantizeLinear")
    error = failed(request_, probe(trtexec(tmp_path, name)), UnsupportedOperator)
    assert isinstance(error, UnsupportedOperator)
    assert error.message == "TensorRT has no DynamicQuantizeLinear"
    assert error.names == ("/last (DynamicQuantizeLinear)",)
    assert "Plugin not found" in error.received


def test_a_file_that_is_no_onnx(tmp_path: Path, request_: BuildRequest) -> None:
    request_.onnx.write_bytes(b"\xff" * 100)
    assert "Failed to parse onnx file" in failed(request_, probe(trtexec(tmp_path)), OnnxRefused).received


def test_an_empty_onnx_never_reaches_trtexec(tmp_path: Path, request_: BuildRequest) -> None:
    request_.onnx.write_bytes(b"")
    failed(request_, Trtexec(tmp_path / "none", dialect_of((10, 3, 0))), EmptyFile)


@pytest.mark.parametrize("name", ["8.2", "8.6", "10.3"])
def test_a_dla_core_that_is_not_there(tmp_path: Path, request_: BuildRequest, name: str) -> None:
    request = replace(request_, precision="fp16", dla_core=1)
    error = failed(request, probe(trtexec(tmp_path, name, dla_cores=1)), DlaUnavailable)
    assert (error.message, error.expected) == ("TensorRT sees no DLA core 1 here", "at least 2 DLA cores")


def test_layers_on_the_dla_are_reported(tmp_path: Path, request_: BuildRequest) -> None:
    write_onnx(request_.onnx, last="Softmax")
    request = replace(request_, precision="fp16", dla_core=1)
    old = build(request, probe(trtexec(tmp_path, "8.5", dla_cores=2))).log.placement
    assert (old.source, old.dla_subgraphs, old.gpu_layers) == ("lists", 1, ("SOFTMAX: /last",))
    new = build(request, probe(trtexec(tmp_path, "10.3", dla_cores=2))).log.placement
    assert (new.source, new.gpu_layers) == ("warnings", ("/last",))


def test_out_of_memory_says_which_workspace_to_try(tmp_path: Path, request_: BuildRequest) -> None:
    error = failed(request_, probe(trtexec(tmp_path, scenario="out_of_memory")), OutOfMemory)
    assert "workspace_mib 1024" in error.hint
    short = failed(request_, probe(trtexec(tmp_path, scenario="workspace_short")), OutOfMemory)
    assert "workspace_mib 4096" in short.hint


@pytest.mark.parametrize("name", RELEASES)
def test_no_usable_gpu(tmp_path: Path, request_: BuildRequest, name: str) -> None:
    error = failed(request_, probe(trtexec(tmp_path, name, "cuda")), CudaUnusable)
    assert "no CUDA-capable device is detected" in error.received


@pytest.mark.parametrize(("scenario", "name"), [("killed", "SIGKILL"), ("crash", "SIGSEGV")])
def test_a_signal_in_the_middle_of_writing(tmp_path: Path, request_: BuildRequest, scenario: str, name: str) -> None:
    error = failed(request_, probe(trtexec(tmp_path, scenario=scenario)), BuildKilled)
    assert error.message == f"{name} ended trtexec while it was at: build"


@pytest.mark.parametrize(
    ("scenario", "says"),
    [
        ("no_passed", "exit code 0, no PASSED"),
        ("create_failed", "Engine could not be created from network"),
        ("empty", "an empty file"),
        ("no_plan", "a file that has no plan header"),
    ],
)
def test_a_success_that_is_none(tmp_path: Path, request_: BuildRequest, scenario: str, says: str) -> None:
    error = failed(request_, probe(trtexec(tmp_path, scenario=scenario)), EngineBuildFailed)
    assert says in error.received


def test_an_older_engine_survives_a_failed_build(tmp_path: Path, request_: BuildRequest) -> None:
    request_.engine.write_bytes(b"the engine of yesterday")
    failed(request_, probe(trtexec(tmp_path, scenario="killed")), BuildKilled)
    assert request_.engine.read_bytes() == b"the engine of yesterday"


def _children() -> set[psutil.Process]:
    """Everything below this process; other tests' servers and services are there too."""
    return set(psutil.Process().children(recursive=True))


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["hang", "stubborn"])
def test_a_hung_build_is_killed_with_what_it_started(tmp_path: Path, request_: BuildRequest, scenario: str) -> None:
    found = probe(trtexec(tmp_path, scenario=scenario))
    seen: set[psutil.Process] = set()
    before = _children()
    watch = threading.Timer(0.8, lambda: seen.update(_children() - before))
    watch.start()
    error = failed(request_, found, BuildTimedOut, timeout_sec=1.2)
    watch.join()
    assert error.received == "still at: build"
    assert len(seen) == (2 if scenario == "stubborn" else 1)
    assert all(gone(process) for process in seen)


def test_what_kills_a_jobs_group_kills_its_build(tmp_path: Path, request_: BuildRequest) -> None:
    """As the service ends a job: its process leads a group, and the group gets SIGKILL."""
    path = trtexec(tmp_path, scenario="stubborn")
    lines = [
        "from pathlib import Path",
        "from app.toolkit.tensorrt.request import BuildRequest",
        "from app.toolkit.tensorrt.trtexec import build, probe",
        f"request = BuildRequest(Path({str(request_.onnx)!r}), Path({str(request_.engine)!r}))",
        f"build(request, probe(Path({str(path)!r})), on_line=lambda line: print(line, flush=True))",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, text=True) as job:
        assert job.stdout is not None
        next(line for line in job.stdout if "Local timing cache" in line)
        time.sleep(0.2)
        started = psutil.Process(job.pid).children(recursive=True)
        os.killpg(job.pid, signal.SIGKILL)
    assert len(started) == 2
    assert all(gone(process) for process in started)
    assert not request_.engine.exists()


def test_a_full_disk_under_the_log_is_not_taken_for_a_missing_trtexec(tmp_path: Path, request_: BuildRequest) -> None:
    def listen(_: str) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        build(request_, probe(trtexec(tmp_path)), on_line=listen)


def test_an_error_of_the_listener_ends_the_build(tmp_path: Path, request_: BuildRequest) -> None:
    def listen(line: str) -> None:
        if "Start parsing" in line:
            raise RuntimeError("cancelled")

    before = _children()
    with pytest.raises(RuntimeError, match="cancelled"):
        build(request_, probe(trtexec(tmp_path, scenario="hang")), on_line=listen)
    assert all(gone(process) for process in _children() - before)


@pytest.mark.parametrize("name", ["8.2", "8.5", "11.1"])
def test_the_timing_cache_is_shared(tmp_path: Path, request_: BuildRequest, name: str) -> None:
    request = replace(request_, timing_cache=tmp_path / "timing.cache")
    found = probe(trtexec(tmp_path, name))
    first, second = build(request, found), build(request, found)
    assert "timing_cache_unreadable" in first.log.texts
    assert second.log.numbers["timing_cache_loaded_bytes"] == first.log.numbers["timing_cache_saved_bytes"]
    assert f"--timingCacheFile={request.timing_cache}" in first.command
    assert not list(tmp_path.glob(".*"))


def test_a_locked_timing_cache_is_waited_for(tmp_path: Path, request_: BuildRequest) -> None:
    request = replace(request_, timing_cache=tmp_path / "timing.cache")
    with open(tmp_path / "timing.cache.lock", "w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        with pytest.raises(BuildTimedOut):
            build(request, probe(trtexec(tmp_path)), timeout_sec=0.8)
        assert build(request, probe(trtexec(tmp_path, "8.2"))).engine.is_file()  # 8.2 knows no lock


def test_a_trtexec_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrtexecMissing, match="there is no trtexec"):
        find_trtexec(tmp_path / "trtexec")


def test_trtexec_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = trtexec(tmp_path)
    monkeypatch.setenv("PATH", f"{there.parent}{os.pathsep}{os.environ['PATH']}")
    assert probe().path == there


def test_a_program_that_is_no_trtexec(tmp_path: Path) -> None:
    other = tmp_path / "trtexec"
    other.write_text("#!/bin/sh\necho error while loading shared libraries: libnvinfer.so.8 >&2\nexit 127\n")
    other.chmod(0o755)
    with pytest.raises(TrtexecMissing, match="did not say") as caught:
        probe(other)
    assert "libnvinfer.so.8" in caught.value.received


def test_a_release_that_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "trtexec"
    old.write_text('#!/bin/sh\necho "&&&& RUNNING TensorRT.trtexec [TensorRT v7103] # trtexec --help"\n')
    old.chmod(0o755)
    with pytest.raises(ReleaseUnsupported, match=r"TensorRT 7\.1\.3 is too old"):
        probe(old)
