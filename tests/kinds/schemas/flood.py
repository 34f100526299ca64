"""Writes into its log for ever."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.schemas.kind import Kind, Metrics, Parameters


class Flood(Parameters):
    """Write log lines without end."""

    kind: Literal["flood"]
    line_bytes: int = Field(1000, ge=1, le=1_000_000)
    mib: int | None = Field(None, ge=0, description="Stop after so much; left out, never.")


KIND = Kind(
    parameters=Flood,
    metrics=Metrics,
    summary="Write log lines without end",
    example={"pid": "P0001", "parameters": {"kind": "flood"}},
    reusable=False,
)
