"""What the first bytes of an engine file tell, and what other files are told apart from one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.toolkit import errors
from app.toolkit.pipeline import ExportResult
from app.toolkit.tensorrt.plan import read_plan, strip_prefix
from app.toolkit.tensorrt.versions import lint_release, version_of, version_text


def plan_bytes(version: tuple[int, int, int, int], serialization: int = 0) -> bytes:
    """A true header, then what stands for layers."""
    return b"ftrt" + serialization.to_bytes(4, "little") + bytes(16) + bytes(version) + bytes(100)


def with_json(text: bytes, plan: bytes) -> bytes:
    """As Ultralytics writes it."""
    return len(text).to_bytes(4, "little", signed=True) + text + plan


METADATA = json.dumps({"task": "detect", "imgsz": [640, 640], "names": {"0": "pille"}, "dla": None}).encode()


@pytest.mark.parametrize("version", [(8, 6, 1, 6), (10, 3, 0, 26), (10, 16, 1, 11), (11, 4, 1, 106)])
def test_the_header_names_the_version_in_four_parts(version: tuple[int, int, int, int], tmp_path: Path) -> None:
    path = tmp_path / "m.engine"
    path.write_bytes(plan_bytes(version))
    plan = read_plan(path)
    assert plan.version == version
    assert plan.as_dict() == {
        "name": "m.engine",
        "size_bytes": 128,
        "tensorrt_version": version_text(version),
        "serialization_version": 0,
        "ultralytics_header": None,
    }


@pytest.mark.parametrize(
    ("version", "serialization"), [((0, 0, 0, 0), 0), ((8, 5, 2, 2), 0), ((255, 3, 1, 9), 0), ((10, 3, 0, 26), 232)]
)
def test_what_is_no_readable_version_is_unknown(
    version: tuple[int, int, int, int], serialization: int, tmp_path: Path
) -> None:
    (tmp_path / "m.engine").write_bytes(plan_bytes(version, serialization))
    plan = read_plan(tmp_path / "m.engine")
    assert plan.version is None
    assert plan.as_dict()["tensorrt_version"] is None


def test_the_json_of_ultralytics_is_read_and_stripped(tmp_path: Path) -> None:
    plan = plan_bytes((10, 3, 0, 26))
    (tmp_path / "m.engine").write_bytes(with_json(METADATA, plan))
    found = read_plan(tmp_path / "m.engine")
    assert found.version == (10, 3, 0, 26)
    assert found.offset == 4 + len(METADATA)
    assert found.as_dict()["ultralytics_header"] == json.loads(METADATA)
    alone = strip_prefix(found, tmp_path / "alone.engine")
    assert (tmp_path / "alone.engine").read_bytes() == plan
    assert (alone.offset, alone.prefix) == (0, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.engine", "m.engine"]


def test_a_prefix_that_is_no_json_is_skipped_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "m.engine").write_bytes(with_json(b"{broken \xff", plan_bytes((10, 3, 0, 26))))
    found = read_plan(tmp_path / "m.engine")
    assert (found.version, found.prefix) == ((10, 3, 0, 26), {})


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (b"", errors.EmptyFile, "is empty"),
        (b"ft", errors.CorruptFile, "cut within its header"),
        (plan_bytes((10, 3, 0, 26))[:27], errors.CorruptFile, "cut within its header"),
        (with_json(METADATA, b"")[:-5], errors.CorruptFile, "cut within the JSON"),
        (with_json(METADATA, b""), errors.CorruptFile, "cut within its header"),
        (with_json(METADATA, b"certainly no plan, though long enough"), errors.CorruptFile, "no plan header"),
        (b"PK\x03\x04" + bytes(100), errors.NotAModel, "a zip archive"),
        (b"\x80\x02}q" + bytes(100), errors.NotAModel, "a pickle"),
        (b'{"a": 1}' + bytes(100), errors.NotAModel, "JSON text"),
        (b"certainly no plan, though long enough", errors.CorruptFile, "no plan header"),
    ],
)
def test_what_is_no_engine_is_refused_by_name(
    content: bytes, error: type[errors.ToolkitError], says: str, tmp_path: Path
) -> None:
    (tmp_path / "m.engine").write_bytes(content)
    with pytest.raises(error, match=says):
        read_plan(tmp_path / "m.engine")


def test_a_missing_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.FileMissing):
        read_plan(tmp_path / "m.engine")


def test_an_onnx_file_is_recognised(exported: ExportResult) -> None:
    with pytest.raises(errors.NotAModel, match="an ONNX file"):
        read_plan(exported.path)


def test_versions_are_read_from_what_packages_and_banners_say() -> None:
    assert version_of("10.13.3.9") == (10, 13, 3, 9)
    assert version_of("8.6.1.post1") == (8, 6, 1)
    assert version_of("") is None
    assert version_text(None) == "unknown"


def test_each_version_belongs_to_the_lints_release_that_behaves_alike() -> None:
    known = {(8, 2, 1): "8.2", (8, 5, 2): "8.5", (8, 6, 1, 6): "8.6", (10, 0): "10", (10, 16, 1): "10", (11, 4): "11"}
    assert {version: lint_release(version) for version in known} == known
    assert lint_release((7, 2, 3)) is None
    assert lint_release((12, 0)) is None
