"""The benchmark job's tables for networks of full size with random weights: their speed is that of trained ones.

    python -m benchmarks.benchmark_random [yolov8n] [--device cuda] [--batch-sizes 1 2 4 8 16] [--ways all] [--out DIR]

The model is yolov8n, yolo11m, any other of Ultralytics' names, or dfine (D-FINE L by transformers' configuration).
`--out` keeps the job's files: `benchmark.json`, `.md`, `.html` and the pictures.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

for _name, _value in {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ.setdefault(_name, _value)

from app.toolkit.benchmark.pipeline import benchmark  # noqa: E402 - libraries read their environment when loaded
from app.toolkit.benchmark.request import WAYS, BenchmarkRequest  # noqa: E402
from app.toolkit.benchmark.tables import benchmark_markdown  # noqa: E402
from app.toolkit.benchmark.writing import write_benchmark  # noqa: E402
from benchmarks.verify_table import random_yolo  # noqa: E402
from tests.toolkit.dfines import save_full_size  # noqa: E402


def main() -> None:
    """Make the checkpoint, run the job's own code, print its Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="yolov8n")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--ways", nargs="+", choices=("all", *WAYS), default=["all"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = folder / arguments.model
        if arguments.model == "dfine":
            save_full_size(checkpoint)
        else:
            checkpoint = random_yolo(folder / f"{arguments.model}.pt", arguments.model)
        request = BenchmarkRequest(
            checkpoint,
            folder,
            ways=WAYS if "all" in arguments.ways else tuple(arguments.ways),
            batch_sizes=tuple(arguments.batch_sizes),
            device=arguments.device,
            threads=len(os.sched_getaffinity(0)),
            trusted=True,
        )
        result = benchmark(request, lambda phase, part: print(f"{part:.0%} {phase}", flush=True))
        print(benchmark_markdown(result))
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            write_benchmark(result, arguments.out)


if __name__ == "__main__":
    main()
