"""How differently two detectors answer, image by image, and whether that is within the limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.toolkit.agreement import matched_pairs
from app.toolkit.coco import CocoData
from app.toolkit.detections import Detections, NmsSettings
from app.toolkit.verification.gates import finite_gate
from app.toolkit.verification.judging import JudgeByLook, by_estimate, by_look, by_test, estimate_in_interval
from app.toolkit.verification.labelled import LabelledDetections, Precisions
from app.toolkit.verification.request import Limits
from app.toolkit.verification.result import DetectionFigures, Gate, Worst
from app.toolkit.verification.sequential import LookTest, ProportionTest, unseen_share, wilson_interval
from app.toolkit.verification.top import Top, most_mismatched

Pairs = list[tuple[int, int, float]]

WORST_IMAGES = 8
BORDERLINE_DETECTIONS = 20
# Above the confidence that was asked for: so little a change drops the box.
BORDERLINE_SCORE = 0.05
PERCENTILE = 95


class DetectionTally:
    """Counts of what both found. Boxes with a NaN or an infinity are counted as such, and otherwise as not found.

    `names` are by class index, `nms` is what the compared detections went through, `coco` the labels, where there are
    any. The mAPs need a second pair of detections of each image, at COCO's settings; it is kept, 28 bytes a box.
    `unlabelled` are the classes that the labels lack: of all detections, those of these classes are judged without.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        limits: Limits,
        nms: NmsSettings,
        coco: CocoData | None,
        confidence: float,
        unlabelled: frozenset[int] = frozenset(),
    ) -> None:
        self.names = names
        self.limits = limits
        self.nms = nms
        self.confidence = confidence
        self.images = 0
        self.non_finite = 0
        self._found = [0, 0]
        self._iou_deltas: list[float] = []
        self._score_deltas: list[float] = []
        self._mismatched_images = 0
        self._boxes_of_class: Counter[int] = Counter()
        self._mismatches_of_class: Counter[int] = Counter()
        self._labelled = None if coco is None else LabelledDetections(coco)
        self._worst: Top[Worst] = Top(WORST_IMAGES)
        self._borderline: Top[dict[str, Any]] = Top(BORDERLINE_DETECTIONS)
        self._mismatch_test = ProportionTest(limits.detection_mismatch_rate, confidence)
        self._unlabelled = unlabelled
        self._unlabelled_test = ProportionTest(limits.detection_mismatch_rate, confidence)
        self._iou_test = ProportionTest(1 - PERCENTILE / 100, confidence)

    def add(
        self,
        name: str,
        path: Path,
        image_id: int | None,
        reference: Detections,
        candidate: Detections,
        reference_coco: Detections | None = None,
        candidate_coco: Detections | None = None,
        *,
        non_finite: int = 0,
    ) -> None:
        """Both answers to one image; the last pair at COCO's settings. `non_finite` values were in the raw outputs."""
        reference, lost = _finite(reference)
        candidate, also_lost = _finite(candidate)
        self.images += 1
        self.non_finite += max(non_finite, lost + also_lost)
        pairs = matched_pairs(reference, candidate)
        self._measure(reference, candidate, pairs)
        self._count_classes(reference, candidate, pairs)
        self._note_borderline(name, reference, candidate, pairs)
        difference = _difference(reference, candidate, pairs)
        self._worst.add(difference, Worst(path, name, difference, reference, candidate))
        if self._labelled and image_id is not None and reference_coco is not None and candidate_coco is not None:
            self._labelled.add(image_id, _finite(reference_coco)[0], _finite(candidate_coco)[0])

    def _measure(self, reference: Detections, candidate: Detections, pairs: Pairs) -> None:
        deltas = [1 - iou for _, _, iou in pairs]
        self._found[0] += len(reference)
        self._found[1] += len(candidate)
        self._iou_deltas += deltas
        self._score_deltas += [abs(float(reference.scores[i] - candidate.scores[j])) for i, j, _ in pairs]
        disagreement = _disagreement(len(reference), len(candidate), len(pairs))
        self._mismatched_images += disagreement > 0
        self._mismatch_test.add(disagreement)
        if deltas:
            self._iou_test.add(float(np.mean(np.array(deltas) > self.limits.iou_delta_p95)))

    def _count_classes(self, reference: Detections, candidate: Detections, pairs: Pairs) -> None:
        boxes = Counter([*reference.classes.tolist(), *candidate.classes.tolist()])
        matched = Counter(int(reference.classes[index]) for index, _, _ in pairs)
        self._boxes_of_class.update(boxes)
        mismatches = {index: count - 2 * matched[index] for index, count in boxes.items()}
        self._mismatches_of_class.update(mismatches)
        without = sum(count for index, count in mismatches.items() if index in self._unlabelled)
        self._unlabelled_test.add(without / sum(boxes.values()) if without else 0.0)

    def _note_borderline(self, name: str, reference: Detections, candidate: Detections, pairs: Pairs) -> None:
        partner = {first: second for first, second, _ in pairs}
        for index in np.flatnonzero(reference.scores < self.nms.conf + BORDERLINE_SCORE).tolist():
            score_reference = float(reference.scores[index])
            entry = {
                "name": name,
                "class": self.names[int(reference.classes[index])],
                "score_reference": score_reference,
                "score_candidate": float(candidate.scores[partner[index]]) if index in partner else None,
            }
            self._borderline.add(-score_reference, entry)

    def figures(self) -> DetectionFigures:
        """The numbers so far. The p95 is interpolated linearly between the two nearest pairs."""
        mismatch_rate = _disagreement(self._found[0], self._found[1], len(self._iou_deltas))
        return DetectionFigures(
            images=self.images,
            reference_detections=self._found[0],
            candidate_detections=self._found[1],
            matched=len(self._iou_deltas),
            agreement=1 - mismatch_rate,
            mismatch_rate=mismatch_rate,
            mismatched_images=self._mismatched_images,
            mismatch_interval=wilson_interval(self._mismatched_images, self.images, self.confidence),
            iou_delta_p95=_percentile(self._iou_deltas),
            iou_delta_mean=float(np.mean(self._iou_deltas)) if self._iou_deltas else None,
            score_delta_p95=_percentile(self._score_deltas),
            worst_classes=most_mismatched(self.names, self._boxes_of_class, self._mismatches_of_class, "detections"),
            borderline=self._borderline.items,
            non_finite=self.non_finite,
            **_maps(self._precisions()),
        )

    def _precisions(self) -> Precisions | None:
        return self._labelled.precisions() if self._labelled else None

    def gates(self) -> tuple[Gate, ...]:
        """The limits, judged by the figures.

        Where labels give no mAP, the detections' agreement is judged instead; where they give one but lack classes, the
        share of all detections that are of these classes and have no partner.
        """
        found, limits, precisions = self.figures(), self.limits, self._precisions()
        iou = by_estimate("iou_delta_p95", limits.iou_delta_p95, _judged_iou_delta(found))
        if precisions is None:
            mismatch = by_estimate("detection_mismatch_rate", limits.detection_mismatch_rate, found.mismatch_rate)
            return iou, mismatch, finite_gate(self.non_finite)
        test = LookTest(limits.map_delta, self.confidence, looks=1)
        gates = [*_map_gates(estimate_in_interval, test, precisions), iou]
        if self._unlabelled:
            without = sum(self._mismatches_of_class[index] for index in self._unlabelled)
            share = without / sum(self._found) if without else 0.0
            gates.append(by_estimate("detection_mismatch_rate", limits.detection_mismatch_rate, share))
        return (*gates, finite_gate(self.non_finite))

    def sequential(self, looks: int) -> tuple[Gate, ...]:
        """The limits, judged by the tests that may stop early; to be asked at no more than `looks` counts of images.

        Images are drawn, not boxes, so the tests are of means over images: of the share of an image's pairs that are
        above the IoU limit, which may be 5 %, and of its detections without a partner. An image without pairs says
        nothing of the first, so that models which find nothing at all leave it undecided.
        """
        limits, precisions = self.limits, self._precisions()
        iou = by_test(
            "iou_delta_p95",
            limits.iou_delta_p95,
            _judged_iou_delta(self.figures()),
            self._iou_test.verdict,
            confidence=self.confidence,
        )
        if precisions is None:
            return iou, self._mismatch_gate(self._mismatch_test), finite_gate(self.non_finite)
        unseen = unseen_share(self.images, self.confidence)  # a lost image costs about its share of the recall
        test = LookTest(limits.map_delta, self.confidence, looks, unseen)
        gates = [*_map_gates(by_look, test, precisions), iou]
        if self._unlabelled:
            gates.append(self._mismatch_gate(self._unlabelled_test))
        return (*gates, finite_gate(self.non_finite))

    def _mismatch_gate(self, test: ProportionTest) -> Gate:
        return by_test(
            "detection_mismatch_rate",
            test.limit,
            test.mean,
            test.verdict,
            interval=test.interval(),
            confidence=self.confidence,
        )

    def worst(self) -> tuple[Worst, ...]:
        """The images that differ most: the mean over boxes of 1 - IoU with their partner, 1 without one."""
        return self._worst.items


