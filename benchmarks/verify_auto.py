"""Does the comparison that stops early (`auto`) say what all of the images say (`full`), and how many does it save?

    python -m benchmarks.verify_auto [--only pairs,streams,cost] [--task classes|boxes] [--crops-each 1000]
                                     [--scenes 600]

The pills classifier and the pills detector against their exports: FP32, FP16, INT8, and FP32 with noise on the weights
of one layer, so strong that the nearest limit is kept or missed by about a known factor. Every model answers every
image once. The answers then go in random orders through the tallies that judge a real comparison, looked at as often as
there:

- pairs: some orders of each candidate, beside the verdict of the whole pool.
- streams: how often is a candidate passed that misses one limit by the factor 1.2? One gate's limit is set to what the
  whole pool measures / 1.2 and the others are lifted, so that nothing else catches it. Each stream is drawn from the
  pool with replacement and is as long: as from endless data of the pool's true value. Only those for mAPs are orders of
  it, as an image has its labels once. Noise spreads a difference over the images; in the rare pools few images are
  wholly wrong and all others equal.
- cost: the time that judging takes, beside the time that answering takes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, load, numpy_helper

from app.toolkit.detections import COCO_NMS, Detections
from app.toolkit.images import LetterboxFrame, read_image
from app.toolkit.pipeline import export_and_prove
from app.toolkit.quantization.pipeline import quantize
from app.toolkit.quantization.request import QuantizationRequest
from app.toolkit.race import RaceSettings
from app.toolkit.runtimes.base import Array
from app.toolkit.verification.classification import ClassificationTally
from app.toolkit.verification.data import Sample, VerificationData, read_data
from app.toolkit.verification.detection import DetectionTally
from app.toolkit.verification.request import FP16_STATISTICS, FP32_STATISTICS, S4_NMS, Limits, VerifyRequest
from app.toolkit.verification.result import Gate, Verdict
from app.toolkit.verification.sequential import looks, wilson_interval
from app.toolkit.verification.subject import TASKS, Subject, open_subjects

PILLS = Path(__file__).resolve().parents[1] / "tests" / "assets" / "pills"
CONFIDENCE = 0.99
STRENGTHS = (0.5, 0.8, 1.2, 1.5, 3.0)
MISSED = 1.2
HALVINGS = 7
LIFTED = Limits(*[math.inf] * 6)

Outcome = tuple[Any, ...]
"""What a tally's `add` takes of one image."""
Feed = tuple[Sample, Array, LetterboxFrame]
Tally = ClassificationTally | DetectionTally


@dataclass(frozen=True)
class Pool:
    """Every image's outcome of one pair of models. `data.coco` makes mAPs where there is one."""

    names: dict[int, str]
    data: VerificationData
    outcomes: Sequence[Outcome]

    def tally(self, limits: Limits) -> Tally:
        """An empty one."""
        if isinstance(self.outcomes[0][-1], Detections):
            return DetectionTally(self.names, limits, S4_NMS, self.data.coco, CONFIDENCE)
        return ClassificationTally(self.names, limits, CONFIDENCE)

    def full(self, limits: Limits) -> tuple[Gate, ...]:
        """The gates of all images."""
        tally = self.tally(limits)
        for outcome in self.outcomes:
            tally.add(*outcome)
        return tally.gates()

    def auto(self, limits: Limits, order: Sequence[int]) -> tuple[Verdict, int, Verdict]:
        """The verdict of the images in this order, how many it took, and the side to which it leans."""
        tally = self.tally(limits)
        ends = looks(len(order))
        gates: tuple[Gate, ...] = ()
        for begin, end in itertools.pairwise((0, *ends)):
            for index in order[begin:end]:
                tally.add(*self.outcomes[index])
            gates = tally.sequential(len(ends))
            if verdict_of(gates) != "undecided":
                break
        leans: Verdict = "failed" if "failed" in {gate.leans or gate.verdict for gate in gates} else "passed"
        return verdict_of(gates), tally.images, leans

    def orders(self, count: int) -> Iterator[list[int]]:
        """Random orders of all images."""
        for seed in range(count):
            yield np.random.default_rng(seed).permutation(len(self.outcomes)).tolist()

    def draws(self, count: int) -> Iterator[list[int]]:
        """Streams drawn with replacement, as long as the pool."""
        size = len(self.outcomes)
        for seed in range(count):
            yield np.random.default_rng(seed).integers(size, size=size).tolist()

    def rare(self, count: int) -> Pool:
        """The reference against itself, but for `count` images with the class of another pill, or without boxes."""
        broken = set(np.random.default_rng(0).permutation(len(self.outcomes))[:count].tolist())
        outcomes = [_answered(one, is_broken=index in broken) for index, one in enumerate(self.outcomes)]
        return replace(self, outcomes=outcomes)

    def unlabelled(self) -> Pool:
        """Without mAPs."""
        return replace(self, data=replace(self.data, coco=None))


