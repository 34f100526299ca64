"""`optimizing demo`: a stranger's first minute."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Optimizing


def test_without_a_model_it_says_what_to_do(tmp_path: Path) -> None:
    ended = Optimizing(tmp_path, "")("demo", "absent.pt", "--json")
    assert ended.code == 2
    assert ended.json["error"]["code"] == "NO_MODEL"
    assert "optimizing demo MODEL.pt" in ended.json["error"]["hint"]


@pytest.mark.slow
def test_the_demo_shows_what_it_measured(tmp_path: Path) -> None:
    ended = Optimizing(tmp_path, "")("demo", API_KEYS="some-key-of-the-shell:0009")
    assert ended.code == 0, ended.err
    assert "service stopped" in ended.err
    for heading in (
        "What went in",
        "What came out",
        "What it proves",
        "Proven on the task",
        "Where the time went",
        "Smaller and faster",
        "The same by hand",
    ):
        assert heading in ended.out
    assert ended.out.count("passed") == 2 + 6
    assert "with the same bytes" in ended.out
    (workspace,) = (tmp_path / "demo-workspace").iterdir()
    names = {path.name for path in (workspace / "store").rglob("*.onnx")}
    assert names == {"pills_yolov8n_fp32.onnx", "pills_yolov8n_fp16.onnx", "pills_yolov8n_fp32_int8.onnx"}


@pytest.mark.slow
def test_the_demo_of_a_model_of_one_s_own_as_json(tmp_path: Path, pills_model: Path) -> None:
    """Of which the demo has no images, so that there is no INT8."""
    shutil.copy(pills_model, tmp_path / "mine.pt")
    ended = Optimizing(tmp_path, "")("demo", "mine.pt", "--workspace", "w", "--json")
    assert ended.code == 0, ended.err
    jobs = {run["job"]["action"]: run for run in ended.json["jobs"]}
    assert set(jobs) == {"check_model_stats", "pt_to_onnx_fp32", "pt_to_onnx_fp16"}
    for run in jobs.values():
        for artifact in run["artifacts"]:
            assert (Path(run["folder"]) / artifact["name"]).stat().st_size == artifact["size_bytes"]
    assert ended.json["repeated"]["job"]["cached"] is True
    assert ended.json["int8"] is None and ended.json["verified"] is None
