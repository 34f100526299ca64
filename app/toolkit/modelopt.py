"""NVIDIA's ModelOpt, where it is installed: it quantises to Q/DQ, and casts to FP16, as TensorRT wants them.

It is no dependency of ours: `pip install "nvidia-modelopt[onnx]"` brings CUDA libraries and its own torch. It runs as
its documented commands in a process of its own, on the CPU. Tried with nvidia-modelopt 0.47.0.

Sources: NVIDIA Model Optimizer's guide, "ONNX quantization" and "AutoCast".
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
    _require()
    with tempfile.TemporaryDirectory(prefix="modelopt.") as folder:
        data = Path(folder) / "images.npy"
        np.save(data, images)
        options = {
            "--quantize_mode": "int8",
            "--calibration_data_path": str(data),
            "--calibration_method": METHODS[method],
            "--calibration_eps": "cpu",
            "--high_precision_dtype": "fp32",  # its own choice is FP16, of inputs and weights too
        }
        words = [part for pair in options.items() for part in pair]
        if exclude_nodes:
            words += ["--nodes_to_exclude", *(f"^{re.escape(name)}$" for name in exclude_nodes)]
        return _run("modelopt.onnx.quantization", model, words, Path(folder))


def cast_with_modelopt(model: ModelProto) -> ModelProto:
    """A graph cast to FP16 where its values allow it; inputs and outputs stay float32, the metadata is kept.

    Raises RuntimeUnavailable where ModelOpt is missing or fails, InvalidOnnx.
    """
    _require()
    with tempfile.TemporaryDirectory(prefix="modelopt.") as folder:
        return _run("modelopt.onnx.autocast", model, ["--keep_io_types"], Path(folder))


def _require() -> None:
    if not available():
        raise RuntimeUnavailable(
            "ModelOpt is not installed",
            expected="the Python package nvidia-modelopt",
            received="none",
            hint='pip install "nvidia-modelopt[onnx]", or use the backend onnxruntime',
        )


def _run(module: str, model: ModelProto, words: Sequence[str], folder: Path) -> ModelProto:
    """One of its commands on a graph."""
    source, result = folder / "model.onnx", folder / "result.onnx"
    onnx.save(model, source)
    command = [sys.executable, "-m", module, "--onnx_path", str(source), "--output_path", str(result), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0 or not result.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeUnavailable(
            f"{module} could not convert the graph",
            received=lines[-1].strip() if lines else f"exit status {done.returncode}",
            hint="do without ModelOpt: uninstall it, or use the backend onnxruntime",
        )
    made = load_onnx(result)
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)
    check(made)
    return made
