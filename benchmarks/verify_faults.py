"""Does verify's gate catch what goes wrong in exports, and does it let good ones pass?

    python -m benchmarks.verify_faults [--draws 20] [--good 100] [--images 24] [--crops 8] [--seed 41] [--only TEXT]
                                       [--out FILE]

Faults (`tests/toolkit/faults.py`) are planted in good exports of the pills models, the detector's at 320 x 320 px, and
each draw brings another channel, layer or shift and other images: `--images` scenes of many sizes with COCO labels,
`--crops` crops of each of the 12 classes. Mode full, every limit at its default. Everything is drawn from seeds.

A draw that is not caught counts as harmless if on its images nothing that a user sees differs: no class, no detection,
no score by more than 0.01. "S4 alone" is what the task's limits would have caught without the kernel limits.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import math
import multiprocessing
import os
import platform
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

for _name, _value in {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "ORT_DISABLE_TELEMETRY": "1"}.items():
    os.environ.setdefault(_name, _value)
os.environ.update(OMP_WAIT_POLICY="PASSIVE", OPENBLAS_NUM_THREADS="1")  # a process for each core, of one thread each

import numpy as np  # noqa: E402 - these libraries read their environment when they are loaded
import torch  # noqa: E402

from app.toolkit.pipeline import export_and_prove  # noqa: E402
from app.toolkit.verification.facts import ReportFacts  # noqa: E402
from app.toolkit.verification.pipeline import verify  # noqa: E402
from app.toolkit.verification.request import Sampling, VerifyRequest  # noqa: E402
from app.toolkit.verification.result import ClassificationFigures, DetectionFigures, Gate  # noqa: E402
from tests.toolkit.fault_data import make_pool, some_crops, some_scenes  # noqa: E402
from tests.toolkit.faults import CLASSIFIER, DETECTOR, Good, Planted, good_export, noise  # noqa: E402
from tests.toolkit.scenes import ASSETS  # noqa: E402

SOURCES = {"detector": (ASSETS / "pills_yolov8n.pt", 320), "classifier": (ASSETS / "pills_classifier.pt", 96)}
NOISE = "noise of 1.2 x the nearest limit"
FAULTS = {"detector": [*DETECTOR, NOISE], "classifier": [*CLASSIFIER, NOISE]}
GOOD = "good export"
SIZES_PX = {"detector": (256, 320, 384, 448), "classifier": (96, 96, 112, 128)}
POOL = {"scenes": 160, "crops_each": 32}
HARMLESS_SCORE = 0.01
NOISE_SHARE = (1.15, 1.25)
NOISE_TRIES = 14
NARROW = 0.05  # of a logarithm: the shares jump here


@dataclass(frozen=True)
class Settings:
    """What all draws share."""

    folder: Path
    images: int
    crops: int


@dataclass(frozen=True)
class Draw:
    """One fault of one model, or one good export, by number."""

    model: str
    fault: str
    number: int


@dataclass(frozen=True)
class Found:
    """What verify said of a draw. `caught_by` is "kernel", "pipeline" or "", `gates` those that failed there."""

    draw: Draw
    words: str
    caught_by: str
    gates: tuple[str, ...]
    task_passed: bool
    harmless: bool
    figures: str
    details: dict[str, float | None]
    seconds: float


def run(settings: Settings, draw: Draw) -> Found:
    """Plant, verify, and say what was found."""
    torch.set_num_threads(1)
    begun = time.perf_counter()
    rng = np.random.default_rng([draw.number, zlib.crc32(draw.fault.encode())])
    quiet = contextlib.redirect_stdout(io.StringIO())  # each session's line on what took effect
    with tempfile.TemporaryDirectory(dir=settings.folder) as name, quiet:
        compare = _on_sample(settings, draw.model, Path(name), rng)
        if draw.fault == GOOD:
            words, facts = _good(draw, Path(name), compare)
        else:
            good = _exported(draw.model)
            words, facts = _planted(good, draw.fault, rng, functools.partial(_compared, compare, Path(name)))
    return _found(draw, words, facts, time.perf_counter() - begun)


Compare = Callable[[VerifyRequest], ReportFacts]


def _on_sample(settings: Settings, model: str, folder: Path, rng: np.random.Generator) -> Callable[..., ReportFacts]:
    """`compare(candidate, preprocessing, input_size)` on this draw's images."""
    pool, annotations = settings.folder / "pool", None
    if model == "detector":
        images = pool / "images"
        annotations = some_scenes(pool, folder / "instances.json", settings.images, rng)
    else:
        images = some_crops(pool, folder / "crops", settings.crops, rng)

    def compare(candidate: Path, **changes: object) -> ReportFacts:
        request = VerifyRequest(
            reference=SOURCES[model][0],
            candidate=candidate,
            images=images,
            folder=folder,
            annotations=annotations,
            sampling=Sampling(mode="full"),
            threads=1,
            **changes,  # type: ignore[arg-type]
        )
        return verify(request)

    return compare