def _map_gates(judge: JudgeByLook, test: LookTest, found: Precisions) -> tuple[Gate, Gate]:
    return (
        judge("map_0_5", test, found.map50[1] - found.map50[0], found.map50_error, found.groups),
        judge("map_0_5_0_95", test, found.map50_95[1] - found.map50_95[0], found.map50_95_error, found.groups),
    )


def _finite(found: Detections) -> tuple[Detections, int]:
    """The boxes of finite place and score, and the number of the others."""
    sound = np.isfinite(found.boxes_xyxy).all(axis=1) & np.isfinite(found.scores)
    if sound.all():
        return found, 0
    return Detections(found.boxes_xyxy[sound], found.scores[sound], found.classes[sound]), int((~sound).sum())


def _maps(precisions: Precisions | None) -> dict[str, float]:
    if precisions is None:
        return {}
    return {
        "map50_reference": precisions.map50[0],
        "map50_candidate": precisions.map50[1],
        "map50_95_reference": precisions.map50_95[0],
        "map50_95_candidate": precisions.map50_95[1],
    }


def _disagreement(reference: int, candidate: int, matched: int) -> float:
    """1 - F1 of a matching; 0 where neither found anything."""
    total = reference + candidate
    return 1 - 2 * matched / total if total else 0.0


def _difference(reference: Detections, candidate: Detections, pairs: Pairs) -> float:
    total = len(reference) + len(candidate)
    return 1 - 2 * sum(iou for _, _, iou in pairs) / total if total else 0.0


def _percentile(values: Sequence[float]) -> float | None:
    return float(np.percentile(values, PERCENTILE)) if values else None


def _judged_iou_delta(found: DetectionFigures) -> float:
    """Where boxes were found and no two match, 1, as of boxes that do not overlap; of no boxes at all, 0."""
    if found.iou_delta_p95 is not None:
        return found.iou_delta_p95
    return 1.0 if found.reference_detections or found.candidate_detections else 0.0
