"""Do the benchmark job's figures agree with what others measure on the same files and images?

    python -m benchmarks.benchmark_outsiders [--scenes 100] [--rounds 6]

- latency: the `onnxruntime` way, timed as the job times it, and `InferenceSession.run` in a bare loop around
  `time.perf_counter`, as `onnxruntime_perf_test` does: same file, same threads, in turns. Medians of each, their ratio.
- mAP: the job's figure, and pycocotools' of the predictions that Ultralytics' own `val(rect=False, save_json=True)`
  wrote for the same checkpoint and images, its class numbers mapped to the annotations' category ids. Ultralytics' own
  mAP stands beside: it interpolates the curve otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

for _name, _value in {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "ORT_DISABLE_TELEMETRY": "1"}.items():
    os.environ.setdefault(_name, _value)

import onnxruntime as ort  # noqa: E402 - these libraries read their environment when they are loaded
from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402
from ultralytics import YOLO  # noqa: E402

from app.toolkit.benchmark.pipeline import benchmark  # noqa: E402
from app.toolkit.benchmark.request import BenchmarkRequest  # noqa: E402
from app.toolkit.benchmark.runners import open_runner  # noqa: E402
from app.toolkit.benchmark.source import open_source  # noqa: E402
from app.toolkit.images import read_image  # noqa: E402
from app.toolkit.latency import LatencySettings, sample_latency  # noqa: E402
from app.toolkit.pipeline import export_and_prove  # noqa: E402

PILLS = Path(__file__).resolve().parents[1] / "tests" / "assets" / "pills"
SEED = 7_777
SHORT = LatencySettings(min_window_ms=300, max_windows=4, max_seconds=10)
SECONDS = 1.0


def latency(folder: Path, images: Path, checkpoint: Path, rounds: int, threads: int) -> str:
    """A row of the first table."""
    file = export_and_prove(checkpoint, folder / f"{checkpoint.stem}.onnx").path
    request = BenchmarkRequest(file, folder, ways=("onnxruntime",), threads=threads)
    source = open_source(request)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    bare = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = bare.get_inputs()[0].name
    paths = sorted(images.iterdir())[:8]
    feeds = [{name: source.model.preprocess(read_image(path), source.input_size)[0]} for path in paths]
    ours, theirs = [], []
    with open_runner("onnxruntime", source, request, 1) as runner:
        timer = runner.timers(feeds)["end_to_end"]
        for _ in range(rounds):
            ours.append(sample_latency(timer, settings=SHORT).p50_ms)
            theirs.append(_bare_ms(bare, feeds))
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    cells = [f"{statistics.median(values):.3f}" for values in (ours, theirs, ratios)]
    return f"| {checkpoint.stem} | {' | '.join(cells)} | {min(ratios):.3f} to {max(ratios):.3f} |"


def _bare_ms(session: Any, feeds: list[dict[str, Any]]) -> float:
    """The median of the calls of a second."""
    times_ms: list[float] = []
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        feed = feeds[len(times_ms) % len(feeds)]
        begun = time.perf_counter()
        session.run(None, feed)
        times_ms.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times_ms)


def accuracy(folder: Path, scenes: Path, threads: int) -> list[str]:
    """The rows of the second table."""
    checkpoint, annotations = PILLS / "pills_yolov8n.pt", scenes / "instances.json"
    request = BenchmarkRequest(
        checkpoint,
        folder,
        ways=("torch_fp32", "onnxruntime"),
        batch_sizes=(1,),
        images=scenes / "images",
        annotations=annotations,
        settings=SHORT,
        threads=threads,
    )
    found = benchmark(request).accuracy
    rows = [f"| ours, {way} | {one.map50:.5f} | {one.map50_95:.5f} |" for way, one in found.items()]
    predictions, own = _validated(folder, scenes, checkpoint)
    map50, map50_95 = _pycocotools(predictions, annotations)
    rows.append(f"| pycocotools on Ultralytics' predictions | {map50:.5f} | {map50_95:.5f} |")
    return [*rows, f"| Ultralytics' own | {own[0]:.5f} | {own[1]:.5f} |"]


def _validated(folder: Path, scenes: Path, checkpoint: Path) -> tuple[list[dict[str, Any]], tuple[float, float]]:
    """Ultralytics' predictions with the annotations' ids, and its (mAP50, mAP50-95)."""
    content = json.loads((scenes / "instances.json").read_text())
    network = YOLO(checkpoint)
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = network.val(
            data=str(scenes / "pills.yaml"), rect=False, save_json=True, imgsz=640, batch=8, device="cpu", workers=0,
            plots=False, verbose=False, project=str(folder), name="val",
        )  # fmt: skip
    written = json.loads((Path(metrics.save_dir) / "predictions.json").read_text())
    image_ids = {Path(one["file_name"]).stem: one["id"] for one in content["images"]}
    category_ids = {one["name"]: one["id"] for one in content["categories"]}
    predictions = [
        {
            **one,
            "image_id": image_ids[one["file_name"].rsplit(".", 1)[0]],
            "category_id": category_ids[
                network.names[one["category_id"] - 1]
            ],  # it writes the classes of own data from 1
        }
        for one in written
    ]
    return predictions, (float(metrics.box.map50), float(metrics.box.map))


def _pycocotools(predictions: list[dict[str, Any]], annotations: Path) -> tuple[float, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluator = COCOeval(truth, truth.loadRes(predictions), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return float(evaluator.stats[1]), float(evaluator.stats[0])


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, scenes = Path(name) / "work", Path(name) / "scenes"
        folder.mkdir()
        counts = ["--images", str(arguments.scenes), "--size", "640", "--seed", str(SEED)]
        subprocess.run([sys.executable, str(PILLS / "make_pills.py"), str(scenes), *counts], check=True)
        print(f"{platform.machine()}, {arguments.threads} threads, load {os.getloadavg()[0]:.1f}\n")
        print("| model | ours, p50 ms | bare loop, p50 ms | ratio | over the rounds |\n|---|---|---|---|---|")
        for model in ("pills_yolov8n", "pills_classifier"):
            checkpoint = PILLS / f"{model}.pt"
            print(latency(folder, scenes / "images", checkpoint, arguments.rounds, arguments.threads), flush=True)
        print("\n| mAP of | 0.5 | 0.5:0.95 |\n|---|---|---|")
        print("\n".join(accuracy(folder, scenes, arguments.threads)))


if __name__ == "__main__":
    main()
