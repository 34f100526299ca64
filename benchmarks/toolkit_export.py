"""A proven FP32 export in a fresh child of a warm fork server, against `yolo export` from a shell.

    python -m benchmarks.toolkit_export [--runs 7]

Both export the same YOLOv8n at 640 with opset 17, simplified; in turn, in one run; medians. Ours includes the proof on
one random and two real inputs. What the service adds (HTTP, staging, storing) is in `export_vs_yolo`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks._service import PILLS
from benchmarks.export_vs_yolo import yolo_seconds

WARM = "benchmarks.toolkit_preload"


def _child(source: str, target: str, results: Connection) -> None:
    from app.toolkit.pipeline import export_and_prove

    results.send(export_and_prove(source, target).seconds)


def ours(context: multiprocessing.context.BaseContext, folder: Path) -> tuple[float, dict[str, float]]:
    """Seconds from the request for a child to its end, and by phase."""
    receiver, sender = context.Pipe(duplex=False)
    begun = time.perf_counter()
    child = context.Process(target=_child, args=(str(PILLS), str(folder / "ours.onnx"), sender))  # type: ignore[attr-defined]
    child.start()
    sender.close()
    seconds: dict[str, float] = receiver.recv()
    child.join()
    return time.perf_counter() - begun, seconds


def main() -> None:
    """Alternate the two and print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([WARM])
    own: list[float] = []
    shell: list[float] = []
    phases: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        ours(context, Path(name))  # starts the fork server
        yolo_seconds(Path(name))
        for _ in range(runs):
            shell.append(yolo_seconds(Path(name)))
            seconds, by_phase = ours(context, Path(name))
            own.append(seconds)
            for phase, value in by_phase.items():
                phases.setdefault(phase, []).append(value)
    ratios = [a / b for a, b in zip(own, shell, strict=True)]
    print(f"{len(os.sched_getaffinity(0))} cores, {runs} runs of each in turn, medians (lowest to highest)")
    print(f"child, proof included  {statistics.median(own):.2f} s  ({min(own):.2f} to {max(own):.2f})")
    print(f"yolo export, shell     {statistics.median(shell):.2f} s  ({min(shell):.2f} to {max(shell):.2f})")
    print(f"ratio                  {statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")
    print("phases                 " + ", ".join(f"{k} {statistics.median(v):.3f} s" for k, v in phases.items()))


if __name__ == "__main__":
    main()
