"""trtexec's command line for each release: S0's examples to the letter, and nothing that a genuine parser refuses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from app.toolkit.errors import CalibrationMissing, EmptyFile, FileMissing, InvalidBuild, ReleaseUnsupported
from app.toolkit.tensorrt.dialects import TABLE, Dialect, command_line, decode_version, dialect_of
from app.toolkit.tensorrt.flags_table import flags_table
from app.toolkit.tensorrt.request import BuildRequest, InputShapes, Int8Source, Precision
from app.toolkit.tensorrt.versions import Version
from tests.doubles.trtexec_double.options import parse, split_shapes
from tests.doubles.trtexec_double.releases import RELEASES, VERSIONS, release

ONNX, ENGINE, CACHE = Path("/jobs/best.onnx"), Path("/jobs/best.engine"), Path("/jobs/calib.cache")
FILES = [f"--onnx={ONNX}", f"--saveEngine={ENGINE}"]
PLAIN = BuildRequest(ONNX, ENGINE)
GPU_FP16 = replace(PLAIN, precision="fp16")
DLA_FP16 = replace(PLAIN, precision="fp16", dla_core=0)
DLA_INT8 = replace(PLAIN, precision="int8", dla_core=0, int8_from="calibration_cache", calibration_cache=CACHE)
GPU_QDQ = replace(PLAIN, precision="int8", int8_from="qdq")
IMAGES = InputShapes("images", (1, 3, 320, 320), (1, 3, 640, 640), (4, 3, 1280, 1280))

OLD_POOL, POOL = "--workspace=2048", "--memPoolSize=workspace:2048"
ON_DLA = ["--useDLACore=0", "--allowGPUFallback"]
CALIBRATED = ["--int8", f"--calib={CACHE}"]

EXPECTED = [
    # S0 section 6: the GPU in FP16
    ("8.2", GPU_FP16, [*FILES, OLD_POOL, "--fp16", "--buildOnly"]),
    ("8.5", GPU_FP16, [*FILES, POOL, "--fp16", "--buildOnly"]),
    ("8.6", GPU_FP16, [*FILES, POOL, "--fp16", "--skipInference"]),
    ("10.3", GPU_FP16, [*FILES, POOL, "--fp16", "--skipInference"]),
    ("10.16", GPU_FP16, [*FILES, POOL, "--fp16", "--skipInference"]),
    ("11.0", replace(GPU_FP16, strongly_typed=True), [*FILES, POOL, "--skipInference"]),
    ("11.1", replace(GPU_FP16, strongly_typed=True), [*FILES, POOL, "--skipInference"]),
    # S0 section 6: DLA core 0 in FP16
    ("8.2", DLA_FP16, [*FILES, OLD_POOL, "--fp16", *ON_DLA, "--buildOnly"]),
    ("8.5", DLA_FP16, [*FILES, POOL, "--fp16", *ON_DLA, "--buildOnly"]),
    ("8.6", DLA_FP16, [*FILES, POOL, "--fp16", *ON_DLA, "--skipInference"]),
    ("10.3", DLA_FP16, [*FILES, POOL, "--fp16", *ON_DLA, "--skipInference"]),
    # S0 section 7: the DLA in INT8, which with trtexec alone needs an earlier calibration
    ("8.2", DLA_INT8, [*FILES, OLD_POOL, *CALIBRATED, *ON_DLA, "--buildOnly"]),
    ("8.5", DLA_INT8, [*FILES, POOL, *CALIBRATED, *ON_DLA, "--buildOnly"]),
    ("8.6", DLA_INT8, [*FILES, POOL, *CALIBRATED, *ON_DLA, "--skipInference"]),
    ("10.3", DLA_INT8, [*FILES, POOL, *CALIBRATED, *ON_DLA, "--skipInference"]),
    # S0 section 7 on the GPU, from a Q/DQ ONNX
    ("8.2", GPU_QDQ, [*FILES, OLD_POOL, "--int8", "--buildOnly"]),
    ("8.5", GPU_QDQ, [*FILES, POOL, "--int8", "--buildOnly"]),
    ("8.6", GPU_QDQ, [*FILES, POOL, "--int8", "--skipInference"]),
    ("10.3", GPU_QDQ, [*FILES, POOL, "--int8", "--skipInference"]),
    ("10.3", replace(GPU_QDQ, strongly_typed=True), [*FILES, POOL, "--stronglyTyped", "--skipInference"]),
    ("11.0", GPU_QDQ, [*FILES, POOL, "--skipInference"]),
    ("11.1", GPU_QDQ, [*FILES, POOL, "--skipInference"]),
]


def dialect(name: str) -> Dialect:
    return dialect_of(VERSIONS[name])


@pytest.mark.parametrize(("name", "request_", "expected"), EXPECTED)
def test_s0s_examples(name: str, request_: BuildRequest, expected: list[str]) -> None:
    assert command_line(request_, dialect(name)) == expected


def test_every_option_at_once() -> None:
    everything = replace(
        DLA_INT8,
        dla_core=None,
        mixed_fp16=True,
        sparse=True,
        workspace_mib=128,
        shapes=(IMAGES, InputShapes("a:0", (1, 8), (2, 8), (4, 8))),
        timing_cache=Path("/cache/t"),
    )
    assert command_line(everything, dialect("10.3")) == [
        *FILES,
        "--memPoolSize=workspace:128",
        "--timingCacheFile=/cache/t",
        *CALIBRATED,
        "--fp16",
        "--sparsity=enable",
        "--minShapes=images:1x3x320x320,a:0:1x8",
        "--optShapes=images:1x3x640x640,a:0:2x8",
        "--maxShapes=images:4x3x1280x1280,a:0:4x8",
        "--skipInference",
    ]


def every_request() -> Iterator[BuildRequest]:
    fixed = InputShapes("images", (1, 3, 64, 64), (1, 3, 64, 64), (1, 3, 64, 64))
    for precision, source, core, shapes, *switches in itertools.product(
        get_args(Precision), (None, *get_args(Int8Source)), (None, 1), ((), (IMAGES,), (fixed,)), *[(False, True)] * 5
    ):
        mixed, sparse, typed, fallback, cached = switches
        yield BuildRequest(
            ONNX,
            ENGINE,
            precision,
            core,
            gpu_fallback=fallback,
            int8_from=source,
            calibration_cache=CACHE if source == "calibration_cache" else None,
            mixed_fp16=mixed,
            sparse=sparse,
            strongly_typed=typed,
            shapes=shapes,
            timing_cache=Path("/cache/t") if cached else None,
        )


@pytest.mark.parametrize("name", RELEASES)
def test_no_option_that_we_can_write_is_refused_or_deprecated(name: str) -> None:
    genuine, told, written = release(name), list[str](), 0
    for request in every_request():
        try:
            words = command_line(request, dialect(name))
        except (InvalidBuild, CalibrationMissing, ReleaseUnsupported):
            continue
        taken = parse(words, genuine, 2, told.append)
        given = taken.get("minShapes")
        assert dict(split_shapes(given)) == {one.name: one.minimum for one in request.shapes}
        written += 1
    assert written >= 48
    assert told == []


def test_int8_never_goes_without_ranges_or_qdq() -> None:
    for name in RELEASES:
        for request in every_request():
            try:
                words = command_line(request, dialect(name))
            except (InvalidBuild, CalibrationMissing, ReleaseUnsupported):
                continue
            assert "--int8" not in words or request.int8_from == "qdq" or f"--calib={CACHE}" in words


@pytest.mark.parametrize(
    ("name", "request_", "says"),
    [
        ("11.0", GPU_FP16, "has no --fp16"),
        ("11.0", replace(DLA_INT8, dla_core=None), "has no calibration"),
        ("11.0", replace(GPU_QDQ, mixed_fp16=True), "to mix in"),
        ("11.1", replace(DLA_FP16, strongly_typed=True), "has no DLA"),
        ("8.6", replace(GPU_FP16, strongly_typed=True), "own types as binding"),
        ("10.3", replace(GPU_QDQ, dla_core=0), "neither Q/DQ"),
        ("10.3", replace(DLA_FP16, strongly_typed=True), "nor an ONNX's own types on a DLA"),
    ],
)
def test_what_a_release_lacks_is_refused_by_its_name(name: str, request_: BuildRequest, says: str) -> None:
    with pytest.raises(ReleaseUnsupported, match=says) as caught:
        command_line(request_, dialect(name))
    assert ".".join(map(str, VERSIONS[name])) in caught.value.message


def test_the_dla_is_back_in_11_4_1() -> None:
    request = replace(DLA_FP16, strongly_typed=True)
    assert command_line(request, dialect_of((11, 4, 1))) == [*FILES, POOL, *ON_DLA, "--skipInference"]
    with pytest.raises(ReleaseUnsupported, match=r"11\.4\.0 has no DLA"):
        command_line(request, dialect_of((11, 4, 0)))


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (replace(PLAIN, precision="int8"), CalibrationMissing),
        (replace(PLAIN, precision="int8", int8_from="calibration_cache"), CalibrationMissing),
        (replace(PLAIN, precision="int8", int8_from="calibrator"), InvalidBuild),
        (replace(GPU_FP16, mixed_fp16=True), InvalidBuild),
        (replace(GPU_FP16, calibration_cache=CACHE), InvalidBuild),
        (replace(PLAIN, dla_core=0), InvalidBuild),
        (replace(GPU_FP16, dla_core=-1), InvalidBuild),
        (replace(DLA_FP16, shapes=(IMAGES,)), InvalidBuild),
        (replace(DLA_INT8, dla_core=None, strongly_typed=True), InvalidBuild),
        (replace(PLAIN, workspace_mib=0), InvalidBuild),
        (replace(PLAIN, shapes=(IMAGES, IMAGES)), InvalidBuild),
        (replace(PLAIN, shapes=(replace(IMAGES, name="a,b"),)), InvalidBuild),
        (replace(PLAIN, shapes=(replace(IMAGES, minimum=(8, 3, 640, 640)),)), InvalidBuild),
        (replace(PLAIN, shapes=(replace(IMAGES, optimum=(3, 640, 640)),)), InvalidBuild),
        (replace(PLAIN, shapes=(replace(IMAGES, minimum=(0, 3, 320, 320)),)), InvalidBuild),
    ],
)
def test_what_cannot_be_is_refused_on_every_release(request_: BuildRequest, error: type[Exception]) -> None:
    with pytest.raises(error):
        command_line(request_, dialect("10.3"))


def test_the_files_of_a_request_are_looked_at(tmp_path: Path) -> None:
    onnx, cache = tmp_path / "m.onnx", tmp_path / "c.cache"
    request = replace(DLA_INT8, onnx=onnx, calibration_cache=cache)
    with pytest.raises(FileMissing, match=r"m\.onnx"):
        request.check_files()
    onnx.write_bytes(b"")
    with pytest.raises(EmptyFile):
        request.check_files()
    onnx.write_bytes(b"model")
    with pytest.raises(FileMissing, match=r"c\.cache"):
        request.check_files()
    cache.write_bytes(b"\x80\x02 something else\n")
    with pytest.raises(CalibrationMissing, match="no calibration cache"):
        request.check_files()
    cache.write_bytes(b"TRT-8503-EntropyCalibration2\nimages: 3c010a14\n")
    request.check_files()


@pytest.mark.parametrize(
    ("banner", "version"),
    [("8201", (8, 2, 1)), ("8502", (8, 5, 2)), ("100300", (10, 3, 0)), ("101600", (10, 16, 0)), ("110401", (11, 4, 1))],
)
def test_banners_are_decoded(banner: str, version: Version) -> None:
    assert decode_version(banner) == version


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ((8, 2, 1), "8.2"),
        ((8, 4, 1), "8.5"),
        ((8, 5, 2), "8.5"),
        ((8, 6, 2), "8.6 to 10.x"),
        ((9, 2, 0), "8.6 to 10.x"),
        ((10, 16, 1, 11), "8.6 to 10.x"),
        ((11, 0, 0), "11.x"),
    ],
)
def test_each_release_has_its_dialect(version: Version, name: str) -> None:
    found = dialect_of(version)
    assert (found.name, found.notes) == (name, ())


@pytest.mark.parametrize("version", [(7, 1, 3), (8, 0, 1)])
def test_older_releases_are_refused_by_name(version: Version) -> None:
    with pytest.raises(ReleaseUnsupported, match=".".join(map(str, version))):
        dialect_of(version)


def test_a_newer_release_is_spoken_to_as_the_newest_known_and_says_so() -> None:
    found = dialect_of((12, 0, 0))
    assert found.name == "11.x"
    assert "TensorRT 12.0.0" in found.notes[0]


def test_the_table_for_the_documentation_has_every_release() -> None:
    lines = flags_table().splitlines()
    assert {line.count("|") for line in lines} == {len(TABLE) + 2}
    assert "| FP16 | `--fp16` | `--fp16` | `--fp16` | `--fp16` | refused | refused |" in lines
