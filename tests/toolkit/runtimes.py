"""The same small model for each runtime: `sum` is first + second, `double` is first + first, [batch, 2] float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from app.toolkit.runtimes.base import TensorSpec
from app.toolkit.runtimes.ort_runtime import OrtRuntime
from app.toolkit.runtimes.torch_runtime import TorchRuntime
from app.toolkit.runtimes.trt_runtime import TrtRuntime
from app.toolkit.tensorrt.builder import build
from app.toolkit.tensorrt.request import BuildRequest, InputShapes
from tests.doubles.tensorrt import make
from tests.toolkit.trt_python import HostMemory

FEEDS = {"first": np.ones((3, 2), np.float32), "second": np.full((3, 2), 4, np.float32)}
SHAPES = tuple(InputShapes(name, (1, 2), (2, 2), (4, 2)) for name in FEEDS)


class SumAndDouble(nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return first + second, first + first


def torch_runtime(module: nn.Module | None = None, device: str = "cpu") -> TorchRuntime:
    """Of the small model, or of one that makes `answer` of `images`."""
    if module is not None:
        inputs = [TensorSpec("images", "float32", ("batch", 3, "height", "width"))]
        return TorchRuntime(module, inputs, [TensorSpec("answer", "float32", ())], threads=1, device=device)

    def specs(*names: str) -> list[TensorSpec]:
        return [TensorSpec(name, "float32", ("batch", 2)) for name in names]

    return TorchRuntime(SumAndDouble(), specs("first", "second"), specs("sum", "double"), threads=1, device=device)


def onnx_bytes(kind: int = TensorProto.FLOAT) -> bytes:
    """`kind` is the type of all four."""
    shape: list[str | int | None] = ["batch", 2]
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name in ("first", "second")]
    outputs = [helper.make_tensor_value_info(name, kind, shape) for name in ("sum", "double")]
    nodes = [
        helper.make_node("Add", ["first", "second"], ["sum"]),
        helper.make_node("Add", ["first", "first"], ["double"]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"task": "detect", "names": "{0: 'pill'}"})
    return bytes(model.SerializeToString())


def ort_runtime() -> OrtRuntime:
    return OrtRuntime(onnx_bytes(), threads=1)


def engine(folder: Path, release: str = "10.3.0", kind: int = TensorProto.FLOAT) -> Path:
    """An engine of the double, for batches of 1 to 4, without a manifest; its `m.onnx` is beside it."""
    (folder / "m.onnx").write_bytes(onnx_bytes(kind))
    request = BuildRequest(folder / "m.onnx", folder / "m.engine", shapes=SHAPES)
    return build(request, module=make(release)).engine


def trt_runtime(folder: Path, release: str = "10.3.0", scenario: str = "success") -> TrtRuntime:
    return TrtRuntime(engine(folder, release), trusted=True, module=make(release, scenario), memory=HostMemory)
