"""Does not end by itself and does not want to be ended."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.schemas.kind import Kind, Metrics, Parameters


class Hang(Parameters):
    """Ignore SIGTERM and stay."""

    kind: Literal["hang"]
    grandchild: bool = Field(False, description="Also start a process that ignores SIGTERM and would stay.")
    leave_group: bool = Field(False, description="That process leaves the job's process group first.")
    pids_file: str | None = Field(None, description="A file anywhere that gets the pids, one a line.")
    seconds: float = Field(600, ge=0, le=600, description="At the longest, should all else fail.")


KIND = Kind(
    parameters=Hang,
    metrics=Metrics,
    summary="Ignore SIGTERM and stay",
    example={"pid": "P0001", "parameters": {"kind": "hang"}},
    reusable=False,
)
