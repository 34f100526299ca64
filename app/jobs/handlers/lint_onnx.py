"""Runs `lint_onnx`."""

from __future__ import annotations

import json

from app.jobs.context import JobContext
from app.schemas.kinds.lint_onnx import LintMetrics, LintOnnx
from app.toolkit.onnx_file import load_onnx
from app.toolkit.onnx_lint import lint


def run(parameters: LintOnnx, context: JobContext) -> LintMetrics:
    path = context.input("input_path")
    context.phase("lint", 0.1)
    report = lint(load_onnx(path), path.parent).restricted_to(parameters.tensorrt)
    document = report.as_dict()
    (context.workdir / f"{path.stem}_lint.json").write_text(json.dumps(document, indent=2), encoding="utf-8")
    return LintMetrics(verdict=report.verdict(), lint=document)
