"""The manifest beside an engine: written whole, read back the same, and refused where it is not one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.toolkit.errors import CorruptFile
from app.toolkit.stats import model_stats, stats_text
from app.toolkit.tensorrt.manifest import (
    Manifest,
    engine_entries,
    machine_entries,
    manifest_from_dict,
    manifest_path,
    model_metadata,
    read_manifest,
    write_manifest,
)
from app.toolkit.tensorrt.plan import Plan, read_plan
from app.toolkit.tensorrt.targets import Target

ORIN = Target(
    tensorrt=(10, 3, 0, 30),
    compute_capability=(8, 7),
    gpu_name="NVIDIA Jetson AGX Orin Developer Kit",
    sm_count=16,
    os="linux",
    arch="aarch64",
    l4t="36.4.0",
    dla_cores=2,
    memory_total_mib=30536,
)


def engine_in(folder: Path) -> Plan:
    """An engine file, 10.3.0.30 by its header."""
    path = folder / "best_fp16.engine"
    path.write_bytes(b"ftrt" + bytes(20) + bytes((10, 3, 0, 30)) + bytes(100))
    return read_plan(path)


def manifest_of(plan: Plan, target: Target = ORIN, **changes: Any) -> Manifest:
    """A full manifest of an engine for a DLA."""
    entries: dict[str, Any] = {
        **engine_entries(plan),
        **machine_entries(target),
        "onnx_name": "best.onnx",
        "onnx_sha256": "0" * 64,
        "onnx_opset": 17,
        "built_from": "fp32 onnx",
        "tensorrt_version": "10.3.0.30",
        "builder": "trtexec",
        "precision": "fp16",
        "device": "dla0",
        "workspace_mib": 2048,
        "build_seconds": 84.5,
        "built_at": "2026-11-21T10:00:00+00:00",
        "command": ("trtexec", "--onnx=best.onnx", "--saveEngine=best_fp16.engine", "--fp16"),
        "dla_layers": 12,
        "gpu_layers": 30,
        "inputs": ({"name": "images", "dtype": "float32", "shape": [1, 3, 608, 608]},),
        "outputs": ({"name": "output0", "dtype": "float32", "shape": [1, 16, 7581]},),
        **changes,
    }
    return Manifest(**entries)


def test_a_manifest_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    plan = engine_in(tmp_path)
    manifest = manifest_of(plan, profile={"images": {"min": [1, 3, 320, 320], "opt": [1], "max": [1]}})
    path = write_manifest(manifest, plan.path)
    assert path == manifest_path(plan.path) == tmp_path / "best_fp16_manifest.json"
    assert read_manifest(plan.path) == manifest
    assert sorted(one.name for one in tmp_path.iterdir()) == ["best_fp16.engine", "best_fp16_manifest.json"]


def test_it_says_which_file_and_which_machine(tmp_path: Path) -> None:
    plan = engine_in(tmp_path)
    entries = manifest_of(plan).as_dict()
    assert entries["engine_sha256"] == hashlib.sha256(plan.path.read_bytes()).hexdigest()
    assert entries["engine_size_bytes"] == 128
    assert (entries["compute_capability"], entries["arch"], entries["l4t"]) == ("8.7", "aarch64", "36.4.0")
    assert json.loads(json.dumps(entries)) == entries


def test_the_stats_of_an_engine_show_its_manifest(tmp_path: Path) -> None:
    plan = engine_in(tmp_path)
    write_manifest(manifest_of(plan), plan.path)
    lines = stats_text(model_stats(plan.path)).splitlines()
    assert "  precision: fp16" in lines
    assert "  dla_layers: 12" in lines


def test_an_engine_without_a_manifest_has_none(tmp_path: Path) -> None:
    assert read_manifest(engine_in(tmp_path).path) is None


def test_what_a_later_version_added_is_left_out(tmp_path: Path) -> None:
    manifest = manifest_of(engine_in(tmp_path))
    assert manifest_from_dict({**manifest.as_dict(), "new_in_2030": 1}) == manifest


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"manifest_version": 2}, "of another kind"),
        ({"precision": "fp4"}, "precision is not what it must be"),
        ({"engine_size_bytes": "128"}, "engine_size_bytes"),
        ({"engine_size_bytes": True}, "engine_size_bytes"),
        ({"gpu_name": 7}, "gpu_name"),
        ({"command": "trtexec"}, "command"),
        ({"command": [1]}, "command"),
        ({"inputs": ["images"]}, "inputs"),
        ({"hardware_compatibility": None}, "hardware_compatibility"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    entries = {**manifest_of(engine_in(tmp_path)).as_dict(), **change}
    with pytest.raises(CorruptFile, match=says):
        manifest_from_dict(entries)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    entries = manifest_of(engine_in(tmp_path)).as_dict()
    del entries["onnx_sha256"]
    with pytest.raises(CorruptFile, match="lacks onnx_sha256"):
        manifest_from_dict(entries)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_broken_manifest_is_refused(content: bytes, tmp_path: Path) -> None:
    plan = engine_in(tmp_path)
    manifest_path(plan.path).write_bytes(content)
    with pytest.raises(CorruptFile, match="best_fp16_manifest"):
        read_manifest(plan.path)


def test_unknown_facts_of_the_machine_stay_unknown(tmp_path: Path) -> None:
    manifest = replace(manifest_of(engine_in(tmp_path), target=Target()), dla_layers=None)
    assert manifest_from_dict(manifest.as_dict()).compute_capability is None


# -- what the model says of itself ----------------------------------------------------------------------------------
def test_the_model_s_own_words_come_from_the_manifest_else_from_ultralytics_header(tmp_path: Path) -> None:
    """In the form that an ONNX file has them."""
    plan = replace(engine_in(tmp_path), offset=60, prefix={"task": "segment", "imgsz": [640, 640], "dla": None})
    manifest = manifest_of(plan, model={"task": "detect", "imgsz": "[608, 608]"})
    assert model_metadata(plan, manifest) == {"task": "detect", "imgsz": "[608, 608]"}
    header = {"task": "segment", "imgsz": "[640, 640]", "dla": "None"}
    assert model_metadata(plan, None) == header
    assert model_metadata(plan, replace(manifest, model={})) == header
    assert model_metadata(engine_in(tmp_path), None) == {}


def test_a_manifest_from_before_has_no_words_of_the_model(tmp_path: Path) -> None:
    entries = manifest_of(engine_in(tmp_path)).as_dict()
    del entries["model"]
    assert manifest_from_dict(entries).model == {}
