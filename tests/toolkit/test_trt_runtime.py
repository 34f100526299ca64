"""What is TensorRT's own among the runtimes: releases, types, profiles, memory, and why an engine is not run.

Through the double: which calls are made, not what a real TensorRT makes of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from app.toolkit.errors import CorruptFile, FeedMismatch, NotAModel, RuntimeUnavailable, UntrustedEngine
from app.toolkit.pipeline import ExportResult
from app.toolkit.runtimes.ort_runtime import OrtRuntime
from app.toolkit.runtimes.trt_runtime import TrtRuntime
from app.toolkit.tensorrt.device_memory import device_memory
from app.toolkit.tensorrt.errors import CudaUnusable, EngineNotLoaded
from app.toolkit.tensorrt.loading import read_engine
from app.toolkit.tensorrt.pipeline import EngineRequest, build_engine
from app.toolkit.tensorrt.preflight import Wish
from tests.doubles.tensorrt import RELEASES, make
from tests.toolkit.runtimes import FEEDS, engine, trt_runtime
from tests.toolkit.trt_python import HostMemory, importable


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_runs(tmp_path: Path, release: str) -> None:
    """Shapes are told by index up to 8.4, by name from 8.5 on."""
    with trt_runtime(tmp_path, release) as runtime:
        answers = runtime.infer(FEEDS)
    assert np.array_equal(answers["sum"], FEEDS["first"] + FEEDS["second"])
    assert np.array_equal(answers["double"], FEEDS["first"] * 2)
    assert runtime.release == release


@pytest.mark.parametrize(
    ("kind", "name"), [(TensorProto.FLOAT16, "float16"), (TensorProto.INT32, "int32"), (TensorProto.INT64, "int64")]
)
def test_types_are_kept(tmp_path: Path, kind: int, name: str) -> None:
    made = TrtRuntime(engine(tmp_path, kind=kind), trusted=True, module=make(), memory=HostMemory)
    assert {spec.dtype for spec in (*made.inputs, *made.outputs)} == {name}
    with made as runtime:
        answers = runtime.infer({key: array.astype(name) for key, array in FEEDS.items()})
    assert answers["sum"].dtype == name and answers["sum"].tolist() == [[5, 5]] * 3


def test_types_that_numpy_has_not(tmp_path: Path) -> None:
    path = tmp_path / "m.engine"
    content = engine(tmp_path).read_bytes()
    narrow = onnx.load(tmp_path / "m.onnx")
    narrow.graph.node[0].op_type = narrow.graph.node[1].op_type = "Identity"
    for node in narrow.graph.node:
        del node.input[1:]
    for value in (*narrow.graph.input, *narrow.graph.output):
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    path.write_bytes(content[: content.index(b"}\n") + 2] + narrow.SerializeToString())
    with pytest.raises(RuntimeUnavailable, match=r"types that NumPy has not.*first: bfloat16"):
        TrtRuntime(path, trusted=True, module=make())


@pytest.mark.parametrize("release", ["8.2.1", "10.3.0"])
def test_a_shape_outside_of_the_profile(tmp_path: Path, release: str) -> None:
    feeds = {name: np.zeros((5, 2), np.float32) for name in FEEDS}
    with trt_runtime(tmp_path, release) as runtime:
        with pytest.raises(FeedMismatch, match="outside of the engine's profile") as caught:
            runtime.infer(feeds)
        assert (caught.value.expected, caught.value.received) == ("[1, 2] to [4, 2]", "[5, 2]")
        assert runtime.infer(FEEDS)["sum"].shape == (3, 2)


def test_the_memory_is_given_back(tmp_path: Path) -> None:
    made: list[HostMemory] = []

    def memory() -> HostMemory:
        made.append(HostMemory())
        return made[-1]

    with TrtRuntime(engine(tmp_path), trusted=True, module=make(), memory=memory) as runtime:
        runtime.infer(FEEDS)
        assert [one.closed for one in made] == [False] * 4
    assert [one.closed for one in made] == [True] * 4


def test_ultralytics_header_is_skipped_and_read(tmp_path: Path) -> None:
    path, told = engine(tmp_path), {"task": "detect", "imgsz": [640, 640], "names": {"0": "pill"}, "half": False}
    text = json.dumps(told).encode()
    path.write_bytes(len(text).to_bytes(4, "little") + text + path.read_bytes())
    with TrtRuntime(path, trusted=True, module=make(), memory=HostMemory) as runtime:
        assert runtime.infer(FEEDS)["sum"][0, 0] == 5
    expected = {"task": "detect", "imgsz": "[640, 640]", "names": "{'0': 'pill'}", "half": "False"}
    assert runtime.file.metadata == expected


# -- from the build to the run --------------------------------------------------------------------------------------
def test_an_engine_of_ours_is_run_by_the_installed_packages(tmp_path: Path, exported: ExportResult) -> None:
    """The pills detector: what it says of itself travels in the manifest, its answers are the ONNX file's."""
    path = tmp_path / "pills.engine"
    image = {"images": np.random.default_rng(0).random((1, 3, 640, 640), dtype=np.float32)}
    with importable("tensorrt", "pycuda"):
        build_engine(EngineRequest(exported.path, path, Wish("fp32")), tmp_path, on_line=lambda _line: None)
        with TrtRuntime(path) as runtime, OrtRuntime(exported.path) as reference:
            wanted, given = reference.infer(image)["output0"], runtime.infer(image)["output0"]
    assert np.allclose(given, wanted, atol=1e-4)
    properties = onnx.load(exported.path, load_external_data=False).metadata_props
    assert runtime.file.metadata == {entry.key: entry.value for entry in properties}
    assert {"task", "names", "imgsz"} <= runtime.file.metadata.keys()


