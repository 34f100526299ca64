"""A third of the pills model's work removed, then a short training: what it finds and how fast it is, at each step.

    python -m benchmarks.prune_recovery [--size 640] [--train-images 600] [--epochs 30] [--device auto] [--out FILE]

Channels leave until `--macs` of the multiply-accumulates are left; mAP50-95 is `app.toolkit.coco`'s on images that
neither the model's own training nor this one saw. ONNX Runtime on this machine's CPU, FP32, at 1 and 2 threads, the two
models taking turns. All pictures are drawn from seeds. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "tests" / "assets" / "pills"
TRAIN_SEED, UNSEEN_SEED = 510_000, 920_000
PART_IMAGES = 100

for _name, _value in {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "ORT_DISABLE_TELEMETRY": "1"}.items():
    os.environ.setdefault(_name, _value)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def draw(folder: Path, images: int, seed: int) -> tuple[Path, Path]:
    """COCO annotations and the image folder of that many 640 x 640 px scenes, drawn in parts, each from a seed."""
    sizes = [min(PART_IMAGES, images - first) for first in range(0, images, PART_IMAGES)]

    def part(number: int) -> dict[str, Any]:
        target = folder / f"part{number}"
        options = ["--images", str(sizes[number]), "--size", "640", "--seed", str(seed + number), "--crops-each", "0"]
        subprocess.run([sys.executable, str(ASSETS / "make_pills.py"), str(target), *options], check=True)
        content: dict[str, Any] = json.loads((target / "instances.json").read_text())
        return content

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        parts = list(pool.map(part, range(len(sizes))))
    whole: dict[str, Any] = {"images": [], "annotations": [], "categories": parts[0]["categories"]}
    for number, content in enumerate(parts):
        offset = number * PART_IMAGES
        for image in content["images"]:
            name = f"part{number}/images/{image['file_name']}"
            whole["images"].append({**image, "id": image["id"] + offset, "file_name": name})
        for box in content["annotations"]:
            number_of_box = len(whole["annotations"]) + 1
            whole["annotations"].append({**box, "id": number_of_box, "image_id": box["image_id"] + offset})
    (folder / "instances.json").write_text(json.dumps(whole))
    return folder / "instances.json", folder


def accuracy(network: Any, unseen: Any, size: int) -> dict[str, Any]:
    """mAP of a network in PyTorch, on the CPU."""
    from app.toolkit.coco import evaluate
    from app.toolkit.models.ultralytics import UltralyticsModel
    from app.toolkit.runtimes.torch_runtime import TorchRuntime

    adapter = UltralyticsModel(network)
    specs = adapter.input_specs((size, size), 1)
    with TorchRuntime(adapter.reference_module(), specs, adapter.output_specs()) as runtime:
        return evaluate(adapter, runtime, unseen, input_size=(size, size)).as_dict()


def latencies(networks: dict[str, Any], size: int, threads: int, *, turns: int = 9, calls: int = 20) -> dict[str, Any]:
    """Milliseconds an image of each network in ONNX Runtime, in turns: median turns, and the median of their ratios."""
    import numpy as np

    from app.toolkit.export import onnx_from_torch
    from app.toolkit.models.ultralytics import UltralyticsModel
    from app.toolkit.runtimes.ort_runtime import OrtRuntime

    feed = {"images": np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)}
    seen: dict[str, list[float]] = {name: [] for name in networks}
    with contextlib.ExitStack() as opened:
        runtimes = {}
        for name, network in networks.items():
            model = onnx_from_torch(UltralyticsModel(network), input_size=(size, size))
            runtimes[name] = opened.enter_context(OrtRuntime(model.SerializeToString(), threads=threads))
        for turn in range(turns + 1):
            for name, runtime in runtimes.items():
                milliseconds = _median_ms(partial(runtime.infer, feed), calls)
                if turn:  # the first is the warm-up
                    seen[name].append(milliseconds)
    before, after = seen.values()
    ratios = sorted(b / a for b, a in zip(before, after, strict=True))
    return {
        "threads": threads,
        "before_ms": round(statistics.median(before), 3),
        "after_ms": round(statistics.median(after), 3),
        "faster": round(statistics.median(ratios), 3),
        "faster_range": [round(ratios[0], 3), round(ratios[-1], 3)],
    }


def _median_ms(call: Callable[[], object], calls: int) -> float:
    taken = []
    for _ in range(calls):
        begun = time.perf_counter()
        call()
        taken.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(taken)


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every step, and its figures."""
    from app.toolkit.checkpoint import model_from_checkpoint, open_checkpoint
    from app.toolkit.coco import read_coco
    from app.toolkit.finetuning.data import TrainingData
    from app.toolkit.finetuning.finetune import FinetuneSettings, epoch_line, finetune
    from app.toolkit.pruning.removal import RemovalOptions, remove_channels

    size = arguments.size
    train = read_coco(*draw(folder / "train", arguments.train_images, TRAIN_SEED))
    unseen = read_coco(*draw(folder / "unseen", arguments.unseen_images, UNSEEN_SEED))
    _say(f"drew {arguments.train_images} images to train on and {arguments.unseen_images} to judge by")
    network = model_from_checkpoint(open_checkpoint(ASSETS / "pills_yolov8n.pt")).float().eval()
    found = {"before": accuracy(copy.deepcopy(network), unseen, size)}
    options = RemovalOptions(target={"macs": arguments.macs}, importance=arguments.importance)
    pruned, removal = remove_channels(network, options, input_size=(size, size))
    found["removed"] = accuracy(copy.deepcopy(pruned), unseen, size)
    _say(f"mAP50-95 {found['before']['map50_95']:.4f} before, {found['removed']['map50_95']:.4f} after removing")
    result = finetune(
        pruned,
        TrainingData(train),
        FinetuneSettings(
            epochs=arguments.epochs,
            imgsz=size,
            batch=arguments.batch,
            lr=arguments.lr,
            seed=arguments.seed,
            device=arguments.device,
            validate_every=arguments.validate_every,
        ),
        folder,
        progress=lambda epoch, epochs, metrics: _say(epoch_line(epoch, epochs, metrics)),
    )
    found["recovered"] = accuracy(copy.deepcopy(result.network), unseen, size)
    counts = removal.as_dict()
    pair = {"before": network, "after": result.network}
    return {
        "size": size,
        "device": result.device,
        "epochs": arguments.epochs,
        "batch": result.batch,
        "lr": arguments.lr,
        "train_images": result.train_images,
        "validation_images": result.validation_images,
        "unseen_images": arguments.unseen_images,
        "removal": {key: value for key, value in counts.items() if key != "layers"},
        "accuracy": found,
        "lost": round(found["before"]["map50_95"] - found["recovered"]["map50_95"], 4),
        "latency": [latencies(pair, size, threads) for threads in (1, 2)],
        "training": result.as_dict(),
        "seconds_an_epoch": round(result.seconds / arguments.epochs, 2),
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a table for people."""
    removal, found = report["removal"], report["accuracy"]
    rows = [
        ("MACs", f"{removal['macs_before']:,}", f"{removal['macs_after']:,}", f"{removal['macs_left']:.3f} left"),
        (
            "parameters",
            f"{removal['params_before']:,}",
            f"{removal['params_after']:,}",
            f"{removal['params_left']:.3f}",
        ),
    ]
    for key in ("map50_95", "map50"):
        before, removed, recovered = (found[step][key] for step in ("before", "removed", "recovered"))
        rows.append((key, f"{before:.4f}", f"{recovered:.4f}", f"{removed:.4f} before the training"))
    for entry in report["latency"]:
        spread = " to ".join(f"{ratio:.2f}" for ratio in entry["faster_range"])
        last = f"{entry['faster']:.2f}x as fast ({spread})"
        rows.append((f"ms, {entry['threads']} thread(s)", str(entry["before_ms"]), str(entry["after_ms"]), last))
    head = (
        f"Pills YOLOv8n at {report['size']} px, {report['epochs']} epochs on {report['train_images']} images, "
        f"{report['device']}, {report['training']['seconds']:.0f} s; judged on {report['unseen_images']} unseen images."
    )
    table = ["| | before | after | |", "|---|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join([head, "", *table])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Print the report as JSON and as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=320, choices=(320, 640))
    parser.add_argument("--train-images", type=int, default=300)
    parser.add_argument("--unseen-images", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, help="by itself if it is left out")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--macs", type=float, default=0.66, help="what part of the multiply-accumulates may be left")
    parser.add_argument("--importance", default="l2", choices=("l1", "l2"))
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate-every", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file for the JSON as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.environ.setdefault("YOLO_CONFIG_DIR", folder)
        report = run(arguments, Path(folder))
    text = json.dumps(report, indent=1)
    if arguments.out:
        arguments.out.write_text(text)
    print(text)
    print()
    print(markdown(report))


if __name__ == "__main__":
    main()
