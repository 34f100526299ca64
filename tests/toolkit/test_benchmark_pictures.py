"""A benchmark's pictures, looked at as pixels; a person looked at them too."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from app.toolkit.benchmark.pictures import COLOURS, benchmark_pictures, pareto_front
from app.toolkit.benchmark.request import WAYS
from app.toolkit.benchmark.result import Accuracy, Row
from tests.toolkit.benchmark_results import benchmark_of, lacking, s1_table, timed, unstable

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def _pixels(png: bytes) -> Pixels:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def _of_way(pixels: Pixels, way: str) -> Pixels:
    """How many pixels of a way's colour each line has."""
    colour = np.array(ImageColor.getrgb(COLOURS[WAYS.index(way)]))
    counts: Pixels = (pixels == colour).all(axis=2).sum(axis=1)
    return counts


def test_bars_are_as_long_as_the_latencies() -> None:
    result = benchmark_of(timed("torch_fp32", 1, 80.0), timed("tensorrt_fp16", 1, 20.0))
    pixels = _pixels(benchmark_pictures(result)["latency"])
    longest = [_of_way(pixels, way).max() for way in ("torch_fp32", "tensorrt_fp16")]
    assert longest[0] / longest[1] == pytest.approx(4, rel=0.03)


def test_what_is_no_headline_is_hollow() -> None:
    filled = benchmark_pictures(benchmark_of(timed("torch_fp32", 1, 80.0), timed("torch_fp16", 1, 80.0)))
    hollow = benchmark_pictures(benchmark_of(timed("torch_fp32", 1, 80.0), unstable("torch_fp16", 1, 80.0)))
    areas = [_of_way(_pixels(pictures["latency"]), "torch_fp16").sum() for pictures in (filled, hollow)]
    assert areas[1] < areas[0] / 5


def test_only_what_there_are_figures_for_is_drawn() -> None:
    assert benchmark_pictures(benchmark_of(lacking("tensorrt_fp16"))) == {}
    assert set(benchmark_pictures(benchmark_of(timed("torch_fp32", 1, 5.0)))) == {"latency"}
    top1 = {"torch_fp32": Accuracy(10, top1=0.9)}
    assert set(benchmark_pictures(benchmark_of(timed("torch_fp32", 1, 5.0), accuracy=top1))) == {"latency", "accuracy"}
    assert set(benchmark_pictures(s1_table())) == {"latency", "throughput", "accuracy"}


def test_where_nothing_ran_at_the_first_batch_size_the_next_is_drawn() -> None:
    rows = [Row("onnxruntime", 1, why_not="the file's batch is 4"), timed("onnxruntime", 4, 20.0)]
    drawn = benchmark_pictures(benchmark_of(*rows, accuracy={"onnxruntime": Accuracy(10, top1=0.9)}))
    assert set(drawn) == {"latency", "accuracy"}
    assert _of_way(_pixels(drawn["latency"]), "onnxruntime").any()


def test_the_same_result_has_the_same_bytes() -> None:
    assert benchmark_pictures(s1_table()) == benchmark_pictures(s1_table())


@pytest.mark.parametrize("name", ["latency", "throughput", "accuracy"])
def test_nothing_runs_off_the_edge_with_every_way_at_once(name: str) -> None:
    rows = [unstable(way, size, 5.0 * size) for way in WAYS for size in (1, 2)]
    accuracy: dict[str, Accuracy] = {way: Accuracy(10, 0.6, 0.5) for way in WAYS}
    pixels = _pixels(benchmark_pictures(benchmark_of(*rows, accuracy=accuracy))[name])
    assert (pixels[[0, -1]] == 255).all() and (pixels[:, [0, -1]] == 255).all()


def test_the_front_is_of_those_that_none_beats_in_both() -> None:
    points = [(10.0, 0.5), (20.0, 0.7), (15.0, 0.4), (20.0, 0.6), (30.0, 0.7), (40.0, 0.8)]
    assert pareto_front(points) == [(10.0, 0.5), (20.0, 0.7), (40.0, 0.8)]
    assert pareto_front([]) == []
