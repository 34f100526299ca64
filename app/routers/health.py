"""Whether the service lives, whether it can take work, and its figures."""

from __future__ import annotations

from typing import Literal, get_args

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from app import __version__
from app.errors import InternalError, StoreUnavailable
from app.routers.deps import JobsDep
from app.routers.problems import described
from app.schemas.kind import Device, Slot

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
    responses=described(StoreUnavailable, InternalError),
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
    for device in get_args(Device):
        for exclusive in (False, True):
            name = str(Slot(device, exclusive))
            use.telemetry.queued.labels(name).set(counts.get(("queued", name), 0))
    return Response(generate_latest(use.telemetry.registry), media_type=CONTENT_TYPE_LATEST)
