"""What is in an engine: inputs, outputs, device memory, layers, told by TensorRT itself where that is safe.

Where `loading.usable_api` says that an engine must not be opened, all is told from the header and the manifest alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from app.toolkit.errors import RuntimeUnavailable, UntrustedEngine
from app.toolkit.tensorrt.api import Api
from app.toolkit.tensorrt.build_log import BuildLogReader
from app.toolkit.tensorrt.callbacks import Guard, listening
from app.toolkit.tensorrt.errors import TensorrtMissing
from app.toolkit.tensorrt.loading import EngineFile, EngineTensor, deserialised, io_tensors, read_engine, usable_api
from app.toolkit.tensorrt.manifest import Manifest
from app.toolkit.tensorrt.plan import Plan

Device = Literal["gpu", "dla"]


@dataclass(frozen=True)
class EngineLayer:
    """A layer as it was fused. `kind` is "" and `device` None where the engine does not tell: by default it keeps names
    alone."""

    name: str
    kind: str = ""
    device: Device | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return dict(vars(self))


@dataclass(frozen=True)
class EngineFacts:
    """One engine. `why_not_opened` is empty where TensorRT told; else everything is from header and manifest.

    `device_memory_bytes` is what an execution context needs for activations, for the greediest profile.
    """

    plan: Plan
    manifest: Manifest | None
    why_not_opened: str
    inputs: tuple[EngineTensor, ...] = ()
    outputs: tuple[EngineTensor, ...] = ()
    device_memory_bytes: int | None = None
    layers: tuple[EngineLayer, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def opened(self) -> bool:
        """Whether TensorRT itself told."""
        return not self.why_not_opened

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {
            "plan": self.plan.as_dict(),
            "manifest": self.manifest.as_dict() if self.manifest else None,
            "opened": self.opened,
            "why_not_opened": self.why_not_opened,
            "inputs": [one.as_dict() for one in self.inputs],
            "outputs": [one.as_dict() for one in self.outputs],
            "device_memory_bytes": self.device_memory_bytes,
            "layers": [one.as_dict() for one in self.layers],
            "warnings": list(self.warnings),
        }


def inspect_engine(path: Path, *, module: ModuleType | None = None, trusted: bool = False) -> EngineFacts:
    """Look into an engine. `module` stands for the installed tensorrt; `trusted`: the caller vouches for the file.

    Raises FileMissing, EmptyFile, NotAModel or CorruptFile for what is no engine, ReleaseUnsupported, and, where
    TensorRT was asked, CudaUnusable or EngineNotLoaded.
    """
    file = read_engine(path)
    manifest = file.manifest
    inputs, outputs = (manifest.inputs, manifest.outputs) if manifest else ((), ())
    told = EngineFacts(file.plan, manifest, "", _from_manifest(inputs), _from_manifest(outputs))
    try:
        api = usable_api(file, module=module, trusted=trusted)
    except TensorrtMissing as error:
        return replace(told, why_not_opened=error.message)
    except (UntrustedEngine, RuntimeUnavailable) as error:
        return replace(told, why_not_opened=error.received)
    return _opened(told, file, api)


def _from_manifest(rows: Sequence[Mapping[str, Any]]) -> tuple[EngineTensor, ...]:
    return tuple(
        EngineTensor(str(row.get("name", "")), str(row.get("dtype", "")), tuple(row.get("shape", ()))) for row in rows
    )


def _opened(told: EngineFacts, file: EngineFile, api: Api) -> EngineFacts:
    reader, guard = BuildLogReader(), Guard()
    with listening(api, reader.feed, guard) as logger:
        engine, runtime = deserialised(file, api, logger, reader)
        tensors = list(io_tensors(engine, api))
        layers = _layers(engine, api, told.manifest)
        memory = (
            engine.device_memory_size_v2 if api.has("ICudaEngine.device_memory_size_v2") else engine.device_memory_size
        )
        del engine, runtime  # in this order: an engine needs its runtime, and both talk to the logger
    guard.check()
    return replace(
        told,
        inputs=tuple(tensor for is_input, tensor in tensors if is_input),
        outputs=tuple(tensor for is_input, tensor in tensors if not is_input),
        device_memory_bytes=int(memory),
        layers=layers,
        warnings=reader.log().warnings,
    )


# -- layers -----------------------------------------------------------------------------------------------------------
def _layers(engine: Any, api: Api, manifest: Manifest | None) -> tuple[EngineLayer, ...]:
    """From the inspector's JSON, whose other entries differ between releases: names, or all that it knows of each."""
    inspector = engine.create_engine_inspector()
    try:
        told = json.loads(inspector.get_engine_information(api.get("LayerInformationFormat.JSON")))
    except ValueError:  # a layer's name is written without escapes
        told = {}
    layers = told.get("Layers", []) if isinstance(told, dict) else []
    only: Device | None = "gpu" if manifest is not None and manifest.device == "gpu" else None
    return tuple(_layer(one, only) for one in layers)


def _layer(told: Any, only: Device | None) -> EngineLayer:
    if not isinstance(told, dict):
        return EngineLayer(str(told), device=only)
    kind = str(told.get("LayerType", ""))
    device: Device | None = "dla" if "dla" in kind.lower() else only or ("gpu" if kind else None)
    return EngineLayer(str(told.get("Name", "")), kind, device)
