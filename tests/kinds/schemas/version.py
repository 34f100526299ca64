"""Writes its input again as a version where the input is called so: what an export does, without a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.schemas.common import InputFile, OutputFile
from app.schemas.kind import Kind, Metrics, Parameters
from app.schemas.kinds._export import SERIES


class Version(Parameters):
    """Write the input again as `<stem>_copy.onnx`, or as a version of its series."""

    kind: Literal["version"]
    input_path: Annotated[str, InputFile(), Field(min_length=1)]
    output_path: Annotated[str, OutputFile(".onnx", "{stem}_copy.onnx", SERIES)] | None = None
    seconds: float = Field(0, ge=0, le=60, description="How long it pretends to work.")
    fails: bool = Field(False, description="Whether it fails once its output is written.")


class VersionMetrics(Metrics):
    """Nothing."""


KIND = Kind(
    parameters=Version,
    metrics=VersionMetrics,
    summary="Write the input again as a version",
    example={
        "pid": "P0001",
        "parameters": {"kind": "version", "input_path": "artifacts/P0001/optimizing/O0001/detection_best.pt"},
    },
)
