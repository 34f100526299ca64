"""The same verification with CUDA: torch on the GPU against its export, and kernel parity of the CPU against CUDA.

    python -m benchmarks.verify_gpu

Needs a GPU that torch sees. Pills models on drawn images, and two networks with random weights.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import onnx
import torch

from app.toolkit.export import onnx_from_torch
from app.toolkit.models.open_model import open_model
from app.toolkit.verification.facts import ReportFacts
from app.toolkit.verification.pipeline import verify
from app.toolkit.verification.request import Device, Sampling, VerifyRequest

PILLS = Path(__file__).resolve().parents[1] / "tests" / "assets" / "pills"
SCENES, CROPS = 100, 20


def random_networks(folder: Path) -> dict[str, Path]:
    """EfficientNetV2-S of timm and YOLO11m of Ultralytics, as checkpoints with seeded random weights."""
    import timm
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    backbone = "tf_efficientnetv2_s"
    network = timm.create_model(backbone, pretrained=False, num_classes=12)
    content = {"backbone": backbone, "num_classes": 12, "input_size": [384, 384], "state_dict": network.state_dict()}
    torch.save(content, folder / "efficientnetv2_s.pt")
    torch.save({"model": DetectionModel("yolo11m.yaml", verbose=False)}, folder / "yolo11m.pt")
    return {"EfficientNetV2-S, random": folder / "efficientnetv2_s.pt", "YOLO11m, random": folder / "yolo11m.pt"}


def compared(
    reference: Path, candidate: Path, images: Path, devices: tuple[Device, Device], folder: Path, mode: str = "full"
) -> ReportFacts:
    labels = images.parent / "instances.json"
    return verify(
        VerifyRequest(
            reference=reference,
            candidate=candidate,
            images=images,
            folder=folder,
            annotations=labels if images.name == "images" and mode == "full" else None,
            sampling=Sampling(mode=mode, sample_count=16),  # type: ignore[arg-type]
            devices=devices,
        )
    )


def row(name: str, what: str, facts: ReportFacts) -> str:
    worst = max(facts.kernel_parity["outputs"].values(), key=lambda output: output["mse"])
    gates = ", ".join(f"{gate.name} {gate.measured:.3g}" for gate in facts.kernel.gates if gate.measured is not None)
    images = facts.sampled_images
    return f"| {name} | {what} | {images} | {facts.verdict} | {worst['max_abs']:.2g} | {worst['mse']:.2g} | {gates} |"


def main() -> int:
    if not torch.cuda.is_available():
        print("no GPU that torch sees")
        return 1
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}\n")
    print("| model | reference, candidate | images | verdict | max abs | MSE | gates of kernel parity |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, str(PILLS / "make_pills.py"), str(folder), "--images", str(SCENES), "--seed", "501"]
        subprocess.run([*command, "--crops-each", str(CROPS)], check=True)
        models = {"pills YOLOv8n": PILLS / "pills_yolov8n.pt", "pills classifier": PILLS / "pills_classifier.pt"}
        for title, model in {**models, **random_networks(folder)}.items():
            images = folder / ("crops" if "classifier" in title or "Efficient" in title else "images")
            mode = "full" if title in models else "smoke"
            twice = compared(model, model, images, ("cpu", "cuda"), folder, mode)
            print(row(title, "torch CPU, torch CUDA", twice), flush=True)
            export = folder / f"{model.stem}.onnx"
            adapter = open_model(model)
            onnx.save(onnx_from_torch(adapter, input_size=adapter.default_input_size), export)
            crossed = compared(model, export, images, ("cuda", "cpu"), folder, mode)
            print(row(title, "torch CUDA, ONNX Runtime CPU", crossed), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
