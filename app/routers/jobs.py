"""A job after it was accepted: list, read, follow, cancel, retry, log, callbacks."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.errors import Conflict, InvalidRequest, NotFound
from app.jobs.follow import EVENT_ID, follow, log_chunks
from app.routers.deps import JobsDep, OwnJobDep, RefDep, UidDep
from app.routers.problems import declared
from app.routers.views import callbacks_view, job_path, job_view, started_view, summary_view
from app.schemas.common import Pid, Status
from app.schemas.job import CallbackList, JobPage, JobStarted, JobView

router = APIRouter(prefix="/optimizing/jobs", tags=["jobs"])

MAX_SEQ = 2**63 - 1


@router.get("", summary="Your jobs, newest first", responses=declared(InvalidRequest))
async def list_jobs(
    uid: UidDep,
    use: JobsDep,
    pid: Annotated[Pid | None, Query()] = None,
    status: Annotated[Status | None, Query()] = None,
    action: Annotated[str | None, Query(max_length=100, pattern=r"^[a-z0-9_]+$")] = None,
    cursor: Annotated[str | None, Query(max_length=64, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> JobPage:
    before = _decode_cursor(cursor) if cursor is not None else None
    found = await use.records.find(uid, pid=pid, status=status, action=action, before=before, limit=limit + 1)
    page, more = found[:limit], len(found) > limit
    return JobPage(jobs=[summary_view(job) for job in page], next_cursor=_encode_cursor(page[-1].seq) if more else None)


@router.get("/{pid}/{oid}", summary="One job, whole", responses=declared(InvalidRequest, NotFound))
async def read_job(job: OwnJobDep, use: JobsDep) -> JobView:
    return job_view(job, use)


@router.post(
    "/{pid}/{oid}/cancel",
    status_code=202,
    summary="End a job; its whole process group goes within a second",
    responses=declared(InvalidRequest, NotFound, Conflict),
)
async def cancel_job(uid: UidDep, use: JobsDep, ref: RefDep) -> JobView:
    return job_view(await use.cancel(uid, ref), use)


@router.post(
    "/{pid}/{oid}/retry",
    status_code=202,
    summary="Do a failed or cancelled job again, as a new job",
    responses=declared(InvalidRequest, NotFound, Conflict),
)
async def retry_job(uid: UidDep, use: JobsDep, ref: RefDep, response: Response) -> JobStarted:
    job = await use.retry(uid, ref)
    response.headers["Location"] = job_path(job.ref)
    return started_view(job, use)


@router.get(
    "/{pid}/{oid}/events",
    response_class=EventSourceResponse,
    summary="What happens to a job, live (server-sent events); ends by itself when the job has ended",
    responses=declared(InvalidRequest, NotFound),
)
async def follow_job(
    job: OwnJobDep,
    use: JobsDep,
    last_event_id: Annotated[
        str | None, Header(pattern=EVENT_ID, description="Go on after this event; its log lines are not repeated.")
    ] = None,
) -> AsyncIterator[ServerSentEvent]:
    async for event in follow(use, job, last_event_id):
        yield ServerSentEvent(data=event.data, event=event.type, id=event.id, retry=1000)


@router.get(
    "/{pid}/{oid}/log",
    response_class=StreamingResponse,
    summary="The job's log as it is now",
    responses={200: {"content": {"text/plain": {}}}, **declared(InvalidRequest, NotFound)},
)
async def read_log(job: OwnJobDep, use: JobsDep) -> StreamingResponse:
    return StreamingResponse(log_chunks(use, job), media_type="text/plain; charset=utf-8")


@router.get(
    "/{pid}/{oid}/callbacks",
    summary="A job's callbacks, with every delivery",
    responses=declared(InvalidRequest, NotFound),
)
async def list_callbacks(uid: UidDep, use: JobsDep, ref: RefDep) -> CallbackList:
    return callbacks_view(await use.callbacks(uid, ref))


@router.post(
    "/{pid}/{oid}/callbacks/replay",
    status_code=202,
    summary="Send a job's callbacks again, under the same webhook ids",
    responses=declared(InvalidRequest, NotFound, Conflict),
)
async def replay_callbacks(uid: UidDep, use: JobsDep, ref: RefDep) -> CallbackList:
    return callbacks_view(await use.replay_callbacks(uid, ref))


def _encode_cursor(seq: int) -> str:
    return base64.urlsafe_b64encode(str(seq).encode()).decode()


def _decode_cursor(cursor: str) -> int:
    try:
        text = base64.urlsafe_b64decode(cursor.encode("ascii"))
        seq = int(text)
        if not text.isdigit() or not 0 < seq <= MAX_SEQ:
            raise ValueError(cursor)
    except (ValueError, binascii.Error) as error:
        raise InvalidRequest(
            "the cursor is none of ours",
            expected="`next_cursor` of an earlier page, unchanged",
            received=cursor,
            hint="leave it out to begin with the newest job",
        ) from error
    return seq
