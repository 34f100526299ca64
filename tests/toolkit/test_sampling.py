"""Which images are compared: classes covered in turn, random orders that are random, hard images by bin."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.toolkit.detections import Detections
from app.toolkit.verification.data import Sample, VerificationData, read_data
from app.toolkit.verification.errors import InvalidVerification
from app.toolkit.verification.request import Sampling
from app.toolkit.verification.sampling import (
    Chosen,
    add_hard,
    choose,
    hardness_of_classification,
    hardness_of_detection,
)
from tests.toolkit.scenes import make_scenes

S4_BINS = (0.0, 0.3, 0.6, 0.85, 1.0)


def data_of(classes: list[set[int]]) -> VerificationData:
    samples = [Sample(Path(f"{n:04d}.jpg"), f"{n:04d}.jpg", frozenset(shown)) for n, shown in enumerate(classes)]
    return VerificationData(Path(), tuple(samples), "folders")


def random_data(seed: int) -> VerificationData:
    """Up to 200 images of up to 30 classes, some common and some rare, several on an image, a tenth without any."""
    rng = random.Random(seed)
    weights = [1 / (1 + n) for n in range(rng.randint(1, 30))]
    shown = [set(rng.choices(range(len(weights)), weights, k=rng.randint(1, 4))) for _ in range(rng.randint(1, 200))]
    return data_of([set() if rng.random() < 0.1 else classes for classes in shown])


def shown_by(chosen: Chosen) -> Counter[int]:
    return Counter(index for sample in chosen.samples for index in sample.classes)


@pytest.mark.parametrize("seed", range(40))
def test_coverage_shows_every_class_as_often_as_asked_or_as_the_data_can(seed: int) -> None:
    data = random_data(seed)
    has = Counter(index for sample in data.samples for index in sample.classes)
    for per_class in (1, 3):
        chosen = choose(data, Sampling(per_class_k=per_class, seed=seed))
        shown = shown_by(chosen)
        assert all(shown[index] >= min(per_class, count) for index, count in has.items())
        assert len(set(chosen.samples)) == len(chosen.samples) <= per_class * len(has)
        assert chosen.sampled_classes == chosen.min_classes == len(has)


@pytest.mark.parametrize("seed", range(40))
def test_a_coverage_cut_short_shows_as_many_classes_as_it_has_images(seed: int) -> None:
    data = random_data(seed)
    most = 1 + seed % 7
    chosen = choose(data, Sampling(per_class_k=2, max_total=most, seed=seed))
    assert len(chosen.samples) <= most
    assert chosen.sampled_classes == len(shown_by(chosen)) >= min(most, len(data.classes))


def test_coverage_goes_round_by_round() -> None:
    data = data_of([{n % 5} for n in range(50)])
    chosen = choose(data, Sampling(per_class_k=3))
    rounds = [chosen.samples[start : start + 5] for start in (0, 5, 10)]
    assert len(chosen.samples) == 15
    assert all(set().union(*(one.classes for one in each)) == set(range(5)) for each in rounds)


def test_coverage_of_real_scenes_takes_all_classes_with_fewer_images(tmp_path: Path) -> None:
    folder = make_scenes(tmp_path, images=24, seed=8_002)
    data = read_data(folder / "images", folder / "instances.json", {}, task="raw")
    chosen = choose(data, Sampling())
    assert chosen.policy == "stratified" and chosen.sampled_classes == len(data.classes) >= 11
    assert len(chosen.samples) < len(data.classes)
    crops = read_data(folder / "crops", None, {n: str(n) for n in range(12)}, task="classes")
    assert Counter(one.label for one in choose(crops, Sampling(per_class_k=2)).samples) == dict.fromkeys(range(12), 2)


def test_what_coverage_could_not_do_is_said() -> None:
    data = data_of([{0}, {1}, {2}, set()])
    chosen = choose(data, Sampling(max_total=2))
    assert chosen.min_classes == 3 and chosen.notes == (
        "min_classes 1000 capped at 3: the data has 3 classes",
        "2 of 3 classes are covered: max_total 2 cut the sample",
        "1 images of no known class were not drawn",
    )
    assert choose(data_of([{0}, {1}]), Sampling(min_classes=2)).notes == ()


def test_coverage_without_labels_draws_at_random_and_says_so() -> None:
    chosen = choose(data_of([set()] * 30), Sampling(max_total=20))
    assert chosen.policy == "random" and len(chosen.samples) == 20
    assert chosen.sampled_classes == chosen.min_classes == 0 and "not stratified" in chosen.notes[0]


def test_smoke_draws_a_few_at_random() -> None:
    data = random_data(1)
    chosen = choose(data, Sampling(mode="smoke", sample_count=8))
    assert chosen.policy == "random" and len(set(chosen.samples)) == 8 and chosen.notes == ()
    every = choose(data_of([{0}, {1}]), Sampling(mode="smoke"))
    assert len(every.samples) == 2 and every.notes == ("the data has 2 images, fewer than the 32 asked for",)


def test_full_takes_all_in_their_order() -> None:
    data = random_data(2)
    chosen = choose(data, Sampling(mode="full", max_total=1))
    assert chosen.samples == data.samples and chosen.policy == "all" and chosen.notes == ()


@pytest.mark.parametrize("mode", ["smoke", "coverage", "auto"])
def test_the_same_seed_draws_the_same_images(mode: str) -> None:
    data, sampling = random_data(3), Sampling(mode=mode, sample_count=20, seed=5)  # type: ignore[arg-type]
    assert choose(data, sampling) == choose(data, sampling)
    assert choose(data, sampling).samples != choose(data, replace(sampling, seed=6)).samples


def test_autos_order_is_any_of_all_orders_with_equal_chance() -> None:
    data = data_of([{0}, {0}, {0}, {1}])
    seen = Counter(choose(data, Sampling(mode="auto", seed=seed)).samples for seed in range(4_800))
    assert len(seen) == 24  # 200 of each are expected, their deviation is 13.8
    assert all(abs(count - 200) < 60 for count in seen.values())
    chosen = choose(random_data(4), Sampling(mode="auto", max_total=7))
    assert chosen.policy == "sequential" and len(set(chosen.samples)) == 7


@pytest.mark.parametrize(
    "wrong",
    [
        Sampling(sample_count=0),
        Sampling(per_class_k=0),
        Sampling(max_total=0),
        Sampling(hardness_bins=(0.5,)),
        Sampling(hardness_bins=(0.5, 0.2)),
        Sampling(hardness_bins=(0.5, 0.5)),
        Sampling(hardness_bins=(-0.1, 1)),
        Sampling(hardness_bins=(0, 1.1)),
        Sampling(hardness_bins=(0, float("nan"), 1)),
        Sampling(mode="auto", hardness_bins=S4_BINS),
    ],
    ids=str,
)
def test_a_sampling_that_cannot_be_is_refused(wrong: Sampling) -> None:
    with pytest.raises(InvalidVerification) as raised:
        choose(data_of([{0}]), wrong)
    assert raised.value.expected and raised.value.received


@pytest.mark.parametrize(
    ("probabilities", "hardness"),
    [([1.0, 0.0, 0.0], 0.0), ([0.5, 0.5], 1.0), ([0.1, 0.2, 0.7], 0.5), ([0.75], 0.25)],
)
def test_a_classification_is_hard_where_two_classes_are_as_likely(probabilities: list[float], hardness: float) -> None:
    assert hardness_of_classification(np.array(probabilities, np.float32)) == pytest.approx(hardness)


@pytest.mark.parametrize(
    ("scores", "hardness"),
    [([], 0.0), ([0.3], 1.0), ([0.95, 0.3], 1.0), ([1.0], 0.0), ([0.65, 0.05], 1 - 0.25 / 0.7)],
)
def test_a_detection_is_hard_where_a_score_is_near_the_confidence(scores: list[float], hardness: float) -> None:
    count = len(scores)
    found = Detections(np.zeros((count, 4), np.float32), np.array(scores, np.float32), np.zeros(count, np.int64))
    assert hardness_of_detection(found, 0.3) == pytest.approx(hardness)


def test_hard_images_join_by_bin_the_hardest_first() -> None:
    data = data_of([{n} for n in range(8)])
    chosen = Chosen(data.samples[:1], "stratified", 1, 1, ("before",))
    values = (0.99, 0.0, 0.1, 0.3, 0.59, float("nan"), 0.9, 1.0)  # the first is chosen already
    hardness = dict(zip(data.samples, values, strict=True))
    joined = add_hard(chosen, hardness, Sampling(hardness_bins=S4_BINS, hard_per_bin=1))
    assert [one.name for one in joined.samples] == ["0000.jpg", "0007.jpg", "0004.jpg", "0002.jpg"]
    assert joined.sampled_classes == 4 and joined.policy == "stratified"
    note = "hardness bins added 3 images: 1 in 0..0.3, 1 in 0.3..0.6, 0 in 0.6..0.85, 1 in 0.85..1"
    assert joined.notes == ("before", note)


def test_an_edge_belongs_to_the_bin_above_it_and_the_last_bin_is_closed() -> None:
    data = data_of([{0}] * 4)
    hardness = dict(zip(data.samples, (0.2, 0.5, 0.8, 0.1), strict=True))
    sampling = Sampling(hardness_bins=(0.2, 0.5, 0.8), hard_per_bin=5)
    added = add_hard(Chosen((), "random", 0, 0), hardness, sampling)
    assert [one.name for one in added.samples] == ["0002.jpg", "0001.jpg", "0000.jpg"]
    assert added.notes == ("hardness bins added 3 images: 1 in 0.2..0.5, 2 in 0.5..0.8",)


def test_hard_images_keep_to_max_total() -> None:
    data = data_of([{0}] * 9)
    hardness = dict.fromkeys(data.samples[2:], 0.9)
    chosen = Chosen(data.samples[:2], "random", 1, 1)
    for most, count in ((1, 2), (2, 2), (4, 4), (50, 9)):
        joined = add_hard(chosen, hardness, Sampling(hardness_bins=S4_BINS, max_total=most))
        assert len(joined.samples) == count and joined.samples[:2] == chosen.samples
