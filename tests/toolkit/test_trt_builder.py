"""Builds by TensorRT's Python API, through the double: which calls are made for each release, and each way to fail."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.toolkit.errors import (
    EmptyFile,
    InvalidBuild,
    OnnxRefused,
    OutOfMemory,
    ReleaseUnsupported,
    UnsupportedOperator,
)
from app.toolkit.tensorrt import api as api_file
from app.toolkit.tensorrt.api import NAMES, missing_names, open_api
from app.toolkit.tensorrt.build_log import PHASES
from app.toolkit.tensorrt.builder import build
from app.toolkit.tensorrt.callbacks import Guard, listening
from app.toolkit.tensorrt.dialects import Dialect, dialect_of, refuse_what_is_missing
from app.toolkit.tensorrt.errors import (
    BuildStopped,
    CudaUnusable,
    DlaUnavailable,
    EngineBuildFailed,
    TensorrtMissing,
)
from app.toolkit.tensorrt.plan import read_plan
from app.toolkit.tensorrt.request import BuildRequest
from app.toolkit.tensorrt.versions import version_of
from tests.doubles.tensorrt import RELEASES, make
from tests.toolkit.trt import write_onnx
from tests.toolkit.trt_python import IMAGES, after, built, calibration, failed, importable

WISHES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"precision": "fp16"},
    "fp16 typed": {"precision": "fp16", "strongly_typed": True},
    "fp16 sparse": {"precision": "fp16", "sparse": True},
    "fp16 dynamic": {"precision": "fp16", "shapes": (IMAGES,)},
    "fp16 dla": {"precision": "fp16", "dla_core": 1},
    "fp16 dla alone": {"precision": "fp16", "dla_core": 0, "gpu_fallback": False},
    "fp16 typed dla": {"precision": "fp16", "strongly_typed": True, "dla_core": 0},
    "int8 qdq": {"precision": "int8", "int8_from": "qdq"},
    "int8 qdq mixed": {"precision": "int8", "int8_from": "qdq", "mixed_fp16": True},
    "int8 qdq typed": {"precision": "int8", "int8_from": "qdq", "strongly_typed": True},
    "int8 images": {"precision": "int8", "int8_from": "calibrator"},
    "int8 images mixed": {"precision": "int8", "int8_from": "calibrator", "mixed_fp16": True},
    "int8 images dynamic": {"precision": "int8", "int8_from": "calibrator", "shapes": (IMAGES,)},
    "int8 images dla": {"precision": "int8", "int8_from": "calibrator", "dla_core": 0},
    "int8 cache": {"precision": "int8", "int8_from": "calibration_cache"},
}


@pytest.fixture
def request_(tmp_path: Path) -> BuildRequest:
    return BuildRequest(write_onnx(tmp_path / "m.onnx"), tmp_path / "m.engine")


def flags_for(request: BuildRequest, version: tuple[int, ...]) -> set[str]:
    """By the reference's words: precision flags up to 10.x and only where the types do not bind."""
    flags = {"SPARSE_WEIGHTS"} if request.sparse else set()
    if request.dla_core is not None and request.gpu_fallback:
        flags.add("GPU_FALLBACK")
    if version < (11,) and not request.strongly_typed:
        flags |= {"INT8"} if request.precision == "int8" else set()
        flags |= {"FP16"} if request.precision == "fp16" or request.mixed_fp16 else set()
    return flags


def refusal(request: BuildRequest, dialect: Dialect) -> ReleaseUnsupported | None:
    try:
        refuse_what_is_missing(request, dialect)
    except ReleaseUnsupported as error:
        return error
    return None


@pytest.mark.parametrize("release", RELEASES)
def test_each_release_builds(request_: BuildRequest, release: str) -> None:
    lines: list[str] = []
    progress: list[tuple[str, float]] = []
    module = make(release)
    done = build(request_, module=module, on_line=lines.append, progress=lambda *step: progress.append(step))
    assert done.engine.read_bytes()[:4] == b"ftrt"
    assert [phase for phase, fraction in progress if fraction == 0] == list(PHASES)
    assert [phase for phase, fraction in progress if fraction == 1 and phase != "build"] == ["start", "parse", "save"]
    assert "Start parsing network model." in lines[0] and "Created engine with size" in lines[-1]
    assert done.log.passed and done.log.phase == "save" and done.log.version == version_of(release)
    assert sorted(path.name for path in request_.engine.parent.iterdir()) == ["m.engine", "m.onnx"]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("wish", WISHES)
