"""TensorRT's ways of a benchmark, through the doubles: the engines that are built, what trtexec is told, the parts."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import onnx
import pytest

from app.toolkit.benchmark.request import BenchmarkRequest
from app.toolkit.benchmark.runners import open_runner, why_lacking
from app.toolkit.benchmark.source import open_source
from app.toolkit.benchmark.timers import page_locked_room
from app.toolkit.errors import FeedMismatch, OutOfMemory, RuntimeUnavailable
from app.toolkit.export import onnx_from_torch
from app.toolkit.latency import LatencySettings
from app.toolkit.models.open_model import open_model
from app.toolkit.runtimes.base import Array
from app.toolkit.runtimes.ort_runtime import OrtRuntime
from app.toolkit.runtimes.trt_runtime import TrtRuntime
from app.toolkit.tensorrt.pipeline import EngineRequest, build_engine
from app.toolkit.tensorrt.preflight import Wish
from tests.doubles.trtexec_double.releases import RELEASES
from tests.toolkit.scenes import ASSETS, make_scenes
from tests.toolkit.trt_python import importable
from tests.toolkit.trtexec_timing import RUNS, timing_trtexec

ONE_OF_EACH = ("8.2", "10.3", "11.1")
"""Of TensorRT's majors."""
SETTINGS = LatencySettings(agreeing_windows=2, max_windows=2, tolerance_pct=1)
"""No start's windows agree, as its times grow from run to run: there are two of them."""
CLASSIFIER = ASSETS / "pills_classifier.pt"
FEEDS = [{"input": np.random.default_rng(seed).random((2, 3, 96, 96), dtype=np.float32)} for seed in range(2)]


@contextmanager
def tensorrt_installed() -> Iterator[None]:
    """The double, with the spec that every package has once it is imported."""
    with importable("tensorrt", "pycuda"):
        importlib.import_module("tensorrt").__spec__ = ModuleSpec("tensorrt", None)
        yield


def asked(folder: Path, model: Path, **changes: object) -> BenchmarkRequest:
    return BenchmarkRequest(model, folder, device="cuda", input_size=(96, 96), **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def free_batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier's ONNX file, of any batch size."""
    path = tmp_path_factory.mktemp("free") / "pills_classifier.onnx"
    onnx.save(onnx_from_torch(open_model(CLASSIFIER), input_size=(96, 96), dynamic=True), path)
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a trtexec is found, and nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("calibration"), images=2, seed=77_010) / "images"


# -- trtexec alone --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "release", [pytest.param(one, marks=[] if one in ONE_OF_EACH else pytest.mark.slow) for one in RELEASES]
)
def test_trtexec_builds_and_times_under_the_same_conditions(
    tmp_path: Path, free_batch: Path, place: Path, release: str
) -> None:
    """The double refuses what the genuine parser of the release refuses."""
    timing_trtexec(place, release)
    request = asked(tmp_path, free_batch)
    source = open_source(request)
    assert why_lacking("tensorrt_fp16", source, request) == ""
    with open_runner("tensorrt_fp16", source, request, 2) as runner:
        assert (runner.dtype, runner.answers, runner.inputs[0].shape) == ("fp16", False, (2, 3, 96, 96))
        reports = runner.latencies(SETTINGS)
        assert any(f"trtexec {release}" in note for note in runner.notes)
        assert any("unstable: coefficient of variation 3.1 %" in note for note in runner.notes)
        assert runner.started_pids >= {int(pid) for pid in (place / "pids.txt").read_text().split()}
    assert {part: report.windows_ms for part, report in reports.items()} == {
        "compute": (tuple(range(1, RUNS + 1)),) * 2,
        "copy_in": ((0.25,) * RUNS,) * 2,
        "copy_out": ((0.5,) * RUNS,) * 2,
        "end_to_end": (tuple(number + 1.75 for number in range(RUNS)),) * 2,
    }
    first, second = (place / "timed.txt").read_text().splitlines()
    assert first == second
    eleven = release.startswith("11")
    assert ("--useCudaGraph --useSpinWait" in first, "--includeDataTransfers" in first) == (not eleven, eleven)
    assert "--shapes" not in first  # the engine's are fixed


def test_trtexec_gives_no_answers(tmp_path: Path, free_batch: Path, place: Path) -> None:
    timing_trtexec(place, "10.3")
    request = asked(tmp_path, free_batch)
    runner = open_runner("tensorrt_fp16", open_source(request), request, 2)
    with runner:
        with pytest.raises(RuntimeUnavailable, match="gives no answers"):
            runner.infer(FEEDS[0])
        with pytest.raises(RuntimeUnavailable, match="gives no answers"):
            runner.timers(FEEDS)


def test_an_engine_with_free_axes_is_timed_at_the_batch(tmp_path: Path, free_batch: Path, place: Path) -> None:
    path = engine(free_batch, tmp_path, place)
    request = asked(tmp_path, path)
    with open_runner("tensorrt_fp16", open_source(request), request, 4) as runner:
        runner.latencies(SETTINGS)
    assert "--shapes=input:4x3x96x96" in (place / "timed.txt").read_text()


