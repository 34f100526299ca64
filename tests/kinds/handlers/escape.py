"""Runs `escape`."""

from __future__ import annotations

import os
from pathlib import Path

from app.jobs.context import JobContext
from app.schemas.kind import Metrics
from tests.kinds.schemas.escape import Escape


def run(parameters: Escape, context: JobContext) -> Metrics:
    work, target = context.workdir, Path(parameters.target)
    (work / "plain.txt").write_text("plain\n", encoding="utf-8")
    (work / "nested" / "deeper").mkdir(parents=True)
    (work / "nested" / "deeper" / "inner.txt").write_text("inner\n", encoding="utf-8")
    (work / ".hidden").write_text("hidden\n", encoding="utf-8")
    (work / ".folder").mkdir()
    (work / ".folder" / "file.txt").write_text("hidden too\n", encoding="utf-8")
    (work / "link.txt").symlink_to(target)
    (work / "nested" / "up").symlink_to(work.parent, target_is_directory=True)
    (work / "outside").symlink_to(target.parent, target_is_directory=True)
    (work / "dangling").symlink_to(work / "nothing")
    os.mkfifo(work / "pipe")
    if parameters.odd_names:
        for name in (b"line\nbreak.txt", b"back\\slash.txt", b"not-utf8-\xff.txt", b"blank .txt ", b"n" * 250):
            Path(os.fsdecode(os.fsencode(work) + b"/" + name)).write_bytes(b"odd\n")
    if parameters.swap_log:
        (work / "job.log").unlink()
        (work / "job.log").symlink_to(target)
    if parameters.fail:
        raise ValueError("and then it fails")
    return Metrics()
