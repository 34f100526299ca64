"""Reads its input and writes it again under another name: the smallest job that does everything."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.schemas.common import DataSource, InputFile, OutputFile
from app.schemas.kind import Kind, Metrics, Parameters


class Echo(Parameters):
    """Write the input again as `<stem>_echo.txt`."""

    kind: Literal["echo"]
    input_path: Annotated[str, InputFile(), Field(min_length=1)]
    output_path: Annotated[str, OutputFile(".txt", "{stem}_echo.txt")] | None = None
    seconds: float = Field(0, ge=0, le=60, description="How long it pretends to work.")
    lines: int = Field(1, ge=0, le=100_000, description="Lines that it writes into its log.")
    note: str = Field("", max_length=1000, description="Part of the parameters, and so of the fingerprint.")
    data: DataSource | None = None


class EchoMetrics(Metrics):
    """What was read."""

    name: str
    size_bytes: int
    sha256: str
    images: list[str] = Field(description="File names of `data`, sorted.")
    stats: dict[str, float]


KIND = Kind(
    parameters=Echo,
    metrics=EchoMetrics,
    summary="Write the input again",
    example={
        "pid": "P0001",
        "parameters": {"kind": "echo", "input_path": "artifacts/P0001/optimizing/O0001/hello.txt"},
    },
)
