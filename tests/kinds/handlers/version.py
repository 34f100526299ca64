"""Runs `version`."""

from __future__ import annotations

import shutil
import time

from app.jobs.context import JobContext, JobFailed
from tests.kinds.schemas.version import Version, VersionMetrics


def run(parameters: Version, context: JobContext) -> VersionMetrics:
    shutil.copyfile(context.input("input_path"), context.output)
    time.sleep(parameters.seconds)
    if parameters.fails:
        raise JobFailed("NOT_PROVEN", "it was asked to fail")
    return VersionMetrics()
