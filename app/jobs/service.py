"""What can be done with jobs, as the routes ask for it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from app.config import Settings
from app.errors import Conflict, NotFound
from app.jobs import latest
from app.jobs.callback_http import Allowance
from app.jobs.callbacks import Deliverer
from app.jobs.dispatcher import Dispatcher
from app.jobs.hub import Hub, wait_for_event
from app.jobs.inputs import Inputs
from app.jobs.keys import job_of_key
from app.jobs.registry import Registry
from app.jobs.telemetry import Telemetry
from app.jobs.workspace import Workspace
from app.schemas.common import FINAL_STATUSES
from app.schemas.kind import Kind, Parameters
from app.storage.artifacts import ArtifactInfo, ArtifactStore, absent, job_prefix
from app.storage.records import DeliveryAttempt, IdempotencyKey, JobRecord, JobRef, Outbound, RecordStore
from app.version_tag import version_tag

LOOK_SEC = 0.5
"""How often a job that is waited for is looked at: another process may have run it."""

SEE_KINDS = "GET /optimizing/kinds shows what this machine can do; `queue`: true waits for one that can"


@dataclass(frozen=True)
class Submission:
    """A checked request for a job."""

    uid: str
    pid: str
    kind: Kind
    parameters: Parameters
    callback_url: str | None = None
    force: bool = False
    queue: bool = False
    idempotency_key: str | None = None


@dataclass(frozen=True)
class Jobs:
    """The use cases; one a service process."""

    settings: Settings
    registry: Registry
    records: RecordStore
    artifacts: ArtifactStore
    inputs: Inputs
    workspace: Workspace
    dispatcher: Dispatcher
    deliverer: Deliverer
    allowance: Allowance
    hub: Hub
    telemetry: Telemetry
    sha: str
    """The commit that versioned names bear."""

    async def submit(self, submission: Submission) -> JobRecord:
        """Accepts a job; when this returns it will not be lost."""
        kind, parameters = submission.kind, submission.parameters
        missing = [module for module, version in self.registry.versions(kind).items() if version is None]
        if missing and not submission.queue:
            raise Conflict(
                f"this machine cannot do {kind.action}",
                expected=f"installed: {', '.join(kind.needs)}",
                received=f"missing: {', '.join(missing)}",
                hint="; ".join(filter(None, [kind.lacking, SEE_KINDS])),
                code="MACHINE_LACKS_LIBRARY",
            )
        if submission.callback_url is not None:
            self.allowance.check_url(submission.callback_url)
        await self.inputs.check(submission.uid, kind, parameters)
        now = time.time()
        draft = JobRecord(
            uid=submission.uid,
            pid=submission.pid,
            oid="",
            action=kind.action,
            kind=kind.word,
            parameters=parameters.model_dump(mode="json"),
            slot=str(kind.slot(parameters)),
            created_at=now,
            output_name=kind.output_name(parameters, self._tag(now)),
            callback_url=submission.callback_url,
            force=submission.force,
        )
        return await self._accept(draft, _idempotency(submission))

    async def _accept(self, draft: JobRecord, key: IdempotencyKey | None = None) -> JobRecord:
        job, replayed = await self.records.accept(draft, key)
        if not replayed:
            self.dispatcher.wake()
        return job

    async def job(self, uid: str, ref: JobRef) -> JobRecord:
        """A job of this user. Raises NotFound for one that is not there and for another user's alike."""
        job = await self.records.get(ref)
        if job is None or job.uid != uid:
            raise NotFound(
                "there is no such job",
                received=str(ref),
                hint="GET /optimizing/jobs lists yours",
                code="JOB_NOT_FOUND",
            )
        return job

    async def settled(self, job: JobRecord, within_sec: float) -> JobRecord:
        """The job once it has ended, or as it is after that time."""
        deadline = time.monotonic() + within_sec
        with self.hub.listening(job.ref) as changed:
            while job.status not in FINAL_STATUSES and (left := deadline - time.monotonic()) > 0:
                await wait_for_event(changed, min(left, LOOK_SEC))
                job = await self.job(job.uid, job.ref)
        return job

    async def cancel(self, uid: str, ref: JobRef) -> JobRecord:
        """Asks a job to end; one that has not started ends at once. Raises Conflict for one that ended otherwise."""
        job = await self.job(uid, ref)
        if job.status == "cancelled":
            return job
        asked = await self.records.request_cancel(ref)
        if asked is None:
            raise Conflict(
                f"the job has already {job.status}",
                expected="a job that is queued or running",
                received=(await self.job(uid, ref)).status,
                code="JOB_FINISHED",
            )
        if not self.dispatcher.cancel(ref) and asked.owner is None:
            await self.dispatcher.end_unowned(asked)
        return await self.job(uid, ref)

    async def retry(self, uid: str, ref: JobRef) -> JobRecord:
        """A new job with the parameters of one that failed or was cancelled; an `oid` names one run only."""
        job = await self.job(uid, ref)
        if job.status not in {"failed", "cancelled"}:
            raise Conflict(
                "only a job that failed or was cancelled can be tried again",
                expected="failed or cancelled",
                received=job.status,
                hint="POST the same request again with `force`: true to repeat a completed job",
                code="JOB_NOT_RETRYABLE",
            )
        now = time.time()
        return await self._accept(
            JobRecord(
                uid=job.uid,
                pid=job.pid,
                oid="",
                action=job.action,
                kind=job.kind,
                parameters=job.parameters,
                slot=job.slot,
                created_at=now,
                output_name=self._renamed(job, now),
                callback_url=job.callback_url,
                force=job.force,
                retry_of=job.oid,
            )
        )

    def _tag(self, moment: float) -> str:
        return version_tag(datetime.fromtimestamp(moment, timezone.utc), self.sha)

    def _renamed(self, job: JobRecord, moment: float) -> str | None:
        """The output's name for a job that does it again: a version's says when it was asked for."""
        kind = self.registry.get(job.action)
        if kind is None:
            return job.output_name
        return kind.output_name(kind.parameters.model_validate(job.parameters), self._tag(moment))

    # -- uploads and artifacts ------------------------------------------------------------------------------------
    async def upload(self, uid: str, pid: str, name: str, chunks: AsyncIterator[bytes]) -> tuple[JobRef, ArtifactInfo]:
        ref = await self.records.draw_upload(uid, pid)
        max_bytes = self.settings.upload_max_mib * 1024 * 1024
        return ref, await self.artifacts.put_stream(job_prefix(pid, ref.oid) + name, chunks, max_bytes=max_bytes)

    async def artifact_prefix(self, uid: str, ref: JobRef) -> str:
        """Where the artifacts of a job or an upload of this user lie. Raises NotFound."""
        if await self.records.owner_of(ref) != uid:
            raise NotFound("there is no such job or upload", received=str(ref), code="JOB_NOT_FOUND")
        return job_prefix(ref.pid, ref.oid)

    async def artifact_list(self, uid: str, ref: JobRef) -> tuple[str, list[ArtifactInfo]]:
        prefix = await self.artifact_prefix(uid, ref)
        return prefix, [info async for info in self.artifacts.list(prefix)]

    async def latest(self, uid: str, pid: str, name: str) -> tuple[JobRef, str]:
        """The job, and the name in it, of the file that a project's pointer leads to. Raises NotFound."""
        key = latest.pointer_key(pid, name)
        target = await latest.find(self.artifacts, self.records, uid, key)
        ref = job_of_key(target)
        if ref is None:  # put there by hand; only jobs' files can be downloaded
            raise absent(key)
        return ref, target.removeprefix(job_prefix(ref.pid, ref.oid))

    # -- callbacks ------------------------------------------------------------------------------------------------
    async def callbacks(self, uid: str, ref: JobRef) -> list[tuple[Outbound, list[DeliveryAttempt]]]:
        await self.job(uid, ref)
        return await self.records.callbacks(ref)

    async def replay_callbacks(self, uid: str, ref: JobRef) -> list[tuple[Outbound, list[DeliveryAttempt]]]:
        """Sends a job's callbacks again, under the same webhook ids. Raises Conflict where there are none."""
        await self.job(uid, ref)
        if not await self.records.replay_callbacks(ref, time.time()):
            raise Conflict(
                "this job has no callback to send again",
                expected="a job that has ended and had a callback_url",
                received="none recorded",
                code="NO_CALLBACKS",
            )
        self.deliverer.wake()
        return await self.records.callbacks(ref)


def _idempotency(submission: Submission) -> IdempotencyKey | None:
    if submission.idempotency_key is None:
        return None
    body: dict[str, Any] = {
        "pid": submission.pid,
        "action": submission.kind.action,
        "parameters": submission.parameters.model_dump(mode="json"),
        "callback_url": submission.callback_url,
        "force": submission.force,
        "queue": submission.queue,
    }
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return IdempotencyKey(submission.uid, submission.idempotency_key, digest)
