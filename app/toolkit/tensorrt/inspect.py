"""What is in an engine: inputs, outputs, device memory, layers, told by TensorRT itself where that is safe.

An engine is code: to deserialise one is to run it. So it is opened only if the manifest beside it is ours and of this
very file, or the caller vouches for it, and only if its header fits the installed TensorRT, which otherwise fails
obscurely or crashes. Everything else is told from the header and the manifest alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from app.toolkit.tensorrt.api import Api, open_api
from app.toolkit.tensorrt.build_log import BuildLogReader
from app.toolkit.tensorrt.callbacks import Guard, listening
from app.toolkit.tensorrt.compat import compatibility
from app.toolkit.tensorrt.errors import CudaUnusable, EngineNotLoaded, TensorrtMissing
from app.toolkit.tensorrt.manifest import Manifest, read_manifest, sha256_of
from app.toolkit.tensorrt.plan import Plan, read_plan
from app.toolkit.tensorrt.targets import Target
from app.toolkit.tensorrt.versions import version_text

DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8", "FP4": "float4"}
"""TensorRT's names that are not NumPy's in capitals."""
FREE_AXIS = -1

Device = Literal["gpu", "dla"]


@dataclass(frozen=True)
class EngineTensor:
    """An input or output; -1 is a free axis. `profiles` has (minimum, optimum, maximum) for each profile of an input
    with free axes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    profiles: tuple[tuple[tuple[int, ...], ...], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        profiles = [dict(zip(("min", "opt", "max"), map(list, one), strict=True)) for one in self.profiles]
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape), "profiles": profiles}


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
    plan = read_plan(path)
    manifest = read_manifest(path)
    if manifest is not None and (manifest.engine_size_bytes, manifest.engine_sha256) != (
        plan.size_bytes,
        sha256_of(path),
    ):
        manifest = None
    inputs, outputs = (manifest.inputs, manifest.outputs) if manifest else ((), ())
    told = EngineFacts(plan, manifest, "", _from_manifest(inputs), _from_manifest(outputs))
    if manifest is None and not trusted:
        return replace(told, why_not_opened="no manifest of ours is beside it, and an engine is code")
    try:
        api = open_api(module)
    except TensorrtMissing as error:
        return replace(told, why_not_opened=error.message)
    why = _misfit(plan, manifest, api)
    return replace(told, why_not_opened=why) if why else _opened(told, api)


def _from_manifest(rows: Sequence[Mapping[str, Any]]) -> tuple[EngineTensor, ...]:
    return tuple(
        EngineTensor(str(row.get("name", "")), str(row.get("dtype", "")), tuple(row.get("shape", ()))) for row in rows
    )


def _misfit(plan: Plan, manifest: Manifest | None, api: Api) -> str:
    """Why this TensorRT must not be given the engine; "" where nothing is known against it."""
    compared = compatibility(plan, manifest, Target(tensorrt=api.version))
    check = next(one for one in compared.checks if one.about == "TensorRT version")
    unknown = plan.version is None and (manifest is None or manifest.version is None)
    if check.loads is False or (unknown and api.dialect.plan_header):
        return check.why
    return ""


def _opened(told: EngineFacts, api: Api) -> EngineFacts:
    reader, guard = BuildLogReader(), Guard()
    with listening(api, reader.feed, guard) as logger:
        engine, runtime = _deserialised(told, api, logger, reader)
        tensors = list(_tensors(engine, api))
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


def _deserialised(told: EngineFacts, api: Api, logger: Any, reader: BuildLogReader) -> tuple[Any, Any]:
    runtime = _runtime(api, logger, reader)
    _prepare(runtime, api, told.manifest)
    with told.plan.path.open("rb") as file:
        file.seek(told.plan.offset)
        engine = runtime.deserialize_cuda_engine(file.read())
    if engine is None:
        raise EngineNotLoaded(
            f"TensorRT {version_text(api.version)} did not load {told.plan.path.name}",
            expected="an engine built on a machine like this one",
            received=" | ".join(reader.log().errors) or "no error among its messages",
            hint="compare engine and machine; build it again here",
        )
    return engine, runtime


def _runtime(api: Api, logger: Any, reader: BuildLogReader) -> Any:
    """Where CUDA cannot be used there may be a runtime all the same, which crashes as soon as it is given an engine."""
    received = ""
    try:
        runtime = api.get("Runtime")(logger)
    except TypeError as error:  # what the bindings make of the library's null pointer
        runtime, received = None, str(error)
    errors = reader.log().errors
    if runtime is None or errors:
        raise CudaUnusable(
            "TensorRT cannot use CUDA here",
            expected="a GPU and a driver that this TensorRT supports",
            received=" | ".join(filter(None, (*errors, received))),
            hint="nvidia-smi (tegrastats on a Jetson) must show the GPU, in the container too",
        )
    return runtime


def _prepare(runtime: Any, api: Api, manifest: Manifest | None) -> None:
    """What some engines need before they are read."""
    if manifest is None:
        return
    if manifest.version_compatible and api.has("Runtime.engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True
    if manifest.device.startswith("dla"):
        core = int(manifest.device[3:] or 0)
        cores = int(runtime.num_DLA_cores)
        if not cores:
            raise EngineNotLoaded(
                f"{manifest.engine_name} is built for a DLA",
                expected=f"a DLA core, as {manifest.device} was",
                received="no DLA core here",
                hint="build it for the GPU",
            )
        runtime.DLA_core = core if core < cores else 0


# -- inputs and outputs -----------------------------------------------------------------------------------------------
def _tensors(engine: Any, api: Api) -> Iterator[tuple[bool, EngineTensor]]:
    """(whether it is an input, the tensor): by name from 8.5 on, by "bindings" before."""
    profiles = int(engine.num_optimization_profiles)
    if not api.has("ICudaEngine.num_io_tensors"):
        yield from _bindings(engine, profiles)
        return
    inputs = api.get("TensorIOMode.INPUT")
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape = tuple(engine.get_tensor_shape(name))
        is_input = engine.get_tensor_mode(name) == inputs
        ranges = [engine.get_tensor_profile_shape(name, at) for at in range(profiles)] if is_input else []
        yield is_input, _tensor(name, engine.get_tensor_dtype(name), shape, ranges)


def _bindings(engine: Any, profiles: int) -> Iterator[tuple[bool, EngineTensor]]:
    """Each profile has bindings of its own, one set after the other: the first names them all."""
    count = engine.num_bindings // max(profiles, 1)
    for index in range(count):
        is_input = bool(engine.binding_is_input(index))
        ranges = [engine.get_profile_shape(at, at * count + index) for at in range(profiles)] if is_input else []
        shape = tuple(engine.get_binding_shape(index))
        yield is_input, _tensor(engine.get_binding_name(index), engine.get_binding_dtype(index), shape, ranges)


def _tensor(name: str, dtype: Any, shape: tuple[int, ...], ranges: Sequence[Any]) -> EngineTensor:
    told = str(dtype.name)
    profiles = tuple(tuple(tuple(one) for one in three) for three in ranges) if FREE_AXIS in shape else ()
    return EngineTensor(str(name), DTYPES.get(told, told.lower()), shape, profiles)


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
