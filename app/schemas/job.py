"""What the service answers about jobs, and what it sends when one ends."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.schemas.common import ErrorDetail, Oid, Pid, Status, Uid


class JobDetails(BaseModel):
    kind: str


class JobInfo(BaseModel):
    workdir: str


class JobStarted(BaseModel):
    """S0's answer to a POST: the job is accepted and will not be lost."""

    uid: Uid
    pid: Pid
    oid: Oid
    action: str
    status: Literal["started"] = "started"
    details: JobDetails
    info: JobInfo


class JobSummary(BaseModel):
    """A job as the list shows it."""

    uid: Uid
    pid: Pid
    oid: Oid
    action: str
    status: Status
    phase: str | None = Field(None, description="What a running job is doing.")
    progress: float = Field(0.0, ge=0, le=1)
    attempt: int = Field(0, description="How many times its process was started.")
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cached: bool = Field(False, description="Answered with an earlier result of the same work.")
    error: ErrorDetail | None = None


class JobView(JobSummary):
    """A job, whole."""

    details: JobDetails
    info: JobInfo
    parameters: dict[str, Any]
    cached_from: str | None = Field(None, description="The `pid/oid` whose result this is.")
    retry_of: str | None = Field(None, description="The `oid` that this one tries again.")
    metrics: dict[str, Any] | None = None
    artifacts_path: str
    artifact_files: list[str] = []


class JobPage(BaseModel):
    jobs: list[JobSummary]
    next_cursor: str | None = Field(None, description="Give it back as `cursor` for the next page; null at the end.")


class ArtifactView(BaseModel):
    name: str
    key: str
    size_bytes: int
    sha256: str | None


class ArtifactList(BaseModel):
    artifacts_path: str
    artifacts: list[ArtifactView]


class UploadView(BaseModel):
    """A stored upload; `key` is usable as `input_path`."""

    uid: Uid
    pid: Pid
    oid: Oid
    name: str
    key: str
    size_bytes: int
    sha256: str


class CallbackBody(BaseModel):
    """What is posted to the callback URL when a job has ended (Standard Webhooks, signed)."""

    type: Literal["job.completed", "job.failed", "job.cancelled"]
    timestamp: datetime
    uid: Uid
    pid: Pid
    oid: Oid
    action: str
    status: Literal["completed", "failed", "cancelled"]
    details: JobDetails
    info: JobInfo
    metrics: dict[str, Any] | None = None
    artifacts_path: str
    artifact_files: list[str]
    error: ErrorDetail | None = None


class CallbackAttemptView(BaseModel):
    number: int
    at: datetime
    duration_ms: float
    http_status: int | None
    outcome: str


class CallbackView(BaseModel):
    webhook_id: str
    url: str
    state: Literal["pending", "delivered", "failed"]
    next_attempt_at: datetime | None
    attempts: list[CallbackAttemptView]


class CallbackList(BaseModel):
    callbacks: list[CallbackView]


class KindView(BaseModel):
    """One kind of job: what it takes, what it needs, and whether this machine has it."""

    action: str
    kind: str
    summary: str
    route: str
    parameters_schema: dict[str, Any]
    metrics_schema: dict[str, Any]
    example: dict[str, Any]
    needs: dict[str, str | None] = Field(description="Module and the version found here; null where it is missing.")
    available: bool


class KindList(BaseModel):
    kinds: list[KindView]
