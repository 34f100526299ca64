"""`POST /optimizing/compat`: will an engine load there, and why not, answered at once and without TensorRT."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from app.schemas.common import StrictModel
from app.schemas.kind import Kind, Metrics, Parameters, Slot
from app.schemas.kinds._engine import Engine


class Machine(StrictModel):
    """A machine; what is left out is not known, and the answer says so."""

    tensorrt: str | None = Field(None, pattern=r"^[0-9]{1,2}(\.[0-9]{1,3}){0,3}$", examples=["10.3.0.26"])
    compute_capability: str | None = Field(None, pattern=r"^[0-9]{1,2}\.[0-9]$", examples=["8.7"])
    gpu_name: str | None = None
    os: Literal["linux", "windows"] | None = None
    arch: Literal["x86_64", "aarch64"] | None = None
    dla_cores: int | None = Field(None, ge=0)


class Compat(Parameters):
    """Compare an engine's header and manifest with a machine."""

    kind: Literal["compat"]
    input_path: Engine
    target: Machine | None = Field(None, description="This machine where left out.")

    @model_validator(mode="after")
    def _something_is_told(self) -> Compat:
        if self.target is not None and not self.target.model_dump(exclude_none=True):
            raise ValueError("target: say at least which `tensorrt` is there, or leave it out for this machine")
        return self


class CompatMetrics(Metrics):
    """The answer."""

    loads: bool | None = Field(description="None where it cannot be told.")
    verdict: str
    compat: dict[str, Any] = Field(description="Every condition with its answer, and what to mind besides.")


KIND = Kind(
    parameters=Compat,
    metrics=CompatMetrics,
    summary="Say whether a TensorRT engine will load on a machine, and why not",
    example={
        "pid": "P0001",
        "parameters": {
            "kind": "compat",
            "input_path": "artifacts/P0001/optimizing/O0015/best_fp16.engine",
            "target": {"tensorrt": "10.3.0.26", "compute_capability": "8.7", "arch": "aarch64"},
        },
    },
    slot=lambda _: Slot("light"),
    needs=("onnx",),
    reusable=False,
    answers_at_once=True,
)
