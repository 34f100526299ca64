"""`optimizing compare` on real models, with no service anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.library_variables import FIXED_VARIABLES
from tests.cli.conftest import Optimizing
from tests.harness import ROOT
from tests.toolkit.scenes import ASSETS, make_scenes

CLASSIFIER = str(ASSETS / "pills_classifier.pt")
DETECTOR = str(ASSETS / "pills_yolov8n.pt")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes with annotations, and crops in class folders."""
    return make_scenes(tmp_path_factory.mktemp("pills"), images=2, seed=8_701)


@pytest.fixture
def alone(tmp_path: Path) -> Optimizing:
    """The command, where nothing listens."""
    return Optimizing(tmp_path, "http://127.0.0.1:9")


@pytest.fixture
def swapped(tmp_path: Path) -> str:
    """The classifier with its last layer's rows moved by one: every class has another's name."""
    checkpoint = torch.load(CLASSIFIER, weights_only=True)
    weights = checkpoint["state_dict"]
    weights["classifier.weight"] = weights["classifier.weight"].roll(1, 0)
    torch.save(checkpoint, tmp_path / "swapped.pt")
    return str(tmp_path / "swapped.pt")


@pytest.mark.slow
def test_an_archive_and_one_json_document(alone: Optimizing, drawn: Path) -> None:
    archive = shutil.make_archive(str(alone.folder / "crops"), "zip", drawn / "crops")
    ended = alone("compare", CLASSIFIER, CLASSIFIER, "--data", archive, "--per-class-k", "2", "--json")
    assert ended.code == 0, ended.err
    told = ended.json["report"]["compare"]
    assert (told["mode"], told["sampled_images"], told["sampled_classes"]) == ("coverage", 24, 12)
    assert (told["mse_mean"], told["failed"]) == (0.0, False)
    assert Path(ended.json["report_path"]) == alone.folder / "export_report.json"
    assert (alone.folder / "report.html").is_file()


@pytest.mark.slow
def test_another_model_fails_with_the_reasons_and_where_to_look(alone: Optimizing, drawn: Path, swapped: str) -> None:
    archive = shutil.make_archive(str(alone.folder / "crops"), "zip", drawn / "crops")
    ended = alone("compare", CLASSIFIER, swapped, "--data", archive, "--out", "proof")
    assert ended.code == 1
    assert "data:image/" in (alone.folder / "proof" / "report.html").read_text(), "what was unpacked could be drawn"
    assert "failed: swapped.pt does not answer like pills_classifier.pt on 12 images" in ended.out
    assert f"Report: {alone.folder}/proof/export_report.json" in ended.out
    assert "kernel and pipeline: top1_mismatch_rate is 1, limit 0.01" in ended.err
    assert "the networks differ; likely causes:" in ended.err


@pytest.mark.slow
def test_looser_limits_and_another_network(alone: Optimizing, drawn: Path, swapped: str) -> None:
    words = ["compare", CLASSIFIER, swapped, "--data", str(drawn / "crops")]
    loose = [f"--limit={name}=1" for name in ("mse_mean", "mse_p99", "top1_mismatch_rate")]
    by_kernel = alone(*words, *loose)
    assert by_kernel.code == 1
    assert "kernel and pipeline: kernel_logits is" in by_kernel.err
    assert alone(*words, *loose, "--limit", "values=1000").code == 0
    assert alone(*words, *loose, "--other-network").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("text", ["mse_mean", "mse=1", "values=nan", "values=-1"])
def test_a_limit_that_is_none(alone: Optimizing, drawn: Path, text: str) -> None:
    ended = alone("compare", CLASSIFIER, CLASSIFIER, "--data", str(drawn / "crops"), "--limit", text)
    assert ended.code == 2
    assert "expected: NAME=NUMBER, of mse_mean, mse_p99" in ended.err and f"received: {text}" in ended.err


@pytest.mark.slow
def test_models_that_cannot_be_compared_say_why(alone: Optimizing, drawn: Path) -> None:
    ended = alone("compare", CLASSIFIER, DETECTOR, "--data", str(drawn / "images"), "--json")
    assert ended.code == 1
    assert ended.json["error"]["code"] == "MODELS_DIFFER"
    assert "expected: pills_classifier.pt" in ended.err
    assert "try: compare a model with what was made from it" in ended.err


@pytest.mark.slow
def test_a_detector_with_annotations(alone: Optimizing, drawn: Path) -> None:
    where = ["--data", str(drawn / "images"), "--annotations", str(drawn / "instances.json")]
    ended = alone("compare", DETECTOR, DETECTOR, *where, "--mode", "full")
    assert ended.code == 0, ended.err
    assert "passed: pills_yolov8n.pt answers like pills_yolov8n.pt on 2 images (mode full)" in ended.out
    assert "map_0_5_0_95" in ended.out


@pytest.mark.slow
def test_what_is_undecided_fails_only_where_strict(alone: Optimizing, drawn: Path) -> None:
    words = ["compare", CLASSIFIER, CLASSIFIER, "--data", str(drawn / "crops"), "--mode", "auto"]
    ended = alone(*words)
    assert ended.code == 0, ended.err
    assert "could not be decided on 96 images (mode auto); no failure without --strict" in ended.out
    assert "undecided, leans to passed" in ended.out
    strict = alone(*words, "--strict")
    assert strict.code == 1
    assert "--strict makes that a failure" in strict.out


@pytest.mark.slow
def test_without_data_it_is_a_smoke_test_and_says_so(alone: Optimizing) -> None:
    ended = alone("compare", CLASSIFIER, CLASSIFIER)
    assert ended.code == 0, ended.err
    assert "on 2 images (mode smoke)" in ended.out
    assert "the two pictures that Ultralytics carries" in ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([CLASSIFIER], "CAND"),
        ([CLASSIFIER, "absent.onnx"], "absent.onnx"),
        ([CLASSIFIER, CLASSIFIER, "--mode", "medium"], "medium"),
        ([CLASSIFIER, CLASSIFIER, "--data", "absent"], "absent"),
        ([CLASSIFIER, CLASSIFIER, "--max-total", "0"], "--max-total"),
    ],
)
def test_a_wrong_command_line_is_2(alone: Optimizing, words: list[str], said: str) -> None:
    ended = alone("compare", *words)
    assert ended.code == 2, (ended.out, ended.err)
    assert said in ended.err


@pytest.mark.slow
def test_a_mode_that_needs_data_is_2_and_the_libraries_are_imported_offline(tmp_path: Path) -> None:
    """Ultralytics must neither fetch nor phone home when a command of ours imports it."""
    code = f"""
import os, sys
from app.cli import cli
try:
    cli(["compare", {CLASSIFIER!r}, {CLASSIFIER!r}, "--mode", "full"])
except SystemExit as ended:
    print(ended.code, "ultralytics" in sys.modules, {{n: os.environ.get(n) for n in {sorted(FIXED_VARIABLES)}}})
"""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"2 True {dict(sorted(FIXED_VARIABLES.items()))}"
    assert "--data FOLDER with your images, or --mode smoke" in done.stderr
