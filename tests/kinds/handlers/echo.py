"""Runs `echo`."""

from __future__ import annotations

import hashlib
import shutil
import time

from app.jobs.context import JobContext
from tests.kinds.schemas.echo import Echo, EchoMetrics


def run(parameters: Echo, context: JobContext) -> EchoMetrics:
    source = context.input("input_path")
    context.phase("read", 0.1)
    for number in range(parameters.lines):
        print(f"echo {number}: {source.name}")
    content = source.read_bytes()
    time.sleep(parameters.seconds)
    context.phase("write", 0.6)
    shutil.copyfile(source, context.output)
    found = context.images("data")
    images = sorted(str(path.relative_to(found[0])) for path in found[0].rglob("*") if path.is_file()) if found else []
    return EchoMetrics(
        name=source.name,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        images=images,
        stats={"size_mb": len(content) / 1e6},
    )
