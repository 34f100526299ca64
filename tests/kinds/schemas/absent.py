"""Needs a library that no machine has."""

from __future__ import annotations

from typing import Literal

from app.schemas.kind import Kind, Metrics, Parameters


class Absent(Parameters):
    """Wait for a machine that has the library."""

    kind: Literal["absent"]


KIND = Kind(
    parameters=Absent,
    metrics=Metrics,
    summary="Need a library that is not here",
    example={"pid": "P0001", "parameters": {"kind": "absent"}},
    needs=("a_library_that_nobody_has",),
)
