"""Ends its own process without a word."""

from __future__ import annotations

from typing import Literal

from app.schemas.kind import Kind, Metrics, Parameters


class Crash(Parameters):
    """End the process in a way that no handler can answer for."""

    kind: Literal["crash"]
    mode: Literal["segfault", "sigkill", "exit", "exit_zero", "memory", "hog", "huge_result"] = "segfault"


class CrashMetrics(Metrics):
    """Only `huge_result` lives to return it: more than one message may hold."""

    filler: str


KIND = Kind(
    parameters=Crash,
    metrics=CrashMetrics,
    summary="End the process without a result",
    example={"pid": "P0001", "parameters": {"kind": "crash", "mode": "segfault"}},
)
