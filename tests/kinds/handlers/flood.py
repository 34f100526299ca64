"""Runs `flood`."""

from __future__ import annotations

import os

from app.jobs.context import JobContext
from app.schemas.kind import Metrics
from tests.kinds.schemas.flood import Flood


def run(parameters: Flood, context: JobContext) -> Metrics:
    context.phase("flood", 0.5)
    line = b"x" * (parameters.line_bytes - 1) + b"\n"
    block = line * max(1, 65536 // len(line))
    left = None if parameters.mib is None else parameters.mib * 1024 * 1024
    while left is None or left > 0:
        os.write(1, block)
        left = None if left is None else left - len(block)
    return Metrics()
