"""Two classifiers' answers whose figures can be worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from app.toolkit.verification.classification import ClassificationTally
from app.toolkit.verification.request import Limits
from app.toolkit.verification.result import Gate
from app.toolkit.verification.sequential import looks

NAMES = {0: "aspirin", 1: "ibuprofen", 2: "paracetamol"}
SURE = (0.8, 0.1, 0.1)
OTHER = (0.1, 0.8, 0.1)
UNSURE = (0.5, 0.45, 0.05)
TURNED = (0.45, 0.5, 0.05)
BROKEN = (float("nan"), 0.5, 0.5)

Answer = tuple[float, ...]


def _of(answer: Answer) -> npt.NDArray[np.float32]:
    return np.array(answer, dtype=np.float32)


def _tally(*pairs: tuple[Answer, Answer], limits: Limits | None = None) -> ClassificationTally:
    tally = ClassificationTally(NAMES, limits or Limits(), confidence=0.99)
    for number, (reference, candidate) in enumerate(pairs):
        tally.add(f"{number}.png", Path(f"{number}.png"), _of(reference), _of(candidate))
    return tally


def _gate(gates: tuple[Gate, ...], name: str) -> Gate:
    (found,) = [gate for gate in gates if gate.name == name]
    return found


def test_figures_by_hand() -> None:
    found = _tally((SURE, SURE), (SURE, OTHER), (UNSURE, TURNED), (SURE, SURE)).figures()
    large, small = 2 * 0.7**2 / 3, 2 * 0.05**2 / 3
    assert found.images == 4
    assert found.mse_mean == pytest.approx((large + small) / 4)
    assert found.mse_max == pytest.approx(large)
    assert found.mse_p99 == pytest.approx(small + 0.97 * (large - small))  # between the third and the fourth image
    assert (found.top1_mismatch_count, found.top1_mismatch_rate) == (2, 0.5)
    assert found.mismatch_interval[0] < 0.5 < found.mismatch_interval[1]
    assert found.non_finite == 0


def test_figures_are_plain_json() -> None:
    found = _tally((SURE, OTHER), (UNSURE, BROKEN)).figures()
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["images"] == 2


def test_models_that_agree_pass() -> None:
    gates = _tally(*[(SURE, SURE)] * 3).gates()
    assert {gate.name: gate.verdict for gate in gates} == {
        "mse_mean": "passed",
        "mse_p99": "passed",
        "top1_mismatch_rate": "passed",
        "non_finite_values": "passed",
    }


def test_each_limit_is_judged_by_itself_and_holds_at_its_value() -> None:
    pairs = [(SURE, SURE)] * 3 + [(UNSURE, TURNED)]
    found = _tally(*pairs).figures()
    assert found.mse_mean is not None and found.mse_p99 is not None
    exact = Limits(mse_mean=found.mse_mean, mse_p99=found.mse_p99, top1_mismatch_rate=0.25)
    assert all(gate.verdict == "passed" for gate in _tally(*pairs, limits=exact).gates())
    for name in ("mse_mean", "mse_p99", "top1_mismatch_rate"):
        tighter = Limits(**{**vars(exact), name: getattr(exact, name) * 0.99})
        failed = [gate.name for gate in _tally(*pairs, limits=tighter).gates() if gate.verdict == "failed"]
        assert failed == [name]


def test_the_mismatch_gate_brings_its_interval() -> None:
    gate = _gate(_tally(*[(SURE, SURE)] * 9, (SURE, OTHER)).gates(), "top1_mismatch_rate")
    assert (gate.measured, gate.confidence) == (0.1, 0.99)
    assert gate.low is not None and gate.high is not None and gate.low < 0.1 < gate.high


@pytest.mark.parametrize("pair", [(SURE, BROKEN), (BROKEN, SURE), (BROKEN, BROKEN)])
def test_an_answer_that_is_not_finite_fails_and_agrees_with_none(pair: tuple[Answer, Answer]) -> None:
    tally = _tally((SURE, SURE), pair)
    found = tally.figures()
    assert found.non_finite == sum(answer is BROKEN for answer in pair)
    assert (found.top1_mismatch_count, found.mse_mean) == (1, 0.0)
    assert _gate(tally.gates(), "non_finite_values").verdict == "failed"
    assert tally.worst()[0].difference == 1.0


def test_nothing_finite_leaves_nothing_to_measure() -> None:
    gates = _tally((SURE, BROKEN)).gates()
    assert (_gate(gates, "mse_mean").measured, _gate(gates, "mse_mean").verdict) == (None, "failed")


def test_infinite_answers_are_counted_without_a_warning() -> None:
    infinite = (float("inf"), float("-inf"), 0.0)
    assert _tally((infinite, infinite)).figures().non_finite == 4


def test_no_image_has_no_mismatch() -> None:
    tally = _tally()
    found = tally.figures()
    assert (found.images, found.mse_p99, found.top1_mismatch_rate, found.mismatch_interval) == (0, 0.0, 0.0, (0.0, 1.0))
    assert found.reference_accuracy is None and tally.worst() == ()


def test_answers_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        _tally((SURE, (1.0,)))


def test_the_classes_that_disagree_most_come_first() -> None:
    found = _tally(*[(SURE, SURE)] * 3, (SURE, OTHER), (OTHER, SURE), (OTHER, OTHER)).figures()
    assert found.worst_classes == (
        {"class": 1, "name": "ibuprofen", "images": 2, "mismatches": 1, "rate": 0.5},
        {"class": 0, "name": "aspirin", "images": 4, "mismatches": 1, "rate": 0.25},
    )


def test_at_most_ten_classes_are_named() -> None:
    names = {index: str(index) for index in range(15)}
    tally = ClassificationTally(names, Limits(), confidence=0.99)
    for index in range(15):
        answers = np.eye(15, dtype=np.float32)
        for _ in range(index + 1):
            tally.add("a.png", Path("a.png"), answers[index], answers[index - 1])
    assert [row["class"] for row in tally.figures().worst_classes] == list(range(14, 4, -1))


def test_borderline_images_are_those_where_the_reference_is_unsure() -> None:
    doubtful = (0.4, 0.39, 0.21)
    found = _tally((SURE, OTHER), (UNSURE, TURNED), (doubtful, doubtful)).figures()
    first, second = found.borderline
    assert first["name"] == "2.png" and first["margin"] == pytest.approx(0.01, rel=1e-5)
    assert (second["reference_class"], second["candidate_class"]) == ("aspirin", "ibuprofen")
    assert second["reference_probability"] == pytest.approx(0.5)


def test_one_class_alone_is_never_unsure() -> None:
    tally = ClassificationTally({0: "pill"}, Limits(), confidence=0.99)
    tally.add("a.png", Path("a.png"), _of((1.0,)), _of((1.0,)))
    assert tally.figures().borderline == ()


def test_the_eight_worst_images_bring_their_classes() -> None:
    tally = _tally(*[(SURE, SURE)] * 9, (UNSURE, TURNED), (SURE, OTHER))
    first, second, *others = tally.worst()
    assert [first.name, second.name, len(others)] == ["10.png", "9.png", 6]
    assert [first.difference, second.difference] == pytest.approx([0.7, 0.05])
    assert first.reference == pytest.approx(np.array([(0, 0.8), (1, 0.1), (2, 0.1)]))
    assert first.candidate == pytest.approx(np.array([(1, 0.8), (0, 0.1), (2, 0.1)]))


def test_accuracies_are_over_labelled_images() -> None:
    tally = ClassificationTally(NAMES, Limits(), confidence=0.99)
    for label in (0, 0, 1, None):
        tally.add("a.png", Path("a.png"), _of(SURE), _of(OTHER), label)
    found = tally.figures()
    assert found.reference_accuracy == pytest.approx(2 / 3)
    assert found.candidate_accuracy == pytest.approx(1 / 3)


def test_equal_models_pass_sequentially_as_soon_as_one_percent_is_shown() -> None:
    total, limits = len(looks(5000)), Limits(mse_mean=0.01)
    undecided = _tally(*[(SURE, SURE)] * 539, limits=limits).sequential(total)
    assert _gate(undecided, "top1_mismatch_rate").leans == "passed"
    assert {gate.name for gate in undecided if gate.verdict == "undecided"} == {"top1_mismatch_rate", "mse_p99"}
    decided = _tally(*[(SURE, SURE)] * 540, limits=limits).sequential(total)
    assert all(gate.verdict == "passed" and gate.leans is None for gate in decided)
    assert _gate(decided, "top1_mismatch_rate").high == pytest.approx(0.01, rel=0.01)


def test_the_fewer_the_classes_the_more_images_does_their_mean_take() -> None:
    """A wholly wrong image has an MSE of 2 / classes, so of few classes fewer such images are within the limit."""
    few = _gate(_tally(*[(SURE, SURE)] * 600).sequential(24), "mse_mean")
    assert (few.verdict, few.leans) == ("undecided", "passed")
    many = ClassificationTally({index: str(index) for index in range(1000)}, Limits(), confidence=0.99)
    for index in range(120):
        answer = np.eye(1000, dtype=np.float32)[index]
        many.add("a.png", Path("a.png"), answer, answer)
    assert _gate(many.sequential(24), "mse_mean").verdict == "passed"


def test_swapped_classes_fail_sequentially_after_a_few_images() -> None:
    gates = _tally(*[(SURE, OTHER)] * 10).sequential(24)
    assert {gate.name for gate in gates if gate.verdict == "failed"} == {"mse_mean", "mse_p99", "top1_mismatch_rate"}


def test_a_mean_close_to_its_limit_stays_undecided_and_leans() -> None:
    some = [(SURE, (0.81, 0.095, 0.095)), (SURE, SURE)] * 20
    mean = _tally(*some).figures().mse_mean
    assert mean is not None
    for limit, leans in ((mean * 1.05, "passed"), (mean * 0.95, "failed")):
        gate = _gate(_tally(*some, limits=Limits(mse_mean=limit)).sequential(24), "mse_mean")
        assert (gate.verdict, gate.leans) == ("undecided", leans)
        assert gate.low is not None and gate.high is not None and gate.low < mean < gate.high


def test_of_answers_that_are_all_nan_there_is_no_mse() -> None:
    tally = _tally(*[(SURE, BROKEN)] * 3)
    found = tally.figures()
    assert (found.mse_mean, found.mse_p99, found.mse_max) == (None, None, None)
    assert _gate(tally.gates(), "mse_mean").verdict == "failed"
    assert _gate(tally.sequential(24), "mse_mean").leans == "failed"
