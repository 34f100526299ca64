"""What is told of an engine, and when TensorRT is not given it at all."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from app.toolkit.errors import FileMissing, NotAModel
from app.toolkit.tensorrt.builder import build
from app.toolkit.tensorrt.errors import CudaUnusable, EngineNotLoaded
from app.toolkit.tensorrt.inspect import inspect_engine
from app.toolkit.tensorrt.manifest import Manifest, engine_entries, write_manifest
from app.toolkit.tensorrt.plan import read_plan
from app.toolkit.tensorrt.request import BuildRequest
from app.toolkit.tensorrt.versions import version_text
from tests.doubles.tensorrt import RELEASES, make
from tests.toolkit.trt import write_onnx
from tests.toolkit.trt_python import IMAGES

ROWS = ({"name": "images", "dtype": "float32", "shape": [1, 3, 64, 64]},)


def engine(folder: Path, release: str = "10.3.0", *, axes: Any = (1, 3, 64, 64), **changes: Any) -> Path:
    """An engine of the double, without a manifest."""
    request = BuildRequest(write_onnx(folder / "m.onnx", axes), folder / "m.engine", **changes)
    return build(request, module=make(release, dla_cores=2)).engine


def described(path: Path, **changes: Any) -> Path:
    """Writes the manifest beside an engine."""
    plan = read_plan(path)
    entries = {
        **engine_entries(plan),
        "onnx_name": "m.onnx",
        "onnx_sha256": "0" * 64,
        "onnx_opset": 17,
        "built_from": "fp32 onnx",
        "tensorrt_version": version_text(plan.version),
        "builder": "python",
        "precision": "fp16",
        "device": "gpu",
        "workspace_mib": 64,
        "build_seconds": 1.0,
        "built_at": "2026-11-21T10:00:00Z",
        "command": ("builder.create_network(1)",),
        "inputs": ROWS,
    }
    write_manifest(Manifest(**{**entries, **changes}), path)
    return path


@pytest.mark.parametrize("release", RELEASES)
def test_each_release_tells_inputs_outputs_memory_and_layers(tmp_path: Path, release: str) -> None:
    """By name where the release has that, by bindings on 8.2; 11 has another size of the memory and other JSON."""
    path = described(engine(tmp_path, release), tensorrt_version=release)
    facts = inspect_engine(path, module=make(release))
    assert facts.opened
    assert [one.as_dict() for one in facts.inputs] == [{**ROWS[0], "profiles": []}]
    assert [one.name for one in facts.outputs] == ["output0"]
    assert facts.device_memory_bytes == 8_228_864
    assert [(one.name, one.device) for one in facts.layers] == [("/conv", "gpu"), ("/last", "gpu")]
    assert facts.warnings == ("Using default stream in enqueueV3().",)
    assert json.loads(json.dumps(facts.as_dict()))["opened"] is True


@pytest.mark.parametrize("release", ["8.2.1", "10.3.0", "11.4.0.106"])
def test_free_axes_come_with_their_profile(tmp_path: Path, release: str) -> None:
    made = engine(tmp_path, release, axes=("batch", 3, 64, 64), shapes=(IMAGES,))
    path = described(made, tensorrt_version=release)
    (tensor,) = inspect_engine(path, module=make(release)).inputs
    assert tensor.shape == (-1, 3, 64, 64)
    assert tensor.profiles == ((IMAGES.minimum, IMAGES.optimum, IMAGES.maximum),)


def test_layers_on_the_dla_where_the_engine_tells(tmp_path: Path) -> None:
    """The inspector of 11 is played with its details, that of 10 with names alone."""
    old = described(engine(tmp_path, precision="fp16", dla_core=0), device="dla0")
    assert {one.device for one in inspect_engine(old, module=make(dla_cores=2)).layers} == {None}
    new = engine(tmp_path, "11.0.0.114")
    content = new.read_bytes().replace(b'"dla": false', b'"dla": true')
    new.write_bytes(content)
    facts = inspect_engine(described(new, device="dla1"), module=make("11.0.0.114", dla_cores=1))
    assert {(one.kind, one.device) for one in facts.layers} == {("DLA", "dla")}


def test_an_engine_for_a_dla_without_one(tmp_path: Path) -> None:
    path = described(engine(tmp_path, precision="fp16", dla_core=0), device="dla0")
    with pytest.raises(EngineNotLoaded, match="is built for a DLA"):
        inspect_engine(path, module=make())


@pytest.mark.parametrize(("device", "cores", "core"), [("dla1", 2, 1), ("dla1", 1, 0), ("gpu", 2, None)])
def test_the_dla_core_that_it_runs_on(tmp_path: Path, device: str, cores: int, core: int | None) -> None:
    module = make(dla_cores=cores)
    inspect_engine(described(engine(tmp_path), device=device), module=module)
    assert module.scene.build.get("core") == core


@pytest.mark.parametrize("compatible", [True, False])
def test_host_code_is_allowed_only_where_the_manifest_asks(tmp_path: Path, compatible: bool) -> None:
    module = make()
    inspect_engine(described(engine(tmp_path), version_compatible=compatible), module=module)
    assert module.scene.build.get("host_code", False) is compatible


# -- not opened -----------------------------------------------------------------------------------------------------
def test_an_engine_from_anywhere_is_not_opened(tmp_path: Path) -> None:
    path = engine(tmp_path)
    facts = inspect_engine(path, module=make())
    assert facts.why_not_opened == "no manifest of ours is beside it, and an engine is code"
    assert (facts.plan.version, facts.layers) == ((10, 3, 0, 26), ())
    assert inspect_engine(path, module=make(), trusted=True).opened


def test_a_manifest_of_another_engine_does_not_vouch(tmp_path: Path) -> None:
    path = described(engine(tmp_path))
    path.write_bytes(path.read_bytes().replace(b"/conv", b"/evil"))
    facts = inspect_engine(path, module=make())
    assert not facts.opened and facts.manifest is None


@pytest.mark.parametrize(
    ("built_with", "here"), [("8.6.1", "10.3.0"), ("10.3.0", "10.16.1.11"), ("11.0.0.114", "10.3.0")]
)
def test_an_engine_of_another_release_never_reaches_tensorrt(tmp_path: Path, built_with: str, here: str) -> None:
    """The double ends itself, as the genuine library may. S1's mismatch is the first."""
    facts = inspect_engine(described(engine(tmp_path, built_with)), module=make(here), trusted=True)
    assert f"built with TensorRT {built_with}"[:26] in facts.why_not_opened
    assert f"here is {here}" in facts.why_not_opened
    assert [one.name for one in facts.inputs] == ["images"], "the manifest tells"


