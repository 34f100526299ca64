"""Runs `fail`."""

from __future__ import annotations

import errno

from app.jobs.context import JobContext, JobFailed
from app.schemas.kind import Metrics
from tests.kinds.schemas.fail import Fail


def run(parameters: Fail, context: JobContext) -> Metrics:
    print("about to fail")
    if parameters.leave_file:
        (context.workdir / "report.txt").write_text("what was found until then\n", encoding="utf-8")
    if parameters.mode == "typed":
        raise JobFailed("TOY_REFUSED", "the toy refuses", expected="another toy", received="this toy", hint="try again")
    if parameters.mode == "disk":
        raise OSError(errno.ENOSPC, "No space left on device")
    if parameters.mode == "undecodable":
        raise ValueError("a file name: \udcff")
    raise ZeroDivisionError("nobody foresaw this")
