"""How records look in MongoDB.

Parameters, metrics, errors and the data of events are JSON text, as in SQLite: keys such as `model.0.conv` and integers
of any size are nothing that every server takes. The collection `metrics` has the metrics of ended jobs as documents
that can be queried; there, what a server would refuse is written in another way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from app.storage.mongo_connection import Document
from app.storage.records import DeliveryAttempt, Event, JobRecord, JobRef, Outbound

_JSON_FIELDS = frozenset({"parameters", "metrics", "error"})
_JOB_FIELDS = tuple(field.name for field in fields(JobRecord))
_INT64 = 2**63


def job_document(job: JobRecord) -> Document:
    return {"_id": str(job.ref), **encoded(asdict(job)), "events": 1, "token": None}


def encoded(changes: Mapping[str, Any]) -> Document:
    """A job's fields as they are stored."""
    made: Document = {}
    for name, value in changes.items():
        if name in _JSON_FIELDS and value is not None:
            made[name] = json.dumps(value)
        else:
            made[name] = list(value) if isinstance(value, tuple) else value
    return made


def job_of(document: Document) -> JobRecord:
    values = {name: document[name] for name in _JOB_FIELDS}
    for name in _JSON_FIELDS:
        values[name] = json.loads(values[name]) if values[name] is not None else None
    return JobRecord(**{**values, "artifact_files": tuple(values["artifact_files"] or ())})


def event_fields(event: Event, number: int) -> Document:
    return {"number": number, "type": event.type, "data": json.dumps(event.data), "at": event.at}


def event_of(step: Document) -> Event:
    return Event(step["type"], json.loads(step["data"]), step["at"], step["number"])


def callback_document(callback: Outbound, number: int) -> Document:
    """`number` orders the callbacks of one job."""
    return {
        "_id": callback.webhook_id,
        "job": str(callback.ref),
        "number": number,
        "url": callback.url,
        "body": callback.body,
        "state": callback.state,
        "next_attempt_at": callback.next_attempt_at,
        "attempts": callback.attempts,
        "deliveries": 0,
    }


def callback_of(document: Document) -> Outbound:
    return Outbound(
        document["_id"],
        JobRef(*document["job"].split("/")),
        document["url"],
        document["body"],
        document["state"],
        document["next_attempt_at"],
        document["attempts"],
    )


def delivery_fields(attempt: DeliveryAttempt, number: int) -> Document:
    return {**asdict(attempt), "number": number}


def delivery_of(step: Document) -> DeliveryAttempt:
    return DeliveryAttempt(**{field.name: step[field.name] for field in fields(DeliveryAttempt)})


def metrics_document(job: JobRecord) -> Document:
    """One ended job's metrics, for those who query the database."""
    named = ("uid", "pid", "oid", "action", "kind", "status", "finished_at", "cached_from")
    return {"_id": str(job.ref), **{name: getattr(job, name) for name in named}, "metrics": _plain(job.metrics)}


def _plain(value: Any) -> Any:
    """The same in keys and numbers that every server takes: no dot, dollar or NUL in a key, integers of 64 bits."""
    if isinstance(value, dict):
        return {_plain_key(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int) and not -_INT64 <= value < _INT64:
        return float(value)
    return value


def _plain_key(key: str) -> str:
    return key.replace(".", "\uff0e").replace("$", "\uff04").replace("\0", "\ufffd")
