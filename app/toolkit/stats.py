"""What a model file weighs and holds: S0's four numbers, and what is cheap to tell beside them.

For a `.pt`, the trainable tensors of its network (or, of a state dict, every floating tensor but the running
statistics). For an `.onnx`, its floating and 8-bit initializers, less those that the exporter made by folding (torch's
exporter names them `..._output_0`; YOLO's 25,200 anchor coordinates are such). A fused network has fewer than its
checkpoint: the normalisations are in the convolutions. For an `.engine`, its size and what its header says.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from app.toolkit.checkpoint import Checkpoint, find_state_dict, model_from_checkpoint, open_checkpoint
from app.toolkit.errors import CorruptFile, EmptyFile, FileMissing, NotAModel
from app.toolkit.onnx_file import input_specs, load_onnx, operators, opset_of, output_specs
from app.toolkit.runtimes.base import TensorSpec

WEIGHT_DTYPES = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.DOUBLE,
        TensorProto.INT8,
        TensorProto.UINT8,
    }
)
NOT_TRAINED = ("running_mean", "running_var", "num_batches_tracked")

# TensorRT's plan header, readable without TensorRT for engines of 8.6 and later.
PLAN_MAGIC = b"ftrt"
PLAN_VERSION_AT = slice(24, 28)
MAX_ENGINE_METADATA_BYTES = 16 << 20


@dataclass(frozen=True)
class ModelStats:
    """One model file. Parameters are None where the format does not tell them (an engine)."""

    path: Path
    format: str
    size_bytes: int
    total_params: int | None = None
    nonzero_params: int | None = None
    dtypes: dict[str, int] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    opset: int | None = None
    details: dict[str, str] = field(default_factory=dict)

    @property
    def size_mb(self) -> float:
        """Megabytes of 10^6 bytes, two decimals."""
        return round(self.size_bytes / 1e6, 2)

    @property
    def sparsity_pct(self) -> float | None:
        """The share of parameters that are exactly zero, in percent, two decimals."""
        if self.total_params is None or self.nonzero_params is None:
            return None
        return round(100.0 * (1.0 - self.nonzero_params / self.total_params), 2) if self.total_params else 0.0

    def as_dict(self) -> dict[str, Any]:
        """S0's numbers under `stats`, the rest beside it."""
        return {
            "stats": {
                "size_mb": self.size_mb,
                "total_params": self.total_params,
                "nonzero_params": self.nonzero_params,
                "sparsity_pct": self.sparsity_pct,
            },
            "format": self.format,
            "dtypes": self.dtypes,
            "layers": self.layers,
            "inputs": [spec.as_dict() for spec in self.inputs],
            "outputs": [spec.as_dict() for spec in self.outputs],
            "opset": self.opset,
            "details": self.details,
        }


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


def stats_of_checkpoint(checkpoint: Checkpoint) -> ModelStats:
    """Stats of an open checkpoint: of its network, or of a state dict alone. Raises NotAModel for neither."""
    weights = find_state_dict(checkpoint.content)
    layers: dict[str, int] = {}
    details: dict[str, str] = {}
    if weights is None:
        network = model_from_checkpoint(checkpoint)
        tensors: list[torch.Tensor] = list(network.parameters())
        leaves = (module for module in network.modules() if not any(True for _ in module.children()))
        layers = dict(Counter(type(leaf).__name__ for leaf in leaves).most_common())
        details = _describe_network(network)
    else:
        tensors = [t for name, t in weights.items() if t.is_floating_point() and not name.endswith(NOT_TRAINED)]
        details = {"holds": "a state dict without its network"}
    return ModelStats(
        checkpoint.path,
        "pt",
        checkpoint.path.stat().st_size,
        total_params=sum(tensor.numel() for tensor in tensors),
        nonzero_params=sum(int(torch.count_nonzero(tensor)) for tensor in tensors),
        dtypes=_count_by_dtype((str(tensor.dtype).removeprefix("torch."), tensor.numel()) for tensor in tensors),
        layers=layers,
        details=details,
    )


