"""Leaves things in its work folder that must not, or need not, become artifacts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.schemas.kind import Kind, Metrics, Parameters


class Escape(Parameters):
    """Fill the work folder with links, hidden files and nested folders."""

    kind: Literal["escape"]
    target: str = Field("/etc/hostname", description="A file outside that the links point to.")
    odd_names: bool = Field(False, description="Also files whose names no client could ask for.")
    swap_log: bool = Field(False, description="The log becomes a link to the target.")
    fail: bool = False


KIND = Kind(
    parameters=Escape,
    metrics=Metrics,
    summary="Leave links and hidden files behind",
    example={"pid": "P0001", "parameters": {"kind": "escape"}},
    reusable=False,
)
