"""Whether the service lives, whether it can take work, and its figures."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from app import __version__
from app.errors import InternalError, StoreUnavailable
from app.routers.deps import JobsDep
from app.routers.problems import MEDIA_TYPE, Problem
from app.schemas.kind import Slot

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    version: str = __version__


@router.get("/healthz", summary="The process answers")
async def healthz() -> Health:
    return Health()


@router.get(
    "/readyz",
    summary="The stores answer, so that jobs can be taken",
    responses={
        error.status: {"model": Problem, "description": error.title, "content": {MEDIA_TYPE: {}}}
        for error in (StoreUnavailable, InternalError)
    },
)
async def readyz(use: JobsDep) -> Health:
    await use.records.check()
    await use.artifacts.check()
    return Health()


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
async def metrics(use: JobsDep) -> Response:
    counts = await use.records.counts()
    for slot in ("cpu", "gpu", "dla0", "dla1"):
        for exclusive in (False, True):
            name = str(Slot(slot, exclusive))  # type: ignore[arg-type]
            use.telemetry.queued.labels(name).set(counts.get(("queued", name), 0))
    return Response(generate_latest(use.telemetry.registry), media_type=CONTENT_TYPE_LATEST)