def _describe_network(network: nn.Module) -> dict[str, str]:
    details = {"network": f"{type(network).__module__}.{type(network).__qualname__}"}
    names = getattr(network, "names", None)
    if isinstance(names, (dict, list)):
        details["classes"] = str(len(names))
    return details


def stats_of_onnx(model: ModelProto, path: Path, *, size_bytes: int | None = None) -> ModelStats:
    """Stats of a graph that is loaded already. `size_bytes` saves the look at the file, which may not exist yet."""
    weights = [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type in WEIGHT_DTYPES and "_output_" not in tensor.name
    ]
    arrays = [numpy_helper.to_array(tensor) for tensor in weights]
    dtypes = (str(helper.tensor_dtype_to_np_dtype(tensor.data_type)) for tensor in weights)
    return ModelStats(
        path,
        "onnx",
        path.stat().st_size if size_bytes is None else size_bytes,
        total_params=sum(array.size for array in arrays),
        nonzero_params=sum(int(np.count_nonzero(array)) for array in arrays),
        dtypes=_count_by_dtype(zip(dtypes, (array.size for array in arrays), strict=True)),
        layers=operators(model),
        inputs=input_specs(model),
        outputs=output_specs(model),
        opset=opset_of(model),
        details={entry.key: entry.value for entry in model.metadata_props if entry.key in ("task", "description")},
    )


def stats_of_engine(path: Path) -> ModelStats:
    """Size, and the TensorRT version from the plan's header; Ultralytics' own header is read past.

    Raises FileMissing, EmptyFile or CorruptFile.
    """
    if not path.is_file():
        raise FileMissing(f"there is no file {path.name}", expected="a TensorRT engine", received=str(path))
    with path.open("rb") as file:
        head = file.read(32)
        if not head:
            raise EmptyFile(f"{path.name} is empty", expected="a TensorRT engine", received="0 bytes")
        details = {}
        skipped = int.from_bytes(head[:4], "little")
        if head[:4] != PLAN_MAGIC and 0 < skipped <= MAX_ENGINE_METADATA_BYTES and head[4:5] == b"{":
            file.seek(4)
            details = _engine_metadata(file.read(skipped))
            head = file.read(32)
    if head[:4] != PLAN_MAGIC:
        raise CorruptFile(
            f"{path.name} has no plan header",
            expected="a TensorRT engine of 8.6 or later, which begins with 'ftrt'",
            received=f"bytes beginning {head[:4].hex()}",
        )
    details["tensorrt_version"] = ".".join(str(number) for number in head[PLAN_VERSION_AT])
    return ModelStats(path, "engine", path.stat().st_size, details=details)


def _engine_metadata(text: bytes) -> dict[str, str]:
    try:
        entries = json.loads(text)
    except ValueError:
        return {}
    return {key: str(entries[key]) for key in ("task", "stride", "batch", "imgsz") if key in entries}


def _count_by_dtype(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for dtype, size in sizes:
        counts[dtype] += size
    return dict(counts.most_common())


def stats_text(stats: ModelStats) -> str:
    """The text of `<stem>_stats.txt`: one `key: value` a line, then the layers."""
    lines = [f"file: {stats.path.name}", f"format: {stats.format}"]
    for key, value in stats.as_dict()["stats"].items():
        lines.append(f"{key}: {'unknown' if value is None else value}")
    if stats.opset is not None:
        lines.append(f"opset: {stats.opset}")
    lines += [f"{key}: {value}" for key, value in stats.details.items()]
    for label, specs in (("input", stats.inputs), ("output", stats.outputs)):
        lines += [f"{label}: {spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs]
    lines += [f"parameters as {dtype}: {count}" for dtype, count in stats.dtypes.items()]
    if stats.layers:
        lines += ["", "layers:", *(f"  {name}: {count}" for name, count in stats.layers.items())]
    return "\n".join(lines) + "\n"
