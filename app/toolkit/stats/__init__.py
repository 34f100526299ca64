"""What a model file weighs and holds: S0's four numbers, and every layer with its zeros and its work beside them.

For a `.pt`, the trainable tensors of its network (or, of a state dict, every floating tensor but the running
statistics). For an `.onnx`, its parameters as `of_onnx` says; a fused network has fewer than its checkpoint: the
normalisations are in the convolutions. For an `.engine`, its size and what its header says.
"""

from __future__ import annotations

from pathlib import Path

from app.toolkit.checkpoint import open_checkpoint
from app.toolkit.errors import NotAModel
from app.toolkit.onnx_file import load_onnx
from app.toolkit.stats.base import MAX_ROWS, LayerStats, ModelStats
from app.toolkit.stats.of_checkpoint import stats_of_checkpoint
from app.toolkit.stats.of_engine import stats_of_engine
from app.toolkit.stats.of_onnx import stats_of_onnx
from app.toolkit.stats.text import stats_text

__all__ = [
    "MAX_ROWS",
    "LayerStats",
    "ModelStats",
    "model_stats",
    "stats_of_checkpoint",
    "stats_of_engine",
    "stats_of_onnx",
    "stats_text",
]


def model_stats(path: Path | str, *, trusted: bool = False) -> ModelStats:
    """The stats of a `.pt` (or `.pth`), `.onnx` or `.engine` (or `.plan`, `.trt`), by the file's ending.

    `trusted` as in `checkpoint.open_checkpoint`. Raises the ModelFileErrors of each format, NotAModel for another one.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (".pt", ".pth"):
        return stats_of_checkpoint(open_checkpoint(path, trusted=trusted))
    if suffix == ".onnx":
        return stats_of_onnx(load_onnx(path), path)
    if suffix in (".engine", ".plan", ".trt"):
        return stats_of_engine(path)
    raise NotAModel(
        f"{path.name} has no ending of a model file", expected=".pt, .pth, .onnx, .engine", received=suffix or "none"
    )