def test_an_engine_that_does_not_load_is_a_reason(tmp_path: Path, free_batch: Path, place: Path) -> None:
    timing_trtexec(place, "10.3")
    request = asked(tmp_path, free_batch)
    with open_runner("tensorrt_fp16", open_source(request), request, 1) as runner:
        (tmp_path / "pills_classifier_fp16_batch1.engine").write_bytes(b"something else")
        with pytest.raises(RuntimeUnavailable, match=r"exit code 1; .*Engine deserialization failed"):
            runner.latencies(SETTINGS)


def test_trtexec_without_memory_ends_its_row(tmp_path: Path, free_batch: Path, place: Path) -> None:
    path = engine(free_batch, tmp_path, place)
    timing_trtexec(place, "10.3", "out_of_memory")
    request = asked(tmp_path, path)
    with (
        open_runner("tensorrt_fp16", open_source(request), request, 1) as runner,
        pytest.raises(OutOfMemory, match="tensorrt_fp16 at batch size 1"),
    ):
        runner.latencies(SETTINGS)


def engine(model: Path, folder: Path, place: Path) -> Path:
    """For batches of 1 to 4, with its manifest, built by the double."""
    timing_trtexec(place, "10.3")
    request = EngineRequest(model, folder / "given.engine", Wish("fp16", input_size=(96, 96), max_batch=4))
    return build_engine(request, folder, on_line=lambda _line: None).engine


# -- TensorRT's Python package --------------------------------------------------------------------------------------
def test_our_runtime_answers_and_is_timed_in_parts(tmp_path: Path, place: Path) -> None:
    request = asked(tmp_path, CLASSIFIER)
    source = open_source(request)
    with tensorrt_installed(), open_runner("tensorrt_fp16", source, request, 2) as runner:
        answer = runner.infer(FEEDS[0])["logits"]
        timers = runner.timers(FEEDS)
        assert runner.answers and set(timers) == {"end_to_end", "compute", "copy_in", "copy_out"}
        assert all(timer(number) > 0 for timer in timers.values() for number in range(3))
        assert "without a CUDA graph" in runner.notes[0] and "host memory" in runner.notes[1]
    with OrtRuntime(source.onnx_for(2).SerializeToString(), threads=1) as reference:
        assert np.allclose(answer, reference.infer(FEEDS[0])["logits"], atol=1e-2)


def test_answers_are_written_where_the_runtime_was_told_to_make_room(tmp_path: Path, free_batch: Path) -> None:
    """Page-locked memory on a GPU: a benchmark's."""
    made: list[Array] = []

    def room(shape: tuple[int, ...], dtype: str) -> Array:
        made.append(page_locked_room(shape, dtype))
        return made[-1]

    request = asked(tmp_path, free_batch)
    with tensorrt_installed():
        open_runner("tensorrt_fp16", open_source(request), request, 2)
        with TrtRuntime(tmp_path / "pills_classifier_fp16_batch2.engine", room=room) as runtime:
            answer = runtime.infer(FEEDS[0])["logits"]
    assert answer is made[0] and answer.shape == (2, 12) and answer.dtype == np.float32
    assert np.abs(answer).max() > 0


def test_a_given_engine_runs_at_its_own_batch_and_precision(tmp_path: Path, free_batch: Path, place: Path) -> None:
    request = asked(tmp_path, free_batch)
    with tensorrt_installed():
        open_runner("tensorrt_fp16", open_source(request), request, 2)
        given = asked(tmp_path, tmp_path / "pills_classifier_fp16_batch2.engine")
        source = open_source(given)
        assert source.model.preprocessing == open_source(request).model.preprocessing
        with open_runner("tensorrt_fp16", source, given, 2) as runner:
            assert runner.infer(FEEDS[0])["logits"].shape == (2, 12)
        with pytest.raises(FeedMismatch, match="batch size 2; received: batch size 1"):
            open_runner("tensorrt_fp16", source, given, 1)
        assert why_lacking("tensorrt_int8", source, given) == "the engine computes in fp16"
        assert "no graph of it" in why_lacking("onnxruntime", source, given)
        assert "no network of it" in why_lacking("torch_fp32", source, given)


# -- INT8 -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("release", ["10.3", "11.1"])
def test_int8_is_quantised_for_tensorrt(
    tmp_path: Path, free_batch: Path, place: Path, photos: Path, release: str
) -> None:
    """11 knows no --fp16 to mix in."""
    timing_trtexec(place, release)
    request = asked(tmp_path, free_batch, calibration=photos)
    source = open_source(request)
    with open_runner("tensorrt_int8", source, request, 1) as runner:
        assert runner.dtype == "int8"
    built = onnx.load(tmp_path / "pills_classifier_int8_batch1.onnx")
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in built.graph.node}
    manifest = (tmp_path / "pills_classifier_int8_batch1_manifest.json").read_text()
    assert ("--fp16" in manifest) == (release == "10.3")


def test_int8_needs_ranges(tmp_path: Path, free_batch: Path, place: Path) -> None:
    timing_trtexec(place, "10.3")
    request = asked(tmp_path, free_batch)
    assert "calibration images" in why_lacking("tensorrt_int8", open_source(request), request)


def test_a_trtexec_that_does_not_answer_is_a_reason(tmp_path: Path, free_batch: Path, place: Path) -> None:
    (place / "trtexec").write_text("#!/bin/sh\nexit 1\n")
    (place / "trtexec").chmod(0o755)
    request = asked(tmp_path, free_batch)
    assert "did not say which TensorRT" in why_lacking("tensorrt_fp16", open_source(request), request)
