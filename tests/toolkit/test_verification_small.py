"""Whole comparisons of models that are a few numbers, on small pictures of noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

from app.toolkit.errors import NotAModel, UnreadableImage
from app.toolkit.verification.facts import ReportFacts
from app.toolkit.verification.pipeline import verify
from app.toolkit.verification.request import Sampling, VerifyRequest
from tests.toolkit.small_graphs import mean_reader

Compare = Callable[..., ReportFacts]

WEIGHTS = np.random.default_rng(0).normal(size=(3, 60)) * 5
TOLD = {"task": "classify", "head": "logits", "names": "['a', 'b', 'c']", "stride": "1", "imgsz": "64"}


def draw(folder: Path, count: int) -> Path:
    """So many pictures of 40 x 40 px."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(count)
    for index in range(count):
        cv2.imwrite(str(folder / f"{index:03d}.png"), noise.integers(0, 255, (40, 40, 3), dtype=np.uint8))
    return folder


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    """`compare(reference, candidate, sampling, images=..., ...)` of two graphs, on twelve pictures unless told."""

    def two(reference: ModelProto, candidate: ModelProto, sampling: Sampling, **changes: Any) -> ReportFacts:
        paths = tmp_path / "reference.onnx", tmp_path / "candidate.onnx"
        for graph, path in zip((reference, candidate), paths, strict=True):
            onnx.save(graph, path)
        images = changes.pop("images", None) or draw(tmp_path / "images", 12)
        return verify(VerifyRequest(*paths, images, tmp_path, sampling=sampling, threads=1, **changes))

    return two


@pytest.mark.parametrize("mode", ["smoke", "coverage", "full", "auto"])
def test_other_preprocessing_of_a_model_of_mere_tensors_fails_in_every_mode(mode: Any, compare: Compare) -> None:
    graph = mean_reader(WEIGHTS, shape=(1, 10, 6))
    facts = compare(graph, graph, Sampling(mode), preprocessing=({}, {"channel_order": "BGR"}))
    assert (facts.kernel.verdict, facts.pipeline.verdict) == ("passed", "failed")


@pytest.mark.parametrize("silent", ["reference", "candidate"])
def test_a_file_that_says_nothing_may_name_its_output_otherwise(silent: str, compare: Compare) -> None:
    told = mean_reader(WEIGHTS[:, :3], output="logits", entries=TOLD)
    other = mean_reader(WEIGHTS[:, :3], output="scores")
    pair = (other, told) if silent == "reference" else (told, other)
    facts = compare(*pair, Sampling("smoke", sample_count=4, hardness_bins=(0, 1)))
    assert facts.verdict == "passed"


@pytest.mark.parametrize(
    ("dtype", "axes"), [(TensorProto.UINT8, (1, 3, 64, 64)), (TensorProto.FLOAT, ("batch", 64, 64, 3))]
)
def test_an_input_that_images_are_not_made_into_is_refused(dtype: int, axes: Any, compare: Compare) -> None:
    graph = mean_reader(np.ones((axes[1], 3)), dtype=dtype, axes=axes)
    with pytest.raises(NotAModel, match="in another form"):
        compare(graph, graph, Sampling("smoke"))


def test_the_report_tells_the_shape_that_was_compared_and_the_classes(compare: Compare, tmp_path: Path) -> None:
    for name in "abc":
        draw(tmp_path / "folders" / name, 400 if name == "a" else 1)
    graph = mean_reader(WEIGHTS[:, :3], axes=("batch", 3, 64, "width"), entries=TOLD)
    facts = compare(graph, mean_reader(-WEIGHTS[:, :3], entries=TOLD), Sampling("auto"), images=tmp_path / "folders")
    assert (facts.reference.input_shape, facts.reference.input_axes) == ((1, 3, 64, 64), ("batch", 3, 64, "width"))
    named = {one["name"].split("/")[0] for one in facts.kernel_parity["inputs"]}
    assert facts.decided_after == 32 and facts.sampled_classes == len(named) < 3


def test_unreadable_images_that_only_their_hardness_was_asked_of_do_not_count(compare: Compare, tmp_path: Path) -> None:
    images, graph = draw(tmp_path / "many", 60), mean_reader(WEIGHTS[:, :3], entries=TOLD)
    sampling = Sampling("smoke", sample_count=4, hardness_bins=(0, 1), hard_per_bin=2)
    taken = {one["name"] for one in compare(graph, graph, sampling, images=images).kernel_parity["inputs"]}
    for path in [path for path in sorted(images.iterdir()) if path.name not in taken][:5]:
        path.write_bytes(b"broken")
    facts = compare(graph, graph, sampling, images=images)
    assert facts.sampled_images == 6 and len(facts.unreadable) == 5


def test_auto_asks_at_its_end_how_many_were_unreadable(compare: Compare, tmp_path: Path) -> None:
    images, graph = draw(tmp_path / "many", 100), mean_reader(WEIGHTS[:, :3], entries=TOLD)
    first = [one["name"] for one in compare(graph, graph, Sampling("auto"), images=images).kernel_parity["inputs"]]
    for name in first[:5]:
        (images / name).write_bytes(b"broken")  # 5 of the first 32, and of all 100
    assert compare(graph, graph, Sampling("auto"), images=images).sampled_images == 95
    (images / first[-1]).write_bytes(b"broken")
    with pytest.raises(UnreadableImage, match="6 of 100"):
        compare(graph, graph, Sampling("auto"), images=images)
