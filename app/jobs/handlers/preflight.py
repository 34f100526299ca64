"""Runs `preflight`."""

from __future__ import annotations

import json
from dataclasses import replace

from app.jobs.context import JobContext
from app.jobs.handlers._engine import wish
from app.schemas.kinds.preflight import PreflightMetrics, PreflightParameters
from app.toolkit.tensorrt.pipeline import EngineRequest, find_builders, line_elsewhere, look, machine
from app.toolkit.tensorrt.versions import version_of


def run(parameters: PreflightParameters, context: JobContext) -> PreflightMetrics:
    path = context.input("input_path")
    context.phase("preflight", 0.1)
    asked = wish(parameters, context, parameters.precision, parameters.input_size)
    here = machine(None if parameters.tensorrt else find_builders().dialect, context.options["dla_cores"])
    if parameters.tensorrt:
        here = replace(here, tensorrt=version_of(parameters.tensorrt))
    request = EngineRequest(path, path.with_suffix(".engine"), asked)
    seen = look(request, here, line_elsewhere(request))
    document = seen.as_dict()
    (context.workdir / f"{path.stem}_preflight.json").write_text(json.dumps(document, indent=2), encoding="utf-8")
    return PreflightMetrics(verdict=seen.verdict, ok=not seen.problems, preflight=document)