def test_each_wish_on_each_release(tmp_path: Path, release: str, wish: str) -> None:
    axes = ("batch", 3, 64, 64) if "dynamic" in wish else (1, 3, 64, 64)
    request = BuildRequest(write_onnx(tmp_path / "m.onnx", axes), tmp_path / "m.engine", **WISHES[wish])
    if "cache" in wish:
        (tmp_path / "calibration.cache").write_bytes(b"TRT-8503-EntropyCalibration2\nimages: 3c010a14\n")
        request = replace(request, calibration_cache=tmp_path / "calibration.cache")
    images = calibration(batch_size=2 if "dynamic" in wish else 1) if "images" in wish else None
    module = make(release, dla_cores=2)
    dialect = dialect_of(module.scene.version)
    if (refused := refusal(request, dialect)) is not None:
        assert failed(request, ReleaseUnsupported, module, calibration=images).message == refused.message
        return
    done = build(request, module=module, calibration=images)
    told = module.scene.build
    assert told["flags"] == flags_for(request, dialect.version)
    assert {f"config.set_flag(BuilderFlag.{flag})" for flag in told["flags"]} <= set(done.command)
    assert told.get("core") == request.dla_core
    assert bool(told["profiles"]) == bool(request.shapes)
    assert read_plan(done.engine).version == ((*dialect.version, 26)[:4] if dialect.plan_header else None)


@pytest.mark.parametrize(
    ("release", "typed", "flags"),
    [("8.6.1", False, 0b1), ("10.3.0", False, 0b1), ("10.3.0", True, 0b11), ("11.0.0.114", True, 0b1)],
)
def test_a_networks_flags(request_: BuildRequest, release: str, typed: bool, flags: int) -> None:
    """Bit 0 is the explicit batch up to 10.x and strong typing from 11 on."""
    module = make(release)
    done = build(replace(request_, precision="fp16", strongly_typed=typed), module=module)
    assert module.scene.build["network_flags"] == flags
    assert ("STRONGLY_TYPED" in done.command[0]) is typed


def test_strong_typing_is_not_a_choice_from_11_on(request_: BuildRequest) -> None:
    done = built(request_, "11.4.0.106")
    assert done.command[0] == "builder.create_network(1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED)"


def test_the_workspace_in_bytes(request_: BuildRequest) -> None:
    old, new = make("8.2.1"), make("8.5.3")
    build(replace(request_, workspace_mib=512), module=old)
    build(replace(request_, workspace_mib=512), module=new)
    assert (old.scene.build["workspace"], old.scene.build["pools"]) == (512 << 20, {})
    assert new.scene.build["pools"] == {"WORKSPACE": 512 << 20}


# -- the graph ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("release", RELEASES)
def test_an_unsupported_operator_is_named_with_its_node(request_: BuildRequest, release: str) -> None:
    write_onnx(request_.onnx, last="DynamicQuantizeLinear")
    error = failed(request_, UnsupportedOperator, make(release))
    assert isinstance(error, UnsupportedOperator)
    assert error.message == "TensorRT has no DynamicQuantizeLinear"
    assert error.names == ("/last (DynamicQuantizeLinear)",)


def test_a_file_that_is_no_onnx(request_: BuildRequest) -> None:
    request_.onnx.write_bytes(b"\xff" * 100)
    assert "Failed to parse ONNX model from file" in failed(request_, OnnxRefused).received


def test_an_empty_onnx_never_reaches_the_parser(request_: BuildRequest) -> None:
    request_.onnx.write_bytes(b"")
    failed(request_, EmptyFile)


def test_shapes_become_the_profile(request_: BuildRequest) -> None:
    write_onnx(request_.onnx, ("batch", 3, 64, 64))
    module = make()
    done = build(replace(request_, shapes=(IMAGES,)), module=module)
    assert module.scene.build["profiles"] == [{"images": (IMAGES.minimum, IMAGES.optimum, IMAGES.maximum)}]
    assert "profile.set_shape('images', (1, 3, 64, 64), (2, 3, 64, 64), (4, 3, 64, 64))" in done.command