def _answered(outcome: Outcome, *, is_broken: bool) -> Outcome:
    """The image with the reference's answer for the candidate's, or one wholly wrong."""
    if not isinstance(outcome[-1], Detections):
        name, path, reference, _, label = outcome
        return name, path, reference, np.roll(reference, 1) if is_broken else reference, label
    name, path, image_id, reference, _, reference_coco, _ = outcome
    kept = slice(0, 0 if is_broken else None)
    candidate, candidate_coco = (
        Detections(found.boxes_xyxy[kept], found.scores[kept], found.classes[kept])
        for found in (reference, reference_coco)
    )
    return name, path, image_id, reference, candidate, reference_coco, candidate_coco


@dataclass
class Bench:
    """A task: its checkpoint, its FP32 export, its images, and the checkpoint's answers to them.

    The convolution number `layer` gets the noise, whose strength is sought on the first `sought_on` images.
    """

    folder: Path
    source: Path
    images: Path
    annotations: Path | None
    layer: int
    sought_on: int
    _ratios: dict[float, tuple[Gate, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.exported = self.folder / f"{self.source.stem}.onnx"
        export_and_prove(self.source, self.exported)
        self.subject, self.size = self.opened(self.exported)
        names = self.subject.model.names
        data = read_data(self.images, self.annotations, names, task=TASKS[self.subject.model.head])
        order = np.random.default_rng(0).permutation(len(data.samples))
        self.data = replace(data, samples=tuple(data.samples[index] for index in order))
        self.answers = self.answered(self.source, self.feeds())
        self.first_feeds = list(itertools.islice(self.feeds(), self.sought_on))

    def opened(self, path: Path) -> tuple[Subject, tuple[int, int]]:
        """A candidate as a comparison opens it, and the input size."""
        request = VerifyRequest(self.exported, path, self.images, self.folder, threads=1)
        with contextlib.redirect_stdout(sys.stderr):  # it tells of every file that it opens
            _, candidate, size, _ = open_subjects(request)
        return candidate, size

    def feeds(self) -> Iterator[Feed]:
        """Every image's tensor."""
        for sample in self.data.samples:
            yield sample, *self.subject.tensor_of(read_image(sample.path), self.size)

    def answered(self, path: Path, feeds: Iterable[Feed]) -> list[tuple[Any, ...]]:
        """What a model says to each: probabilities, or the detections at both settings."""
        subject, _ = self.opened(path)
        model = subject.model
        with subject.runtime:
            if model.head != "boxes":
                return [(model.probabilities(subject.answer(tensor))[0],) for _, tensor, _ in feeds]
            return [
                tuple(model.postprocess(answer, [frame], settings)[0] for settings in (S4_NMS, COCO_NMS))
                for answer, frame in ((subject.answer(tensor), frame) for _, tensor, frame in feeds)
            ]

    def pool(self, path: Path, feeds: Iterable[Feed] | None = None) -> Pool:
        """The reference and a candidate on all images, or on the first that were fed."""
        answers = self.answered(path, feeds or self.feeds())
        samples = self.data.samples[: len(answers)]
        outcomes = [_outcome(*seen) for seen in zip(samples, self.answers[: len(answers)], answers, strict=True)]
        return Pool(dict(self.subject.model.names), self.data, outcomes)

    def noisy(self, strength: float) -> Path:
        """A copy whose layer has noise of `strength` times its weights' standard deviation."""
        graph = load(self.exported)
        _add_noise(graph, self.layer, strength)
        path = self.folder / f"{self.source.stem}_noise_{strength:.4f}.onnx"
        path.write_bytes(graph.SerializeToString())
        return path

    def missing(self, ratio: float, gate: str | None = None) -> Path:
        """A noisy copy on which the gate, or the nearest, measures about `ratio` times its limit."""
        low, high = 0.01, 1.0
        for _ in range(HALVINGS):
            middle = math.sqrt(low * high)
            if middle not in self._ratios:
                self._ratios[middle] = self.pool(self.noisy(middle), self.first_feeds).full(FP32_STATISTICS)
            low, high = (low, middle) if nearest(self._ratios[middle], gate)[0] > ratio else (middle, high)
        return self.noisy(math.sqrt(low * high))


def _outcome(sample: Sample, reference: tuple[Any, ...], candidate: tuple[Any, ...]) -> Outcome:
    both = (answer for pair in zip(reference, candidate, strict=True) for answer in pair)
    if isinstance(reference[0], Detections):
        return sample.name, sample.path, sample.image_id, *both
    return sample.name, sample.path, *both, sample.label


def _add_noise(graph: ModelProto, layer: int, strength: float) -> None:
    weights = [one for one in graph.graph.initializer if len(one.dims) == 4][layer]
    values = numpy_helper.to_array(weights)
    noise = np.random.default_rng(0).standard_normal(values.shape) * values.std()
    weights.CopyFrom(numpy_helper.from_array((values + strength * noise).astype(values.dtype), weights.name))


def verdict_of(gates: Sequence[Gate]) -> Verdict:
    """As a comparison's."""
    verdicts = {gate.verdict for gate in gates}
    return "failed" if "failed" in verdicts else "undecided" if "undecided" in verdicts else "passed"


def nearest(gates: Sequence[Gate], only: str | None = None) -> tuple[float, str]:
    """The largest measure as a multiple of its limit, and its gate."""
    judged = [gate for gate in gates if gate.limit > 0 and only in (None, gate.name)]
    return max(((gate.measured or 0.0) / gate.limit, gate.name) for gate in judged)


def good(bench: Bench) -> Iterator[tuple[str, Path, Limits]]:
    """Real candidates and the limits of their dtypes."""
    fp16, int8 = bench.folder / f"{bench.source.stem}_fp16.onnx", bench.folder / f"{bench.source.stem}_int8.onnx"
    export_and_prove(bench.source, fp16, precision="fp16")
    quantize(
        QuantizationRequest(
            bench.exported,
            int8,
            target="onnxruntime-cpu",
            images=bench.images,
            num_samples=64,
            proof_sample=8,
            threads=1,
            race=RaceSettings(rounds=1, calls=1),
        )
    )
    yield "FP32", bench.exported, FP32_STATISTICS
    yield "FP16", fp16, FP16_STATISTICS
    yield "INT8", int8, FP32_STATISTICS


def pairs(bench: Bench, orders: int) -> None:
    """The table of candidates."""
    print(f"\n| candidate | nearest limit x | full | auto, {orders} orders | images taken of {len(bench.answers)} |")
    print("|---" * 5 + "|")
    noisy = ((f"noise, {ratio} x", bench.missing(ratio), FP32_STATISTICS) for ratio in STRENGTHS)
    for label, path, limits in itertools.chain(good(bench), noisy):
        pool = bench.pool(path)
        gates = pool.full(limits)
        found = [pool.auto(limits, order) for order in pool.orders(orders)]
        ratio, gate = nearest(gates)
        taken = [images for _, images, _ in found]
        said = ", ".join(f"{count} {word}" for word, count in Counter(starmap(_in_words, found)).items())
        print(
            f"| {label} | {ratio:.3g} ({gate}) | {verdict_of(gates)} | {said}"
            f" | {statistics.median(taken):.0f} ({min(taken)} to {max(taken)}) |",
            flush=True,
        )


def _in_words(verdict: Verdict, _images: int, leans: Verdict) -> str:
    return verdict if verdict != "undecided" else f"undecided (would have {leans})"


def streams(bench: Bench, count: int, map_count: int) -> None:
    """The table of false passes."""
    print("\n| pool | the limit that it misses | streams | passed | failed | undecided | passed, 99 % upper bound |")
    print("|---" * 7 + "|")
    for label, pool, name in bad_pools(bench):
        limits = alone(pool, name)
        total = map_count if name == "map_delta" else count
        drawn = pool.orders(total) if name == "map_delta" else pool.draws(total)
        found = Counter(pool.auto(limits, order)[0] for order in drawn)
        upper = wilson_interval(found["passed"], total, 0.98)[1]
        print(
            f"| {label} | {name} {getattr(limits, name):.3g} | {total} | {found['passed'] / total:.2%}"
            f" | {found['failed'] / total:.2%} | {found['undecided'] / total:.2%} | {upper:.2%} |",
            flush=True,
        )


def bad_pools(bench: Bench) -> Iterator[tuple[str, Pool, str]]:
    """(label, pool, limit that it shall miss)."""
    some = bench.pool(bench.missing(MISSED))
    count = len(some.outcomes)
    if bench.annotations is None:
        for name in ("mse_p99", "mse_mean", "top1_mismatch_rate"):
            yield "noise", bench.pool(bench.missing(MISSED, name)), name
        yield "rare, 3 images", some.rare(3), "mse_mean"
        yield f"rare, {MISSED:g} % of the images", some.rare(round(MISSED * count / 100)), "top1_mismatch_rate"
        return
    for name in ("iou_delta_p95", "detection_mismatch_rate"):
        yield "noise", some.unlabelled(), name
    yield "noise", bench.pool(bench.missing(MISSED, "map_0_5_0_95")), "map_delta"
    yield f"rare, {MISSED:g} % of the images", some.rare(round(MISSED * count / 100)), "map_delta"


def alone(pool: Pool, name: str) -> Limits:
    """Limits of which only one judges, missed by the whole pool by the factor MISSED."""
    unlimited = {"map_delta": ("map_0_5", "map_0_5_0_95")}.get(name, (name,))
    measured = max(gate.measured or 0.0 for gate in pool.full(LIFTED) if gate.name in unlimited)
    return replace(LIFTED, **{name: measured / MISSED})


def cost(bench: Bench) -> None:
    """The table of what judging adds to answering."""
    print("\n| images | two ONNX models answer, s | added to the tally, s | this look, s | all looks until here, s |")
    print("|---" * 5 + "|")
    begun = time.perf_counter()
    pool = bench.pool(bench.exported)
    answering = (time.perf_counter() - begun) / len(pool.outcomes)
    tally = pool.tally(FP32_STATISTICS)
    ends, adding, looking = looks(len(pool.outcomes)), 0.0, 0.0
    for begin, end in itertools.pairwise((0, *ends)):
        begun = time.perf_counter()
        for outcome in pool.outcomes[begin:end]:
            tally.add(*outcome)
        added = time.perf_counter()
        tally.figures()
        tally.sequential(len(ends))
        look = time.perf_counter() - added
        adding, looking = adding + added - begun, looking + look
        print(f"| {end} | {2 * answering * end:.1f} | {adding:.3f} | {look:.3f} | {looking:.3f} |")


def prepare(folder: Path, task: str, count: int) -> Bench:
    """Draw `count` crops of each pill, or `count` scenes, and export."""
    is_boxes = task == "boxes"
    counts = ["--images", str(count if is_boxes else 1), "--crops-each", str(1 if is_boxes else count)]
    subprocess.run([sys.executable, str(PILLS / "make_pills.py"), str(folder), *counts, "--seed", "901"], check=True)
    if is_boxes:
        source = PILLS / "pills_yolov8n.pt"
        return Bench(folder, source, folder / "images", folder / "instances.json", layer=0, sought_on=32)
    return Bench(folder, PILLS / "pills_classifier.pt", folder / "crops", None, layer=0, sought_on=12 * min(count, 200))


def main() -> None:
    """Print the tables as they grow."""
    parser = argparse.ArgumentParser(description="auto against full")
    parser.add_argument("--only", default="pairs,streams,cost")
    parser.add_argument("--task", choices=("classes", "boxes"), action="append")
    parser.add_argument("--crops-each", type=int, default=1000)
    parser.add_argument("--scenes", type=int, default=600)
    parser.add_argument("--orders", type=int, default=5)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--map-streams", type=int, default=100, help="fewer: each look measures mAPs")
    arguments = parser.parse_args()
    counts = {"classes": arguments.crops_each, "boxes": arguments.scenes}
    for task in arguments.task or counts:
        with tempfile.TemporaryDirectory() as temporary:
            bench = prepare(Path(temporary), task, counts[task])
            if "pairs" in arguments.only:
                pairs(bench, arguments.orders)
            if "streams" in arguments.only:
                streams(bench, arguments.streams, arguments.map_streams)
            if "cost" in arguments.only:
                cost(bench)


if __name__ == "__main__":
    main()
