"""Runs `pt_to_onnx_fp16`."""

from __future__ import annotations

from app.jobs.context import JobContext
from app.jobs.handlers._export import run_export
from app.schemas.kinds._export import ExportMetrics
from app.schemas.kinds.pt_to_onnx_fp16 import PtToOnnxFp16


def run(parameters: PtToOnnxFp16, context: JobContext) -> ExportMetrics:
    return run_export(parameters, context, "fp16")
