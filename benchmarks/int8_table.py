"""INT8 of the pills model (YOLOv8n at 640 x 640): accuracy, size, speed here and memory, of every method and target.

    python -m benchmarks.int8_table

Calibration on 100 drawn scenes, mAP by faster-coco-eval on 200 others with labels, latency in ONNX Runtime against FP32
in turns (the brackets hold the least and the most of the rounds). Each row runs in a process of its own, whose peak
resident memory and time are in the row. The last rows calibrate on random noise and on grey: S1's comparison.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from app.toolkit.coco import read_coco
from app.toolkit.export import onnx_from_torch
from app.toolkit.models.open_model import open_model
from app.toolkit.quantization.pipeline import quantize
from app.toolkit.quantization.request import QuantizationRequest
from app.toolkit.race import RaceSettings

PILLS = Path(__file__).resolve().parents[1] / "tests" / "assets" / "pills"
SIZE = (640, 640)
IMAGES = 100
HELD_OUT = 200
ROWS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    *((f"{target}, {method}", "scenes", {"target": target, "method": method})
      for target in ("tensorrt", "onnxruntime-cpu")
      for method in ("minmax", "entropy", "percentile")),
    ("dynamic", "scenes", {"mode": "dynamic"}),
    *((f"{target}, minmax, {folder}", folder, {"target": target})
      for target in ("tensorrt", "onnxruntime-cpu")
      for folder in ("noise", "grey")),
)  # fmt: skip


def draw(folder: Path, picture: Callable[[int], np.ndarray[Any, Any]]) -> None:
    """IMAGES pictures made by a function."""
    (folder / "images").mkdir(parents=True)
    for index in range(IMAGES):
        cv2.imwrite(str(folder / "images" / f"{index:03}.png"), picture(index))


def prepare(folder: Path) -> None:
    """The model and the four folders of images."""
    model = onnx_from_torch(open_model(PILLS / "pills_yolov8n.pt"), input_size=SIZE)
    (folder / "best.onnx").write_bytes(model.SerializeToString())
    for name, count, seed in (("scenes", IMAGES, 11), ("held_out", HELD_OUT, 12)):
        command = [sys.executable, str(PILLS / "make_pills.py"), str(folder / name), "--images", str(count)]
        subprocess.run([*command, "--size", "640", "--seed", str(seed)], check=True, capture_output=True)
    noise = np.random.default_rng(0)
    draw(folder / "noise", lambda _: noise.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    draw(folder / "grey", lambda index: np.full((*SIZE, 3), 100 + index // 10, dtype=np.uint8))


def run_row(folder: Path, images: str, changes: Mapping[str, Any]) -> None:
    """One quantisation in this process; prints its figures as JSON."""
    data = read_coco(folder / "held_out" / "instances.json", folder / "held_out" / "images")
    begun = time.perf_counter()
    request = QuantizationRequest(
        folder / "best.onnx",
        folder / "result.onnx",
        images=folder / images / "images",
        num_samples=IMAGES,
        data=data,
        threads=2,
        race=RaceSettings(rounds=6, calls=8),
        **changes,
    )
    result = quantize(request)
    document = result.as_dict()
    document["seconds"] = time.perf_counter() - begun
    document["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(document))


def line(label: str, document: Mapping[str, Any]) -> str:
    """A row of the table."""
    accuracy, lint = document["accuracy"], document["lint"]
    cells = [
        f"{one['speedup']:.2f}x [{one['speedup_low']:.2f}, {one['speedup_high']:.2f}]" for one in document["latency"]
    ]
    refused = [release for release, clean in lint["clean"].items() if not clean]
    warnings = "; ".join(document["warnings"]) or "none"
    return (
        f"| {label} | {accuracy['map50_after']:.4f} | {accuracy['after']:.4f} | {accuracy['drop']:+.4f}"
        f" | {document['after']['size_mb']:g} | {' | '.join(cells)} | {document['peak_mib']:.0f}"
        f" | {document['quantization']['seconds'].get('calibrate', 0):.0f}"
        f" | {'refused by ' + ', '.join(refused) if refused else 'clean'} | {warnings} |"
    )


def table(folder: Path, only: str) -> None:
    """Every row in a process of its own, after one of FP32."""
    prepare(folder)
    columns = ("", "mAP50", "mAP50-95", "drop", "MB", "against FP32, 1 thread", "2 threads", "peak MiB")
    columns += ("calibration s", "lint", "warnings")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for number, (label, images, changes) in enumerate(row for row in ROWS if only in row[0]):
        command = [sys.executable, "-m", "benchmarks.int8_table", "--row", str(folder), images, json.dumps(changes)]
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        document = json.loads(ran.stdout.splitlines()[-1])
        if number == 0:
            accuracy, size = document["accuracy"], document["before"]["size_mb"]
            print(f"| FP32 | {accuracy['map50_before']:.4f} | {accuracy['before']:.4f} | | {size:g} |")
        print(line(label, document), flush=True)


def main() -> None:
    """Print the table as it grows; `--row` is how the program calls itself."""
    parser = argparse.ArgumentParser(description="INT8 of the pills model")
    parser.add_argument("--row", nargs=3, metavar=("FOLDER", "IMAGES", "CHANGES"), help="used by the program itself")
    parser.add_argument("--only", default="", help="rows whose label holds this text")
    arguments = parser.parse_args()
    if arguments.row:
        run_row(Path(arguments.row[0]), arguments.row[1], json.loads(arguments.row[2]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        table(Path(temporary), arguments.only)


if __name__ == "__main__":
    main()
