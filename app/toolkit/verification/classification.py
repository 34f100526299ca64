"""How differently two classifiers answer, image by image, and whether that is within the limits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.toolkit.verification.gates import finite_gate
from app.toolkit.verification.judging import by_estimate, by_test, estimate_in_interval
from app.toolkit.verification.request import Limits
from app.toolkit.verification.result import ClassificationFigures, Gate, Worst
from app.toolkit.verification.sequential import LookTest, ProportionTest, wilson_interval
from app.toolkit.verification.top import Top, most_mismatched

Float32Array = npt.NDArray[np.float32]

WORST_IMAGES = 8
BORDERLINE_IMAGES = 20
# Between the two most probable classes of the reference: who is this unsure may well change its mind.
BORDERLINE_MARGIN = 0.2
PERCENTILE = 99
SHOWN_CLASSES = 5


class ClassificationTally:
    """Counts of what both said, in constant memory but for two numbers an image.

    `names` are by class index. An answer with a NaN or an infinity names no class, so that it agrees with none, and its
    image has no MSE. Of no image at all, every rate and MSE is 0.
    """

    def __init__(self, names: Mapping[int, str], limits: Limits, confidence: float) -> None:
        self.names = names
        self.limits = limits
        self.confidence = confidence
        self.images = 0
        self.non_finite = 0
        self._mses: list[float] = []
        self._mismatches = 0
        self._images_of_class: Counter[int] = Counter()
        self._mismatches_of_class: Counter[int] = Counter()
        self._labelled = 0
        self._correct = [0, 0]
        self._worst: Top[Worst] = Top(WORST_IMAGES)
        self._borderline: Top[dict[str, Any]] = Top(BORDERLINE_IMAGES)
        self._mismatch_test = ProportionTest(limits.top1_mismatch_rate, confidence)
        self._largest_mse = 2 / max(len(names), 1)  # of two distributions, as each squared norm is at most 1
        self._mean_test = ProportionTest(limits.mse_mean / self._largest_mse, confidence)
        self._p99_test = ProportionTest(1 - PERCENTILE / 100, confidence)

    def add(
        self, name: str, path: Path, reference: Float32Array, candidate: Float32Array, label: int | None = None
    ) -> None:
        """Both answers to one image, probabilities [classes]; `label` is the true class, where it is known.

        Raises ValueError where the two are of different shape.
        """
        if reference.shape != candidate.shape:
            raise ValueError(f"answers of {reference.shape} and {candidate.shape} classes cannot be compared")
        first, second = _top_class(reference), _top_class(candidate)
        self.images += 1
        self._count_classes(first, second, label)
        self._measure(reference, candidate)
        distance = _total_variation(reference, candidate)
        self._worst.add(distance, Worst(path, name, distance, _most_probable(reference), _most_probable(candidate)))
        if first is not None:
            self._note_borderline(name, reference, first, second)

    def _count_classes(self, first: int | None, second: int | None, label: int | None) -> None:
        mismatch = first is None or first != second
        self._mismatches += mismatch
        self._mismatch_test.add(float(mismatch))
        if first is not None:
            self._images_of_class[first] += 1
            self._mismatches_of_class[first] += mismatch
        if label is not None:
            self._labelled += 1
            self._correct[0] += first == label
            self._correct[1] += second == label

    def _measure(self, reference: Float32Array, candidate: Float32Array) -> None:
        bad = int(np.count_nonzero(~np.isfinite([reference, candidate])))
        self.non_finite += bad
        if bad:
            self._p99_test.add(1.0)
            return
        mse = float(np.mean((reference.astype(np.float64) - candidate) ** 2))
        self._mses.append(mse)
        self._mean_test.add(min(mse / self._largest_mse, 1.0))
        self._p99_test.add(float(mse > self.limits.mse_p99))

    def _note_borderline(self, name: str, reference: Float32Array, first: int, second: int | None) -> None:
        best, *others = np.sort(reference)[::-1][:2].tolist()
        margin = best - (others[0] if others else 0.0)
        if margin < BORDERLINE_MARGIN:
            entry = {
                "name": name,
                "margin": margin,
                "reference_class": self.names[first],
                "candidate_class": None if second is None else self.names[second],
                "reference_probability": best,
            }
            self._borderline.add(-margin, entry)

    def figures(self) -> ClassificationFigures:
        """The numbers so far. The p99 is interpolated linearly between the two nearest images."""
        mses = self._mses if self.images else [0.0]
        return ClassificationFigures(
            images=self.images,
            mse_mean=float(np.mean(mses)) if mses else None,
            mse_p99=float(np.percentile(mses, PERCENTILE)) if mses else None,
            mse_max=max(mses, default=None),
            top1_mismatch_count=self._mismatches,
            top1_mismatch_rate=self._mismatch_test.mean,
            mismatch_interval=wilson_interval(self._mismatches, self.images, self.confidence),
            worst_classes=most_mismatched(self.names, self._images_of_class, self._mismatches_of_class, "images"),
            borderline=self._borderline.items,
            non_finite=self.non_finite,
            reference_accuracy=self._accuracy(0),
            candidate_accuracy=self._accuracy(1),
        )

    def _accuracy(self, which: int) -> float | None:
        return self._correct[which] / self._labelled if self._labelled else None

    def gates(self) -> tuple[Gate, ...]:
        """The limits, judged by the figures."""
        found, limits = self.figures(), self.limits
        mismatch = by_estimate(
            "top1_mismatch_rate",
            limits.top1_mismatch_rate,
            found.top1_mismatch_rate,
            interval=found.mismatch_interval,
            confidence=self.confidence,
        )
        if found.mse_mean is None:
            mses = (by_estimate("mse_mean", limits.mse_mean, None), by_estimate("mse_p99", limits.mse_p99, None))
            return (*mses, mismatch, finite_gate(self.non_finite))
        test = LookTest(limits.mse_mean, self.confidence, looks=1)
        return (
            estimate_in_interval("mse_mean", test, found.mse_mean, self._standard_error(), len(self._mses)),
            by_estimate("mse_p99", limits.mse_p99, found.mse_p99),
            mismatch,
            finite_gate(self.non_finite),
        )

    def sequential(self, _looks: int) -> tuple[Gate, ...]:
        """The limits, judged by the tests that may stop early.

        The p99 is within its limit where at most 1 % of the images are above it: that share is what is tested. The mean
        is tested as one of values up to 2 / classes: nothing smaller is sure of what a rare image may hold.
        """
        found, limits = self.figures(), self.limits
        low, high = self._mean_test.interval()
        mean = by_test(
            "mse_mean",
            limits.mse_mean,
            found.mse_mean,
            self._mean_test.verdict,
            interval=(low * self._largest_mse, high * self._largest_mse),
            confidence=self.confidence,
        )
        return (
            mean,
            by_test("mse_p99", limits.mse_p99, found.mse_p99, self._p99_test.verdict, confidence=self.confidence),
            by_test(
                "top1_mismatch_rate",
                limits.top1_mismatch_rate,
                found.top1_mismatch_rate,
                self._mismatch_test.verdict,
                interval=self._mismatch_test.interval(),
                confidence=self.confidence,
            ),
            finite_gate(self.non_finite),
        )

    def _standard_error(self) -> float:
        """Of the mean MSE; 0 of a single image, which no test judges by."""
        count = len(self._mses)
        return float(np.std(self._mses, ddof=1)) / math.sqrt(count) if count > 1 else 0.0

    def worst(self) -> tuple[Worst, ...]:
        """The images that differ most, by total variation: half the sum of |difference|, 0..1; 1 if not finite."""
        return self._worst.items


def _top_class(answer: Float32Array) -> int | None:
    return int(answer.argmax()) if np.isfinite(answer).all() else None


def _most_probable(answer: Float32Array) -> tuple[tuple[int, float], ...]:
    """(class, probability) pairs, best first; none of an answer that is not finite."""
    if not np.isfinite(answer).all():
        return ()
    best = np.argsort(-answer, kind="stable")[:SHOWN_CLASSES]
    return tuple((int(index), float(answer[index])) for index in best)


def _total_variation(first: Float32Array, second: Float32Array) -> float:
    if not np.isfinite([first, second]).all():
        return 1.0
    return float(np.abs(first.astype(np.float64) - second).sum() / 2)
