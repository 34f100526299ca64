"""An FP32 ONNX file in, an INT8 one out, with what it cost on images that did not calibrate it.

The result is written only if the loss stays within the limit, or if none was set; the report is written in any case.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto

from app.toolkit.calibration.images import CalibrationImages, choose_images, tensors
from app.toolkit.errors import AccuracyDropped, FeedMismatch, NoImages
from app.toolkit.images import Uint8Array
from app.toolkit.modelopt import quantize_with_modelopt
from app.toolkit.models.exported import ExportedModel, Float32Array
from app.toolkit.onnx_file import check, load_onnx, write_whole
from app.toolkit.onnx_lint import lint
from app.toolkit.quantization.dynamic import quantize_dynamic
from app.toolkit.quantization.graph import matching, post_processing, prepared
from app.toolkit.quantization.held_out import HELD_OUT_IMAGES, held_out
from app.toolkit.quantization.proof import Accuracy, HeldOut
from app.toolkit.quantization.ranges import Ranges, cache_key, cached_ranges, collect_ranges
from app.toolkit.quantization.repair import Repair, rank, repair
from app.toolkit.quantization.request import QuantizationRequest
from app.toolkit.quantization.result import NodeReport, QuantizationResult, quantisers
from app.toolkit.quantization.static import quantizable, quantize_static
from app.toolkit.race import race
from app.toolkit.stats import stats_of_onnx, stats_text

Progress = Callable[[str, float], None]
PHASES = ("load", "images", "calibrate", "quantise", "prove", "race")

RANKING_IMAGES = 4
"""Calibration images that each node's sensitivity is measured on."""

TENSORRT_RELEASES = ("8.5", "8.6", "10", "11")
"""Those that take Q/DQ of opset 13 and later; 8.2 is for devices without INT8."""


def quantize(request: QuantizationRequest, progress: Progress = lambda _phase, _part: None) -> QuantizationResult:
    """Quantise, prove, write. `progress` hears (phase, fraction of it) for `PHASES`.

    `<result's stem>_report.json` holds `QuantizationResult.as_dict()`, `<result's stem>_stats.txt` the stats.
    Raises the ModelFileErrors, AlreadyQuantised, UnsupportedOpset, UnknownLayer, InvalidInputSize, NoImages,
    InvalidAnnotations, FeedMismatch, RuntimeUnavailable, InvalidOnnx, AccuracyDropped.
    """
    return _Run(request, progress).run()


