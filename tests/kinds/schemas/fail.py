"""Fails, in a way that it announces itself or in one that nobody foresaw."""

from __future__ import annotations

from typing import Literal

from app.schemas.kind import Kind, Metrics, Parameters


class Fail(Parameters):
    """Raise an error."""

    kind: Literal["fail"]
    mode: Literal["typed", "unforeseen", "disk", "undecodable"] = "typed"
    leave_file: bool = False


KIND = Kind(
    parameters=Fail,
    metrics=Metrics,
    summary="Raise an error",
    example={"pid": "P0001", "parameters": {"kind": "fail", "mode": "typed"}},
)
