"""An engine, from its file to TensorRT's own object, where that is safe; and its inputs and outputs.

An engine is code: to deserialise one is to run it. So it is opened only if the manifest beside it is ours and of this
very file, or the caller vouches for it, and only if its header fits the installed TensorRT, which otherwise fails
obscurely or crashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from app.toolkit.errors import RuntimeUnavailable, UntrustedEngine
from app.toolkit.tensorrt.api import Api, open_api
from app.toolkit.tensorrt.build_log import BuildLogReader
from app.toolkit.tensorrt.compat import compatibility
from app.toolkit.tensorrt.errors import CudaUnusable, EngineNotLoaded
from app.toolkit.tensorrt.manifest import Manifest, model_metadata, read_manifest, sha256_of
from app.toolkit.tensorrt.plan import Plan, read_plan
from app.toolkit.tensorrt.targets import Target
from app.toolkit.tensorrt.versions import version_text

DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8", "FP4": "float4"}
"""TensorRT's names that are not NumPy's in capitals."""
FREE_AXIS = -1


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
class EngineFile:
    """What an engine's file tells without TensorRT. `manifest` is None unless it is of this very file."""

    plan: Plan
    manifest: Manifest | None

    @property
    def metadata(self) -> dict[str, str]:
        """What the model says of itself: task, names, input size, preprocessing; empty where nothing tells."""
        return model_metadata(self.plan, self.manifest)


def read_engine(path: Path) -> EngineFile:
    """Header and manifest; reads the whole file for its digest.

    Raises FileMissing, EmptyFile, NotAModel, CorruptFile.
    """
    plan = read_plan(path)
    manifest = read_manifest(path)
    if manifest is None:
        return EngineFile(plan, None)
    same = (manifest.engine_size_bytes, manifest.engine_sha256) == (plan.size_bytes, sha256_of(path))
    return EngineFile(plan, manifest if same else None)


def usable_api(file: EngineFile, *, module: ModuleType | None = None, trusted: bool = False) -> Api:
    """The installed TensorRT, if the engine may be given to it. `module` stands for the installed tensorrt; `trusted`:
    the caller vouches for the file.

    Raises UntrustedEngine, TensorrtMissing, ReleaseUnsupported; RuntimeUnavailable for an engine of another release.
    """
    name = file.plan.path.name
    if file.manifest is None and not trusted:
        raise UntrustedEngine(
            f"{name} is not opened",
            expected="an engine that this service built, with its manifest",
            received="no manifest of ours is beside it, and an engine is code",
            hint="build it here from its ONNX, or say that the file is trusted",
        )
    api = open_api(module)
    why = _misfit(file, api)
    if why:
        raise RuntimeUnavailable(
            f"{name} does not fit the TensorRT here",
            expected=f"an engine that TensorRT {version_text(api.version)} loads",
            received=why,
            hint="build it here from its ONNX",
        )
    return api


def deserialised(file: EngineFile, api: Api, logger: Any, reader: BuildLogReader) -> tuple[Any, Any]:
    """(engine, runtime), of which the first must go first. `reader` hears what `logger` is told.

    Raises CudaUnusable, EngineNotLoaded.
    """
    runtime = _runtime(api, logger, reader)
    _prepare(runtime, api, file.manifest)
    with file.plan.path.open("rb") as content:
        content.seek(file.plan.offset)
        engine = runtime.deserialize_cuda_engine(content.read())
    if engine is None:
        raise EngineNotLoaded(
            f"TensorRT {version_text(api.version)} did not load {file.plan.path.name}",
            expected="an engine built on a machine like this one",
            received=" | ".join(reader.log().errors) or "no error among its messages",
            hint="compare engine and machine; build it again here",
        )
    return engine, runtime


def _misfit(file: EngineFile, api: Api) -> str:
    """Why this TensorRT must not be given the engine; "" where nothing is known against it."""
    plan, manifest = file.plan, file.manifest
    compared = compatibility(plan, manifest, Target(tensorrt=api.version))
    check = next(one for one in compared.checks if one.about == "TensorRT version")
    unknown = plan.version is None and (manifest is None or manifest.version is None)
    if check.loads is False or (unknown and api.dialect.plan_header):
        return check.why
    return ""


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
def io_tensors(engine: Any, api: Api) -> Iterator[tuple[bool, EngineTensor]]:
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
