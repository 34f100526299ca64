"""The pointers to a project's newest versions: `artifacts/{pid}/optimizing/latest_detection.onnx` (S4 E-1).

A pointer moves forward only: of two jobs that end in the wrong order, the one that was asked for later stays. A key
names no user, and several users may have one project: a pointer belongs to the user to whose file it leads. For
others it is not there, and what they export leaves it where it is.
"""

from __future__ import annotations

import logging
import re
from pathlib import PurePosixPath

from app.errors import Conflict
from app.jobs.keys import is_foreign, job_of_key
from app.schemas.kind import Kind
from app.storage.artifacts import ArtifactStore, absent, job_prefix
from app.storage.records import JobRecord, RecordStore
from app.version_tag import moment_of

logger = logging.getLogger(__name__)

POINTER = re.compile(r"artifacts/P[0-9]{1,18}/optimizing/latest_[a-z]+\.[a-z]+")

ATTEMPTS = 50
"""How often a pointer may be moved by others between the look at it and the write."""


def pointer_key(pid: str, name: str) -> str:
    return f"artifacts/{pid}/optimizing/{name}"


def is_pointer(key: str) -> bool:
    """Whether a key has the form of a pointer; a file may lie there all the same, put there by hand."""
    return POINTER.fullmatch(key) is not None


async def find(artifacts: ArtifactStore, records: RecordStore, uid: str, key: str) -> str:
    """The key of the file that a pointer leads to. Raises NotFound, for another user's too."""
    target = await artifacts.pointer(key)
    if target is None or await is_foreign(records, uid, target):
        raise absent(key)
    return target


async def advance(artifacts: ArtifactStore, records: RecordStore, job: JobRecord, kind: Kind) -> None:
    """Makes the project's pointer lead to the job's output, if that is a version and newer than where it leads."""
    series, name = kind.output_series(kind.parameters.model_validate(job.parameters)), job.output_name or ""
    if series is None or moment_of(name) is None:
        return
    key = pointer_key(job.pid, f"latest_{series}{PurePosixPath(name).suffix}")
    target = job_prefix(job.pid, job.oid) + name
    try:
        for _ in range(ATTEMPTS):
            ahead = await artifacts.pointer(key)
            if ahead and (_age(ahead) >= _age(target) or await is_foreign(records, job.uid, ahead)):
                logger.info("job %s: %s stays at %s", job.ref, key, ahead)
                return
            if await artifacts.point(key, target, instead_of=ahead):
                return
        logger.warning("job %s: %s could not be moved, others kept moving it", job.ref, key)
    except Conflict as error:
        logger.warning("job %s: %s", job.ref, error)


def _age(key: str) -> tuple[str, int]:
    """By what versions are compared: the moment in the name, within one second the order of acceptance."""
    ref = job_of_key(key)
    return moment_of(PurePosixPath(key).name) or "", int(ref.oid[1:]) if ref else 0
