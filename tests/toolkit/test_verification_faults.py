"""What goes wrong in exports is caught, by the answer that it belongs to; benchmarks/verify_faults.py counts how often.

Each fault is planted once. Those that both models know go into the classifier, which is the quicker one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.toolkit.pipeline import export_and_prove
from app.toolkit.verification.facts import ReportFacts
from app.toolkit.verification.pipeline import verify
from app.toolkit.verification.request import Sampling, VerifyRequest
from tests.toolkit.fault_data import make_pool
from tests.toolkit.faults import CLASSIFIER, DETECTOR, Good, good_export, noise

DETECTOR_SIDE_PX = 320
SEED = 1
OF_PREPROCESSING = {
    "wrong mean and std",
    "pixels of 0..255",
    "BGR for RGB",
    "other centre crop",
    "plain resize for letterbox",
}
OF_BOXES = [
    "two classes' channels swapped",
    "H and W transposed",
    "letterbox off by one",
    "plain resize for letterbox",
    "strides of two levels swapped",
    "corners for centres",
]

Compare = Callable[..., ReportFacts]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 scenes of several sizes, and 4 crops of each class."""
    return make_pool(tmp_path_factory.mktemp("pool"), scenes=8, crops_each=4, seed=3)


@pytest.fixture(scope="module")
def good_detector(pills: Path) -> Good:
    """The pills detector, exported at 320 x 320 px."""
    return good_export(pills, DETECTOR_SIDE_PX)


@pytest.fixture(scope="module")
def good_classifier(classifier: Path) -> Good:
    """The pills classifier, exported at its 96 x 96 px."""
    return good_export(classifier, 96)


@pytest.fixture
def compare(pool: Path, tmp_path: Path) -> Compare:
    """`compare(reference, candidate, ...)` on every picture of the pool."""

    def on_pool(reference: Path, candidate: Path, **changes: Any) -> ReportFacts:
        detector = "yolo" in reference.name
        request = VerifyRequest(
            reference=reference,
            candidate=candidate,
            images=pool / ("images" if detector else "crops"),
            annotations=pool / "instances.json" if detector else None,
            folder=tmp_path,
            sampling=Sampling(mode="full"),
            threads=1,
            **changes,
        )
        return verify(request)

    return on_pool


def check_caught(fault: str, good: Good, compare: Compare, folder: Path) -> None:
    planted = (DETECTOR if good.is_detector else CLASSIFIER)[fault](good, np.random.default_rng(SEED))
    candidate = folder / "candidate.onnx"
    candidate.write_bytes(planted.graph.SerializeToString())
    facts = compare(good.source, candidate, preprocessing=({}, planted.preprocessing))
    assert facts.failed, planted.words
    assert facts.pipeline.verdict == "failed"
    assert facts.kernel.verdict == ("passed" if fault in OF_PREPROCESSING else "failed")


@pytest.mark.parametrize("fault", CLASSIFIER)
def test_a_fault_in_a_classifier_is_caught(fault: str, good_classifier: Good, compare: Compare, tmp_path: Path) -> None:
    check_caught(fault, good_classifier, compare, tmp_path)


@pytest.mark.parametrize("fault", OF_BOXES)
def test_a_fault_in_a_detector_is_caught(fault: str, good_detector: Good, compare: Compare, tmp_path: Path) -> None:
    check_caught(fault, good_detector, compare, tmp_path)


def test_noise_is_caught_where_it_breaks_a_limit_and_passes_where_it_keeps_them(
    good_classifier: Good, compare: Compare, tmp_path: Path
) -> None:
    plant = noise(good_classifier, np.random.default_rng(0))

    def verdict(strength: float) -> tuple[str, bool]:
        candidate = tmp_path / f"{strength}.onnx"
        candidate.write_bytes(plant(strength).graph.SerializeToString())
        facts = compare(good_classifier.source, candidate, same_network=False)  # S4's limits alone
        shares = [gate.measured / gate.limit for gate in facts.kernel.gates if gate.limit and gate.measured is not None]
        return facts.verdict, max(shares) <= 1

    found = [verdict(0.05 * 2**step) for step in range(6)]
    assert found == sorted(found, key=lambda one: one[0], reverse=True)  # passed, ..., failed, ...
    assert found[0] == ("passed", True)
    assert found[-1] == ("failed", False)


@pytest.mark.parametrize(
    ("model", "export"),
    [
        ("classifier", {"precision": "fp16", "opset": 13, "dynamic": True}),
        ("pills", {"precision": "fp16", "input_size": (320, 320)}),
        ("pills", {"opset": 20, "dynamic": True, "input_size": (256, 320)}),
    ],
)
def test_a_good_export_passes(
    model: str, export: dict[str, Any], compare: Compare, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(model)
    target = tmp_path / "candidate.onnx"
    export_and_prove(source, target, threads=1, **export)
    facts = compare(source, target, input_size=export.get("input_size"))
    assert facts.verdict == "passed", [gate.sentence() for gate in facts.pipeline.gates]