def _compared(compare: Callable[..., ReportFacts], folder: Path, planted: Planted) -> ReportFacts:
    candidate = folder / "candidate.onnx"
    candidate.write_bytes(planted.graph.SerializeToString())
    return compare(candidate, preprocessing=({}, planted.preprocessing))


@functools.cache
def _exported(model: str) -> Good:
    """Once in each process."""
    return good_export(*SOURCES[model])


def _planted(
    good: Good, fault: str, rng: np.random.Generator, compare: Callable[[Planted], ReportFacts]
) -> tuple[str, ReportFacts]:
    if fault == NOISE:
        return _scaled(noise(good, rng), compare)
    planted = (DETECTOR if good.is_detector else CLASSIFIER)[fault](good, rng)
    return planted.words, compare(planted)


def _scaled(plant: Callable[[float], Planted], compare: Callable[[Planted], ReportFacts]) -> tuple[str, ReportFacts]:
    """Noise whose largest share of a limit is 1.2 (1.15 to 1.25) on these very images, by bisection of its logarithm.

    The next strength is guessed in proportion, as small effects grow so, where the guess lies between the bounds. Where
    shares jump over the target (a mAP over few images does), the least that was seen above it.
    """
    low, high, at = math.log(1e-4), math.log(10), math.log(0.05)
    above: list[tuple[float, str, ReportFacts]] = []
    for _ in range(NOISE_TRIES):
        planted = plant(math.exp(at))
        facts = compare(planted)
        share = _share_of_limit(facts)
        if share >= NOISE_SHARE[0]:
            above.append((share, f"{share:.2f} x the limit: {planted.words}", facts))
        if NOISE_SHARE[0] <= share <= NOISE_SHARE[1] or (above and high - low < NARROW):
            break
        low, high = (low, at) if share > NOISE_SHARE[1] else (at, high)
        guess = at + math.log(1.2 / max(share, 1e-9))
        at = guess if low < guess < high else (low + high) / 2
    _, words, facts = min(above, key=lambda one: one[0])
    return words, facts


def _share_of_limit(facts: ReportFacts) -> float:
    """The largest of measure over S4's limit; infinite where something could not be measured or is not finite."""
    gates = [gate for gate in facts.kernel.gates if not is_kernel(gate)]
    if any(gate.measured is None or (gate.limit == 0 and gate.measured) for gate in gates):
        return math.inf
    return max(gate.measured / gate.limit for gate in gates if gate.limit and gate.measured is not None)