@pytest.mark.parametrize(
    ("axes", "shapes", "expected"),
    [
        (("batch", 3, 64, 64), (), "shapes for images [-1, 3, 64, 64]"),
        (("batch", 3, 64, 64), (replace(IMAGES, name="x"),), "shapes for images [-1, 3, 64, 64]"),
        (("batch", 3, 32, 32), (IMAGES,), "shapes for images [-1, 3, 32, 32]"),
        ((1, 3, 64, 64), (IMAGES,), "no shapes"),
    ],
)
def test_shapes_that_do_not_fit(request_: BuildRequest, axes: Any, shapes: Any, expected: str) -> None:
    write_onnx(request_.onnx, axes)
    assert failed(replace(request_, shapes=shapes), InvalidBuild).expected == expected


# -- the DLA --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("core", "cores"), [(0, 0), (1, 1)])
def test_a_dla_core_that_is_not_there(request_: BuildRequest, core: int, cores: int) -> None:
    """TensorRT itself would build for the GPU and say nothing."""
    request = replace(request_, precision="fp16", dla_core=core)
    error = failed(request, DlaUnavailable, make(dla_cores=cores))
    assert (error.message, error.received) == (f"TensorRT sees no DLA core {core} here", str(cores))


def test_each_layer_is_asked_for_before_the_build(request_: BuildRequest) -> None:
    write_onnx(request_.onnx, last="Softmax")
    done = build(replace(request_, precision="fp16", dla_core=1), module=make(dla_cores=2))
    assert done.dla is not None
    assert (done.dla.taken, done.dla.refused) == (("/conv (CONVOLUTION)",), ("/last (SOFTMAX)",))
    assert done.as_dict()["dla_support"]["refused"] == ["/last (SOFTMAX)"]


# -- failures -------------------------------------------------------------------------------------------------------
def test_out_of_memory_says_which_workspace_to_try(request_: BuildRequest) -> None:
    assert "workspace_mib 1024" in failed(request_, OutOfMemory, make(scenario="out_of_memory")).hint
    assert "workspace_mib 4096" in failed(request_, OutOfMemory, make(scenario="workspace_short")).hint


@pytest.mark.parametrize(
    ("scenario", "received"),
    [("none", "None, and no error among its messages"), ("no_plan", "what it gave has no plan header")],
)
def test_no_engine_and_no_reason(request_: BuildRequest, scenario: str, received: str) -> None:
    assert failed(request_, EngineBuildFailed, make(scenario=scenario)).received == received


@pytest.mark.parametrize("scenario", ["no_builder", "no_cuda"])
@pytest.mark.parametrize("release", ["8.6.1", "10.3.0"])
def test_no_usable_gpu(request_: BuildRequest, release: str, scenario: str) -> None:
    assert (
        "CUDA initialization failure with error: 35" in failed(request_, CudaUnusable, make(release, scenario)).received
    )


def test_an_older_engine_survives_a_failed_build(request_: BuildRequest) -> None:
    request_.engine.write_bytes(b"the engine of yesterday")
    failed(request_, OutOfMemory, make(scenario="out_of_memory"))
    assert request_.engine.read_bytes() == b"the engine of yesterday"


# -- progress and stop ----------------------------------------------------------------------------------------------
def test_progress_rises_within_the_build(request_: BuildRequest) -> None:
    progress: list[float] = []
    built(request_, progress=lambda phase, now: progress.append(now) if phase == "build" else None)
    assert len(progress) > 5 and progress == sorted(progress)
    assert (progress[0], progress[-1]) == (0.0, 1.0)


@pytest.mark.parametrize("calls", range(1, 10))
def test_a_stop_at_any_moment(request_: BuildRequest, calls: int) -> None:
    failed(request_, BuildStopped, should_stop=after(calls))


def test_an_old_release_can_be_stopped_between_phases(request_: BuildRequest) -> None:
    failed(request_, BuildStopped, make("8.6.1"), should_stop=after(4))


@pytest.mark.parametrize("release", ["8.6.1", "10.3.0"])
def test_an_error_of_the_listener_ends_the_build_and_not_the_process(request_: BuildRequest, release: str) -> None:
    """The double ends itself where an exception leaves a callback, as the genuine bindings do."""

    def listen(line: str) -> None:
        if "OutOfMemory" in line:
            raise RuntimeError("cancelled")

    with pytest.raises(RuntimeError, match="cancelled"):
        built(request_, release, "out_of_memory", on_line=listen)