class _Run:
    """One quantisation, phase by phase, and the clock over them."""

    def __init__(self, request: QuantizationRequest, progress: Progress) -> None:
        self.request, self.progress = request, progress
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []
        self.calibration: dict[str, Any] | None = None

    def run(self) -> QuantizationResult:
        request = self.request
        with self._phase("load"):
            source = load_onnx(request.source)
            self.model = prepared(source)
            self.exported = ExportedModel.of_onnx(source)
            self.input_size = self.exported.check_size(request.input_size)
            self.batch_size = self._batch_size()
            self.reference = source.SerializeToString()
            self.head = post_processing(self.model)
            self.excluded = matching(self.model, request.exclude)
            self._warn_of_family()
        with self._phase("images"):
            images = self._choose()
        graph = self._quantised(images)
        with self._phase("prove"):
            proof = self._proof(images)
            accuracy = proof.score(graph) if proof else None
            repaired = self._repaired(images, proof, accuracy)
        if repaired is not None:
            graph, accuracy = repaired.graph, repaired.accuracy
        check(graph)
        result = self._measured(graph, accuracy, repaired, stats_of_onnx(source, request.source).size_mb)
        self._write(graph, result)
        return result

    # -- images -----------------------------------------------------------------------------------------------------
    def _choose(self) -> CalibrationImages | None:
        request = self.request
        if request.images is None:
            return None
        apart = 0 if request.data or request.proof_images else HELD_OUT_IMAGES
        if request.mode == "dynamic":  # nothing calibrates: the folder serves the proof
            return choose_images(request.images, count=HELD_OUT_IMAGES, workers=request.threads)
        count = request.num_samples
        if request.max_batches is not None:
            count = min(count, request.max_batches * self.batch_size)
        images = choose_images(request.images, count=count, held_out=apart, workers=request.threads)
        self.warnings += images.warnings
        return images

    def _preprocess(self, image: Uint8Array) -> Float32Array:
        return self.exported.preprocess(image, self.input_size)[0]

    # -- quantisation -----------------------------------------------------------------------------------------------
    def _quantised(self, images: CalibrationImages | None) -> bytes:
        request = self.request
        if request.mode == "dynamic":
            with self._phase("quantise"):
                made = quantize_dynamic(self.model, per_channel=request.per_channel, exclude_nodes=self._kept(()))
                data: bytes = made.SerializeToString()
                return data
        if images is None:
            raise NoImages("static quantisation calibrates on images", expected="a folder of images", received="none")
        if request.backend == "modelopt":
            with self._phase("calibrate"):
                return self._by_modelopt(images)
        with self._phase("calibrate"):
            self.ranges = self._ranges(images)
        with self._phase("quantise"):
            return self._static(())

    def _ranges(self, images: CalibrationImages) -> Ranges:
        request, size = self.request, self.input_size
        steps = json.dumps(self.exported.preprocessing.as_dict(), sort_keys=True)
        preparation = f"{steps} {size[0]}x{size[1]}x{self.exported.channels} batch {self.batch_size}"
        key = cache_key(self.model, images.digest(), preparation, request.method)
        total = len(images.calibration)

        def make() -> Ranges:
            batches = tensors(images.calibration, self._preprocess, batch_size=self.batch_size, workers=request.threads)
            return collect_ranges(
                self.model,
                batches,
                method=request.method,
                threads=request.threads,
                progress=lambda done: self.progress("calibrate", min(done / total, 1.0)),
            )

        folder = request.cache_dir / "calibration" if request.cache_dir else None
        ranges, cached = cached_ranges(folder, key, make)
        self.calibration = {**images.as_dict(), "method": request.method, "cached": cached}
        return ranges

    def _static(self, exclude: Sequence[str]) -> bytes:
        request = self.request
        made = quantize_static(
            self.model,
            self.ranges,
            target=request.target,
            per_channel=request.per_channel,
            exclude_nodes=self._kept(exclude),
        )
        data: bytes = made.SerializeToString()
        return data

    def _by_modelopt(self, images: CalibrationImages) -> bytes:
        stacked = np.concatenate(list(tensors(images.calibration, self._preprocess, workers=self.request.threads)))
        self.calibration = {**images.as_dict(), "method": self.request.method, "cached": False}
        made = quantize_with_modelopt(self.model, stacked, method=self.request.method, exclude_nodes=self._kept(()))
        data: bytes = made.SerializeToString()
        return data

    def _kept(self, more: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.head, *self.excluded, *more)))

    # -- proof ------------------------------------------------------------------------------------------------------
    def _proof(self, images: CalibrationImages | None) -> HeldOut | None:
        request = self.request
        found = held_out(request, images)
        self.warnings += found.warnings
        if not found.images and found.data is None:
            if request.max_drop is not None:
                raise NoImages(
                    "a limit on the loss of accuracy needs images that did not calibrate",
                    expected="`data`, or more images in the folder than calibrate",
                    received="none left",
                )
            return None
        return HeldOut(
            self.exported,
            self.reference,
            images=found.images,
            data=found.data,
            input_size=self.input_size,
            threads=request.threads,
        )

    def _repaired(
        self, images: CalibrationImages | None, proof: HeldOut | None, accuracy: Accuracy | None
    ) -> Repair | None:
        request = self.request
        if not request.repair or accuracy is None or proof is None or images is None or request.max_drop is None:
            return None
        if accuracy.drop <= request.max_drop:
            return None
        kept = set(self._kept(()))
        nodes = [name for name in quantizable(self.model, request.target) if name not in kept]
        some = list(tensors(images.calibration[:RANKING_IMAGES], self._preprocess, batch_size=self.batch_size))
        ranking = rank(
            self.reference,
            self._static,
            nodes,
            some,
            threads=request.threads,
            progress=lambda part: self.progress("prove", 0.2 + 0.4 * part),
        )
        return repair(
            ranking,
            self._static,
            proof.score,
            request.max_drop,
            progress=lambda done: self.progress("prove", min(0.6 + 0.05 * done, 1.0)),
        )

    # -- result -----------------------------------------------------------------------------------------------------
    def _measured(
        self, graph: bytes, accuracy: Accuracy | None, repaired: Repair | None, size_before_mb: float
    ) -> QuantizationResult:
        request = self.request
        model = ModelProto.FromString(graph)
        with self._phase("race"):
            shape = (self.batch_size, self.exported.channels, *self.input_size)
            races = tuple(
                race(self.reference, graph, threads=threads, shape=shape, settings=request.race)
                for threads in dict.fromkeys((1, request.threads))
            )
        extra = repaired.kept if repaired else ()
        kept = set(self._kept(extra))
        quantised = tuple(name for name in quantizable(self.model, request.target) if name not in kept)
        return QuantizationResult(
            request,
            request.result,
            stats_of_onnx(model, request.result, size_bytes=len(graph)),
            size_before_mb,
            NodeReport(quantised, self.head, (*self.excluded, *extra)),
            quantisers(model),
            lint(model).restricted_to(TENSORRT_RELEASES),
            races,
            accuracy,
            self.calibration,
            repaired,
            tuple(self.warnings),
            self.seconds,
        )

    def _write(self, graph: bytes, result: QuantizationResult) -> None:
        path, document = result.path, result.as_dict()
        report = json.dumps(document, indent=2).encode()
        write_whole(report, path.with_name(f"{path.stem}_report.json"))
        if not result.passed and result.accuracy is not None:
            one = result.accuracy
            raise AccuracyDropped(
                "the quantised model lost more accuracy than max_drop allows",
                expected=f"a drop of at most {self.request.max_drop:g} {one.measure}",
                received=f"{one.drop:.4f}: {one.before:.4f} before, {one.after:.4f} after on {one.images} images",
                hint="the report has the numbers; try repair, another method, or more calibration images",
            )
        write_whole(graph, path)
        path.with_name(f"{path.stem}_stats.txt").write_text(stats_text(result.stats), encoding="utf-8")

    # -- small things -----------------------------------------------------------------------------------------------
    def _batch_size(self) -> int:
        fixed, asked = self.exported.batch, self.request.batch_size
        if fixed is not None and asked is not None and fixed != asked:
            raise FeedMismatch(
                "the graph's batch is fixed",
                expected=f"batch_size {fixed}",
                received=f"batch_size {asked}",
                hint="leave batch_size out",
            )
        return fixed or asked or 1

    def _warn_of_family(self) -> None:
        if not self.exported.described:
            self.warnings.append(
                "the file does not say how its images are prepared: they were letterboxed and scaled to 0..1, as YOLO's"
            )

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self.progress(name, 0.0)
        begun = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - begun, 3)
        self.progress(name, 1.0)
