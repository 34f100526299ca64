"""Records as answers."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from app.jobs.service import Jobs
from app.schemas.common import ErrorDetail
from app.schemas.job import (
    CallbackAttemptView,
    CallbackList,
    CallbackView,
    JobDetails,
    JobInfo,
    JobStarted,
    JobSummary,
    JobView,
)
from app.storage.artifacts import job_prefix
from app.storage.records import DeliveryAttempt, JobRecord, JobRef, Outbound


def job_path(ref: JobRef) -> str:
    """The job's own URL."""
    return f"/optimizing/jobs/{ref.pid}/{ref.oid}"


def started_view(job: JobRecord, use: Jobs) -> JobStarted:
    return JobStarted(
        uid=job.uid,
        pid=job.pid,
        oid=job.oid,
        action=job.action,
        details=JobDetails(kind=job.kind),
        info=JobInfo(workdir=str(use.workspace.folder(job))),
    )


def _summary_fields(job: JobRecord) -> dict[str, Any]:
    return {
        **{name: getattr(job, name) for name in JobSummary.model_fields if hasattr(job, name)},
        "created_at": moment(job.created_at),
        "started_at": moment(job.started_at),
        "finished_at": moment(job.finished_at),
        "cached": job.cached_from is not None,
        "error": ErrorDetail(**job.error) if job.error else None,
    }


def summary_view(job: JobRecord) -> JobSummary:
    return JobSummary(**_summary_fields(job))


def job_view(job: JobRecord, use: Jobs) -> JobView:
    return JobView(
        **_summary_fields(job),
        details=JobDetails(kind=job.kind),
        info=JobInfo(workdir=str(use.workspace.folder(job))),
        parameters=job.parameters,
        cached_from=job.cached_from,
        retry_of=job.retry_of,
        metrics=job.metrics,
        artifacts_path=job_prefix(job.pid, job.oid),
        artifact_files=list(job.artifact_files),
    )


def callbacks_view(callbacks: list[tuple[Outbound, list[DeliveryAttempt]]]) -> CallbackList:
    return CallbackList(
        callbacks=[
            CallbackView(
                webhook_id=callback.webhook_id,
                url=callback.url,
                state=callback.state,
                next_attempt_at=moment(callback.next_attempt_at),
                attempts=[
                    CallbackAttemptView(
                        number=attempt.number,
                        at=datetime.fromtimestamp(attempt.at, timezone.utc),
                        duration_ms=attempt.duration_ms,
                        http_status=attempt.http_status,
                        outcome=attempt.outcome,
                    )
                    for attempt in attempts
                ],
            )
            for callback, attempts in callbacks
        ]
    )


def moment(seconds: float | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, timezone.utc) if seconds is not None else None
