"""Dynamic INT8: weights are quantised in the file, activations while it runs. It needs no images; TensorRT takes none.

Weights are unsigned: ONNX Runtime's convolution of integers has no quick kernel for signed ones on a CPU (YOLOv8n took
five times as long with them).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnxruntime.quantization
from onnx import ModelProto
from onnxruntime.quantization import QuantType

from app.toolkit.onnx_file import check, load_onnx, sort_topologically

OPERATORS = ("Conv", "MatMul")
# ONNX Runtime's mark of a graph with inferred shapes; without it it logs, through the root logger, that they may lack.
PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")


def quantize_dynamic(model: ModelProto, *, per_channel: bool = False, exclude_nodes: Sequence[str] = ()) -> ModelProto:
    """A prepared graph whose convolutions and products of matrices quantise their input themselves.

    The metadata is kept, the nodes excluded by name stay floating. `per_channel` gives a product's weights a scale a
    column; the convolution of integers takes one a tensor only. Raises InvalidOnnx.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.metadata_props.add(key=PREPARED[0], value=PREPARED[1])
    with tempfile.TemporaryDirectory(prefix="dynamic.") as folder:
        path = Path(folder) / "quantised.onnx"
        onnxruntime.quantization.quantize_dynamic(
            copy,
            path,
            op_types_to_quantize=list(OPERATORS),
            per_channel=per_channel,
            weight_type=QuantType.QUInt8,
            nodes_to_exclude=list(exclude_nodes),
        )
        made = load_onnx(path)
    sort_topologically(made.graph)
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)
    check(made)
    return made
