"""From a build that made no engine to the error that says why, what was expected, and what to try."""

from __future__ import annotations

import signal
from collections.abc import Callable

from app.toolkit.errors import InvalidBuild, OnnxRefused, OutOfMemory, ToolkitError, UnsupportedOperator
from app.toolkit.tensorrt.build_log import BuildLog
from app.toolkit.tensorrt.errors import (
    BuildKilled,
    CudaUnusable,
    DlaUnavailable,
    EngineBuildFailed,
    TrtexecOptionRefused,
)
from app.toolkit.tensorrt.request import BuildRequest

MAX_TOLD = 5
SMALLEST_WORKSPACE_MIB = 64
NOT_PARSED = ("Failed to parse onnx file", "Parsing model failed")
STATIC_MODEL = "Static model does not take explicit shapes"


def failure(exit_code: int, log: BuildLog, request: BuildRequest) -> ToolkitError:
    """The error for a trtexec that ended without an engine. `exit_code` is below 0 for a signal, as Python has it."""
    tried: tuple[Callable[[int, BuildLog, BuildRequest], ToolkitError | None], ...] = (
        _option,
        _graph,
        _shapes,
        _dla,
        _memory,
        _cuda,
        _killed,
    )
    found = next((error for one in tried if (error := one(exit_code, log, request)) is not None), None)
    return found or EngineBuildFailed(
        "trtexec made no engine",
        expected="exit code 0 and PASSED",
        received=f"exit code {exit_code}, {'PASSED' if log.passed else 'no PASSED'}; {_last_errors(log)}",
        hint="the job's log has all that it printed",
    )


def _option(_exit_code: int, log: BuildLog, _request: BuildRequest) -> ToolkitError | None:
    if not log.option_refused:
        return None
    return TrtexecOptionRefused(
        "trtexec refused its command line",
        expected="options that this release knows",
        received=_last_errors(log),
        hint="report it with the job's log: the table of this release's options is wrong",
    )


def _graph(_exit_code: int, log: BuildLog, _request: BuildRequest) -> ToolkitError | None:
    if not log.node_errors and not any(text.startswith(NOT_PARSED) for text in log.errors):
        return None
    labels = tuple(node.label for node in log.node_errors)
    told = "; ".join(f"{node.label}: {node.reason}" for node in log.node_errors[:MAX_TOLD]) or _last_errors(log)
    unsupported = sorted({node.op for node in log.node_errors if node.unsupported})
    if unsupported:
        return UnsupportedOperator(
            f"TensorRT has no {', '.join(unsupported)}",
            names=labels,
            expected="operators that this release imports",
            received=told,
            hint="export the model without it, or use a newer TensorRT",
        )
    return OnnxRefused(
        "TensorRT's parser refused the ONNX",
        names=labels,
        expected="a graph that this release imports",
        received=told,
        hint="lint the ONNX: it names what this release refuses and what to do instead",
    )


def _shapes(_exit_code: int, log: BuildLog, request: BuildRequest) -> ToolkitError | None:
    wrong = any(text.startswith(STATIC_MODEL) for text in log.errors)
    unknown, invented = (log.texts.get(name, "") for name in ("unknown_shape_input", "invented_shape"))
    if not (wrong or unknown or invented):
        return None
    given = ", ".join(one.name for one in request.shapes) or "none"
    return InvalidBuild(
        "the shapes do not fit the ONNX",
        expected="no shapes" if wrong else f"shapes for {invented}" if invented else "shapes for the ONNX's own inputs",
        received=f"shapes for {given}",
        hint="a static ONNX takes no shapes, a dynamic one takes them for each dynamic input",
    )


def _dla(_exit_code: int, log: BuildLog, _request: BuildRequest) -> ToolkitError | None:
    core = log.numbers.get("dla_core_missing")
    if core is None:
        return None
    return DlaUnavailable(
        f"TensorRT sees no DLA core {core:g} here",
        expected=f"at least {core + 1:g} DLA cores",
        received=log.texts.get("device", "a device without that core"),
        hint="build for the GPU; in a container pass the DLA's device nodes through",
    )


def _memory(_exit_code: int, log: BuildLog, request: BuildRequest) -> ToolkitError | None:
    if not log.out_of_memory:
        return None
    now = request.workspace_mib
    if "insufficient workspace" in log.out_of_memory:
        hint = f"try workspace_mib {now * 2}; where that does not help, this release has no kernel for the layer named"
    else:
        following = max(SMALLEST_WORKSPACE_MIB, now // 2)
        smaller = f"try workspace_mib {following}; " if following < now else ""
        hint = f"{smaller}end what else uses the memory, or take a smaller input or batch"
    return OutOfMemory(
        "the build ran out of memory",
        expected=f"room for a build with {now} MiB of workspace",
        received=log.out_of_memory,
        hint=hint,
    )


def _cuda(_exit_code: int, log: BuildLog, _request: BuildRequest) -> ToolkitError | None:
    text = log.texts.get("cuda_failure")
    if text is None:
        return None
    return CudaUnusable(
        "TensorRT cannot use CUDA here",
        expected="a GPU and a driver that this TensorRT supports",
        received=text,
        hint="nvidia-smi (tegrastats on a Jetson) must show the GPU, in the container too",
    )


def _killed(exit_code: int, log: BuildLog, _request: BuildRequest) -> ToolkitError | None:
    number = -exit_code if exit_code < 0 else exit_code - 128  # a shell that wraps trtexec adds 128
    if number not in {one.value for one in signal.Signals}:
        return None
    name = signal.Signals(number).name
    hints = {
        "SIGKILL": "mostly the kernel for lack of memory: see its log, take a smaller workspace, or add swap",
        "SIGTERM": "somebody ended it",
    }
    return BuildKilled(
        f"{name} ended trtexec while it was at: {log.phase}",
        expected="exit code 0",
        received=f"{name}; {_last_errors(log)}",
        hint=hints.get(name, "TensorRT crashed: the last lines of the job's log say where"),
    )


def _last_errors(log: BuildLog) -> str:
    return " | ".join(log.errors[-MAX_TOLD:]) or "no error printed"
