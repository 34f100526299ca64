"""Why an engine was not built, or does not load: the machine errors of TensorRT alone.

MachineError
├── EngineNotLoaded             ENGINE_NOT_LOADED
└── EngineBuildFailed           ENGINE_BUILD_FAILED
    ├── TrtexecMissing          TRTEXEC_MISSING
    ├── TrtexecOptionRefused    TRTEXEC_OPTION_REFUSED
    ├── TensorrtMissing         TENSORRT_MISSING
    ├── DlaUnavailable          DLA_UNAVAILABLE
    ├── CudaUnusable            CUDA_UNUSABLE
    ├── BuildKilled             BUILD_KILLED
    ├── BuildStopped            BUILD_STOPPED
    └── BuildTimedOut           BUILD_TIMED_OUT
"""

from __future__ import annotations

from app.toolkit.errors import MachineError


class EngineNotLoaded(MachineError):
    """TensorRT could not deserialise an engine that its header allows."""

    code = "ENGINE_NOT_LOADED"


class EngineBuildFailed(MachineError):
    """TensorRT made no engine."""

    code = "ENGINE_BUILD_FAILED"


class TrtexecMissing(EngineBuildFailed):
    """There is no trtexec, or what bears its name is none."""

    code = "TRTEXEC_MISSING"


class TrtexecOptionRefused(EngineBuildFailed):
    """trtexec refused an option that we gave it."""

    code = "TRTEXEC_OPTION_REFUSED"


class TensorrtMissing(EngineBuildFailed):
    """There is no TensorRT for Python, or what bears its name cannot be used."""

    code = "TENSORRT_MISSING"


class DlaUnavailable(EngineBuildFailed):
    """The asked DLA core is not there."""

    code = "DLA_UNAVAILABLE"


class CudaUnusable(EngineBuildFailed):
    """The GPU or its driver cannot be used by TensorRT."""

    code = "CUDA_UNUSABLE"


class BuildKilled(EngineBuildFailed):
    """A signal ended the build: the kernel for lack of memory, a crash, or a person."""

    code = "BUILD_KILLED"


class BuildStopped(EngineBuildFailed):
    """The caller's `should_stop` ended the build."""

    code = "BUILD_STOPPED"


class BuildTimedOut(EngineBuildFailed):
    """The build took longer than its limit and was ended."""

    code = "BUILD_TIMED_OUT"
