"""Whether two jobs are the same work: a hash of what went in, what was asked, and what would do it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from app import __version__
from app.jobs.inputs import ResolvedInputs
from app.storage.records import JobRecord


def fingerprint(job: JobRecord, found: ResolvedInputs, versions: dict[str, str | None], options: dict[str, Any]) -> str:
    """SHA-256 over inputs by content, parameters, output name, settings that matter and versions.

    The user is part of it: nobody learns from a quick answer what somebody else has done. So is a version's name, which
    is new each second: an export that makes a version is done again, not copied under a name of another time.
    """
    parameters = {name: value for name, value in job.parameters.items() if name not in found.digests}
    work = {
        "uid": job.uid,
        "action": job.action,
        "parameters": parameters,
        "output": job.output_name,
        "inputs": found.digests,
        "options": options,
        "versions": {**versions, "optimizing-api": __version__},
    }
    return hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()
