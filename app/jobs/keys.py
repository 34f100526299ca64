"""Whose an artifact is, by its key."""

from __future__ import annotations

from app.storage.records import JobRef, RecordStore

JOB_KEY_PARTS = 5
"""`artifacts/{pid}/optimizing/{oid}/{name}`"""


def job_of_key(key: str) -> JobRef | None:
    """The job or upload that a key of S0's form belongs to."""
    parts = key.split("/")
    shaped = len(parts) >= JOB_KEY_PARTS - 1 and parts[0] == "artifacts" and parts[2] == "optimizing"
    if shaped and parts[3].startswith("O") and parts[3][1:].isascii() and parts[3][1:].isdigit():
        return JobRef(parts[1], parts[3][:19])
    return None


async def is_foreign(records: RecordStore, uid: str, key: str) -> bool:
    """Whether a key is below another user's job or upload. What the platform put there itself is everybody's."""
    ref = job_of_key(key)
    return ref is not None and await records.owner_of(ref) not in {None, uid}
