"""Calibration: between which values each activation lies, seen on images.

The ranges say nothing of a target: a symmetric scale comes from the larger side, an asymmetric one from both, so one
calibration serves every target and every list of excluded nodes.

The calibrators are ONNX Runtime's (onnxruntime.quantization.calibrate). Those of `entropy` and `percentile` keep every
activation of the images that they are fed at once, 0.25 GiB for YOLOv8n at 640 px: they get a few images at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto
from onnxruntime.quantization.calibrate import (
    EntropyCalibrater,
    HistogramCollector,
    MinMaxCalibrater,
    PercentileCalibrater,
)

from app.toolkit.errors import NoImages, NotFinite, RuntimeUnavailable
from app.toolkit.images import Float32Array
from app.toolkit.onnx_file import input_specs, opset_of, write_whole
from app.toolkit.quantization.operators import QUANTIZED_OPERATORS
from app.toolkit.runtimes.base import TensorSpec, check_feeds

Method = Literal["minmax", "entropy", "percentile"]

CHUNK_IMAGES = 4
FORMAT = 1  # of a stored calibration; a change of what is computed or stored raises it

# Bins at first, as ONNX Runtime sets them; a histogram grows with later images up to MAX_GROWTH times as many.
BINS = {"entropy": 128, "percentile": 2048}
MAX_GROWTH = 16
PERCENTILE = 99.999

HUGE = 1e37  # beyond this a histogram's own arithmetic overflows

Histogram = tuple[Any, Any, Any, Any, Any]


@dataclass(frozen=True)
class Ranges:
    """By tensor name, the (low, high) between which an activation's values are to be kept, in the tensor's own unit."""

    method: Method
    tensors: Mapping[str, tuple[float, float]]

    def as_json(self) -> str:
        """JSON that `from_json` reads back to the same bits."""
        return json.dumps({"format": FORMAT, "method": self.method, "tensors": self.tensors}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Ranges:
        """Raises ValueError for what `as_json` does not write."""
        content = json.loads(text)
        try:
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, expected {FORMAT}")
            tensors = {str(name): (float(low), float(high)) for name, (low, high) in content["tensors"].items()}
            return cls(content["method"], tensors)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"no stored calibration: {error}") from error


def collect_ranges(
    model: ModelProto,
    batches: Iterable[Float32Array],
    *,
    method: Method,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Ranges:
    """Run a prepared graph on batches [N, C, H, W] float32 and range its activations; `progress` hears the images done.

    The batches are taken one by one; a graph with a free batch axis gets their images one by one, so that memory does
    not grow with them. `percentile` cuts a hundred-thousandth of the values, half of it on each side.
    Raises NoImages without a batch, FeedMismatch, NotFinite.
    """
    spec, done = input_specs(model)[0], 0
    with tempfile.TemporaryDirectory(prefix="calibration.") as folder:
        calibrator = _calibrator(model, method, Path(folder), threads)
        for feeds in _chunks(batches, spec):
            done += sum(len(feed[spec.name]) for feed in feeds)
            _quietly(calibrator.collect_data, _Feeds(feeds))
            if progress is not None:
                progress(done)
        if not done:
            raise NoImages("calibration needs images", expected="at least one batch", received="none")
        found = _quietly(calibrator.compute_data)
    ranges = {name: _as_floats(data.range_value) for name, data in sorted(found.items())}
    for name, (low, high) in ranges.items():
        _check_finite(name, low, high)
    return Ranges(method, ranges)


def _as_floats(pair: tuple[Any, Any]) -> tuple[float, float]:
    low, high = (float(np.asarray(value).item()) for value in pair)
    return low, high


class _Feeds:
    """What the calibrators read from."""

    def __init__(self, feeds: list[dict[str, Float32Array]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Float32Array] | None:
        return next(self._feeds, None)


def _chunks(batches: Iterable[Float32Array], spec: TensorSpec) -> Iterator[list[dict[str, Float32Array]]]:
    """Feeds for one call of a calibrator: of CHUNK_IMAGES images, or one batch where that is more."""
    chunk: list[dict[str, Float32Array]] = []
    for batch in batches:
        check_feeds([spec], {spec.name: batch})
        pieces = [batch[i : i + 1] for i in range(len(batch))] if isinstance(spec.shape[0], str) else [batch]
        for piece in pieces:
            chunk.append({spec.name: piece})
            if len(chunk) * len(piece) >= CHUNK_IMAGES:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def _calibrator(model: ModelProto, method: Method, folder: Path, threads: int | None) -> Any:
    """An open calibrator of ONNX Runtime; it reads the graph from a file and writes one with more outputs beside it."""
    source, augmented = folder / "model.onnx", folder / "augmented.onnx"
    onnx.save(model, source)
    operators = sorted(set().union(*QUANTIZED_OPERATORS.values()))
    calibrator: Any
    if method == "minmax":
        calibrator = MinMaxCalibrater(source, operators, str(augmented))
    else:
        kind = EntropyCalibrater if method == "entropy" else PercentileCalibrater
        calibrator = kind(source, operators, str(augmented))
        calibrator.collector = _Collector(method, False, BINS[method], BINS["entropy"], PERCENTILE, "same")
    calibrator.augment_graph()
    calibrator.infer_session = _session(augmented, threads)
    return calibrator


def _session(path: Path, threads: int | None) -> ort.InferenceSession:
    """As the calibrators open it themselves, with a number of threads."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base but Exception
        raise RuntimeUnavailable(
            "ONNX Runtime refused the graph to calibrate", received=str(error).splitlines()[0]
        ) from error


