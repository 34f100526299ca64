"""What the kinds around TensorRT engines share: S0 sections 6 and 7."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.schemas.common import ImageSize, InputFile
from app.schemas.kind import Metrics, Parameters, Slot

NEEDS = ("onnx", "trtexec or tensorrt")
MACHINES = "an image made from Dockerfile.x86 or Dockerfile.jetson has it; so has a Jetson with JetPack"

Device = Literal["gpu", "dla", "dla0", "dla1"]
Onnx = Annotated[
    str, InputFile(".onnx"), Field(min_length=1, description="Artifact key, or absolute path on the server.")
]
Engine = Annotated[
    str,
    InputFile(".engine", ".plan", ".trt", companion="{stem}_manifest.json"),
    Field(min_length=1, description="Artifact key, or absolute path on the server."),
]


class BuildParameters(Parameters):
    """What every build can be told."""

    input_path: Onnx
    device: Device = Field("gpu", description="`dla` is core 0.")
    dla_policy: Literal["prefer", "strict"] = Field(
        "prefer", description="Whether layers that a DLA does not take may run on the GPU, or fail the job."
    )
    profile: Literal["jetson-nano", "jetson-orin", "x86"] | None = Field(
        None, description="The device that the engine is for; another machine than this one is refused with its line."
    )
    workspace_mib: int | None = Field(None, ge=1, description="The profile's, else TRT_WORKSPACE_MIB, where left out.")
    sparse: bool = Field(False, description="Let TensorRT use structured sparsity.")
    max_batch: int = Field(1, ge=1, le=1024, description="Largest batch of a dynamic ONNX.")


class DynamicSize(Parameters):
    """Where the size of a dynamic ONNX may be named."""

    input_size: ImageSize | None = Field(
        None, description="[H, W] of a dynamic ONNX; TRT_DEFAULT_H and TRT_DEFAULT_W where left out."
    )


class EngineMetrics(Metrics):
    """An engine, where it runs and what was seen while it was built."""

    stats: dict[str, Any] = Field(description="size_mb; total_params, nonzero_params and sparsity_pct are null.")
    tensorrt_version: str
    device_memory_mb: float | None = Field(description="What the engine needs while it runs; null where not told.")
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    placement: dict[str, Any] = Field(description="Layers on DLA and GPU with TensorRT's reasons, as its log has them.")
    build: dict[str, Any] = Field(description="Command, seconds, memory, tactics skipped for lack of it, messages.")
    preflight: dict[str, Any] = Field(description="What was known before the build.")
    calibration: dict[str, Any] | None = None
    manifest: dict[str, Any] = Field(description="What lies beside the engine in `<stem>_manifest.json`.")
    notes: list[str] = Field(default_factory=list)
    other_builds_meanwhile: int = Field(
        0, description="Builds of this service at the same time, which disturb the timing of tactics."
    )


def build_slot(parameters: Any) -> Slot:
    """A DLA core, or the GPU."""
    return Slot("dla0" if parameters.device == "dla" else parameters.device)
