"""INT8 calibration through the double: what TensorRT is given, what is kept, what must not pass for calibrated."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.toolkit.errors import CalibrationMissing, FeedMismatch, InvalidBuild, OutOfMemory, UnreadableImage
from app.toolkit.images import Float32Array
from app.toolkit.tensorrt.builder import build
from app.toolkit.tensorrt.calibrator import Calibration
from app.toolkit.tensorrt.device_memory import device_memory
from app.toolkit.tensorrt.errors import BuildStopped, CudaUnusable
from app.toolkit.tensorrt.request import BuildRequest
from tests.doubles.tensorrt import make
from tests.toolkit.trt import write_onnx
from tests.toolkit.trt_python import IMAGES, HostMemory, after, batches, calibration, failed, importable, int8

CALIBRATING = ["8.2.1", "8.6.1", "10.3.0", "10.16.1.11"]


@pytest.fixture
def request_(tmp_path: Path) -> BuildRequest:
    return int8(BuildRequest(write_onnx(tmp_path / "m.onnx"), tmp_path / "m.engine"))


@pytest.mark.parametrize("release", CALIBRATING)
def test_every_batch_reaches_tensorrt(request_: BuildRequest, release: str) -> None:
    """The double reads the memory that it is pointed to."""
    module, lines = make(release), list[str]()
    done = build(request_, module=module, calibration=calibration(3), on_line=lines.append)
    assert module.scene.batches == [1.0, 2.0, 3.0]
    assert done.as_dict()["calibration"] == {"method": "entropy", "batches": 3, "batch_size": 1, "cache": "none"}
    assert any("Calibrating with batch 3 of at most 10" in line for line in lines)


def test_int8_max_batches_counts_batches(request_: BuildRequest) -> None:
    module = make()
    build(request_, module=module, calibration=calibration(9, max_batches=2))
    assert module.scene.batches == [1.0, 2.0]


def test_a_batch_that_lies_otherwise_in_memory(request_: BuildRequest) -> None:
    module = make()
    flipped = np.full((1, 64, 64, 3), 7, np.float32).transpose(0, 3, 1, 2)
    build(request_, module=module, calibration=replace(calibration(), batches=[flipped]))
    assert module.scene.batches == [7.0]


@pytest.mark.parametrize(("release", "profile"), [("8.6.1", True), ("10.3.0", False)])
def test_free_axes_are_calibrated_at_the_optimum(request_: BuildRequest, release: str, profile: bool) -> None:
    """With a profile of its own before 10, where that is deprecated."""
    write_onnx(request_.onnx, ("batch", 3, 64, 64))
    module = make(release)
    build(replace(request_, shapes=(IMAGES,)), module=module, calibration=calibration(2, 2))
    assert module.scene.batches == [1.0, 2.0]
    assert ("calibration_profile" in module.scene.build) is profile


@pytest.mark.parametrize(("method", "line"), [("entropy", b"EntropyCalibration2"), ("minmax", b"MinMaxCalibration")])
def test_the_cache_is_written_and_used(request_: BuildRequest, tmp_path: Path, method: Any, line: bytes) -> None:
    cache = tmp_path / "calibration.cache"
    first, second = make(), make()
    wrote = build(request_, module=first, calibration=calibration(method=method, cache=cache))
    assert cache.read_bytes().splitlines()[0] == b"TRT-1030-" + line
    read = build(request_, module=second, calibration=calibration(method=method, cache=cache))
    assert (len(first.scene.batches), len(second.scene.batches)) == (3, 0)
    assert [one.calibrated.cache for one in (wrote, read) if one.calibrated] == ["written", "read"]
    again = int8(request_, int8_from="calibration_cache", calibration_cache=cache)
    done = build(again, module=make())
    assert done.calibrated is not None
    assert (done.calibrated.method, done.calibrated.batches, done.calibrated.cache) == (method, 0, "read")


def test_a_cache_needs_no_gpu_memory(request_: BuildRequest, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"TRT-8503-EntropyCalibration2\n")
    none = calibration(cache=tmp_path / "c", memory=device_memory)
    assert build(request_, module=make(), calibration=none).engine.is_file()


def test_a_damaged_cache_is_made_anew(request_: BuildRequest, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"half a fi")
    module = make()
    build(request_, module=module, calibration=calibration(cache=tmp_path / "c"))
    assert len(module.scene.batches) == 3
    assert (tmp_path / "c").read_bytes().startswith(b"TRT-1030-")


def test_a_cache_that_tensorrt_does_not_take_is_made_anew(request_: BuildRequest, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"TRT-8503-EntropyCalibration2\n")
    module = make(scenario="cache_refused")
    done = build(request_, module=module, calibration=calibration(cache=tmp_path / "c"))
    assert done.calibrated is not None and done.calibrated.cache == "written"
    assert len(module.scene.batches) == 3


def test_a_cache_alone_that_tensorrt_does_not_take(request_: BuildRequest, tmp_path: Path) -> None:
    """A builder that reports success then has invented the ranges."""
    (tmp_path / "c").write_bytes(b"TRT-8503-EntropyCalibration2\n")
    request = int8(request_, int8_from="calibration_cache", calibration_cache=tmp_path / "c")
    error = failed(request, CalibrationMissing, make(scenario="cache_refused"))
    assert error.message == "TensorRT calibrated with nothing"


# -- what goes wrong ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("release", ["8.6.1", "10.3.0"])
def test_an_image_that_cannot_be_read_ends_the_build(request_: BuildRequest, release: str) -> None:
    """TensorRT would take what it had until then for the whole set; an exception would end the process."""

    def broken() -> Iterator[Float32Array]:
        yield batches(1)[0]
        raise UnreadableImage("b.jpg cannot be read")

    failed(request_, UnreadableImage, make(release), calibration=Calibration(broken(), 1, memory=HostMemory))


def test_a_batch_of_another_shape(request_: BuildRequest) -> None:
    wrong = [*batches(1), np.zeros((1, 3, 32, 32), np.float32)]
    error = failed(request_, FeedMismatch, calibration=Calibration(wrong, 1, memory=HostMemory))
    assert (error.expected, error.received) == ("images: float32 [1, 3, 64, 64]", "float32 [1, 3, 32, 32]")


def test_the_batch_size_is_the_networks(request_: BuildRequest) -> None:
    assert failed(request_, InvalidBuild, calibration=calibration(2, 4)).expected == "batches of 1"


def test_no_image_at_all(request_: BuildRequest) -> None:
    failed(request_, CalibrationMissing, make(scenario="cache_refused"), calibration=calibration(0))


def test_no_calibration(request_: BuildRequest) -> None:
    failed(request_, CalibrationMissing)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"int8_from": "qdq"}, {}),
        ({}, {"max_batches": 0}),
        ({"dla_core": 0}, {"method": "minmax"}),
    ],
)
def test_calibrations_that_make_no_sense(request_: BuildRequest, changes: Any, options: Any) -> None:
    failed(int8(request_, **changes), InvalidBuild, make(dla_cores=1), calibration=calibration(**options))


def test_a_stop_while_it_calibrates(request_: BuildRequest) -> None:
    """Before 10 nothing else can be stopped."""
    module = make("8.6.1")
    failed(request_, BuildStopped, module, calibration=calibration(9), should_stop=after(6))
    assert len(module.scene.batches) == 2


def test_a_full_disk_under_the_cache_is_told(request_: BuildRequest, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        build(request_, module=make(), calibration=calibration(cache=tmp_path / "missing" / "c"))


def test_the_memory_is_given_back_after_success_and_failure(request_: BuildRequest) -> None:
    made: list[HostMemory] = []

    def memory() -> HostMemory:
        made.append(HostMemory())
        return made[-1]

    build(request_, module=make(), calibration=calibration(memory=memory))
    failed(request_, OutOfMemory, make(scenario="out_of_memory"), calibration=calibration(memory=memory))
    assert [one.closed for one in made] == [True, True]


# -- the GPU's memory -----------------------------------------------------------------------------------------------
def test_pycuda_carries_the_batches(request_: BuildRequest) -> None:
    module = make()
    with importable("pycuda"):
        build(request_, module=module, calibration=calibration(memory=device_memory))
    assert module.scene.batches == [1.0, 2.0, 3.0]


def test_neither_pycuda_nor_a_gpu(request_: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pycuda", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    error = failed(request_, CudaUnusable, calibration=calibration(memory=device_memory))
    assert "pycuda" in error.received and "torch" in error.received
