"""What removing channels brings on this machine: parameters, MACs, ONNX Runtime latency, and the proof of each export.

    python -m benchmarks.prune_table

Latency is of FP32 exports at 640 x 640 in ONNX Runtime, the unpruned and the pruned model taking turns; the brackets
hold the least and the most of the rounds. The weights of all but the pills model are random, which changes neither the
widths nor the times. The second table is S2's model (YOLOv8n with 7 classes) with only its C2f blocks pruned, the third
the same MACs in steps of other widths.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from app.toolkit.checkpoint import open_checkpoint
from app.toolkit.pipeline import export_and_prove
from app.toolkit.pruning.measuring import graph_of
from app.toolkit.pruning.removal import RemovalOptions, RemovalReport, remove_channels
from app.toolkit.pruning.saving import network_to_prune, save_checkpoint
from app.toolkit.race import Race, RaceSettings, race

PILLS = Path(__file__).resolve().parents[1] / "tests" / "assets" / "pills" / "pills_yolov8n.pt"
SIZE = (640, 640)
RATIOS = (0.1, 0.3, 0.5)
SETTINGS = RaceSettings(rounds=5, calls=5)
S2_BEFORE, S2_AFTER = 3_012_213, 2_870_413
BOTTLENECKS = ("model.*.m.*.cv1",)  # of the C2f blocks, what may narrow without a change of what a block makes
C2F_BLOCKS = tuple(f"model.{index}" for index in (2, 4, 6, 8, 12, 15, 18, 21))


def untrained(name: str, folder: Path, **changes: Any) -> Path:
    """A checkpoint of random weights, as Ultralytics saves them."""
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    path = folder / f"{name}-{len(changes)}.pt"
    network = DetectionModel(f"{name}.yaml", verbose=False, **changes)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # left at 1 and 0, the signal dies out and the proof proves little
            torch.nn.init.uniform_(module.weight, 1.0, 3.0)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    torch.save({"model": network.half(), "train_args": {}}, path)
    return path


def pruned(source: Path, folder: Path, options: Mapping[str, Any]) -> tuple[Path, RemovalReport]:
    """The checkpoint with channels removed, and what was."""
    checkpoint = open_checkpoint(source)
    network, report = remove_channels(network_to_prune(checkpoint), RemovalOptions(**options), input_size=SIZE)
    path = folder / "pruned.pt"
    save_checkpoint(checkpoint, network, path, report.as_dict())
    return path, report


def cell(one: Race) -> str:
    """One race in a table's cell."""
    return (
        f"{one.before_ms:.1f} to {one.after_ms:.1f} ms, {one.speedup:.2f}x "
        f"[{one.speedup_low:.2f}, {one.speedup_high:.2f}]"
    )


def row(label: str, source: Path, folder: Path, options: Mapping[str, Any], how: str) -> str:
    """Prune, prove, race: one line of Markdown."""
    path, report = pruned(source, folder, options)
    proof = export_and_prove(path, folder / "pruned.onnx", input_size=SIZE).parity
    before = graph_of(source, SIZE)
    races = [race(before, folder / "pruned.onnx", threads=count, settings=SETTINGS) for count in (1, 2)]
    figures = report.as_dict()
    return (
        f"| {label} | {how}"
        f" | {figures['params_before']:,} to {figures['params_after']:,} ({figures['params_left']:.3f})"
        f" | {figures['macs_before'] / 1e9:.3f} to {figures['macs_after'] / 1e9:.3f} G ({figures['macs_left']:.3f})"
        f" | {cell(races[0])} | {cell(races[1])}"
        f" | {'passed' if proof['passed'] else 'FAILED'}, {proof['boxes_max_abs_px']:.1e} px |"
    )


def header(first: str) -> str:
    """The two lines above the rows."""
    names = (first, "how", "parameters (left)", "MACs (left)", "1 thread", "2 threads", "proof of the export")
    return "| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|"


def main_table(folder: Path) -> None:
    """Must-show 2 of the issue."""
    models = {
        "YOLOv8n": untrained("yolov8n", folder),
        "YOLOv8s": untrained("yolov8s", folder),
        "YOLO11n": untrained("yolo11n", folder),
        "pills YOLOv8n": PILLS,
    }
    print(header("model"))
    for label, source in models.items():
        for ratio in RATIOS:
            print(row(label, source, folder, {"ratio": ratio}, f"ratio {ratio}"), flush=True)


def s2_table(folder: Path) -> None:
    """S2's pruning, as near as its figures tell it."""
    source = untrained("yolov8n", folder, nc=7)
    fraction = {"params": (S2_AFTER + 5000) / S2_BEFORE}
    ways = {
        "bottlenecks of the C2f blocks": {"include": BOTTLENECKS},
        "C2f blocks whole": {"include": C2F_BLOCKS},
        "all layers": {},
    }
    print(f"\n{header('what may narrow')}")
    for label, options in ways.items():
        best = nearest(source, {**options, "round_to": 1}, fraction["params"])
        _, report = pruned(source, folder, best)
        narrowed = [one for one in report.layers if one.after < one.before]
        made = sum(one.before for one in narrowed)
        share = report.as_dict()["channels_removed"] / made
        how = f"ratio {best['ratio']:.4f}, {len(report.layers)} layers, {share:.1%} of the narrowed layers' channels"
        print(row(label, source, folder, best, how), flush=True)
    print(f"\nS2: {S2_BEFORE:,} to {S2_AFTER:,} (0.953), 20 layers, 14.1 % of channels, 73.4 to 81.2 images/s (1.11x).")


def steps_table(folder: Path) -> None:
    """The same MACs in other steps of width: what `round_to` is for."""
    print(f"\n{header('steps of width')}")
    for round_to in (1, 4, 8, 16):
        options = {"target": {"macs": 0.7}, "round_to": round_to, "scope": "global"}
        print(row("pills YOLOv8n", PILLS, folder, options, f"macs 0.7, global, round_to {round_to}"), flush=True)


def nearest(source: Path, options: Mapping[str, Any], fraction: float) -> dict[str, Any]:
    """Options with the ratio whose parameters come nearest to S2's, searched around the target's."""
    network = network_to_prune(open_checkpoint(source))
    found = remove_channels(network, RemovalOptions(**options, target={"params": fraction}))[1].ratio
    tried = {}
    for step in range(-10, 11):
        ratio = found + step / 1000
        if ratio > 0:
            report = remove_channels(network, RemovalOptions(**options, ratio=ratio))[1]
            tried[abs(report.after.params - S2_AFTER)] = ratio
    return {**options, "ratio": tried[min(tried)]}


def main() -> None:
    """Print the three tables."""
    print(f"{len(os.sched_getaffinity(0))} cores, {SIZE[0]} x {SIZE[1]}, torch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as name:
        main_table(Path(name))
        s2_table(Path(name))
        steps_table(Path(name))


if __name__ == "__main__":
    main()