def test_an_engine_without_a_version_is_not_tried_where_versions_are_written(tmp_path: Path) -> None:
    path = engine(tmp_path, "8.2.1")
    assert "names no TensorRT version" in inspect_engine(path, module=make(), trusted=True).why_not_opened
    assert inspect_engine(path, module=make("8.2.1"), trusted=True).opened


def test_without_tensorrt_header_and_manifest_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = described(engine(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    facts = inspect_engine(path)
    assert facts.why_not_opened == "TensorRT's Python package cannot be used here"
    assert facts.inputs[0].shape == (1, 3, 64, 64)


@pytest.mark.parametrize("scenario", ["no_builder", "no_cuda"])
def test_no_usable_gpu(tmp_path: Path, scenario: str) -> None:
    """A runtime that is there although CUDA is not crashes with its first engine."""
    with pytest.raises(CudaUnusable) as caught:
        inspect_engine(described(engine(tmp_path)), module=make(scenario=scenario))
    assert "CUDA initialization failure" in caught.value.received


def test_an_engine_that_tensorrt_refuses(tmp_path: Path) -> None:
    with pytest.raises(EngineNotLoaded) as caught:
        inspect_engine(described(engine(tmp_path)), module=make(scenario="not_loaded"))
    assert "Engine deserialization failed." in caught.value.received


def test_ultralytics_prefix_is_skipped(tmp_path: Path) -> None:
    path, text = engine(tmp_path), json.dumps({"task": "detect"}).encode()
    path.write_bytes(len(text).to_bytes(4, "little") + text + path.read_bytes())
    facts = inspect_engine(described(path), module=make())
    assert facts.opened and dict(facts.plan.prefix) == {"task": "detect"}


def test_what_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(NotAModel):
        inspect_engine(write_onnx(tmp_path / "m.onnx"), module=make())
    with pytest.raises(FileMissing):
        inspect_engine(tmp_path / "none.engine", module=make())
