"""POST to completed for `pt_to_onnx_fp32`, proof and artifacts included, against `yolo export` from a shell.

    python -m benchmarks.export_vs_yolo [--runs 7]

Both export the same YOLOv8n at 640 with opset 17, simplified; in turn, in one run. The goal is at most 0.5 x.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._service import PILLS, finish, machine, service, submit, upload


def yolo_seconds(folder: Path) -> float:
    shutil.copy(PILLS, folder / "best.pt")
    yolo = Path(sys.executable).with_name("yolo")
    command = [str(yolo), "export", "model=best.pt", "format=onnx", "imgsz=640", "opset=17"]
    environment = {**os.environ, "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    ours, theirs, phases = [], [], {}
    with service() as (client, _, _), tempfile.TemporaryDirectory() as folder:
        key = upload(client, PILLS, "best.pt")
        for turn in range(runs + 1):
            theirs.append(yolo_seconds(Path(folder)))
            began = time.perf_counter()
            parameters = {"kind": "pt_to_onnx", "input_path": key, "input_size": [640, 640]}
            record = finish(client, submit(client, "pt_to_onnx_fp32", parameters, force=True))
            ours.append(time.perf_counter() - began)
            if record["status"] != "completed":
                raise SystemExit(record["error"])
            for name, seconds in record["metrics"]["onnx"]["phase_seconds"].items():
                phases.setdefault(name, []).append(seconds)
            if turn == 0:  # a warm-up of both
                ours.clear(), theirs.clear(), phases.clear()
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"{machine()}; {runs} runs of each, in turn; medians")
    print(f"POST to completed   {statistics.median(ours):.2f} s  ({min(ours):.2f} to {max(ours):.2f})")
    print(f"yolo export, shell  {statistics.median(theirs):.2f} s  ({min(theirs):.2f} to {max(theirs):.2f})")
    print(f"ratio               {statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f}), goal 0.50")
    print("phases in the child " + ", ".join(f"{name} {statistics.median(s):.2f} s" for name, s in phases.items()))


if __name__ == "__main__":
    main()