def test_an_error_in_progress_ends_the_build(request_: BuildRequest) -> None:
    told: list[float] = []

    def follow(phase: str, fraction: float) -> None:
        if phase == "build" and fraction:
            told.append(fraction)
            raise OSError("the pipe is closed")

    with pytest.raises(OSError, match="the pipe is closed"):
        built(request_, progress=follow)
    assert len(told) == 1


def test_two_builds_of_one_process_do_not_hear_each_other(request_: BuildRequest) -> None:
    module, first, second = make(), list[str](), list[str]()
    build(request_, module=module, on_line=first.append)
    heard = len(first)
    build(request_, module=module, on_line=second.append)
    assert len(first) == heard == len(second)


def test_messages_after_a_build_go_where_they_went_before(request_: BuildRequest) -> None:
    module, outer, inner = make(), list[str](), list[str]()
    with listening(open_api(module), outer.append, Guard()) as logger:
        build(request_, module=module, on_line=inner.append)
        heard = len(inner)
        logger.log(module.ILogger.ERROR, "late")
    logger.log(module.ILogger.ERROR, "later")
    assert len(inner) == heard
    assert [line.partition("[E] ")[2] for line in outer] == ["[TRT] late"]


# -- the package ----------------------------------------------------------------------------------------------------
def test_no_tensorrt(request_: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(TensorrtMissing, match="cannot be used here"):
        build(request_)


def test_the_installed_package_is_found_by_its_name(request_: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORRT_DOUBLE_RELEASE", "8.6.1")
    with importable("tensorrt"):
        assert build(request_).api.version == (8, 6, 1)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"__version__": "7.2.3"}, ReleaseUnsupported, "too old"),
        ({"__version__": "unknown"}, TensorrtMissing, "does not say its version"),
        ({"OnnxParser": object}, ReleaseUnsupported, "OnnxParser.parse_from_file"),
    ],
)
def test_a_package_that_is_refused(changes: dict[str, Any], error: type[Exception], says: str) -> None:
    module = make()
    vars(module).update(changes)
    with pytest.raises(error, match=says):
        open_api(module)


@pytest.mark.parametrize("release", RELEASES)
def test_each_name_is_in_the_releases_that_the_table_says_and_in_no_other(release: str) -> None:
    module = make(release)
    version = module.scene.version
    assert missing_names(module, version) == ()
    there = [one.path for one in NAMES if not one.in_release(version) and open_api(module).has(one.path)]
    assert there == []


def test_a_vanished_name_raises_the_genuine_texts() -> None:
    """Of S2: STRICT_TYPES and max_workspace_size on 10."""
    module = make()
    with pytest.raises(AttributeError, match=r"type object 'tensorrt\.tensorrt\.BuilderFlag' has no attribute 'STRICT"):
        _ = module.BuilderFlag.STRICT_TYPES
    config = module.Builder(_logger(module)).create_builder_config()
    with pytest.raises(AttributeError, match=r"'tensorrt\.tensorrt\.IBuilderConfig' object has no attribute 'max_work"):
        config.max_workspace_size = 1
    with pytest.raises(AttributeError, match="module 'tensorrt' has no attribute 'IInt8EntropyCalibrator2'"):
        _ = make("11.0.0.114").IInt8EntropyCalibrator2


def _logger(module: Any) -> Any:
    class Logger(module.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, msg: str) -> None:
            raise AssertionError(msg)

    return Logger()


# -- the table itself -----------------------------------------------------------------------------------------------
OWNERS = {
    "builder": "Builder",
    "cache": "ITimingCache",
    "other": "ITimingCache",
    "config": "IBuilderConfig",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
}
FILES = ("builder.py", "calibrator.py", "callbacks.py", "configure.py", "inspect.py", "timing_cache.py")


def test_what_the_code_uses_is_in_the_table() -> None:
    """What is asked of `config` and the like; `Api` itself refuses to look up what is not in it."""
    paths = {one.path for one in NAMES}
    used: set[str] = set()
    for file in FILES:
        tree = ast.parse((Path(api_file.__file__).parent / file).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in OWNERS:
                used.add(f"{OWNERS[node.value.id]}.{node.attr}")
    assert len(used) > 30
    assert used - paths == set()
