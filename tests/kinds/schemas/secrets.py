"""Tells what a job's process can see of the service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.schemas.kind import Kind, Metrics, Parameters


class Secrets(Parameters):
    """Report the process's environment, open files and loaded modules."""

    kind: Literal["secrets"]


class SecretsMetrics(Metrics):
    """What was seen."""

    pid: int
    parent_pid: int
    session: int
    may_have_children: bool = Field(description="Whether multiprocessing lets it start processes.")
    workdir: str
    environment: dict[str, str]
    modules: dict[str, bool] = Field(description="Heavy module -> whether it was loaded before the handler ran.")
    open_files: list[str] = Field(description="What the open descriptors lead to.")
    core_limit: int
    oom_score_adj: int
    niceness: int


KIND = Kind(
    parameters=Secrets,
    metrics=SecretsMetrics,
    summary="Report what a job's process can see",
    example={"pid": "P0001", "parameters": {"kind": "secrets"}},
    reusable=False,
)
