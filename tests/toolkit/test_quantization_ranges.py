"""Calibration: the ranges are ONNX Runtime's, memory does not grow with the images, and what is kept can be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper
from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

from app.toolkit.errors import FeedMismatch, NoImages, NotFinite
from app.toolkit.images import Float32Array
from app.toolkit.quantization.graph import prepared
from app.toolkit.quantization.operators import QUANTIZED_OPERATORS
from app.toolkit.quantization.ranges import CHUNK_IMAGES, Method, Ranges, cache_key, cached_ranges, collect_ranges
from app.toolkit.quantization.static import quantize_static
from tests.toolkit.small_graphs import noise, small_network

METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile")


@pytest.fixture
def small() -> ModelProto:
    return prepared(small_network())


@pytest.mark.parametrize(
    ("method", "theirs", "options"),
    [
        ("minmax", CalibrationMethod.MinMax, {}),
        ("entropy", CalibrationMethod.Entropy, {}),
        ("percentile", CalibrationMethod.Percentile, {"symmetric": False}),
    ],
)
def test_the_ranges_are_those_of_onnx_runtime_s_calibrators(
    small: ModelProto, tmp_path: Path, method: Method, theirs: CalibrationMethod, options: dict[str, Any]
) -> None:
    onnx.save(small, tmp_path / "model.onnx")
    operators = sorted(set().union(*QUANTIZED_OPERATORS.values()))
    augmented = str(tmp_path / "augmented.onnx")
    calibrator = create_calibrator(tmp_path / "model.onnx", operators, augmented, theirs, extra_options=options)
    batches = noise(2 * CHUNK_IMAGES)
    for start in (0, CHUNK_IMAGES):
        feeds = iter([{"x": batch} for batch in batches[start : start + CHUNK_IMAGES]])
        calibrator.collect_data(_Reader(feeds))
    wanted = {name: data.range_value for name, data in calibrator.compute_data().items()}
    found = collect_ranges(small, batches, method=method, threads=1)
    assert found.tensors.keys() == wanted.keys() >= {"x", "c1", "r1", "c2", "s2", "m2", "g", "f", "l"}
    for name, pair in wanted.items():
        assert found.tensors[name] == tuple(float(np.asarray(value).item()) for value in pair)


class _Reader:
    def __init__(self, feeds: Iterator[dict[str, Float32Array]]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, Float32Array] | None:
        return next(self._feeds, None)


@pytest.mark.parametrize("method", METHODS)
def test_images_are_taken_a_few_at_a_time(small: ModelProto, method: Method) -> None:
    taken, heard = 0, []

    def batches() -> Iterator[Float32Array]:
        nonlocal taken
        for batch in noise(10):
            taken += 1
            yield batch

    collect_ranges(small, batches(), method=method, progress=lambda done: heard.append((taken, done)))
    assert heard == [(4, 4), (8, 8), (10, 10)]


def test_a_free_batch_axis_gives_the_same_ranges_however_the_images_come() -> None:
    model = prepared(small_network(batch="n"))
    images = noise(7)
    one_by_one = collect_ranges(model, images, method="entropy")
    assert collect_ranges(model, [np.concatenate(images[:5]), *images[5:]], method="entropy") == one_by_one


def test_a_fixed_batch_is_fed_whole() -> None:
    model = prepared(small_network(batch=2))
    images = noise(4)
    pairs = [np.concatenate(images[:2]), np.concatenate(images[2:])]
    found = collect_ranges(model, pairs, method="minmax")
    assert found.tensors["x"] == (float(np.min(images)), float(np.max(images)))


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_first_images_that_are_nearly_black_do_not_make_millions_of_bins(small: ModelProto, method: Method) -> None:
    dark, bright = noise(CHUNK_IMAGES, scale=1e-7), noise(8)
    low, high = collect_ranges(small, [*dark, *bright], method=method).tensors["x"]
    alone = collect_ranges(small, bright, method=method).tensors["x"]
    assert (low, high) == pytest.approx(alone, rel=0.1)


def test_what_cannot_calibrate_is_refused(small: ModelProto) -> None:
    with pytest.raises(NoImages):
        collect_ranges(small, [], method="minmax")
    with pytest.raises(FeedMismatch, match="shape"):
        collect_ranges(small, [np.zeros((1, 3, 9, 8), np.float32)], method="minmax")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("index", [0, CHUNK_IMAGES])
def test_an_activation_that_overflows_is_refused(small: ModelProto, method: Method, index: int) -> None:
    batches = noise(6)
    batches[index] = np.full_like(batches[0], 1e36)  # the convolutions make too much of it
    with pytest.raises(NotFinite):
        collect_ranges(small, batches, method=method)


# -- kept between jobs --------------------------------------------------------------------------------------------
def _key(model: ModelProto, **changed: Any) -> str:
    return cache_key(model, **{"images_digest": "a", "preprocessing": "b", "method": "minmax", **changed})


def test_the_key_follows_the_graph_the_images_and_the_method_and_not_the_metadata(small: ModelProto) -> None:
    other = prepared(small_network(silent=True))
    keys = [_key(small), _key(other), _key(small, images_digest="c"), _key(small, preprocessing="c")]
    assert len({*keys, _key(small, method="entropy"), _key(prepared(small_network(opset=16)))}) == 6
    helper.set_model_props(small, {"date": "another"})
    assert _key(small) == keys[0]


def test_kept_ranges_give_the_same_bytes(small: ModelProto, tmp_path: Path) -> None:
    made = []
    folder = tmp_path / "not" / "there"

    def make() -> Ranges:
        made.append(1)
        return collect_ranges(small, noise(5), method="entropy", threads=1)

    first, hit = cached_ranges(folder, "key", make)
    again, hit_again = cached_ranges(folder, "key", make)
    assert (hit, hit_again, len(made)) == (False, True, 1)
    graphs = [quantize_static(small, one, target="tensorrt").SerializeToString() for one in (first, again)]
    assert graphs[0] == graphs[1]
    assert [path.name for path in folder.iterdir()] == ["key.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 0}', b'{"format": 1, "tensors": [1]}', b"\xff"])
def test_a_broken_file_is_made_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.json"
    path.write_bytes(content)
    ranges = Ranges("minmax", {"x": (-1.0, 2.0)})
    assert cached_ranges(tmp_path, "key", lambda: ranges) == (ranges, False)
    assert Ranges.from_json(path.read_text()) == ranges


def test_without_a_folder_nothing_is_kept() -> None:
    ranges = Ranges("minmax", {"x": (0.0, 1.0)})
    assert cached_ranges(None, "key", lambda: ranges) == (ranges, False)
