"""`POST /optimizing/lint_onnx`: what TensorRT will refuse, before anybody waits for a build."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.schemas.common import InputFile
from app.schemas.kind import Kind, Metrics, Parameters

Release = Literal["8.2", "8.5", "8.6", "10", "11"]


class LintOnnx(Parameters):
    """Read an ONNX graph and say, node by node, what TensorRT will refuse and what to do instead."""

    kind: Literal["lint_onnx"]
    input_path: Annotated[
        str,
        InputFile(".onnx"),
        Field(min_length=1, description="Artifact key, or absolute path on the server."),
    ]
    tensorrt: tuple[Release, ...] = Field(
        ("8.2", "8.5", "8.6", "10", "11"), min_length=1, description="The releases that the file is for."
    )


class LintMetrics(Metrics):
    """What was found."""

    verdict: str
    lint: dict[str, Any] = Field(
        description="Whether each release is known to refuse it; every finding with its nodes."
    )


KIND = Kind(
    parameters=LintOnnx,
    metrics=LintMetrics,
    summary="Say what TensorRT will refuse in an ONNX file, node by node, into `<stem>_lint.json`",
    example={
        "pid": "P0001",
        "parameters": {"kind": "lint_onnx", "input_path": "artifacts/P0001/optimizing/O0002/best_fp32.onnx"},
    },
    needs=("onnx",),
)
