"""What the quantised file is for, and which operators that takes in INT8."""

from __future__ import annotations

from typing import Literal

Target = Literal["tensorrt", "onnxruntime-cpu"]

# TensorRT wants Q/DQ before the layers with weights and fuses the rest around them. ONNX Runtime computes on integers
# only between operators that are all quantised: those that have integer kernels, and those that just move values.
WEIGHTED = ("Conv", "Gemm", "MatMul")
QUANTIZED_OPERATORS: dict[Target, tuple[str, ...]] = {
    "tensorrt": WEIGHTED,
    "onnxruntime-cpu": (
        *WEIGHTED,
        *("Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul"),
        *("Pad", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
    ),
}
