"""Do the GPU runners' figures agree with a loop that anyone would write, on the same machine in the same run?

    python -m benchmarks.benchmark_by_hand [yolov8n yolo11m] [--batch-sizes 1 16] [--ways torch_fp32]

By hand: Ultralytics' own network with random weights, fused, in either memory layout, images that stay on the GPU, CUDA
events around one call, the median of 100 after 20 that do not count. Ours: the job's runner of the same way and its
`compute` part. In turns; TF32 is off and cuDNN searches its algorithms on both sides. Needs a CUDA GPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

for _name, _value in {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}.items():
    os.environ.setdefault(_name, _value)

import numpy as np  # noqa: E402 - libraries read their environment when loaded
import torch  # noqa: E402
from ultralytics import YOLO  # noqa: E402

from app.toolkit.benchmark.request import BenchmarkRequest, Way  # noqa: E402
from app.toolkit.benchmark.runners import open_runner  # noqa: E402
from app.toolkit.benchmark.source import Source, open_source  # noqa: E402
from app.toolkit.benchmark.torch_runners import TORCH_WAYS  # noqa: E402
from benchmarks.verify_table import random_yolo  # noqa: E402

WAYS: tuple[Way, ...] = ("torch_fp32", "torch_fp16", "torch_fp16_graph", "torch_fp16_compile_graph")
LAYOUTS = (torch.contiguous_format, torch.channels_last)
WARM_UP, CALLS = 20, 100


def by_hand(checkpoint: Path, way: Way, images: torch.Tensor, layout: torch.memory_format) -> Callable[[], object]:
    """One call of the network on images that lie on the GPU."""
    how = TORCH_WAYS[way]
    dtype = torch.float16 if how.half else torch.float32
    network = YOLO(checkpoint).model.fuse(verbose=False).eval().cuda().to(dtype).to(memory_format=layout)
    images = images.cuda().to(dtype=dtype, memory_format=layout)
    torch.compiler.reset()
    run = torch.compile(network) if how.compiled else network
    if not how.graph:
        return lambda: run(images)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(images)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run(images)
    held = run, images  # the graph has their addresses only

    def replay(_held: object = held) -> None:
        graph.replay()

    return replay


def median_ms(call: Callable[[], object]) -> float:
    """By CUDA events, each call begun on an idle GPU."""
    times_ms = []
    for _ in range(WARM_UP + CALLS):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        begun.record()
        call()
        ended.record()
        ended.synchronize()
        times_ms.append(begun.elapsed_time(ended))
    return float(statistics.median(times_ms[WARM_UP:]))


def row(source: Source, request: BenchmarkRequest, way: Way, batch_size: int, rounds: int) -> str:
    """Of the table: the medians, and the ratio to the faster of both layouts by hand in each round."""
    shape = (batch_size, 3, *source.input_size)
    feeds = [{"images": np.random.default_rng(seed).random(shape, np.float32)} for seed in range(8)]
    images = torch.from_numpy(feeds[0]["images"])
    ours, theirs = [], []
    with open_runner(way, source, request, batch_size) as runner, torch.inference_mode():
        timer = runner.timers(feeds)["compute"]
        calls = [by_hand(request.model, way, images, layout) for layout in LAYOUTS]
        for _ in range(rounds):
            theirs.append([median_ms(call) for call in calls])
            times_ms = [timer(number) for number in range(WARM_UP + CALLS)]
            ours.append(statistics.median(times_ms[WARM_UP:]))
    ratios = [one / min(others) for one, others in zip(ours, theirs, strict=True)]
    medians = [statistics.median(values) for values in (ours, *zip(*theirs, strict=True), ratios)]
    cells = [*(f"{value:.3f}" for value in medians[:-1]), f"{medians[-1]:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"]
    return f"| {request.model.stem} | {way} | {batch_size} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["yolov8n"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU here: nothing to compare")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name(0)}\n")
    print(
        "| model | way | batch | ours, ms | by hand, ms | ratio (least to most) |",
        "|---|---|---|---|---|---|",
        sep="\n",
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            checkpoint = random_yolo(Path(folder) / f"{name}.pt", name)
            request = BenchmarkRequest(checkpoint, Path(folder), device="cuda", trusted=True)
            source = open_source(request)
            for batch_size in arguments.batch_sizes:
                for way in arguments.ways:
                    print(row(source, request, way, batch_size, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
