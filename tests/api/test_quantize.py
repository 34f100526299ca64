"""INT8 through the service: the three forms of a calibration set, what is said of it, and what is refused at once."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest

from app.toolkit.export import onnx_from_torch
from app.toolkit.models.open_model import open_model
from app.toolkit.onnx_file import load_onnx
from tests.harness import Service
from tests.toolkit.outliers import with_outlier
from tests.toolkit.scenes import make_scenes

PID = "P000888"
SIZE = (320, 320)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, pills_model: Path) -> Path:
    path = tmp_path_factory.mktemp("graph") / "best.onnx"
    onnx.save(onnx_from_torch(open_model(pills_model), input_size=SIZE), path)
    return path


@pytest.fixture(scope="module")
def key(service: Service, graph: Path) -> str:
    return service.upload(PID, "best.onnx", graph)


@pytest.fixture(scope="module")
def scenes(service: Service) -> Path:
    """Twelve scenes where requests may read."""
    return make_scenes(service.workspace / "pills", images=12, seed=41) / "images"


def _packed(folder: Path, extra: dict[str, bytes] | None = None) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
        for name, data in (extra or {}).items():
            archive.writestr(name, data)
    return packed.getvalue()


def _calibration(job: dict[str, Any]) -> dict[str, Any]:
    assert job["status"] == "completed", job["error"]
    found: dict[str, Any] = job["metrics"]["calibration"]
    return found


@pytest.mark.slow
def test_a_folder_an_archive_and_a_prefix_calibrate_alike(service: Service, key: str, scenes: Path) -> None:
    archive = service.upload(PID, "scenes.zip", _packed(scenes))
    first = service.upload(PID, "000.jpg", min(scenes.iterdir()))
    prefix = first.rpartition("/")[0]
    asked = {"input_path": key, "num_samples": 8}
    folder_job = service.run("quantize_onnx", PID, {**asked, "calib_dir": str(scenes)})
    assert _calibration(folder_job)["used"] == 8
    metrics = folder_job["metrics"]
    assert metrics["accuracy"]["measure"] == "detection_agreement"
    assert metrics["accuracy"]["images"] == 4, "what did not calibrate proves"
    assert metrics["lint"]["clean"] == dict.fromkeys(("8.5", "8.6", "10", "11"), True)
    assert metrics["stats"]["size_mb"] == metrics["after"]["size_mb"]
    names = {"best_int8.onnx", "best_int8_report.json", "best_int8_stats.txt"}
    assert names <= set(folder_job["artifact_files"])
    archive_job = service.run("quantize_onnx", PID, {**asked, "calib_dir": archive})
    assert _calibration(archive_job)["cached"], "the same images under the same graph give the same ranges"
    assert _calibration(service.run("quantize_onnx", PID, {**asked, "calib_dir": prefix}))["used"] == 1


def test_bad_files_among_the_images_are_named(service: Service, key: str, scenes: Path) -> None:
    bad = {"empty.jpg": b"", "text.png": b"no picture", "cut.jpg": min(scenes.iterdir()).read_bytes()[:2000]}
    archive = service.upload(PID, "mixed.zip", _packed(scenes, bad))
    calibration = _calibration(service.run("quantize_onnx", PID, {"input_path": key, "calib_dir": archive}))
    assert {one["name"] for one in calibration["unreadable"]["files"]} == set(bad)
    assert any("100" in warning for warning in calibration["warnings"]), "fewer than asked for"


def test_no_readable_image_fails_with_what_was_there(service: Service, key: str) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.jpg", b"no picture")
    job = service.run(
        "quantize_onnx", PID, {"input_path": key, "calib_dir": service.upload(PID, "bad.zip", packed.getvalue())}
    )
    assert job["error"]["code"] == "NO_IMAGES"
    assert "a.jpg" in json.dumps(job["error"])


@pytest.mark.slow
def test_labels_give_map_and_dynamic_comes_with_its_warning(service: Service, key: str, scenes: Path) -> None:
    data = {"images": str(scenes), "annotations": str(scenes.parent / "instances.json")}
    asked = {"input_path": key, "calib_dir": str(scenes), "num_samples": 8, "data": data, "max_drop": 0.5}
    static = service.run("quantize_onnx", PID, asked)
    assert static["status"] == "completed", static["error"]
    assert static["metrics"]["accuracy"]["measure"] == "map50_95"
    dynamic = service.run("quantize_onnx", PID, {"input_path": key, "mode": "dynamic", "data": data})
    assert dynamic["status"] == "completed", dynamic["error"]
    assert not any(dynamic["metrics"]["lint"]["clean"].values())


def test_a_loss_above_the_limit_fails_the_job_with_the_report(service: Service, graph: Path, scenes: Path) -> None:
    broken, _ = with_outlier(load_onnx(graph))
    key = service.upload(PID, "best.onnx", broken.SerializeToString())
    asked = {"input_path": key, "calib_dir": str(scenes), "num_samples": 8, "max_drop": 0.02}
    job = service.run("quantize_onnx", PID, asked)
    assert job["error"]["code"] == "ACCURACY_DROPPED"
    assert set(job["artifact_files"]) == {"best_int8_report.json", "job.log"}


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({}, "calib_dir"),
        ({"calib_dir": "/x", "repair": True}, "max_drop"),
        ({"mode": "dynamic", "method": "entropy"}, "method"),
        ({"mode": "dynamic", "max_drop": 0.1}, "max_drop"),
        ({"calib_dir": "/x", "backend": "modelopt", "target": "onnxruntime-cpu"}, "modelopt"),
        ({"calib_dir": "../x"}, "calib_dir"),
        ({"calib_dir": "/x", "method": "random"}, "method"),
        ({"calib_dir": "/x", "input_path": "best.pt"}, "input_path"),
    ],
)
def test_what_does_not_fit_together_is_refused_at_once(
    service: Service, pid: str, parameters: dict[str, Any], word: str
) -> None:
    answer = service.post("quantize_onnx", pid, {"input_path": "best.onnx", **parameters})
    assert answer.status_code == 422
    assert word in answer.text


def test_a_folder_outside_the_roots_is_refused(service: Service, key: str) -> None:
    answer = service.post("quantize_onnx", PID, {"input_path": key, "calib_dir": "/etc"})
    assert answer.status_code == 422
    assert "INPUT_ROOTS" in answer.text
