"""The benchmark job's tables for the pills models, and whether they repeat.

    python -m benchmarks.benchmark_table [--model detector] [--runs 3] [--batch-sizes 1 2] [--scenes 100] [--out FOLDER]

Every way is asked for; INT8 is calibrated on other images than those that accuracy is measured on. The last table has
each row's p50 of every run, and how far the largest is from the least: rows without a headline say so, they claim none.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

for _name, _value in {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "ORT_DISABLE_TELEMETRY": "1"}.items():
    os.environ.setdefault(_name, _value)

from app.toolkit.benchmark.pipeline import benchmark  # noqa: E402 - libraries read their environment when loaded
from app.toolkit.benchmark.request import BenchmarkRequest  # noqa: E402
from app.toolkit.benchmark.result import BenchmarkResult  # noqa: E402
from app.toolkit.benchmark.tables import benchmark_markdown  # noqa: E402
from app.toolkit.benchmark.writing import write_benchmark  # noqa: E402

PILLS = Path(__file__).resolve().parents[1] / "tests" / "assets" / "pills"
CHECKPOINTS = {"detector": PILLS / "pills_yolov8n.pt", "classifier": PILLS / "pills_classifier.pt"}
SEEDS = {"measured": 6_001, "calibration": 6_002}


def draw(folder: Path, scenes: int, seed: int) -> Path:
    """Scenes with COCO annotations, and crops of each of the 12 classes."""
    counts = ["--images", str(scenes), "--size", "640", "--crops-each", "20", "--seed", str(seed)]
    subprocess.run([sys.executable, str(PILLS / "make_pills.py"), str(folder), *counts], check=True)
    return folder


def request_of(model: str, folder: Path, batch_sizes: Sequence[int], threads: int) -> BenchmarkRequest:
    """As the job makes it."""
    measured, calibration = folder / "measured", folder / "calibration"
    is_detector = model == "detector"
    return BenchmarkRequest(
        CHECKPOINTS[model],
        folder,
        batch_sizes=tuple(batch_sizes),
        images=measured / ("images" if is_detector else "crops"),
        annotations=measured / "instances.json" if is_detector else None,
        calibration=calibration / ("images" if is_detector else "crops"),
        threads=threads,
    )


def repeated(results: Sequence[BenchmarkResult]) -> str:
    """The table of all runs."""
    lines = [
        "| way | batch | p50 of each run, ms | with a headline | largest / least |",
        "|---|---|---|---|---|",
    ]
    for rows in zip(*(result.rows for result in results), strict=True):
        if not all(row.parts for row in rows):
            continue
        values = [row.parts["end_to_end"].p50_ms for row in rows]
        claimed = sum(row.headline_ms is not None for row in rows)
        shown = ", ".join(f"{value:.4g}" for value in values)
        spread = max(values) / min(values)
        lines.append(f"| {rows[0].way} | {rows[0].batch_size} | {shown} | {claimed} of {len(rows)} | {spread:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Print the first run's tables and the table of all runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(CHECKPOINTS), action="append")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--out", type=Path, help="a folder that gets each run's files")
    arguments = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, seed in SEEDS.items():
            draw(folder / part, arguments.scenes, seed)
        for model in arguments.model or CHECKPOINTS:
            results = []
            for run in range(arguments.runs):
                results.append(benchmark(request_of(model, folder, arguments.batch_sizes, threads)))
                if arguments.out:
                    kept = arguments.out / f"{model}_{run}"
                    kept.mkdir(parents=True, exist_ok=True)
                    write_benchmark(results[-1], kept)
            print(benchmark_markdown(results[0]), repeated(results), sep="\n", flush=True)


if __name__ == "__main__":
    main()
