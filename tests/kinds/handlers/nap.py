"""Runs `nap`."""

from __future__ import annotations

import os
import time

from app.jobs.context import JobContext
from app.jobs.protocol import MARK_VARIABLE
from tests.kinds.schemas.nap import Nap, NapMetrics


def run(parameters: Nap, context: JobContext) -> NapMetrics:
    began = time.time()
    if parameters.journal:
        with open(parameters.journal, "a", encoding="utf-8") as journal:
            journal.write(os.environ[MARK_VARIABLE] + "\n")
    for number in range(parameters.phases):
        context.phase(f"nap {number + 1}", number / parameters.phases)
        time.sleep(parameters.seconds / parameters.phases)
    return NapMetrics(began=began, ended=time.time(), pid=os.getpid())
