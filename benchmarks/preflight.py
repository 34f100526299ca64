"""What a preflight says of real exports, and how long it takes.

    python -m benchmarks.preflight

FP16 on DLA core 0 of a Jetson Orin with TensorRT 10.3; the median of 7 runs each, files read anew. The weights of
YOLO11m are random, which changes nothing here.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from onnx import ModelProto

from app.toolkit.export import onnx_from_torch
from app.toolkit.fp16 import fp16_from_fp32
from app.toolkit.models.open_model import open_model
from app.toolkit.quantization.dynamic import quantize_dynamic
from app.toolkit.quantization.graph import post_processing, prepared
from app.toolkit.quantization.ranges import collect_ranges
from app.toolkit.quantization.static import quantize_static
from app.toolkit.tensorrt.preflight import Wish, preflight
from app.toolkit.tensorrt.targets import Target

PILLS = Path(__file__).resolve().parents[1] / "tests" / "assets" / "pills" / "pills_yolov8n.pt"
ORIN = Target(tensorrt=(10, 3, 0), compute_capability=(8, 7), os="linux", arch="aarch64", dla_cores=2)
ROUNDS = 7


def graphs(folder: Path) -> Iterator[tuple[str, ModelProto]]:
    """Every file of the table."""
    pills = open_model(PILLS)
    full = onnx_from_torch(pills, input_size=(640, 640), opset=13)
    yield "pills YOLOv8n, 640", full
    for side in (608, 576):
        yield f"pills YOLOv8n, {side}", onnx_from_torch(pills, input_size=(side, side), opset=13)
    yield "pills YOLOv8n, dynamic", onnx_from_torch(pills, input_size=(640, 640), opset=13, dynamic=True)
    yield "pills YOLOv8n, FP16", fp16_from_fp32(onnx_from_torch(pills, input_size=(640, 640), opset=13))
    graph = prepared(full)
    head = post_processing(graph)
    ranges = collect_ranges(graph, [torch.rand(1, 3, 640, 640).numpy()], method="minmax")
    yield "pills YOLOv8n, Q/DQ", quantize_static(graph, ranges, target="tensorrt", exclude_nodes=head)
    yield "pills YOLOv8n, dynamic INT8", quantize_dynamic(graph, exclude_nodes=head)
    yield "YOLO11m, 640", onnx_from_torch(open_model(untrained("yolo11m", folder)), input_size=(640, 640), opset=17)


def untrained(name: str, folder: Path) -> Path:
    """A checkpoint of random weights, as Ultralytics saves them."""
    from ultralytics.nn.tasks import DetectionModel

    path = folder / f"{name}.pt"
    torch.save({"model": DetectionModel(f"{name}.yaml", verbose=False).half(), "train_args": {}}, path)
    return path


def main() -> None:
    """Print the table and what each preflight says."""
    print("| ONNX | median ms | most ms | |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for label, model in graphs(folder):
            path = folder / "model.onnx"
            path.write_bytes(model.SerializeToString())
            quantised = "Q/DQ" in label
            wish = Wish("int8" if quantised else "fp16", device="gpu" if quantised else "dla0")
            times = []
            for _ in range(ROUNDS):
                begun = time.perf_counter()
                seen = preflight(path, wish, ORIN)
                times.append(1000 * (time.perf_counter() - begun))
            found = (*seen.problems, *seen.warnings)
            said = "<br>".join(f"{one.severity} {one.rule}: {one.what[:400]}" for one in found) or seen.verdict
            print(f"| {label} | {statistics.median(times):.0f} | {max(times):.0f} | {said} |", flush=True)


if __name__ == "__main__":
    main()
