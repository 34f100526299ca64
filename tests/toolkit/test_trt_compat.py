"""Whether an engine loads on a machine, and the one sentence that says why not."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.toolkit.errors import BuildElsewhere, UnknownProfile
from app.toolkit.tensorrt.compat import Compatibility, compatibility
from app.toolkit.tensorrt.manifest import Manifest
from app.toolkit.tensorrt.plan import Plan
from app.toolkit.tensorrt.targets import (
    PROFILES,
    Target,
    as_jetson,
    check_buildable_here,
    l4t_of,
    local_target,
    profile_named,
    target_of,
    with_gpu,
)
from app.toolkit.tensorrt.versions import Version, version_text

PC = Target(
    tensorrt=(10, 3, 0, 26),
    compute_capability=(8, 9),
    gpu_name="NVIDIA GeForce RTX 4070",
    sm_count=46,
    os="linux",
    arch="x86_64",
    l4t="",
    dla_cores=0,
)
ORIN = Target((10, 3, 0, 30), (8, 7), "NVIDIA Jetson AGX Orin Developer Kit", 16, "linux", "aarch64", "36.4.0", 2)


def plan_of(version: Version | None, offset: int = 0) -> Plan:
    return Plan(Path("best.engine"), 1000, version, 0, offset)


def manifest_for(target: Target, **changes: Any) -> Manifest:
    """The manifest of an engine that was built on that machine."""
    entries: dict[str, Any] = {
        "engine_name": "best.engine",
        "engine_sha256": "1" * 64,
        "engine_size_bytes": 1000,
        "onnx_name": "best.onnx",
        "onnx_sha256": "0" * 64,
        "onnx_opset": 17,
        "built_from": "fp32 onnx",
        "tensorrt_version": version_text(target.tensorrt),
        "builder": "trtexec",
        "precision": "fp16",
        "device": "gpu",
        "workspace_mib": 2048,
        "build_seconds": 84.5,
        "built_at": "2026-11-21T10:00:00+00:00",
        "command": (),
        "gpu_name": target.gpu_name,
        "compute_capability": version_text(target.compute_capability),
        "sm_count": target.sm_count,
        "os": target.os,
        "arch": target.arch,
        "l4t": target.l4t,
        **changes,
    }
    return Manifest(**entries)


def between(built_on: Target, here: Target, **changes: Any) -> Compatibility:
    return compatibility(plan_of(built_on.tensorrt), manifest_for(built_on, **changes), here)


def test_an_engine_loads_where_it_was_built() -> None:
    for machine in (PC, ORIN):
        found = between(machine, machine)
        assert found.loads is True
        assert found.verdict.startswith("loads: TensorRT ")


# -- the version ----------------------------------------------------------------------------------------------------
def test_s1_built_in_a_container_with_8_6_and_loaded_by_10_is_one_sentence() -> None:
    found = between(replace(PC, tensorrt=(8, 6, 1, 6)), PC)
    assert found.loads is False
    assert found.verdict == (
        "does not load: built with TensorRT 8.6.1.6, here is 10.3.0.26: an engine loads only in the version that built "
        "it; rebuild from best.onnx with TensorRT 10.3.0.26, or build with version_compatible"
    )


def test_s1_the_other_way_round_is_one_sentence_from_the_header_alone() -> None:
    found = compatibility(plan_of((10, 3, 0, 26)), None, replace(PC, tensorrt=(8, 6, 1, 6)))
    assert found.loads is False
    assert found.verdict == (
        "does not load: built with TensorRT 10.3.0.26, here is 8.6.1.6: an engine loads only in the version that built "
        "it; rebuild from its ONNX with TensorRT 8.6.1.6"
    )


def test_a_bare_header_of_an_older_version_cannot_tell_and_says_what_to_do() -> None:
    found = compatibility(plan_of((8, 6, 1, 6)), None, PC)
    assert found.loads is None
    assert found.verdict == (
        "cannot tell: built with TensorRT 8.6.1.6, here is 10.3.0.26: an engine loads only in the version that built "
        "it, unless it was built version-compatible, which a header does not tell; rebuild from its ONNX with TensorRT "
        "10.3.0.26 to be sure"
    )


@pytest.mark.parametrize("here", [(10, 3, 0, 26), (10, 16, 1, 11), (8, 5, 2, 2), (11, 0, 0, 114)])
def test_a_bare_header_is_never_a_yes(here: Version) -> None:
    assert compatibility(plan_of((10, 3, 0, 26)), None, replace(PC, tensorrt=here)).loads is not True


def test_the_build_number_counts() -> None:
    found = between(replace(PC, tensorrt=(8, 6, 1, 5)), replace(PC, tensorrt=(8, 6, 1, 6)))
    assert found.loads is False
    assert "8.6.1.5, here is 8.6.1.6" in found.verdict


def test_three_equal_parts_are_no_yes() -> None:
    found = between(PC, replace(PC, tensorrt=(10, 3, 0)))
    assert found.loads is None
    assert "the build number must match too" in found.verdict


@pytest.mark.parametrize(
    ("built", "here", "loads"),
    [
        ((8, 6, 1, 6), (10, 3, 0, 26), True),
        ((10, 3, 0, 26), (10, 7, 0, 23), True),
        ((10, 3, 0, 26), (11, 1, 0, 106), True),
        ((8, 6, 1, 6), (11, 1, 0, 106), False),
        ((10, 7, 0, 23), (10, 3, 0, 26), False),
        ((10, 3, 0, 26), (8, 6, 1, 6), False),
    ],
)
def test_version_compatible_engines_go_to_newer_releases_only(built: Version, here: Version, loads: bool) -> None:
    found = between(replace(PC, tensorrt=built), replace(PC, tensorrt=here), version_compatible=True)
    assert found.loads is loads
    assert any("engine_host_code_allowed" in note for note in found.notes)


def test_an_engine_before_8_6_names_no_version() -> None:
    found = compatibility(plan_of(None), None, PC)
    assert found.verdict == (
        "cannot tell: the header names no TensorRT version, as none before 8.6 does, and no manifest does"
    )
    known = between(replace(PC, tensorrt=(8, 5, 2, 2)), PC)
    assert known.loads is False


# -- the machine ----------------------------------------------------------------------------------------------------
def test_s2_an_engine_of_a_pc_does_not_run_on_a_nano() -> None:
    nano = target_of(PROFILES["jetson-nano"])
    found = between(PC, nano)
    assert found.loads is False
    reasons = {check.about: check.why for check in found.checks if check.loads is False}
    assert "built with TensorRT 10.3.0.26, here is 8.2" in reasons["TensorRT version"]
    assert "built on x86_64, here is aarch64" in reasons["platform"]
    assert "compute capability 8.9, here is 5.3" in reasons["compute capability"]


def test_the_compute_capability_must_be_the_same() -> None:
    other = replace(PC, compute_capability=(8, 6), gpu_name="NVIDIA RTX A4000")
    assert between(PC, other).verdict == (
        "does not load: built for compute capability 8.9, here is 8.6: build it on a GPU of 8.6"
    )


def test_ampere_plus_goes_to_other_gpus_from_ampere_on() -> None:
    ada, turing = replace(PC, compute_capability=(8, 6)), replace(PC, compute_capability=(7, 5))
    assert between(PC, ada, hardware_compatibility="ampere_plus").loads is True
    assert between(PC, turing, hardware_compatibility="ampere_plus").loads is False
    assert between(ORIN, replace(ORIN, compute_capability=(8, 9)), hardware_compatibility="ampere_plus").loads is None


def test_another_model_of_the_same_capability_is_told() -> None:
    smaller = replace(PC, gpu_name="NVIDIA GeForce RTX 4060", sm_count=24)
    assert between(PC, replace(smaller, sm_count=46)).loads is True
    assert between(PC, smaller).loads is None
    newer = (10, 16, 1, 11)
    refused = between(replace(PC, tensorrt=newer), replace(smaller, tensorrt=newer))
    assert refused.verdict.endswith("it uses 46 multiprocessors, 24 are there")
    assert refused.loads is False
    assert between(PC, smaller, hardware_compatibility="same_compute_capability").loads is True


@pytest.mark.parametrize(("cores", "loads"), [(0, False), (None, None), (1, True), (2, True)])
def test_an_engine_for_a_dla_needs_a_core(cores: int | None, loads: bool | None) -> None:
    found = between(ORIN, replace(ORIN, dla_cores=cores), device="dla1")
    assert found.loads is loads
    assert ("set runtime.DLA_core = 0" in found.verdict) == (cores == 1)


def test_what_is_not_known_of_the_target_is_no_yes() -> None:
    for unknown in ("tensorrt", "compute_capability", "gpu_name", "os", "arch"):
        assert between(PC, replace(PC, **{unknown: None})).loads is None, unknown


def test_a_manifest_of_another_engine_is_left_aside() -> None:
    for changes in ({"engine_size_bytes": 999}, {"tensorrt_version": "10.7.0.23"}):
        found = compatibility(plan_of(PC.tensorrt), manifest_for(PC, **changes), PC)
        assert found.loads is None
        assert "another engine's" in found.notes[0]


def test_the_prefix_of_ultralytics_is_noted() -> None:
    found = compatibility(plan_of(PC.tensorrt, offset=512), manifest_for(PC), PC)
    assert "512 bytes of Ultralytics" in found.notes[0]
    assert found.as_dict()["notes"] == list(found.notes)


# -- targets --------------------------------------------------------------------------------------------------------
def test_the_profiles_say_what_the_devices_are() -> None:
    nano = PROFILES["jetson-nano"]
    assert (nano.workspace_mib, nano.max_batch, nano.precision, nano.has_dla) == (128, 1, "fp16", False)
    assert "int8" not in nano.precisions
    assert PROFILES["jetson-orin"].has_dla is None, "how many cores an Orin module has is not settled"
    assert set(PROFILES) == {"jetson-nano", "jetson-orin", "x86"}
    assert nano.as_dict()["tensorrt"] == "8.2"
    with pytest.raises(UnknownProfile, match="jetson-banana"):
        profile_named("jetson-banana")


def test_a_build_for_another_machine_is_refused_with_the_line_to_run_there() -> None:
    line = "trtexec --onnx=best.onnx --saveEngine=best.engine --workspace=128 --fp16 --buildOnly"
    with pytest.raises(BuildElsewhere) as caught:
        check_buildable_here(PROFILES["jetson-nano"], PC, "best.onnx", line)
    assert line in caught.value.hint and "best.onnx" in caught.value.hint
    assert "architecture aarch64 there, x86_64 here" in caught.value.received
    check_buildable_here(PROFILES["x86"], PC, "best.onnx", line)
    check_buildable_here(PROFILES["jetson-orin"], ORIN, "best.onnx", line)
    with pytest.raises(BuildElsewhere):
        check_buildable_here(PROFILES["jetson-nano"], ORIN, "best.onnx", line)


def test_what_a_machine_does_not_tell_is_no_difference() -> None:
    check_buildable_here(PROFILES["jetson-nano"], Target(arch="aarch64"), "best.onnx", "")


def test_nvidia_smi_is_read() -> None:
    found = with_gpu(Target(), "NVIDIA GeForce RTX 4070, 8.9, 12282, 11000, 550.54.14\nNVIDIA T4, 7.5, 1, 1, 1\n")
    assert (found.gpu_name, found.compute_capability) == ("NVIDIA GeForce RTX 4070", (8, 9))
    assert (found.memory_total_mib, found.memory_free_mib, found.driver) == (12282, 11000, "550.54.14")
    jetson = with_gpu(Target(), "Orin (nvgpu), 8.7, [N/A], [N/A], 540.4.0\n")
    assert (jetson.compute_capability, jetson.memory_total_mib) == ((8, 7), None)
    assert with_gpu(Target(), "") == Target()
    assert with_gpu(Target(), "NVIDIA-SMI has failed because it couldn't communicate with the driver") == Target()


def test_a_jetson_is_known_by_its_files() -> None:
    assert l4t_of("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64") == "35.4.1"
    assert l4t_of("something else") == ""
    memory = "MemTotal:        2027348 kB\nMemFree:          100000 kB\nMemAvailable:    1234567 kB\n"
    nano = as_jetson(Target(arch="aarch64"), "NVIDIA Jetson Nano 2GB Developer Kit\x00", memory)
    assert nano.gpu_name == "NVIDIA Jetson Nano 2GB Developer Kit"
    assert nano.compute_capability == (5, 3)
    assert (nano.memory_total_mib, nano.memory_free_mib) == (1979, 1205)
    assert as_jetson(Target(), "NVIDIA Jetson Orin Nano Developer Kit", memory).compute_capability == (8, 7)
    assert as_jetson(Target(), "NVIDIA Jetson AGX Thor", memory).compute_capability is None


def test_this_machine_is_told_without_importing_tensorrt() -> None:
    here = local_target()
    assert here.os == sys.platform
    assert here.as_dict()["arch"] == here.arch
    code = (
        "import sys; from app.toolkit.tensorrt.targets import local_target; local_target(); "
        "print([name for name in ('tensorrt', 'pycuda', 'onnx', 'torch') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
