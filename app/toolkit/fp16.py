"""A real FP16 ONNX file: half the size, float32 at its inputs and outputs.

The inputs and outputs stay float32 so that an engine's interface does not depend on how it was built. The conversion is
ONNX Runtime's (`onnxruntime.transformers.float16`): that of onnxconverter-common makes a Resize that ONNX Runtime
refuses. What it gives is not sorted, so onnx.checker fails it (as it fails the file of Ultralytics' `half=True`) until
the nodes are put in order.
"""

from __future__ import annotations

import warnings

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from app.toolkit.errors import NotFinite
from app.toolkit.onnx_file import sort_topologically

FP16_MAX = float(np.finfo(np.float16).max)


def fp16_from_fp32(model: ModelProto) -> ModelProto:
    """Convert a float32 graph. Raises NotFinite if a weight is NaN, infinite or beyond what FP16 can hold (65504)."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            _check_range(tensor)
    with warnings.catch_warnings():
        # It warns of each weight under 6e-8 that it rounds; the parity proof judges what that does.
        warnings.simplefilter("ignore", UserWarning)
        converted: ModelProto = convert_float_to_float16(model, keep_io_types=True)
    sort_topologically(converted.graph)
    return converted


def _check_range(tensor: TensorProto) -> None:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= FP16_MAX:  # NaN compares false
        raise NotFinite(
            f"the tensor {tensor.name} does not fit FP16",
            expected=f"finite values of magnitude at most {FP16_MAX:g}",
            received=f"a magnitude of {largest:g}",
            hint="export with precision fp32",
        )
