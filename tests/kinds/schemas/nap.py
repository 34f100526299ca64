"""Sleeps, on any device's slot; its metrics say when, so that overlaps can be seen."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from app.schemas.kind import Device, Kind, Metrics, Parameters, Slot


class Nap(Parameters):
    """Sleep for a while, in phases."""

    kind: Literal["nap"]
    seconds: float = Field(0.1, ge=0, le=600)
    phases: int = Field(1, ge=1, le=1000)
    device: Device = "cpu"
    exclusive: bool = False
    note: str = ""
    journal: str = ""
    """A file that gets a line, the job's mark, each time the job is really started."""


class NapMetrics(Metrics):
    """When it slept (Unix seconds), and as which process."""

    began: float
    ended: float
    pid: int


def _slot(parameters: Any) -> Slot:
    return Slot(parameters.device, parameters.exclusive)


KIND = Kind(
    parameters=Nap,
    metrics=NapMetrics,
    summary="Sleep for a while",
    example={"pid": "P0001", "parameters": {"kind": "nap", "seconds": 0.1}},
    slot=_slot,
    reusable=False,
)
