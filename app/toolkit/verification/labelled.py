"""Both detectors' answers to images with labels: their mAPs, and how far the difference of these can be trusted.

A mAP is no mean over images, so it has no standard error of the usual kind. The delete-a-group jackknife leaves out one
group of images after the other, the same for both models, and sees how much of the difference hangs on which images
were drawn (Quenouille 1956; Tukey 1958; Wolter, "Introduction to Variance Estimation", chapter 4).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster

from app.toolkit.coco import CocoData, Prediction, coco_results, truth_of
from app.toolkit.detections import Detections

BoolArray = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]

GROUPS = 20


@dataclass(frozen=True)
class Precisions:
    """mAPs at IoU 0.5 and 0.5:0.95, (reference, candidate); the standard errors, from `groups` groups, are of the
    candidate's less the reference's."""

    map50: tuple[float, float]
    map50_95: tuple[float, float]
    map50_error: float
    map50_95_error: float
    groups: int


class LabelledDetections:
    """Both answers, at COCO's settings, to the images of `data` that were added."""

    def __init__(self, data: CocoData) -> None:
        self._data = data
        self._found: dict[int, tuple[Detections, Detections]] = {}
        self._precisions: Precisions | None = None

    def add(self, image_id: int, reference: Detections, candidate: Detections) -> None:
        """Both answers to one image."""
        self._found[image_id] = reference, candidate
        self._precisions = None

    def precisions(self) -> Precisions | None:
        """Over the images so far; None where these have no labelled box. With fewer than GROUPS, each is a group."""
        if self._precisions is None:
            truth = truth_of(self._data)
            if self._found and truth.getAnnIds(imgIds=list(self._found)):
                self._precisions = self._evaluated(truth)
        return self._precisions

    def _evaluated(self, truth: COCO) -> Precisions:
        image_ids = sorted(self._found)
        groups = min(GROUPS, len(image_ids))
        group = np.arange(len(image_ids)) % groups
        kept = np.stack([group >= 0, *(group != left_out for left_out in range(groups))])
        reference, candidate = (_scores(truth, self._predictions(which), image_ids, kept) for which in (0, 1))
        of_rest = (candidate - reference)[1:]
        errors = np.sqrt((groups - 1) / groups * ((of_rest - of_rest.mean(axis=0)) ** 2).sum(axis=0))
        return Precisions(
            map50=(float(reference[0, 0]), float(candidate[0, 0])),
            map50_95=(float(reference[0, 1]), float(candidate[0, 1])),
            map50_error=float(errors[0]),
            map50_95_error=float(errors[1]),
            groups=groups,
        )

    def _predictions(self, which: int) -> list[Prediction]:
        return [
            prediction
            for image_id, answers in self._found.items()
            for prediction in coco_results(answers[which], image_id, self._data.category_ids)
        ]


def _scores(truth: COCO, predictions: list[Prediction], image_ids: Sequence[int], kept: BoolArray) -> Float64Array:
    """mAP at IoU 0.5 and at 0.5:0.95, [subsets, 2], over each of the subsets `kept` [subsets, images] of the images.

    Predictions are matched to labels only once. The evaluator keeps the matches of each image but has no way to ask for
    some of them, so its own list is changed between two accumulations; matching anew would take ten times as long.
    """
    if not predictions:  # the evaluator refuses an empty list; nothing found is a mAP of zero
        return np.zeros((len(kept), 2))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval_faster(truth, truth.loadRes(predictions), iouType="bbox", separate_eval=True)
    evaluator.params.imgIds = list(image_ids)
    # Of all the sizes and counts that COCO reports, only what makes the two mAPs: boxes of any area, up to 100.
    evaluator.params.areaRng, evaluator.params.areaRngLbl = evaluator.params.areaRng[:1], ["all"]
    evaluator.params.maxDets = [100]
    evaluator.evaluate()
    matches = np.array(evaluator._evalImgs_cpp, dtype=object).reshape(-1, len(image_ids))  # noqa: SLF001
    scores = []
    for some in kept:
        evaluator._evalImgs_cpp = matches[:, some].ravel().tolist()  # noqa: SLF001
        evaluator._paramsEval.imgIds = np.array(image_ids)[some].tolist()  # noqa: SLF001
        evaluator.accumulate()
        scores.append(_means(evaluator.eval["precision"]))
    return np.array(scores)


def _means(precision: Float64Array) -> tuple[float, float]:
    """Of precisions [IoUs, recalls, categories, 1, 1], which are -1 for categories without labels; 0 without any."""
    labelled = precision[:, :, (precision > -1).all(axis=(0, 1, 3, 4))]
    return (float(labelled[0].mean()), float(labelled.mean())) if labelled.size else (0.0, 0.0)
