"""Runs `hang`."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from app.jobs.context import JobContext
from app.schemas.kind import Metrics
from tests.kinds.schemas.hang import Hang


def run(parameters: Hang, context: JobContext) -> Metrics:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a program that is started keeps this
    pids = [os.getpid()]
    if parameters.grandchild:
        sleep = ["sleep", str(parameters.seconds)]
        pids.append(subprocess.Popen(sleep, start_new_session=parameters.leave_group).pid)
    print("pids", *pids, flush=True)
    if parameters.pids_file:
        path = Path(parameters.pids_file)
        half = path.with_suffix(".half")
        half.write_text("".join(f"{pid}\n" for pid in pids), encoding="utf-8")
        half.replace(path)
    context.phase("hang", 0.5)
    time.sleep(parameters.seconds)
    return Metrics()
