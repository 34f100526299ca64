"""S4's numbers of what this service exports, by its own `verify`, on images that no training saw.

    python -m benchmarks.verify_table

The pills detector and the pills classifier, FP32 and FP16 against their checkpoints, on every image and label, with the
limits beside. Then two networks of S4's size with random weights (nothing trained is at hand): EfficientNetV2-S and
YOLO11m, of which only the raw answers can be compared. S4's strictest figure, 1e-6, is a mean squared error; for a
detector it is given of its boxes, in px, and of its scores.

Both sides prepare an image alike here, so kernel parity and pipeline parity are one, and are told once.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from ultralytics.nn.tasks import DetectionModel

from app.toolkit.pipeline import Precision, export_and_prove
from app.toolkit.verification.facts import ReportFacts
from app.toolkit.verification.pipeline import verify
from app.toolkit.verification.request import Mode, Sampling, VerifyRequest
from app.toolkit.verification.result import Gate

PILLS = Path(__file__).resolve().parents[1] / "tests" / "assets" / "pills"
SEED = 8_888
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
GOALS = {"mse_mean": 1e-6, "top1_mismatch_rate": 1e-3}
"""What S4's heading and its end ask of a plain FP32 export, beyond the limits that fail one."""

CLASSES = 5000  # S4 E-3's example


def draw(folder: Path, scenes: int, crops_each: int) -> None:
    """Scenes with COCO annotations, and crops in folders by class."""
    command = [sys.executable, str(PILLS / "make_pills.py"), str(folder), "--images", str(scenes), "--size", "640"]
    subprocess.run([*command, "--seed", str(SEED), "--crops-each", str(crops_each)], check=True, capture_output=True)


def random_efficientnet(target: Path) -> Path:
    """A checkpoint as timm's users write it."""
    torch.manual_seed(0)
    name = "tf_efficientnetv2_s"
    network = timm.create_model(name, pretrained=False, num_classes=CLASSES)
    words = {"backbone": name, "num_classes": CLASSES, "input_size": [384, 384], "state_dict": network.state_dict()}
    torch.save(words, target)
    return target


def random_yolo(target: Path, name: str = "yolo11m") -> Path:
    """A checkpoint as Ultralytics writes it, but in float32."""
    torch.manual_seed(0)
    network = DetectionModel(f"{name}.yaml", verbose=False)
    torch.save({"model": network, "ema": None, "train_args": {}, "version": "8.4.190"}, target)
    return target


def compare(
    source: Path, precision: Precision, images: Path, folder: Path, *, annotations: Path | None, mode: Mode
) -> ReportFacts:
    """Export and verify."""
    candidate = folder / f"{source.stem}_{precision}.onnx"
    export_and_prove(source, candidate, precision=precision, dynamic=True)
    request = VerifyRequest(
        reference=source,
        candidate=candidate,
        images=images,
        folder=folder,
        annotations=annotations,
        sampling=Sampling(mode=mode),
    )
    with contextlib.redirect_stdout(sys.stderr):  # what took effect is told there, the tables here
        return verify(request)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for row in rows:
        print("| " + " | ".join(shown(cell) for cell in row) + " |", flush=True)
    print()


def shown(value: Any) -> str:
    """Four digits of a number, also of those of an interval; nothing of None."""
    if isinstance(value, tuple):
        return " to ".join(shown(one) for one in value)
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def gates_table(title: str, found: Mapping[Precision, ReportFacts]) -> None:
    """What is judged, of each precision, beside its limit."""
    first = found[PRECISIONS[0]]
    print(f"### {title}, {first.sampled_images} images, mode {first.sampling.mode}\n")
    columns = ["", *(cell for one in PRECISIONS for cell in (one.upper(), "limit", "")), "goal of FP32"]
    names = [gate.name for gate in first.kernel.gates]
    gates = {one: {gate.name: gate for gate in found[one].kernel.gates} for one in PRECISIONS}
    rows = [[name, *(cell for one in PRECISIONS for cell in told(gates[one][name])), GOALS.get(name)] for name in names]
    table(columns, rows)


def told(gate: Gate) -> tuple[float | None, float, str]:
    """A gate's cells."""
    return gate.measured, gate.limit, gate.verdict


def figures_table(found: Mapping[Precision, ReportFacts]) -> None:
    """What is told beside: every plain figure, and how many are listed."""
    figures = {one: found[one].kernel.figures.as_dict() for one in PRECISIONS}
    parity = {one: found[one].kernel_parity for one in PRECISIONS}
    rows: list[list[Any]] = []
    for name, value in figures[PRECISIONS[0]].items():
        if isinstance(value, (list, tuple)) and name != "mismatch_interval":
            rows.append([f"{name}, listed", *(len(figures[one][name]) for one in PRECISIONS)])
        else:
            rows.append([name, *(figures[one][name] for one in PRECISIONS)])
    raw = [name for name, value in parity[PRECISIONS[0]].items() if "max_abs" in name and value is not None]
    rows += [[f"raw {name}", *(parity[one][name] for one in PRECISIONS)] for name in raw]
    rows.append(["breaches of smoke's kernel limits", *(len(parity[one]["failures"]) for one in PRECISIONS)])
    table(["", *(one.upper() for one in PRECISIONS)], rows)


def raw_rows(name: str, facts: ReportFacts) -> list[list[Any]]:
    """A row for each part of the raw answers: the largest of all images, and the mean of their MSEs."""
    rows = []
    for part in facts.kernel_parity["units"]:
        found = [one["parts"][part] for one in facts.kernel_parity["inputs"]]
        mses = [one["mse"] for one in found]
        row = [name, part, len(found), sum(mses) / len(mses), max(mses)]
        row += [max(one[key] for one in found) for key in ("max_abs", "reference_max_abs")]
        rows.append([*row, "yes" if max(mses) <= 1e-6 else "no"])
    return rows


def raw_table(folder: Path, data: Path, pills: Mapping[str, ReportFacts]) -> None:
    """Raw answers, FP32, against S4's 1e-6."""
    rows = [row for name, facts in pills.items() for row in raw_rows(name, facts)]
    for name, source in (
        ("EfficientNetV2-S, random weights", random_efficientnet(folder / "efficientnetv2_s.pt")),
        ("YOLO11m, random weights", random_yolo(folder / "yolo11m.pt")),
    ):
        rows += raw_rows(name, compare(source, "fp32", data / "images", folder, annotations=None, mode="smoke"))
    print("### Raw answers on the same tensors, FP32 against torch\n")
    columns = ["", "answers", "images", "MSE, mean", "MSE, worst image", "largest difference", "largest value"]
    table([*columns, "MSE <= 1e-6"], rows)


def main() -> None:
    """Draw, export, verify, print."""
    parser = argparse.ArgumentParser(description="S4's numbers of the exports")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--crops-each", type=int, default=50, help="crops of each of the twelve pills")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, data = Path(temporary), Path(temporary) / "data"
        draw(data, arguments.scenes, arguments.crops_each)
        plain = {}
        for title, source, images, labels in (
            ("Pills detector (YOLOv8n)", PILLS / "pills_yolov8n.pt", data / "images", data / "instances.json"),
            ("Pills classifier (MobileNetV3)", PILLS / "pills_classifier.pt", data / "crops", None),
        ):
            found = {one: compare(source, one, images, folder, annotations=labels, mode="full") for one in PRECISIONS}
            gates_table(title, found)
            figures_table(found)
            plain[title] = found["fp32"]
        raw_table(folder, data, plain)


if __name__ == "__main__":
    main()
