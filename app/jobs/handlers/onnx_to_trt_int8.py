"""Runs `onnx_to_trt_int8`."""

from __future__ import annotations

from app.jobs.context import JobContext
from app.jobs.handlers._engine import run_build, wish
from app.schemas.kinds._engine import EngineMetrics
from app.schemas.kinds.onnx_to_trt_int8 import OnnxToTrtInt8
from app.toolkit.tensorrt.prepare import Images


def run(parameters: OnnxToTrtInt8, context: JobContext) -> EngineMetrics:
    given = context.images("calib_dir")
    images = None
    if given is not None:
        images = Images(given[0], parameters.input_size, parameters.int8_max_batches, context.threads)
    asked = wish(parameters, context, "int8", parameters.input_size)
    cache = context.optional_input("calibration_cache")
    return run_build(parameters, context, asked, images, calibration_cache=cache, mixed_fp16=parameters.mixed_fp16)
