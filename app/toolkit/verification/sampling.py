"""Which of the images are compared (S4 E-2), drawn without favour: by seed, by class, and near the decision's edge.

`smoke` and `auto` draw at random, `coverage` takes every class in turn, `full` takes all. `auto` stops by itself, which
is only sound in a uniformly random order: whatever was seen, every image still to come must be as likely as any other
to be next. An order that interleaves the classes would have balanced beginnings, but those measure another mean (of
classes, not of images), and what is left is then known to be of the larger classes: the test's bound on false passes
would be lost. So it is a plain random permutation, cut at `max_total`. That no image comes twice makes a test meant for
independent draws only more careful: such sums spread less (Hoeffding 1963, section 6).
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from app.toolkit.detections import Detections
from app.toolkit.images import Float32Array
from app.toolkit.verification.data import Sample, VerificationData
from app.toolkit.verification.errors import InvalidVerification
from app.toolkit.verification.request import Sampling

Policy = Literal["random", "stratified", "all", "sequential"]


@dataclass(frozen=True)
class Chosen:
    """The sample in the order to run it. `sampled_classes` counts the classes that it shows by its labels.

    `min_classes` is the request's, capped at the classes that the data has. `notes` say what was not as asked for.
    """

    samples: tuple[Sample, ...]
    policy: Policy
    sampled_classes: int
    min_classes: int
    notes: tuple[str, ...] = ()


def choose(data: VerificationData, sampling: Sampling) -> Chosen:
    """Draw the sample, the same for the same seed. Raises InvalidVerification for a sampling that cannot be."""
    _check(sampling)
    order = random.Random(sampling.seed)  # noqa: S311 - no secret
    shuffled = order.sample(data.samples, len(data.samples))
    if sampling.mode == "full":
        return _chosen(data, sampling, data.samples, "all")
    if sampling.mode == "auto":
        return _chosen(data, sampling, shuffled[: sampling.max_total], "sequential")
    if sampling.mode == "smoke":
        notes = _fewer(len(shuffled), sampling.sample_count)
        return _chosen(data, sampling, shuffled[: sampling.sample_count], "random", notes)
    if not data.classes:
        note = "not stratified: no image has a known class, so they were drawn at random"
        return _chosen(data, sampling, shuffled[: sampling.max_total], "random", (note,))
    samples = _by_class(shuffled, sampling.per_class_k, sampling.max_total)
    return _chosen(data, sampling, samples, "stratified", _coverage_notes(data, sampling, samples))


def _check(sampling: Sampling) -> None:
    for name in ("sample_count", "per_class_k", "max_total"):
        if getattr(sampling, name) < 1:
            raise InvalidVerification(
                f"{name} leaves no image to compare", expected="1 or more", received=str(getattr(sampling, name))
            )
    edges = sampling.hardness_bins
    if not edges:
        return
    ascending = all(low < high for low, high in itertools.pairwise(edges))
    if len(edges) < 2 or not ascending or not 0 <= edges[0] <= edges[-1] <= 1:
        raise InvalidVerification(
            "hardness_bins are no edges of bins",
            expected="at least two ascending numbers in 0..1, as [0, 0.3, 0.6, 0.85, 1]",
            received=str(list(edges)),
        )
    if sampling.mode == "auto":
        raise InvalidVerification(
            "hard images would bias the random order that auto's test stands on",
            expected="hardness_bins with smoke or coverage",
            received="hardness_bins with auto",
        )


def _chosen(
    data: VerificationData, sampling: Sampling, samples: Sequence[Sample], policy: Policy, notes: tuple[str, ...] = ()
) -> Chosen:
    least = min(sampling.min_classes, len(data.classes))
    return Chosen(tuple(samples), policy, len(_classes_of(samples)), least, notes)


def _classes_of(samples: Sequence[Sample]) -> frozenset[int]:
    return frozenset[int]().union(*(sample.classes for sample in samples))


def _fewer(have: int, asked: int) -> tuple[str, ...]:
    return (f"the data has {have} images, fewer than the {asked} asked for",) if have < asked else ()


def _by_class(shuffled: Sequence[Sample], per_class: int, most: int) -> list[Sample]:
    """Rounds over the classes, the rarest first: in round k each takes an image if fewer than k show it.

    An image with several classes counts for each of them. Every image of the first round brings a class that was not
    there, so a sample cut at `most` shows at least as many classes, or all.
    """
    waiting: dict[int, list[Sample]] = {}
    for sample in reversed(shuffled):  # so that pop() takes them in the shuffled order
        for index in sample.classes:
            waiting.setdefault(index, []).append(sample)
    rarest_first = sorted(waiting, key=lambda index: (len(waiting[index]), index))
    taken: dict[Sample, None] = {}
    shown: Counter[int] = Counter()
    for wanted, index in itertools.product(range(1, per_class + 1), rarest_first):
        while shown[index] < wanted and waiting[index] and len(taken) < most:
            sample = waiting[index].pop()
            if sample not in taken:
                taken[sample] = None
                shown.update(sample.classes)
    return list(taken)


def _coverage_notes(data: VerificationData, sampling: Sampling, samples: Sequence[Sample]) -> tuple[str, ...]:
    notes = []
    available, covered = len(data.classes), len(_classes_of(samples))
    least = min(sampling.min_classes, available)
    if least < sampling.min_classes:
        notes.append(f"min_classes {sampling.min_classes} capped at {least}: the data has {least} classes")
    if covered < least:
        notes.append(f"{covered} of {least} classes are covered: max_total {sampling.max_total} cut the sample")
    unknown = sum(not sample.classes for sample in data.samples)
    if unknown:
        notes.append(f"{unknown} images of no known class were not drawn")
    return tuple(notes)


def hardness_of_classification(probabilities: Float32Array) -> float:
    """1 - (p1 - p2) in 0..1 of the two highest of [classes] probabilities: 1 where they are equal.

    NaN for probabilities that are NaN.
    """
    best = np.sort(probabilities.astype(np.float64), axis=None)[::-1]
    second = best[1] if best.size > 1 else 0.0
    return float(np.clip(1 - (best[0] - second), 0, 1))


def hardness_of_detection(detections: Detections, conf: float) -> float:
    """1 - |s - conf| / max(conf, 1 - conf) in 0..1 of the score s nearest to the confidence that lets a box through.

    `detections` are of a lower confidence than `conf`. 0 where there is none: nothing is near to being seen.
    """
    if not len(detections):
        return 0.0
    nearest = np.abs(detections.scores.astype(np.float64) - conf).min()
    return float(1 - nearest / max(conf, 1 - conf))


def add_hard(chosen: Chosen, rest_hardness: Mapping[Sample, float], sampling: Sampling) -> Chosen:
    """The sample with up to `hard_per_bin` more images of each bin, the hardest first, up to `max_total` in all.

    `rest_hardness` are the hardnesses in 0..1 of images not chosen yet. A bin has its lower edge and not its upper one,
    but for the last, which has both; the hardest bin is filled first. A NaN is in no bin.
    """
    taken = frozenset(chosen.samples)
    rest = {sample: hardness for sample, hardness in rest_hardness.items() if sample not in taken}
    edges = sampling.hardness_bins
    added: list[Sample] = []
    counts: list[str] = []
    for low, high in reversed(list(itertools.pairwise(edges))):
        room = max(sampling.max_total - len(chosen.samples) - len(added), 0)
        hardest = _in_bin(rest, low, high, closed=high == edges[-1])[: min(sampling.hard_per_bin, room)]
        added.extend(hardest)
        counts.append(f"{len(hardest)} in {low:g}..{high:g}")
    samples = (*chosen.samples, *added)
    note = f"hardness bins added {len(added)} images: {', '.join(reversed(counts))}"
    return replace(chosen, samples=samples, sampled_classes=len(_classes_of(samples)), notes=(*chosen.notes, note))


def _in_bin(hardness: Mapping[Sample, float], low: float, high: float, *, closed: bool) -> list[Sample]:
    """The bin's images, hardest first, by name where they are equal."""
    found = [one for one, value in hardness.items() if low <= value < high or (closed and value == high)]
    return sorted(found, key=lambda sample: (-hardness[sample], sample.name))