def test_a_manifest_of_another_engine_says_nothing(tmp_path: Path, exported: ExportResult) -> None:
    path = tmp_path / "pills.engine"
    with importable("tensorrt", "pycuda"):
        build_engine(EngineRequest(exported.path, path, Wish("fp32")), tmp_path, on_line=lambda _line: None)
    path.write_bytes(path.read_bytes() + b"\0")
    assert read_engine(path).metadata == {}
    with pytest.raises(UntrustedEngine):
        TrtRuntime(path, module=make())


# -- not run --------------------------------------------------------------------------------------------------------
def test_an_engine_from_anywhere_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(UntrustedEngine, match="an engine is code"):
        TrtRuntime(engine(tmp_path), module=make())


def test_without_tensorrt_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = engine(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(RuntimeUnavailable, match=r"Python package cannot be used here.*pip install tensorrt"):
        TrtRuntime(path, trusted=True)


@pytest.mark.parametrize(("built_with", "here"), [("10.3.0", "8.6.1"), ("11.0.0.114", "10.3.0")])
def test_an_engine_of_another_release_never_reaches_tensorrt(tmp_path: Path, built_with: str, here: str) -> None:
    """The double would end itself, as the genuine library may."""
    with pytest.raises(RuntimeUnavailable, match=f"does not fit the TensorRT here.*here is {here}"):
        TrtRuntime(engine(tmp_path, built_with), trusted=True, module=make(here))


@pytest.mark.parametrize(("scenario", "error"), [("no_cuda", CudaUnusable), ("not_loaded", EngineNotLoaded)])
def test_an_engine_that_does_not_load(tmp_path: Path, scenario: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        trt_runtime(tmp_path, scenario=scenario)


@pytest.mark.parametrize("release", ["8.2.1", "10.3.0"])
def test_too_little_memory_for_a_context(tmp_path: Path, release: str) -> None:
    runtime = trt_runtime(tmp_path, release, "no_context")
    with pytest.raises(RuntimeUnavailable, match=r"no execution context.*could not be allocated"), runtime:
        pass


@pytest.mark.parametrize("release", ["8.2.1", "10.3.0"])
def test_a_run_that_fails(tmp_path: Path, release: str) -> None:
    runtime = trt_runtime(tmp_path, release, "not_run")
    with runtime, pytest.raises(RuntimeUnavailable, match=r"did not run the engine.*illegal memory access"):
        runtime.infer(FEEDS)


def test_without_gpu_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = engine(tmp_path)
    for name in ("pycuda", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CudaUnusable, match="nothing can be put into GPU memory"):
        TrtRuntime(path, trusted=True, module=make()).__enter__()


def test_what_is_no_engine(tmp_path: Path) -> None:
    engine(tmp_path)
    with pytest.raises(NotAModel):
        TrtRuntime(tmp_path / "m.onnx", module=make())
    (tmp_path / "cut.engine").write_bytes(b"ftrt")
    with pytest.raises(CorruptFile):
        TrtRuntime(tmp_path / "cut.engine", module=make())


# -- the GPU's memory -----------------------------------------------------------------------------------------------
ARRAYS: tuple[np.ndarray[Any, Any], ...] = (
    np.arange(6, dtype=np.float16).reshape(2, 3),
    np.arange(24, dtype=np.int64).reshape(2, 3, 4).T,
    np.zeros((0, 3), np.float32),
)


def round_trips() -> None:
    memory = device_memory()
    for array in ARRAYS:
        assert memory.put(array) == memory.reserve(array.nbytes) > 0
        there = np.empty(array.shape, array.dtype)
        memory.get(there)
        assert np.array_equal(there, array)
    memory.close()


def test_pycuda_carries_every_type_and_order() -> None:
    with importable("pycuda"):
        round_trips()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_carries_every_type_and_order() -> None:
    round_trips()
