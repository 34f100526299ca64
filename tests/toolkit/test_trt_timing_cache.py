"""The timing cache: one file for each TensorRT and GPU, shared with others without losing what they put there."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from app.toolkit.tensorrt.builder import PythonBuild
from app.toolkit.tensorrt.request import BuildRequest
from app.toolkit.tensorrt.timing_cache import locked, timing_cache_path
from tests.doubles.tensorrt import RELEASES
from tests.toolkit.trt import write_onnx
from tests.toolkit.trt_python import built

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1] + ".lock", "wb+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(1)
with open(sys.argv[1], "ab") as cache:
    cache.write(b"kernels of another\\n")
"""
"""As trtexec holds it while it writes."""


@pytest.fixture
def request_(tmp_path: Path) -> BuildRequest:
    return BuildRequest(
        write_onnx(tmp_path / "m.onnx"), tmp_path / "m.engine", timing_cache=tmp_path / "caches" / "trt.cache"
    )


def cache_of(request: BuildRequest) -> Path:
    assert request.timing_cache is not None
    return request.timing_cache


def warnings(done: PythonBuild) -> str:
    return " | ".join(done.log.warnings)


def test_a_path_says_for_which_tensorrt_and_gpu(tmp_path: Path) -> None:
    path = timing_cache_path(
        tmp_path, version=(10, 3, 0), gpu_name="NVIDIA GeForce RTX 4090", compute_capability=(8, 9)
    )
    assert path == tmp_path / "trt-10.3.0_sm89_nvidia-geforce-rtx-4090.cache"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("release", RELEASES)
def test_times_are_kept_for_the_next_build(request_: BuildRequest, release: str) -> None:
    first, second = built(request_, release), built(request_, release)
    assert "A new timing cache will be generated" in warnings(first)
    assert second.log.numbers["timing_cache_loaded_bytes"] == first.log.numbers["timing_cache_saved_bytes"]
    assert f"config.set_timing_cache('{request_.timing_cache}', ignore_mismatch=False)" in first.command
    assert {path.name for path in cache_of(request_).parent.iterdir()} == {"trt.cache", "trt.cache.lock"}


def test_what_others_put_there_meanwhile_is_kept(request_: BuildRequest) -> None:
    """Another build ends between this one's begin and its end."""
    path = cache_of(request_)

    def another(phase: str, fraction: float) -> None:
        if phase == "build" and fraction == 0.5:
            with locked(path):
                path.write_bytes(b"timing cache of 10.3.0 on Orin\nkernels of another\n")

    built(request_, progress=another)
    assert path.read_bytes().splitlines()[1:] == [b"kernels of /conv", b"kernels of another"]


def test_trtexecs_lock_is_waited_for(request_: BuildRequest) -> None:
    built(request_)
    path = cache_of(request_)
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        begun = time.monotonic()
        done = built(request_)
        assert time.monotonic() - begun > 0.5
    assert b"kernels of another" in path.read_bytes()
    assert done.log.warnings == ()


@pytest.mark.parametrize(
    "content",
    [b"half a fi", b"timing cache of 8.6.1 on Orin\nkernels\n", b"timing cache of 10.3.0 on H200\nkernels\n"],
)
def test_a_cache_that_does_not_fit_is_set_aside(request_: BuildRequest, content: bytes) -> None:
    """Damaged, of another TensorRT, of another GPU: never taken all the same."""
    path = cache_of(request_)
    path.parent.mkdir()
    path.write_bytes(content)
    done = built(request_)
    assert "it was moved to trt.cache.refused" in warnings(done)
    assert path.with_name("trt.cache.refused").read_bytes() == content
    assert path.read_bytes() == b"timing cache of 10.3.0 on Orin\nkernels of /conv\n"


def test_a_cache_damaged_during_the_build_is_set_aside(request_: BuildRequest) -> None:
    path = cache_of(request_)

    def damage(phase: str, fraction: float) -> None:
        if phase == "build" and fraction == 0.5:
            path.write_bytes(b"half a fi")

    assert "moved to trt.cache.refused" in warnings(built(request_, progress=damage))
    assert path.read_bytes().endswith(b"kernels of /conv\n")


def test_no_timing_cache_is_no_reason_to_fail(request_: BuildRequest) -> None:
    done = built(request_, scenario="cache_refused")
    assert "TensorRT takes no timing cache here" in warnings(done)
    assert not cache_of(request_).exists()


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(request_: BuildRequest) -> None:
    path = cache_of(request_)

    def occupy(phase: str, fraction: float) -> None:
        if phase == "build" and fraction == 0.5:
            (path / "in the way").mkdir(parents=True)

    done = built(request_, progress=occupy)
    assert "Could not write timing cache to" in warnings(done)
    assert done.engine.is_file()


def test_a_build_without_one_makes_none(request_: BuildRequest) -> None:
    built(replace(request_, timing_cache=None))
    assert not cache_of(request_).parent.exists()
