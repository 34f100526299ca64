"""TensorRT's Python package: every name of it that is used here, with the releases that have it, and its look-up.

Names come and go between releases, and one that is gone raises AttributeError in the middle of a build. So they stand
in one table, which tests hold against genuine packages, and a package is asked for all of them before it is used.
Numbers of enum members move as well (what `1 << 0` asks of a network changes from 10 to 11): they are never kept.

Sources: names of the packages 8.6.1 to 11.4.0, which were imported and asked; for 8.2 to 8.5 the sources of NVIDIA's
Python bindings.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from app.toolkit.errors import ReleaseUnsupported
from app.toolkit.tensorrt.dialects import OLDEST, Dialect, dialect_of
from app.toolkit.tensorrt.errors import TensorrtMissing
from app.toolkit.tensorrt.versions import Version, version_of, version_text

MODULE = "tensorrt"
GONE: Version = (11,)
"""Precision flags, calibrators and what belongs to them."""


@dataclass(frozen=True)
class Name:
    """`path` is as one writes it behind `tensorrt.`; `since` and `until` are the first releases with and without it."""

    path: str
    since: Version = OLDEST
    until: Version | None = None

    @property
    def required(self) -> bool:
        """Every release has it, so that nothing here does without."""
        return self.since == OLDEST and self.until is None

    def in_release(self, version: Version) -> bool:
        """Whether that release has it."""
        return self.since <= version and (self.until is None or version < self.until)


def _members(owner: str, names: str, since: Version = OLDEST, until: Version | None = None) -> tuple[Name, ...]:
    return tuple(Name(f"{owner}.{name}", since, until) for name in names.split())


NAMES: tuple[Name, ...] = (
    Name("__version__"),
    *_members("ILogger", "log Severity"),
    *_members("ILogger.Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE"),
    # -- a build
    *_members("Builder", "create_network create_builder_config create_optimization_profile"),
    *_members("Builder", "build_serialized_network num_DLA_cores"),
    *_members("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", until=GONE),
    *_members("NetworkDefinitionCreationFlag", "STRONGLY_TYPED", since=(10,)),
    *_members("INetworkDefinition", "num_inputs get_input num_layers get_layer"),
    *_members("ITensor", "name shape"),
    *_members("ILayer", "name type"),
    *_members("OnnxParser", "parse_from_file num_errors get_error"),
    *_members("ParserError", "desc node"),
    *_members("ParserError", "node_name node_operator", since=(10,)),
    *_members("IOptimizationProfile", "set_shape"),
    *_members("IBuilderConfig", "set_flag add_optimization_profile default_device_type DLA_core can_run_on_DLA"),
    *_members("IBuilderConfig", "create_timing_cache set_timing_cache get_timing_cache"),
    *_members("IBuilderConfig", "max_workspace_size", until=(10,)),
    *_members("IBuilderConfig", "set_memory_pool_limit", since=(8, 4)),
    *_members("IBuilderConfig", "progress_monitor", since=(10,)),
    *_members("IBuilderConfig", "int8_calibrator set_calibration_profile", until=GONE),
    *_members("MemoryPoolType", "WORKSPACE", since=(8, 4)),
    *_members("BuilderFlag", "GPU_FALLBACK SPARSE_WEIGHTS"),
    *_members("BuilderFlag", "FP16 INT8", until=GONE),
    *_members("DeviceType", "DLA"),
    *_members("ITimingCache", "combine serialize"),
    *_members("IProgressMonitor", "phase_start phase_finish step_complete", since=(10,)),
    *(
        name
        for owner in ("IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator")
        for name in _members(
            owner,
            "get_batch_size get_batch read_calibration_cache write_calibration_cache",
            until=GONE,
        )
    ),
    # -- a look at an engine
    *_members("Runtime", "deserialize_cuda_engine num_DLA_cores DLA_core"),
    *_members("Runtime", "engine_host_code_allowed", since=(8, 6)),
    *_members("ICudaEngine", "num_optimization_profiles num_layers create_engine_inspector create_execution_context"),
    *_members("ICudaEngine", "device_memory_size", until=GONE),
    *_members("ICudaEngine", "device_memory_size_v2", since=(10, 3)),  # 10.0.1 lacks it; 10.1 and 10.2 were not asked
    *_members("ICudaEngine", "num_io_tensors get_tensor_name get_tensor_shape get_tensor_dtype", since=(8, 5)),
    *_members("ICudaEngine", "get_tensor_mode get_tensor_profile_shape", since=(8, 5)),
    *_members("ICudaEngine", "num_bindings get_binding_name get_binding_shape get_binding_dtype", until=(10,)),
    *_members("ICudaEngine", "binding_is_input get_profile_shape", until=(10,)),
    *_members("TensorIOMode", "INPUT", since=(8, 5)),
    *_members("EngineInspector", "get_engine_information"),
    *_members("LayerInformationFormat", "JSON"),
    # -- a run of it
    *_members("IExecutionContext", "execute_v2"),
    *_members("IExecutionContext", "set_input_shape get_tensor_shape", since=(8, 5)),
    *_members("IExecutionContext", "set_binding_shape get_binding_shape", until=(10,)),
)
_PATHS = frozenset(
    ".".join(parts[: length + 1]) for name in NAMES for parts in [name.path.split(".")] for length in range(len(parts))
)
"""The names and the classes that they are of."""


@dataclass(frozen=True)
class Api:
    """One release's package, which has all that every release must have. `version` is the package's own."""

    module: Any
    version: Version
    dialect: Dialect

    def has(self, path: str) -> bool:
        """Whether this package has a name of the table."""
        return _look_up(self.module, path) is not None

    def get(self, path: str) -> Any:
        """What a name of the table stands for. Raises ReleaseUnsupported where this package lacks it."""
        found = _look_up(self.module, path)
        if found is None:
            raise ReleaseUnsupported(
                f"TensorRT {version_text(self.version)} has no {path}",
                expected=f"tensorrt.{path}",
                received=f"a package of TensorRT {version_text(self.version)} without it",
                hint="report it: what was asked of this release fits another",
            )
        return found

    @property
    def calibrates_by_profile(self) -> bool:
        """Whether free axes need a profile for the calibration too: in 10.x that is deprecated and causes errors."""
        return self.version < (10,)

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {"package": str(self.module.__name__), "version": version_text(self.version)}


def open_api(module: ModuleType | None = None) -> Api:
    """The installed package, or the one that is given.

    Raises TensorrtMissing where it cannot be imported, ReleaseUnsupported for one before 8.2 or without a needed name.
    """
    if module is None:
        module = _imported()
    told = str(getattr(module, "__version__", ""))
    version = version_of(told)
    if version is None:
        raise TensorrtMissing(
            "the Python package tensorrt does not say its version",
            expected="a version such as 10.3.0",
            received=repr(told),
            hint="look whether a file or folder named tensorrt shadows the package",
        )
    dialect = dialect_of(version)
    missing = [name for name in missing_names(module, version) if _required(name)]
    if missing:
        raise ReleaseUnsupported(
            f"TensorRT {version_text(version)} lacks names that are needed here",
            expected="the Python API of TensorRT 8.2 to 11.4",
            received=f"no {', '.join(missing)}",
            hint="use trtexec of this release, or a release that is known here",
        )
    return Api(module, version, dialect)


def missing_names(module: Any, version: Version) -> tuple[str, ...]:
    """The names that a release must have by the table and that a package lacks."""
    return tuple(name.path for name in NAMES if name.in_release(version) and _look_up(module, name.path) is None)


def _required(path: str) -> bool:
    return any(name.path == path and name.required for name in NAMES)


def _look_up(module: Any, path: str) -> Any:
    """None where it is not there: no name of the table stands for None."""
    if path not in _PATHS:
        raise KeyError(f"{path} is not in the table of names")
    found = module
    for part in path.split("."):
        found = getattr(found, part, None)
        if found is None:
            break
    return found


def _imported() -> ModuleType:
    try:
        return importlib.import_module(MODULE)
    except (ImportError, OSError, RuntimeError) as error:  # a library that does not load, or a CUDA that is too old
        raise TensorrtMissing(
            "TensorRT's Python package cannot be used here",
            expected="the Python package tensorrt with its libraries",
            received=f"{type(error).__name__}: {error}",
            hint="pip install tensorrt on a machine with an NVIDIA GPU; a Jetson has it from JetPack",
        ) from error
