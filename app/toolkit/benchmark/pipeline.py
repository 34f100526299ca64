"""A model timed way by way: each is checked against the first before it is timed, alone, until its figures agree.

A way that cannot run here is a row that says why; memory that runs out ends its way's rows and nothing else.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from app.toolkit.benchmark.accuracy import accuracy_of, labelled_images, why_no_accuracy
from app.toolkit.benchmark.agreeing import Reference, of_image, why_not_equal
from app.toolkit.benchmark.figures import confirmed, energy_mj_per_image, with_headline, with_speedups
from app.toolkit.benchmark.machine import machine_facts
from app.toolkit.benchmark.meters import EnergyMeter, MemoryMeter, Noise, NoiseMeter
from app.toolkit.benchmark.request import BenchmarkRequest, Way
from app.toolkit.benchmark.result import Accuracy, Agreement, BenchmarkResult, Part, Row
from app.toolkit.benchmark.runners import Runner, open_runner, why_lacking
from app.toolkit.benchmark.source import Source, open_source
from app.toolkit.benchmark.timers import page_locked
from app.toolkit.errors import FeedMismatch, OutOfMemory, ToolkitError
from app.toolkit.images import DEFAULT_IMAGES, list_images, read_image, sample_images
from app.toolkit.latency import LatencyReport, sample_latency
from app.toolkit.runtimes.base import Array
from app.toolkit.runtimes.failures import failures_told
from app.toolkit.stats import model_stats

Progress = Callable[[str, float], None]

ROTATING = 8
"""Different inputs that take turns: what a cache kept of one call is of no use to the next."""

AGAIN, AGAIN_SECONDS = 2, 10.0
"""How often a way with a headline is opened and timed anew, and after how long no further time."""

OOM_HINT = "take a smaller batch, which S1 found to be the cure, or a smaller input size"
UNSEEN = "what others used of the processor cannot be read here: none of the figures is known to be undisturbed"
UNSEEN_GPU = (
    "what other processes used of the GPU could not be read during every row: where `noise` has no `others_pct` of the "
    "GPU, the figures are not known to be undisturbed"
)


def benchmark(request: BenchmarkRequest, progress: Progress | None = None) -> BenchmarkResult:
    """Time every way of the request. `progress` hears (what is timed, part of the whole).

    Raises the ModelFileErrors of the model, InvalidInputSize, InvalidQueries, NoImages, UnreadableImage,
    InvalidAnnotations.
    """
    with tempfile.TemporaryDirectory(dir=request.folder, prefix=".benchmark_") as folder:  # engines, of no use after
        made_in = replace(request, folder=Path(folder))
        return _Run(made_in, progress or (lambda _phase, _part: None)).run()


class _Run:
    """One benchmark, and the answers that every way's are compared with: those of the first that could give any."""

    def __init__(self, request: BenchmarkRequest, progress: Progress) -> None:
        self.request = request
        self.progress = progress
        self.rows: list[Row] = []
        self.accuracy: dict[str, Accuracy] = {}
        self.noise: dict[str, Noise] = {}
        self.seconds: dict[str, float] = {}
        self.reference: Reference | None = None

    def run(self) -> BenchmarkResult:
        request = self.request
        machine = {"before": machine_facts()}
        self.source = open_source(request)
        self.data = labelled_images(request, self.source.model)
        self.images = self._images()
        for number, way in enumerate(request.ways):
            begun = time.perf_counter()
            self._way(way, number)
            self.seconds[way] = round(time.perf_counter() - begun, 2)
        machine["after"] = machine_facts()
        settings = {"rotating_inputs": len(self.images), "device": request.device, "threads": request.threads}
        return BenchmarkResult(
            model=_facts(self.source),
            rows=tuple(with_speedups(self.rows)),
            accuracy=self.accuracy,
            machine=machine,
            noise={name: noise.as_dict() for name, noise in self.noise.items()},
            settings={**asdict(request.settings), **settings},
            seconds=self.seconds,
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        notes = [*self.source.notes, *(() if self.data is None else self.data.warnings)]
        if self.request.images is not None and not self.accuracy:
            notes.append(why_no_accuracy(self.source.model, self.data))
        if any(noise.others_pct is None for noise in self.noise.values()):
            notes.append(UNSEEN)
        gpus = [noise.gpu for noise in self.noise.values()] if self.request.device == "cuda" else []
        if any(gpu is None or gpu.others_pct is None for gpu in gpus):
            notes.append(UNSEEN_GPU)
        return tuple(notes)

    def _images(self) -> list[Array]:
        """ROTATING preprocessed images, [1, C, H, W] float32; of fewer, the rest are the same moved sideways."""
        paths = list(DEFAULT_IMAGES)
        if self.request.images is not None:
            paths = sample_images(list_images(self.request.images), ROTATING)
        model, size = self.source.model, self.source.input_size
        images = [model.preprocess(read_image(path), size)[0] for path in paths]
        step = size[1] // ROTATING
        moved = (np.roll(images[turn % len(images)], turn * step, axis=3) for turn in range(len(images), ROTATING))
        return [*images, *moved]

    def _way(self, way: Way, number: int) -> None:
        sizes = self.request.batch_sizes
        why = why_lacking(way, self.source, self.request)
        if why:
            self.progress(way, number / len(self.request.ways))
            self.rows.append(Row(way, sizes[0], why_not=why))
            return
        for index, batch_size in enumerate(sizes):
            self.progress(f"{way}, batch {batch_size}", (number + index / len(sizes)) / len(self.request.ways))
            row, goes_on = self._row(way, batch_size)
            self.rows.append(row)
            if not goes_on:
                break

    def _row(self, way: Way, batch_size: int) -> tuple[Row, bool]:
        """The row with its figures or why there are none, and whether a larger batch is worth trying."""
        try:
            with failures_told(f"{way} at batch size {batch_size}"):
                row = self._measured(way, batch_size)
        except OutOfMemory as error:
            told = f"out of memory at batch {batch_size}: {error.received}"
            return Row(way, batch_size, why_not=told, hint=OOM_HINT), False
        except FeedMismatch as error:  # a file of one batch size, which may be the request's next
            return _refused(Row(way, batch_size), error), True
        except ToolkitError as error:
            return _refused(Row(way, batch_size), error), False
        return row, not row.why_not

    def _measured(self, way: Way, batch_size: int) -> Row:
        """Memory is that of opening and being timed: not of exporting or the images before, nor of evaluating after."""
        runner = open_runner(way, self.source, self.request, batch_size)
        batches = self._batches(batch_size)
        with contextlib.ExitStack() as until_closed:
            with MemoryMeter(self.request.device) as meter:
                until_closed.enter_context(runner)
                row = self._timed(runner, Row(way, batch_size), batches, meter)
            if row.why_not or not runner.answers:  # trtexec's memory is another process's
                return row
            row = self._evaluated(runner, row)
        row = replace(row, **asdict(meter.memory))
        return row if row.headline_ms is None else confirmed(row, self._again(runner, batches))

    def _again(self, runner: Runner, batches: Sequence[Array]) -> list[LatencyReport]:
        """Of one further opening at least, of two where the first does not take long."""
        reports: list[LatencyReport] = []
        ends_at = time.monotonic() + AGAIN_SECONDS
        while not reports or (len(reports) < AGAIN and time.monotonic() < ends_at):
            with runner:
                end_to_end = runner.timers(_feeds(runner, batches))["end_to_end"]
                reports.append(sample_latency(end_to_end, settings=self.request.settings))
        return reports

    def _evaluated(self, runner: Runner, row: Row) -> Row:
        """Its accuracy is added to the others'; where that fails the times stand, with a note."""
        if self.data is None or row.way in self.accuracy:
            return row
        try:
            with failures_told("evaluating the accuracy"):
                self.accuracy[row.way] = accuracy_of(self.source.model, runner, self.data, self.source.input_size)
        except ToolkitError as error:
            return replace(row, notes=(*row.notes, f"no accuracy: {_told(error)}"))
        return row

    def _timed(self, runner: Runner, row: Row, batches: Sequence[Array], memory: MemoryMeter) -> Row:
        feeds = _feeds(runner, batches)
        if runner.answers:
            with memory.paused():
                agreement = self._agreement(runner, feeds)
            row = replace(row, agreement=agreement)
            if agreement.ok is False:
                return replace(row, why_not=why_not_equal(agreement, self.reference))
        with NoiseMeter(self.request.device, runner.started_pids) as meter:
            parts, energy_mj = self._sampled(runner, feeds, meter)
        self.noise[f"{row.way}, batch {row.batch_size}"] = meter.noise
        row = replace(row, notes=(*runner.notes, *meter.noise.reasons))
        return with_headline(row, parts, meter.noise, energy_mj)

    def _sampled(
        self, runner: Runner, feeds: Sequence[Mapping[str, Array]], meter: NoiseMeter
    ) -> tuple[Mapping[Part, LatencyReport], float | None]:
        """The parts' times and an image's energy, run until the meter has watched for long enough to see others."""
        settings = self.request.settings
        if not runner.answers:
            return runner.latencies(settings), None
        timers, energy_mj = runner.timers(feeds), None
        parts = {part: sample_latency(timer, settings=settings) for part, timer in timers.items()}
        end_to_end = timers["end_to_end"]
        if parts["end_to_end"].stable:
            energy_mj = energy_mj_per_image(EnergyMeter(self.request.device), end_to_end, runner.batch_size)
        for call in itertools.count():
            if meter.is_long_enough:
                break
            end_to_end(call)
        return parts, energy_mj

    def _batches(self, batch_size: int) -> list[Array]:
        """As many different batches [batch_size, C, H, W] as there are images, each of images in another order."""
        count = len(self.images)
        batches = np.empty((count, batch_size, *self.images[0].shape[1:]), self.source.image_dtype)
        for first, index in itertools.product(range(count), range(batch_size)):
            batches[first, index] = self.images[(first + index) % count][0]
        return [page_locked(batch) for batch in batches] if self.request.device == "cuda" else list(batches)

    def _agreement(self, runner: Runner, feeds: Sequence[Mapping[str, Array]]) -> Agreement:
        """With the first way's answers; the first way's with its own, which tells whether they are numbers."""
        if self.reference is not None:
            return self.reference.agreement(runner.infer(feeds[0]), runner.batch_size, runner.dtype)
        # Copies: a view would keep the whole batch's answers.
        images = [copy.deepcopy(of_image(runner.infer(feed), 0, runner.batch_size)) for feed in feeds]
        reference = Reference(runner.way, runner.dtype, images, self.source.model.parts)
        agreement = reference.agreement(runner.infer(feeds[0]), runner.batch_size, runner.dtype)
        if agreement.ok is not False:
            self.reference = reference
        return agreement


def _feeds(runner: Runner, batches: Sequence[Array]) -> list[dict[str, Array]]:
    (spec,) = runner.inputs
    return [{spec.name: batch.astype(spec.dtype, copy=False)} for batch in batches]


def _facts(source: Source) -> dict[str, Any]:
    """What the tables say of the model."""
    path = source.request.model
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {
        "name": source.request.name or path.name,
        "family": source.model.family,
        "task": source.model.task,
        "input_size": list(source.input_size),
        "size_bytes": sum(file.stat().st_size for file in files),
        "params": _params(source),
    }


def _params(source: Source) -> int | None:
    if source.adapter is not None:
        return sum(parameter.numel() for parameter in source.adapter.reference_module().parameters())
    with contextlib.suppress(ToolkitError):  # an engine that only TensorRT could tell of
        return model_stats(source.request.model, trusted=source.request.trusted).total_params
    return None


def _refused(row: Row, error: ToolkitError) -> Row:
    return replace(row, why_not=_told(error), hint=error.hint)


def _told(error: ToolkitError) -> str:
    told = (error.message, f"expected {error.expected}" * bool(error.expected), error.received)
    return "; ".join(text for text in told if text)
