"""Two detectors' answers whose figures can be worked out by hand, and mAPs against pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from app.toolkit.coco import CocoData
from app.toolkit.detections import Detections
from app.toolkit.verification.detection import DetectionTally
from app.toolkit.verification.labelled import LabelledDetections
from app.toolkit.verification.request import S4_NMS, Limits
from app.toolkit.verification.result import Gate

NAMES = {0: "round", 1: "capsule"}
SQUARE = (0.0, 0.0, 10.0, 10.0)
SHORTER = (0.0, 0.0, 10.0, 9.0)  # IoU 0.9 with the square
ELSEWHERE = (50.0, 50.0, 60.0, 60.0)
Box = tuple[float, float, float, float]


def _found(*boxes: Box, classes: list[int] | None = None, score: float = 0.9) -> Detections:
    count = len(boxes)
    corners = np.array(boxes, dtype=np.float32).reshape(count, 4)
    return Detections(corners, np.full(count, score, np.float32), np.array(classes or [0] * count, dtype=np.int64))


def _tally(
    *pairs: tuple[Detections, Detections], limits: Limits | None = None, coco: CocoData | None = None
) -> DetectionTally:
    """Both answers to one image after the other; with labels, those to the images of the ids 1, 2, 3 ..."""
    tally = DetectionTally(NAMES, limits or Limits(), S4_NMS, coco, confidence=0.99)
    for number, pair in enumerate(pairs):
        tally.add(f"{number}.png", Path(f"{number}.png"), number + 1, *pair, *(pair if coco else ()))
    return tally


def _verdicts(gates: tuple[Gate, ...]) -> dict[str, str]:
    return {gate.name: gate.verdict for gate in gates}


def _gate(gates: tuple[Gate, ...], name: str) -> Gate:
    (found,) = [gate for gate in gates if gate.name == name]
    return found


def _labels(folder: Path, images: int, labelled: int) -> CocoData:
    """`images` images, of which the first `labelled` have a round pill in SQUARE."""
    content = {
        "images": [{"id": n + 1, "file_name": f"{n}.png", "width": 64, "height": 64} for n in range(images)],
        "annotations": [
            {"id": n + 1, "image_id": n + 1, "category_id": 5, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0}
            for n in range(labelled)
        ],
        "categories": [{"id": 5, "name": "round"}, {"id": 9, "name": "capsule"}],
    }
    path = folder / "labels.json"
    path.write_text(json.dumps(content))
    names = tuple(f"{n}.png" for n in range(images))
    return CocoData(path, folder, tuple(range(1, images + 1)), names, category_ids=(5, 9))


def test_figures_by_hand() -> None:
    both = _found(SQUARE, ELSEWHERE)
    found = _tally((both, both), (_found(SQUARE), _found(SHORTER, score=0.7)), (both, _found(SQUARE))).figures()
    assert (found.images, found.reference_detections, found.candidate_detections, found.matched) == (3, 5, 4, 4)
    assert found.agreement == pytest.approx(8 / 9) and found.mismatch_rate == pytest.approx(1 / 9)
    assert found.mismatched_images == 1
    assert found.mismatch_interval[0] < 1 / 3 < found.mismatch_interval[1]
    assert found.iou_delta_mean == pytest.approx(0.1 / 4)
    assert found.iou_delta_p95 == pytest.approx(0.85 * 0.1)  # between the third and the fourth pair
    assert found.score_delta_p95 == pytest.approx(0.85 * 0.2)
    assert found.map50_reference is None and found.map50_delta is None


def test_figures_are_plain_json() -> None:
    found = _tally((_found(SQUARE, score=0.32), _found()), (_found(), _found(SQUARE))).figures()
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["map50_95_delta"] is None


def test_detectors_that_agree_pass() -> None:
    gates = _tally((_found(SQUARE), _found(SQUARE))).gates()
    expected = {"iou_delta_p95": "passed", "detection_mismatch_rate": "passed", "non_finite_values": "passed"}
    assert _verdicts(gates) == expected


def test_boxes_that_moved_fail_by_their_iou_alone() -> None:
    gates = _tally((_found(SQUARE), _found(SHORTER))).gates()
    assert [gate.name for gate in gates if gate.verdict == "failed"] == ["iou_delta_p95"]


def test_swapped_classes_fail_in_the_same_place() -> None:
    tally = _tally(*[(_found(SQUARE, classes=[0]), _found(SQUARE, classes=[1]))] * 3)
    assert (tally.figures().matched, tally.figures().mismatch_rate) == (0, 1.0)
    assert _verdicts(tally.gates())["detection_mismatch_rate"] == "failed"
    assert tally.figures().worst_classes == (
        {"class": 0, "name": "round", "detections": 3, "mismatches": 3, "rate": 1.0},
        {"class": 1, "name": "capsule", "detections": 3, "mismatches": 3, "rate": 1.0},
    )


def test_where_nothing_matches_the_iou_fails_and_of_no_box_at_all_it_passes() -> None:
    apart = _tally((_found(SQUARE), _found(ELSEWHERE)))
    assert (_gate(apart.gates(), "iou_delta_p95").measured, apart.figures().iou_delta_p95) == (1.0, None)
    nothing = _tally((_found(), _found()))
    assert _gate(nothing.gates(), "iou_delta_p95").measured == 0.0
    assert (nothing.figures().agreement, nothing.figures().mismatch_rate) == (1.0, 0.0)
    assert set(_verdicts(nothing.gates()).values()) == {"passed"}


def test_no_image_at_all_is_defined() -> None:
    tally = _tally()
    assert (tally.figures().images, tally.figures().mismatch_interval) == (0, (0.0, 1.0))
    assert tally.worst() == () and set(_verdicts(tally.gates()).values()) == {"passed"}


def test_values_that_are_not_finite_fail() -> None:
    tally = _tally((_found(SQUARE), _found(SQUARE)))
    tally.add("1.png", Path("1.png"), 2, _found(SQUARE), _found(SQUARE), non_finite=7)
    assert _gate(tally.gates(), "non_finite_values").measured == 7
    assert _verdicts(tally.gates())["non_finite_values"] == "failed"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_boxes_that_are_not_finite_are_not_found_and_counted(bad: float) -> None:
    tally = _tally((_found(SQUARE, ELSEWHERE), _found(SQUARE, (bad, 0, 1, 1))))
    found = tally.figures()
    assert (found.candidate_detections, found.matched, found.non_finite) == (1, 1, 1)
    assert _verdicts(tally.gates())["non_finite_values"] == "failed"


def test_borderline_detections_are_those_just_above_the_confidence() -> None:
    reference = Detections(
        np.array([SQUARE, ELSEWHERE, (20, 20, 30, 30)], np.float32),
        np.array([0.9, 0.34, 0.31], np.float32),
        np.array([0, 1, 1]),
    )
    candidate = _found(ELSEWHERE, classes=[1], score=0.36)
    first, second = _tally((reference, candidate)).figures().borderline
    assert (first["score_reference"], first["score_candidate"]) == (pytest.approx(0.31), None)
    assert second == {
        "name": "0.png",
        "class": "capsule",
        "score_reference": pytest.approx(0.34),
        "score_candidate": pytest.approx(0.36),
    }


def test_the_worst_images_are_those_with_the_most_boxes_alone_then_those_moved_most() -> None:
    one = _found(SQUARE)
    same, moved, missing, half = (one, one), (one, _found(SHORTER)), (one, _found()), (_found(SQUARE, ELSEWHERE), one)
    worst = _tally(same, moved, missing, half).worst()
    assert [image.name for image in worst] == ["2.png", "3.png", "1.png", "0.png"]
    assert [image.difference for image in worst] == pytest.approx([1.0, 1 / 3, 0.1, 0.0])
    assert worst[0].reference is one


def test_labels_bring_the_maps_of_both(tmp_path: Path) -> None:
    data = _labels(tmp_path, images=4, labelled=4)
    right, wrong = _found(SQUARE), _found(SQUARE, classes=[1])
    tally = _tally((right, right), (right, right), (right, wrong), (right, _found()), coco=data)
    found = tally.figures()
    assert found.map50_reference == pytest.approx(1.0)
    assert found.map50_95_reference == pytest.approx(1.0)
    assert found.map50_candidate == pytest.approx(51 / 101)  # precision 1 at the recalls 0, 0.01 ... 0.5
    assert found.map50_95_delta == pytest.approx(51 / 101 - 1)
    verdicts = _verdicts(tally.gates())
    assert (verdicts["map_0_5"], verdicts["map_0_5_0_95"]) == ("failed", "failed")
    assert "detection_mismatch_rate" not in verdicts
    assert _gate(tally.gates(), "map_0_5").measured == pytest.approx(50 / 101)


def test_only_the_images_seen_so_far_are_evaluated(tmp_path: Path) -> None:
    right = _found(SQUARE)
    tally = _tally((right, right), coco=_labels(tmp_path, images=3, labelled=3))
    assert tally.figures().map50_reference == pytest.approx(1.0)
    tally.add("1.png", Path("1.png"), 2, right, _found(), right, _found())
    assert tally.figures().map50_candidate == pytest.approx(51 / 101)


def test_a_model_that_finds_nothing_has_a_map_of_zero(tmp_path: Path) -> None:
    tally = _tally((_found(SQUARE), _found()), coco=_labels(tmp_path, images=1, labelled=1))
    assert tally.figures().map50_candidate == 0.0
    assert _gate(tally.sequential(24), "map_0_5").leans == "failed"


def test_the_map_gates_bring_an_interval_from_ten_images_on(scenes: CocoData) -> None:
    reference, candidate = _answers(scenes, 0, px=2), _answers(scenes, 1, px=5)
    names = {index: str(index) for index in range(12)}
    tally = DetectionTally(names, Limits(), S4_NMS, scenes, confidence=0.99)
    for image_id in scenes.image_ids:
        pair = reference[image_id], candidate[image_id]
        tally.add(f"{image_id}.png", Path(f"{image_id}.png"), image_id, *pair, *pair)
    once, often = _gate(tally.gates(), "map_0_5"), _gate(tally.sequential(24), "map_0_5")
    assert once.measured is not None and once.low is not None and once.high is not None and often.high is not None
    assert once.low <= once.measured < once.high < often.high


def test_images_without_a_labelled_box_are_judged_by_agreement(tmp_path: Path) -> None:
    found = _found(SQUARE)
    tally = _tally((found, found), coco=_labels(tmp_path, images=1, labelled=0))
    assert tally.figures().map50_reference is None
    for gates in (tally.gates(), tally.sequential(24)):
        assert "detection_mismatch_rate" in _verdicts(gates) and "map_0_5" not in _verdicts(gates)


def test_equal_detectors_pass_sequentially(tmp_path: Path) -> None:
    one = _found(SQUARE)
    assert _verdicts(_tally(*[(one, one)] * 30).sequential(24))["iou_delta_p95"] == "undecided"
    without_labels = _tally(*[(one, one)] * 300).sequential(24)
    assert set(_verdicts(without_labels).values()) == {"passed"}
    with_labels = _tally(*[(one, one)] * 461, coco=_labels(tmp_path, 461, 461)).sequential(24)
    assert set(_verdicts(with_labels).values()) == {"passed"}


def test_images_that_were_not_seen_yet_may_cost_a_map_its_limit(tmp_path: Path) -> None:
    """1.2 % of images without a box cost 0.012; one in a hundred streams may miss them, of 460 images (0.988^460)."""
    one = _found(SQUARE)
    verdicts = _verdicts(_tally(*[(one, one)] * 460, coco=_labels(tmp_path, 460, 460)).sequential(24))
    assert (verdicts["map_0_5"], verdicts["iou_delta_p95"]) == ("undecided", "passed")


def test_broken_detectors_fail_sequentially_after_a_few_images(tmp_path: Path) -> None:
    good, moved, wrong = _found(SQUARE), _found(SHORTER), _found(SQUARE, classes=[1])
    assert _verdicts(_tally(*[(good, moved)] * 10).sequential(24))["iou_delta_p95"] == "failed"
    assert _verdicts(_tally(*[(good, wrong)] * 10).sequential(24))["detection_mismatch_rate"] == "failed"
    verdicts = _verdicts(_tally(*[(good, wrong)] * 20, coco=_labels(tmp_path, 20, 20)).sequential(24))
    assert (verdicts["map_0_5"], verdicts["map_0_5_0_95"]) == ("failed", "failed")


def test_images_without_pairs_say_nothing_of_their_iou() -> None:
    nothing = [(_found(), _found())] * 200
    assert _verdicts(_tally(*nothing).sequential(24))["iou_delta_p95"] == "undecided"
    moved = [(_found(SQUARE), _found(SHORTER))] * 10
    assert _verdicts(_tally(*nothing, *moved).sequential(24))["iou_delta_p95"] == "failed"


def _answers(data: CocoData, seed: int, px: float) -> dict[int, Detections]:
    """Detections of each image: its labels, moved by about `px`, some missed, some of another class, some invented."""
    rng = np.random.default_rng(seed)
    content = json.loads(data.annotations.read_text())
    answers = {}
    for image_id in data.image_ids:
        rows = [row for row in content["annotations"] if row["image_id"] == image_id and rng.random() > 0.1]
        boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        invented = rng.uniform((0, 0, 300, 300), (300, 300, 600, 600), (2, 4))
        boxes = np.concatenate([boxes + rng.normal(0, px, boxes.shape), invented])
        classes = np.array([data.category_ids.index(row["category_id"]) for row in rows] + [0, 1])
        classes[rng.random(len(classes)) < 0.1] = 2
        scores = rng.uniform(0.01, 1, len(boxes))
        answers[image_id] = Detections(boxes.astype(np.float32), scores.astype(np.float32), classes)
    return answers


def _pycocotools(answers: dict[int, Detections], data: CocoData) -> tuple[float, float]:
    results = [
        {"image_id": key, "category_id": data.category_ids[c], "bbox": [x, y, u - x, v - y], "score": score}
        for key, found in answers.items()
        for (x, y, u, v), score, c in zip(
            found.boxes_xyxy.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(data.annotations))
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.params.imgIds = list(answers)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return float(evaluator.stats[1]), float(evaluator.stats[0])


def _labelled(data: CocoData, reference: dict[int, Detections], candidate: dict[int, Detections]) -> LabelledDetections:
    labelled = LabelledDetections(data)
    for image_id, found in reference.items():
        labelled.add(image_id, found, candidate[image_id])
    return labelled


@pytest.mark.parametrize("images", [36, 13])
def test_the_maps_are_those_of_pycocotools(scenes: CocoData, images: int) -> None:
    some = replace(scenes, image_ids=scenes.image_ids[-images:], file_names=scenes.file_names[-images:])
    reference, candidate = _answers(some, 0, px=2), _answers(some, 1, px=5)
    found = _labelled(scenes, reference, candidate).precisions()
    assert found is not None
    expected = _pycocotools(reference, scenes), _pycocotools(candidate, scenes)
    assert found.map50 == pytest.approx((expected[0][0], expected[1][0]), abs=1e-4)
    assert found.map50_95 == pytest.approx((expected[0][1], expected[1][1]), abs=1e-4)
    assert 0.2 < found.map50_95[1] < found.map50_95[0] < 0.9


def test_the_jackknife_leaves_out_what_another_evaluation_would(scenes: CocoData) -> None:
    reference, candidate = _answers(scenes, 0, px=2), _answers(scenes, 1, px=5)
    left = []
    for group in range(20):
        kept = [key for number, key in enumerate(scenes.image_ids) if number % 20 != group]
        found = _labelled(scenes, {key: reference[key] for key in kept}, candidate).precisions()
        assert found is not None
        left.append((found.map50[1] - found.map50[0], found.map50_95[1] - found.map50_95[0]))
    found = _labelled(scenes, reference, candidate).precisions()
    assert found is not None and found.groups == 20
    errors = np.sqrt(19 * np.var(left, axis=0))
    assert [found.map50_error, found.map50_95_error] == pytest.approx(errors.tolist())


@pytest.mark.parametrize("lost", [True, False])
def test_classes_that_the_labels_lack_are_judged_without_them(lost: bool, tmp_path: Path) -> None:
    both, first = _found(SQUARE, ELSEWHERE, classes=[0, 1]), _found(SQUARE)
    coco = _labels(tmp_path, 2, 2)
    tally = DetectionTally(NAMES, Limits(), S4_NMS, coco, 0.99, unlabelled=frozenset({1}))
    for number in (1, 2):
        candidate = first if lost else both
        tally.add(f"{number}.png", Path(f"{number}.png"), number, both, candidate, both, candidate)
    gate = _gate(tally.gates(), "detection_mismatch_rate")
    assert (gate.measured, gate.verdict) == ((pytest.approx(1 / 3), "failed") if lost else (0.0, "passed"))
    assert _verdicts(tally.gates())["map_0_5"] == "passed"  # of the one class that has labels
    assert _gate(tally.sequential(24), "detection_mismatch_rate").measured == gate.measured


def test_annotation_ids_are_of_no_account(tmp_path: Path) -> None:
    coco = _labels(tmp_path, 4, 4)
    content = json.loads(coco.annotations.read_text())
    for ids in ([0, 1, 2, 3], [1, 1, 1, 1], [None] * 4, ["a"] * 4):
        for annotation, given in zip(content["annotations"], ids, strict=True):
            annotation["id"] = given
        coco.annotations.write_text(json.dumps(content))
        figures = _tally(*[(_found(SQUARE), _found(SQUARE))] * 4, coco=coco).figures()
        assert figures.map50_reference == pytest.approx(1.0), ids


def test_ids_as_text_and_annotations_without_id_area_or_crowd_are_read(tmp_path: Path) -> None:
    coco = _labels(tmp_path, 2, 2)
    content = json.loads(coco.annotations.read_text())
    content["annotations"] = [
        {"image_id": str(one["image_id"]), "category_id": "5", "bbox": one["bbox"]} for one in content["annotations"]
    ]
    for one in (*content["images"], *content["categories"]):
        one["id"] = str(one["id"])
    coco.annotations.write_text(json.dumps(content))
    assert _tally(*[(_found(SQUARE), _found(SQUARE))] * 2, coco=coco).figures().map50_reference == pytest.approx(1.0)
