"""`scripts/export_onnx.sh` (S4 E-6, E-10), run by bash on the pills checkpoints."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml

from tests.cli.conftest import Ended
from tests.harness import ROOT
from tests.toolkit.scenes import ASSETS, make_scenes

SCRIPT = ROOT / "scripts" / "export_onnx.sh"
CHECKPOINTS = {
    "detection_best.pt": "pills_yolov8n.pt",
    "classification_best.pt": "pills_classifier.pt",
    "best.pt": "pills_classifier.pt",
}
MODEL = r"-\d{8}-\d{6}-([0-9a-f]{7}|nogit)\.onnx"

Training = Callable[..., Path]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("pills"), images=2, seed=8_702)


@pytest.fixture
def training(tmp_path: Path, drawn: Path) -> Training:
    """`training(*checkpoints, **compare)`: an exp_dir and the config.yaml beside it; returns the export folder."""

    def make(*names: str, **compare: Any) -> Path:
        folder = tmp_path / "exp" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(ASSETS / CHECKPOINTS[name], folder / name)
        scenes = {"images": str(drawn / "images"), "annotations": str(drawn / "instances.json")}
        data = {"detection": scenes, "classification": {"images": str(drawn / "crops")}}
        config = {"paths": {"exp_dir": "exp"}, "export": {"compare": {"data": data, **compare}}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        return tmp_path / "exp" / "export"

    return make


def export(folder: Path, *words: str, **environment: str) -> Ended:
    kept = {"PATH": os.environ["PATH"], "HOME": str(folder), **environment}
    command = ["bash", str(SCRIPT), *words]
    done = subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, timeout=120, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def told(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def shape_of(value: Any) -> Any:
    """Keys, in order, without the values; ours are left out."""
    return {key: shape_of(entry) for key, entry in value.items() if key != "extra"} if isinstance(value, dict) else None


def opset_of(path: Path) -> int:
    return int(onnx.load(path).opset_import[0].version)


def test_one_checkpoint_is_exported_proven_and_linked(tmp_path: Path, training: Training) -> None:
    out = training("classification_best.pt", per_class_k=2)
    ended = export(tmp_path)
    assert ended.code == 0, ended.err
    said = re.fullmatch(rf"\[OK\] Exported: ({out}/classification{MODEL})\nReport: (.*)\n", ended.out)
    assert said is not None, ended.out
    model = Path(said[1])
    assert said[3] == str(out / "export_report.json")
    assert (out / "latest_classification.onnx").readlink() == Path(model.name)
    report = told(out / "export_report.json")
    assert report["onnx_path"] == str(model)
    assert report["ckpt_path"] == str(tmp_path / "exp" / "checkpoints" / "classification_best.pt")
    assert (report["opset"], report["dynamic_axes"], report["compare"]["failed"]) == (17, True, False)
    assert (report["compare"]["sampled_images"], report["compare"]["sampled_classes"]) == (24, 12)
    assert opset_of(model) == 17
    beside = {f"{model.stem}{ending}" for ending in (".onnx", "_parity.json", "_report.json", "_report.html")}
    links = {"latest_classification.onnx", "export_report.json", "report.html"}
    assert {path.name for path in out.iterdir()} == beside | links


@pytest.mark.slow
def test_a_proof_that_fails_publishes_nothing_and_says_what_to_do(tmp_path: Path, training: Training) -> None:
    out = training("classification_best.pt", limits={"mse_mean": 0})
    (out / "exports-before").mkdir(parents=True)
    (out / "latest_classification.onnx").symlink_to("exports-before")
    ended = export(tmp_path)
    assert ended.code == 1
    assert ended.out == f"Report: {out}/export_report.json\n"
    assert re.search(r"^\[FAIL\] classification: kernel and pipeline: mse_mean is .*, limit 0$", ended.err, re.M)
    for guide in ("likely causes:", "export.compare.limits", "try opset 18"):
        assert guide in ended.err
    assert (out / "latest_classification.onnx").readlink() == Path("exports-before")
    assert not list(out.glob("classification-*.onnx")), "whoever takes the newest file does not take this one"
    report = told(out / "export_report.json")
    assert report["compare"]["failed"]
    assert "mse_mean is" in report["compare"]["failure_reason"]
    assert Path(report["onnx_path"]).parent == out / "unproven"


@pytest.mark.slow
def test_an_export_that_breaks_off_is_reported_with_all_of_s4s_keys(tmp_path: Path, training: Training) -> None:
    out = training("classification_best.pt")
    out.mkdir()
    (out / "report.html").write_text("of an earlier export")
    ended = export(tmp_path, OPSET="99")
    assert ended.code == 1
    assert "[FAIL] classification: opset 99 cannot be written; expected: an opset from 11 to 20" in ended.err
    report = told(out / "export_report.json")
    assert report["compare"]["failed"]
    assert "opset 99" in report["compare"]["failure_reason"]
    assert report["extra"]["error"]["code"] == "UNSUPPORTED_OPSET"
    assert not (out / "report.html").exists()
    assert not (out / "unproven").exists()


@pytest.mark.slow
def test_an_export_whose_raw_answers_differ_has_s4s_guide(tmp_path: Path, training: Training) -> None:
    out = training("classification_best.pt", kernel_limits={"values": 0})
    ended = export(tmp_path)
    assert ended.code == 1
    assert "[FAIL] classification: the exported model answers differently from the checkpoint" in ended.err
    for guide in ("likely causes:", "export.compare.kernel_limits", "try opset 18"):
        assert guide in ended.err
    assert told(out / "export_report.json")["extra"]["error"]["code"] == "PARITY_FAILED"
    assert [path.suffix for path in (out / "unproven").iterdir()] == [".json"], "the measurement is kept"


@pytest.mark.slow
def test_both_stages(tmp_path: Path, training: Training, drawn: Path) -> None:
    out = training("detection_best.pt", "classification_best.pt", "best.pt", mode="full")
    ended = export(tmp_path, "config.yaml", OPSET="18")
    assert ended.code == 0, ended.err
    pattern = "".join(rf"\[OK\] Exported: {out}/{name}{MODEL}\n" for name in ("detection", "classification"))
    assert re.fullmatch(pattern + f"Report: {out}/export_report.json\n", ended.out)
    for name in ("detection", "classification"):
        assert opset_of(out / f"latest_{name}.onnx") == 18
    stages = told(out / "export_report.json")["extra"]["stages"]
    assert {name: stage["failed"] for name, stage in stages.items()} == {"detection": False, "classification": False}
    report = told(Path(stages["detection"]["report_path"]))
    assert report["compare"]["sampled_images"] == 2
    assert abs(report["compare"]["deltas"]["map_0_5"]) <= 0.01
    assert report["onnx_path"] == str((out / "latest_detection.onnx").resolve())


@pytest.mark.slow
def test_one_stage_that_fails_holds_both_links_back(tmp_path: Path, training: Training) -> None:
    out = training("detection_best.pt", "classification_best.pt")
    (tmp_path / "exp" / "checkpoints" / "detection_best.pt").write_bytes(b"no checkpoint")
    ended = export(tmp_path)
    assert ended.code == 1
    assert ended.out.startswith(f"[OK] Exported: {out}/classification-")
    assert "[FAIL] detection:" in ended.err
    assert not list(out.glob("latest_*"))
    whole = told(out / "export_report.json")
    assert whole["ckpt_path"].endswith("detection_best.pt")
    stages = whole["extra"]["stages"]
    failed, passed = (told(Path(stages[name]["report_path"])) for name in ("detection", "classification"))
    assert shape_of(failed) == shape_of(passed)


@pytest.mark.slow
def test_one_stage_trainings_and_no_data(tmp_path: Path, training: Training) -> None:
    out = training("best.pt", data=None)
    ended = export(tmp_path)
    assert ended.code == 0, ended.err
    assert re.search(rf"^\[OK\] Exported: {out}/model{MODEL}$", ended.out, re.M)
    assert (out / "latest.onnx").is_file()
    assert "no validation data: a smoke test" in ended.err
    compare = told(out / "export_report.json")["compare"]
    assert (compare["mode"], compare["sampled_images"]) == ("smoke", 2)
    assert "the two pictures" in compare["notes"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("export: {}", "paths.exp_dir is missing"),
        ("paths: {exp_dir: nowhere}", "nowhere/checkpoints: no checkpoint; expected detection_best.pt"),
        ("paths: [", "no YAML"),
        ("17", "expected a mapping"),
        ("paths: 3", "paths: expected a mapping, got 3"),
        ("paths: {exp_dir: exp}\nexport: {opset: new}", "export.opset: expected a whole number"),
        ("paths: {exp_dir: exp}\nexport: {dynamic_axes: 1}", "export.dynamic_axes: expected true or false"),
        ("paths: {exp_dir: exp}\nexport: {input_shape: [640, 640]}", "export.input_shape: expected [N, C, H, W]"),
        ("paths: {exp_dir: exp}\nexport: {compare: {mode: medium}}", "expected one of coverage, smoke, full, auto"),
        ("paths: {exp_dir: exp}\nexport: {compare: {per_class_k: 0}}", "per_class_k: expected a whole number, 1 or"),
        ("paths: {exp_dir: exp}\nexport: {compare: {stratify_by: [size]}}", "stratify_by: expected [class]"),
        ("paths: {exp_dir: exp}\nexport: {compare: {limits: {mse_mean: much}}}", "limits.mse_mean: expected a number"),
        (
            "paths: {exp_dir: exp}\nexport: {compare: {data: {detection: {images: gone}}}}",
            "data.detection.images: expected a path that exists",
        ),
    ],
)
def test_a_faulty_configuration_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "other.yaml").write_text(text)
    ended = export(tmp_path, "other.yaml")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("[FAIL] ")
    assert said in ended.err
    assert ended.err.count("\n") == 1


def test_no_configuration_is_one_line(tmp_path: Path) -> None:
    ended = export(tmp_path)
    assert ended.code == 1
    assert ended.err == "[FAIL] config.yaml: cannot be read: No such file or directory\n"


@pytest.mark.slow
def test_a_limit_of_an_unknown_name_lists_the_known_ones(tmp_path: Path, training: Training) -> None:
    training("classification_best.pt", limits={"mse": 1.0})
    ended = export(tmp_path)
    assert ended.code == 1
    assert "export.compare.limits: expected names of mse_mean, mse_p99, top1_mismatch_rate" in ended.err
