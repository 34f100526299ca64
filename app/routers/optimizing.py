"""`POST /optimizing/<kind>`: one route a kind, made from the registry."""

# Annotations must be evaluated where they stand: with `from __future__ import annotations` every route made in the
# loop would silently get the schema of the last kind.

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Response
from pydantic import Field, create_model, model_validator

from app.errors import Conflict, InvalidRequest, MalformedRequest, NotFound, TooLarge, UnsupportedMedia
from app.jobs.registry import Registry
from app.jobs.service import Submission
from app.routers.deps import JobsDep, UidDep
from app.routers.problems import declared
from app.routers.views import job_path, job_view, started_view
from app.schemas.common import FINAL_STATUSES, Pid, StrictModel
from app.schemas.job import JobStarted, JobView, KindList, KindView
from app.schemas.kind import Kind

IdempotencyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Same key and same body: the same answer, one job. Kept for 24 hours.",
    ),
]


AT_ONCE_SEC = 20.0
"""How long a POST waits for a job that should take less than one second; then it is answered like any other."""


class Envelope(StrictModel):
    """What a request carries beside its parameters."""

    pid: Pid
    callback_url: str | None = Field(None, max_length=2048, description="Told when the job has ended.")
    force: bool = Field(False, description="Do the work again although the same was done before.")
    queue: bool = Field(False, description="Accept although this machine cannot do it; another one may take it.")

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, body: Any) -> Any:
        """JSON can write half a character, `"\\ud800"`, which no answer could repeat."""
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a string holds half a character (a lone surrogate)") from None
        return body


def request_model(kind: Kind) -> type[Envelope]:
    """The body of one kind's route: the envelope around its parameters."""
    name = "".join(part.capitalize() for part in kind.action.split("_")) + "Request"
    return create_model(name, __base__=Envelope, __doc__=kind.summary, parameters=(kind.parameters, ...))


def build_router(registry: Registry) -> APIRouter:
    router = APIRouter(prefix="/optimizing", tags=["optimizing"])
    for kind in registry.values():
        _add_route(router, kind)

    @router.get(
        "/kinds",
        summary="Every kind of job: parameters, example, needs, and whether this machine has them",
        responses=declared(),
    )
    async def kinds(_: UidDep, use: JobsDep) -> KindList:
        return KindList(kinds=[_kind_view(use.registry, kind) for kind in use.registry.values()])

    return router


async def json_only(content_type: Annotated[str | None, Header(include_in_schema=False)] = None) -> None:
    """Says so where a body is not announced as JSON; else it would be refused as if nothing in it were right."""
    media = (content_type or "").partition(";")[0].strip().lower()
    if media and media != "application/json" and not media.endswith("+json"):
        raise UnsupportedMedia(
            "the body is not announced as JSON",
            expected="Content-Type: application/json",
            received=media[:100],
            hint="curl needs -H 'Content-Type: application/json' (or --json)",
        )


def _add_route(router: APIRouter, kind: Kind) -> None:
    model: Any = request_model(kind)
    answer: Any = JobView | JobStarted if kind.answers_at_once else JobStarted

    async def submit(
        body: model,
        uid: UidDep,
        use: JobsDep,
        response: Response,
        idempotency_key: IdempotencyHeader = None,
    ) -> answer:
        submission = Submission(
            uid, body.pid, kind, body.parameters, body.callback_url, body.force, body.queue, idempotency_key
        )
        job = await use.submit(submission)
        response.headers["Location"] = job_path(job.ref)
        if kind.answers_at_once:
            job = await use.settled(job, AT_ONCE_SEC)
            if job.status in FINAL_STATUSES:
                response.status_code = 200
                return job_view(job, use)
        return started_view(job, use)

    submit.__doc__ = kind.parameters.__doc__
    at_once: dict[int | str, dict[str, Any]] = {200: {"model": JobView, "description": "The job, ended."}}
    refusals = declared(InvalidRequest, MalformedRequest, NotFound, Conflict, TooLarge, UnsupportedMedia)
    router.add_api_route(
        f"/{kind.action}",
        submit,
        methods=["POST"],
        status_code=202,
        name=kind.action,
        operation_id=f"submit_{kind.action}",
        summary=kind.summary,
        response_model=answer,
        dependencies=[Depends(json_only)],
        responses={**refusals, **(at_once if kind.answers_at_once else {})},
        openapi_extra={"requestBody": {"content": {"application/json": {"examples": _examples(kind)}}}},
    )


def _examples(kind: Kind) -> dict[str, Any]:
    return {kind.action: {"summary": kind.summary, "value": dict(kind.example)}}


def _kind_view(registry: Registry, kind: Kind) -> KindView:
    versions = registry.versions(kind)
    return KindView(
        action=kind.action,
        kind=kind.word,
        summary=kind.summary,
        route=f"/optimizing/{kind.action}",
        parameters_schema=kind.parameters.model_json_schema(),
        metrics_schema=kind.metrics.model_json_schema(),
        example=dict(kind.example),
        needs=versions,
        available=None not in versions.values(),
    )
