"""The other quantiser: NVIDIA's ModelOpt, where it is installed. It puts Q/DQ pairs where TensorRT wants them.

It is no dependency of ours: `pip install "nvidia-modelopt[onnx]"` brings CUDA libraries and its own torch. It runs as
its documented command in a process of its own, on the CPU. Tried with nvidia-modelopt 0.47.0.

Source: NVIDIA Model Optimizer's guide, "ONNX quantization".
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from app.toolkit.errors import NoImages, RequestError, RuntimeUnavailable
from app.toolkit.images import Float32Array
from app.toolkit.onnx_file import check, load_onnx
from app.toolkit.quantization.ranges import Method

METHODS: dict[Method, str] = {"minmax": "max", "entropy": "entropy"}


def available() -> bool:
    """Whether this Python has nvidia-modelopt; nothing of it is imported."""
    return importlib.util.find_spec("modelopt") is not None


def quantize_with_modelopt(
    model: ModelProto, images: Float32Array, *, method: Method, exclude_nodes: Sequence[str] = ()
) -> ModelProto:
    """A prepared graph quantised for TensorRT, calibrated on `images` [N, C, H, W] float32.

    ModelOpt raises the opset to 19; the metadata is kept. Raises NoImages (without data it would take random scales),
    RequestError for `percentile`, RuntimeUnavailable where it is missing or fails, InvalidOnnx.
    """
    if not len(images):
        raise NoImages("calibration needs images", expected="at least one image", received="none")
    if method not in METHODS:
        raise RequestError(f"ModelOpt does not calibrate by {method}", expected=" or ".join(METHODS), received=method)
    if not available():
        raise RuntimeUnavailable(
            "the quantiser modelopt is not installed",
            expected="the Python package nvidia-modelopt",
            received="none",
            hint='pip install "nvidia-modelopt[onnx]", or use the backend onnxruntime',
        )
    with tempfile.TemporaryDirectory(prefix="modelopt.") as folder:
        made = load_onnx(_run(model, images, METHODS[method], exclude_nodes, Path(folder)))
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)
    check(made)
    return made


def _run(model: ModelProto, images: Float32Array, method: str, exclude_nodes: Sequence[str], folder: Path) -> Path:
    source, data, result = folder / "model.onnx", folder / "images.npy", folder / "quantised.onnx"
    onnx.save(model, source)
    np.save(data, images)
    options = {
        "--onnx_path": source,
        "--quantize_mode": "int8",
        "--calibration_data_path": data,
        "--calibration_method": method,
        "--calibration_eps": "cpu",
        "--high_precision_dtype": "fp32",  # its own choice is FP16, of inputs and weights too
        "--output_path": result,
    }
    command = [
        sys.executable,
        "-m",
        "modelopt.onnx.quantization",
        *(str(part) for pair in options.items() for part in pair),
    ]
    if exclude_nodes:
        command += ["--nodes_to_exclude", *(f"^{re.escape(name)}$" for name in exclude_nodes)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0 or not result.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeUnavailable(
            "ModelOpt could not quantise the graph",
            received=lines[-1].strip() if lines else f"exit status {done.returncode}",
            hint="use the backend onnxruntime",
        )
    return result
