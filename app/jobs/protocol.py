"""What crosses between the service and a job's process: a spec file one way, JSON lines on a pipe the other way.

Nothing is pickled. A line is one object with a `type`: `ready`, `phase`, `result` or `error`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SPEC_NAME = ".job.json"
LOG_NAME = "job.log"
INPUTS_DIR = ".inputs"
MAX_LINE_BYTES = 32 * 1024 * 1024
"""A result is one line; more than this is no result but a mistake."""

NICENESS = 19
"""Jobs, and the server that forks them, leave the service's own answers the first turn on the processor."""

MARK_VARIABLE = "OPTIMIZING_JOB"
"""In the environment of everything a job starts, so that what outlived it can be found and ended."""


@dataclass(frozen=True)
class JobSpec:
    """All that a job's process is told. It lies in the work folder, so that a job can be run again by hand."""

    mark: str
    """`uid/pid/oid#attempt`."""
    workdir: str
    schema: str
    """The module that holds the kind's `KIND`."""
    handler: str
    """The module that holds the kind's `run`."""
    parameters: dict[str, Any]
    inputs: dict[str, Any]
    """Parameter name -> staged path; for image sets `{"images": ..., "annotations": ..., "sample": ...}`."""
    output_name: str | None
    threads: int
    preloaded: bool
    """Whether the process should find the heavy libraries loaded already."""
    cache_dir: str | None = None
    """A folder that outlives the job, for what may be made anew at any time."""
    timing_cache_dir: str | None = None
    """The folder of TensorRT's timing caches."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings that handlers may see; none of them is secret."""

    def save(self) -> Path:
        path = Path(self.workdir) / SPEC_NAME
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def load(cls, path: Path) -> JobSpec:
        return cls(**json.loads(path.read_text()))


def encode(type_: str, **fields: Any) -> bytes:
    text = json.dumps({"type": type_, **fields}, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "replace") + b"\n"  # half a character (a file name's) could not be answered with


def decode(line: bytes) -> dict[str, Any]:
    """One message. Raises ValueError where the line is none."""
    message = json.loads(line)
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ValueError("a message from a job's process is an object with a type")  # noqa: TRY004 - of its content
    return message
