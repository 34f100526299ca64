"""The comparison that stops as soon as its limits are decided, on crops that no training saw."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import load, numpy_helper

from app.toolkit.pipeline import export_and_prove
from app.toolkit.verification.errors import VerificationFailed
from app.toolkit.verification.facts import ReportFacts
from app.toolkit.verification.pipeline import refuse_failed, verify
from app.toolkit.verification.request import Mode, Sampling, VerifyRequest
from app.toolkit.verification.sequential import looks
from tests.toolkit.scenes import ASSETS

CROPS = 720  # 60 of each class; without any difference 540 images show that at most 1 % differ
LIMITS = {"mse_mean": 0.05}  # of 12 classes, S4's 1e-4 takes 9,036 images


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for each class."""
    folder = tmp_path_factory.mktemp("crops")
    counts = ["--images", "0", "--crops-each", str(CROPS // 12), "--seed", "905"]
    subprocess.run([sys.executable, str(ASSETS / "make_pills.py"), str(folder), *counts], check=True)
    return folder / "crops"


@pytest.fixture(scope="module")
def good(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier as FP32 ONNX."""
    return export_and_prove(classifier, tmp_path_factory.mktemp("auto") / "good.onnx").path


@pytest.fixture(scope="module")
def half(classifier: Path, good: Path) -> Path:
    """The classifier as FP16 ONNX."""
    return export_and_prove(classifier, good.with_name("half.onnx"), precision="fp16").path


@pytest.fixture(scope="module")
def bad(good: Path) -> Path:
    """The same with noise on its first convolution, as strong as its weights."""
    graph = load(good)
    weights = next(one for one in graph.graph.initializer if len(one.dims) == 4)
    values = numpy_helper.to_array(weights)
    noise = np.random.default_rng(0).standard_normal(values.shape) * values.std()
    weights.CopyFrom(numpy_helper.from_array((values + noise).astype(np.float32), weights.name))
    path = good.with_name("bad.onnx")
    path.write_bytes(graph.SerializeToString())
    return path


def _compared(
    reference: Path,
    candidate: Path,
    images: Path,
    mode: Mode = "auto",
    *,
    max_total: int = CROPS,
    seed: int = 0,
    strict: bool = False,
) -> ReportFacts:
    sampling = Sampling(mode, max_total=max_total, seed=seed)
    return verify(
        VerifyRequest(
            reference, candidate, images, candidate.parent, sampling=sampling, limits=LIMITS, strict=strict, threads=1
        )
    )


@pytest.mark.slow
def test_a_good_export_is_passed_before_all_images_are_seen_as_all_would(good: Path, half: Path, crops: Path) -> None:
    auto, full = (_compared(good, half, crops, mode) for mode in ("auto", "full"))
    assert auto.verdict == full.verdict == "passed"
    assert auto.decided_after == auto.sampled_images == next(count for count in looks(CROPS) if count >= 540)
    assert (auto.chosen_images, full.sampled_images, full.decided_after) == (CROPS, CROPS, None)
    assert not auto.failed


@pytest.mark.parametrize("seed", range(3))
def test_a_broken_one_fails_at_the_first_look_as_by_all_images(good: Path, bad: Path, crops: Path, seed: int) -> None:
    auto = _compared(good, bad, crops, seed=seed)
    assert auto.verdict == "failed"
    assert auto.decided_after == auto.sampled_images == looks(CROPS)[0]


def test_all_images_fail_the_broken_one_too(good: Path, bad: Path, crops: Path) -> None:
    assert _compared(good, bad, crops, "full").verdict == "failed"


def test_too_few_images_leave_a_good_export_undecided_which_only_strict_refuses(good: Path, crops: Path) -> None:
    lenient, strict = (_compared(good, good, crops, max_total=40, strict=strict) for strict in (False, True))
    for facts in (lenient, strict):
        assert (facts.verdict, facts.sampled_images, facts.decided_after) == ("undecided", 40, None)
        undecided = {gate.name: gate.leans for gate in facts.kernel.gates if gate.verdict == "undecided"}
        assert undecided == {"mse_p99": "passed", "top1_mismatch_rate": "passed"}
    refuse_failed(lenient)
    with pytest.raises(VerificationFailed, match="was not shown to answer like"):
        refuse_failed(strict)