class _Collector(HistogramCollector):  # type: ignore[misc]  # its library has no types
    """ONNX Runtime's histograms, of finite values and a bounded number of bins.

    Theirs pass over NaN, and keep the first images' bin width for ever: a tensor that is nearly silent on the first
    images (a black picture) and awake later would get millions of bins, over which the search for the entropy's
    threshold never ends.
    """

    def collect(self, name_to_arr: Mapping[str, Sequence[Float32Array]]) -> None:
        for name, arrays in name_to_arr.items():
            for array in arrays:
                if array.size:
                    _check_finite(name, array.min(), array.max())
        super().collect(name_to_arr)

    def merge_histogram(self, old: Histogram, values: Any, low: Any, high: Any, threshold: Any) -> Any:
        most_bins = MAX_GROWTH * self.num_bins
        while 0 < old[4] < threshold and threshold > float(old[4]) * most_bins / old[0].size:
            old = _widened(old)
        return super().merge_histogram(old, values, low, high, threshold)


def _check_finite(name: str, low: float, high: float) -> None:
    if not -HUGE < low <= high < HUGE:  # NaN is neither
        raise NotFinite(
            f"the activation {name} is not finite on these images",
            received=f"{low} to {high}",
            hint="look at the images and at the FP32 graph's own answers",
        )


def _widened(histogram: Histogram) -> Histogram:
    """The same counts in bins twice as wide, over a range (symmetric around zero) twice as wide."""
    counts, edges, low, high, threshold = histogram
    if counts.size % 4:  # an edge must stay at zero when neighbours are merged
        threshold = threshold * (1 + 2 / counts.size)
        counts = np.pad(counts, 1)
    merged = np.pad(counts.reshape(-1, 2).sum(axis=1), counts.size // 4)
    threshold = np.asarray(2 * threshold, dtype=edges.dtype)
    return merged, np.linspace(-threshold, threshold, merged.size + 1, dtype=edges.dtype), low, high, threshold


def _quietly(call: Callable[..., Any], *arguments: Any) -> Any:
    """The calibrators print what they are at."""
    with contextlib.redirect_stdout(io.StringIO()):
        return call(*arguments)


# -- kept between jobs --------------------------------------------------------------------------------------------
def cache_key(model: ModelProto, images_digest: str, preprocessing: str, method: Method) -> str:
    """SHA-256 over all that ranges come from: graph, images, preprocessing, method, tools. Metadata does not count."""
    parts = {
        "format": FORMAT,
        "graph": hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest(),
        "opset": opset_of(model),
        "images": images_digest,
        "preprocessing": preprocessing,
        "method": method,
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cached_ranges(folder: Path | None, key: str, make: Callable[[], Ranges]) -> tuple[Ranges, bool]:
    """The ranges under the key, and whether they were there already. A broken file is made anew; None keeps nothing."""
    if folder is None:
        return make(), False
    path = folder / f"{key}.json"
    with contextlib.suppress(OSError, ValueError):
        return Ranges.from_json(path.read_text(encoding="utf-8")), True
    ranges = make()
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(ranges.as_json().encode(), path)
    return ranges, False
