"""Runs `inspect_engine`."""

from __future__ import annotations

import json

from app.jobs.context import JobContext
from app.schemas.kinds.inspect_engine import InspectEngine, InspectMetrics
from app.toolkit.tensorrt.inspect import inspect_engine


def run(parameters: InspectEngine, context: JobContext) -> InspectMetrics:
    path = context.input("input_path")
    context.phase("inspect", 0.1)
    document = inspect_engine(path).as_dict()
    (context.workdir / f"{path.stem}_inspect.json").write_text(json.dumps(document, indent=2), encoding="utf-8")
    return InspectMetrics(engine=document)
