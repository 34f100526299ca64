"""Runs `onnx_to_trt`."""

from __future__ import annotations

from app.jobs.context import JobContext
from app.jobs.handlers._engine import run_build, wish
from app.schemas.kinds._engine import EngineMetrics
from app.schemas.kinds.onnx_to_trt import OnnxToTrt


def run(parameters: OnnxToTrt, context: JobContext) -> EngineMetrics:
    asked = wish(parameters, context, parameters.precision, parameters.input_size)
    return run_build(parameters, context, asked)
