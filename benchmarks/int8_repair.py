"""A model that plain INT8 breaks (one channel carried 200 times as large), with and without repair.

    python -m benchmarks.int8_repair

The pills model at 640 x 640, calibrated on 100 drawn scenes, judged by mAP50-95 on 200 others, max_drop 0.005.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from app.toolkit.coco import read_coco
from app.toolkit.errors import AccuracyDropped
from app.toolkit.export import onnx_from_torch
from app.toolkit.models.open_model import open_model
from app.toolkit.quantization.pipeline import quantize
from app.toolkit.quantization.request import QuantizationRequest
from tests.toolkit.outliers import with_outlier

PILLS = Path(__file__).resolve().parents[1] / "tests" / "assets" / "pills"


def main() -> None:
    """Print what the gate says, then what the repair found."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, count, seed in (("scenes", 100, 11), ("held_out", 200, 12)):
            command = [sys.executable, str(PILLS / "make_pills.py"), str(folder / name), "--images", str(count)]
            subprocess.run([*command, "--size", "640", "--seed", str(seed)], check=True, capture_output=True)
        model, name = with_outlier(onnx_from_torch(open_model(PILLS / "pills_yolov8n.pt"), input_size=(640, 640)))
        (folder / "broken.onnx").write_bytes(model.SerializeToString())
        print(f"the outlier feeds {name}")
        request = QuantizationRequest(
            folder / "broken.onnx",
            folder / "result.onnx",
            images=folder / "scenes" / "images",
            data=read_coco(folder / "held_out" / "instances.json", folder / "held_out" / "images"),
            max_drop=0.005,
            cache_dir=folder,
            threads=2,
        )
        try:
            quantize(request)
            print("without repair: passes")
        except AccuracyDropped as refused:
            print(f"without repair: {refused}")
        begun = time.perf_counter()
        result = quantize(replace(request, repair=True))
        assert result.repair is not None
        print(f"with repair ({time.perf_counter() - begun:.0f} s): {result.verdict()}")
        print(f"kept: {', '.join(result.repair.kept)}; evaluations: {result.repair.evaluations}")
        print("ranking:", ", ".join(f"{one.node} {one.error:.3g}" for one in result.repair.ranking[:5]))


if __name__ == "__main__":
    main()