def _good(draw: Draw, folder: Path, compare: Callable[..., ReportFacts]) -> tuple[str, ReportFacts]:
    """The number says which: every precision, opset, kind of axes and size in turn."""
    number = draw.number
    side = SIZES_PX[draw.model][number // 2 % 4]
    size = (side, side + 64 if draw.model == "detector" and number % 3 == 0 else side)
    precision = "fp16" if number % 2 else "fp32"
    opset, dynamic = 13 + number % 8, number // 4 % 2 == 1
    target = folder / "candidate.onnx"
    export_and_prove(
        SOURCES[draw.model][0], target, precision=precision, input_size=size, opset=opset, dynamic=dynamic, threads=1
    )
    words = f"{precision}, opset {opset}, {'dynamic' if dynamic else 'static'}, {size[0]} x {size[1]}"
    return words, compare(target, input_size=size)


def _found(draw: Draw, words: str, facts: ReportFacts, seconds: float) -> Found:
    failed = next((one for one in (facts.kernel, facts.pipeline) if one.verdict == "failed"), None)
    gates = tuple(gate.name for gate in failed.gates if gate.verdict == "failed") if failed else ()
    return Found(
        draw,
        words,
        failed.name if failed else "",
        gates,
        all(gate.verdict == "passed" or is_kernel(gate) for one in facts.comparisons for gate in one.gates),
        _is_harmless(facts),
        "; ".join(gate.sentence() for gate in facts.pipeline.gates),
        _details(facts),
        round(seconds, 2),
    )


def is_kernel(gate: Gate) -> bool:
    """Whether a gate judges raw answers, and not the task's."""
    return gate.name.startswith("kernel_")


def _details(facts: ReportFacts) -> dict[str, float | None]:
    """What no gate of S4's judges: agreement as a user sees it, and the raw outputs."""
    figures, raw = facts.pipeline.figures.as_dict(), facts.kernel_parity
    parts = {name: raw[name] for name in ("boxes_max_abs_px", "boxes_detectable_max_abs_px", "scores_max_abs")}
    seen = {name: figures.get(name) for name in ("mismatch_rate", "score_delta_p95", "mse_mean", "mse_p99")}
    return {**seen, **parts, "outputs_max_abs": max(one["max_abs"] for one in raw["outputs"].values())}


def _is_harmless(facts: ReportFacts) -> bool:
    figures, worst = facts.pipeline.figures, facts.pipeline.worst
    if isinstance(figures, ClassificationFigures):
        return not figures.top1_mismatch_count and max(one.difference for one in worst) <= HARMLESS_SCORE
    assert isinstance(figures, DetectionFigures)
    moved = max(figures.iou_delta_p95 or 0, figures.score_delta_p95 or 0)
    return not figures.mismatched_images and moved <= HARMLESS_SCORE


def markdown(found: Sequence[Found]) -> str:
    """A table of the faults, and what was neither caught nor harmless."""
    lines = [
        "| Model | Fault | Draws | Caught | Harmless | Missed | By kernel | By pipeline | Gates | S4 alone |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    faults = [one for one in found if one.draw.fault != GOOD]
    for model, fault in dict.fromkeys((one.draw.model, one.draw.fault) for one in faults):
        lines.append(_row(model, fault, [one for one in faults if (one.draw.model, one.draw.fault) == (model, fault)]))
    if faults:
        lines.append(_row("both", "all", faults))
    lines += ["", *_good_lines([one for one in found if one.draw.fault == GOOD]), ""]
    for one in faults:
        if not one.caught_by and not one.harmless:
            lines.append(
                f"- missed: {one.draw.model}, {one.draw.fault}, draw {one.draw.number}: {one.words}: {one.figures}"
            )
    return "\n".join(lines)


def _row(model: str, fault: str, found: Sequence[Found]) -> str:
    caught = [one for one in found if one.caught_by]
    harmless = sum(one.harmless and not one.caught_by for one in found)
    harmful = len(found) - harmless
    gates = Counter(gate for one in caught for gate in one.gates)
    by_task = sum(not one.task_passed for one in found)
    cells = (
        model,
        fault,
        len(found),
        f"{len(caught)} ({len(caught) / harmful:.1%})" if harmful else "0",
        harmless,
        harmful - len(caught),
        sum(one.caught_by == "kernel" for one in caught),
        sum(one.caught_by == "pipeline" for one in caught),
        ", ".join(f"{name} {count}" for name, count in gates.most_common()),
        f"{by_task / len(found):.1%}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def _good_lines(found: Sequence[Found]) -> list[str]:
    alarms = [one for one in found if one.caught_by]
    lines = [f"{len(found)} good exports: {len(alarms)} false alarms."]
    return lines + [f"- false alarm: {one.draw.model}, {one.words}: {one.figures}" for one in alarms]


def main() -> None:
    """Run every draw, a process for each core, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--good", type=int, default=100, help="good exports, half of them of each model")
    parser.add_argument("--images", type=int, default=24, help="scenes of a draw")
    parser.add_argument("--crops", type=int, default=8, help="crops of each class of a draw")
    parser.add_argument("--seed", type=int, default=41, help="of the pool that all draws take their images from")
    parser.add_argument("--only", default="", help="faults whose name has this text")
    parser.add_argument("--out", type=Path, help="a file that gets a line of JSON for every draw")
    arguments = parser.parse_args()
    begun = time.perf_counter()
    models = tuple(SOURCES)
    draws = [
        Draw(model, fault, number)
        for number in range(arguments.draws)
        for model in models
        for fault in FAULTS[model]
        if arguments.only in fault
    ]
    draws += [Draw(models[number % 2], GOOD, number // 2) for number in range(arguments.good)]
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        os.environ.setdefault("YOLO_CONFIG_DIR", name)
        settings = Settings(Path(name), arguments.images, arguments.crops)
        make_pool(settings.folder / "pool", **POOL, seed=arguments.seed)
        with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = []
            for one in pool.map(functools.partial(run, settings), draws):
                found.append(one)
                if arguments.out:
                    with arguments.out.open("a") as lines:
                        lines.write(json.dumps(asdict(one)) + "\n")
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{platform.machine()}, {cores} cores, load {load}, {time.perf_counter() - begun:.0f} s\n")
    print(markdown(found))


if __name__ == "__main__":
    main()
