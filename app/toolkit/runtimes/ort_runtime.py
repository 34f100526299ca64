"""ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from app.toolkit.errors import RuntimeUnavailable
from app.toolkit.runtimes.base import Array, CheckedRuntime, TensorSpec

CPU_PROVIDERS = ("CPUExecutionProvider",)

# ONNX Runtime's type names that NumPy calls otherwise; the rest are the same in both ("tensor(int64)").
_NUMPY_NAMES = {"float": "float32", "double": "float64"}
_ERRORS_ONLY = 3


class OrtRuntime(CheckedRuntime):
    """Runs an ONNX file, or its bytes.

    `providers` is what was asked for, `used_providers` what the session really took.
    Raises RuntimeUnavailable if ONNX Runtime refuses the model or has none of the providers.
    """

    def __init__(
        self,
        model: Path | str | bytes,
        *,
        providers: Sequence[str] = CPU_PROVIDERS,
        threads: int | None = None,
    ) -> None:
        self.providers = tuple(providers)
        self._session: ort.InferenceSession | None = _open_session(model, self.providers, threads)
        self.used_providers = tuple(self._session.get_providers())
        super().__init__("onnxruntime", _specs(self._session.get_inputs()), _specs(self._session.get_outputs()))

    def _open(self) -> None:
        if self._session is None:
            raise RuntimeError("the onnxruntime runtime was closed and cannot be opened again")

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        assert self._session is not None  # noqa: S101 - _open() has checked it; this tells the type checker
        names = [spec.name for spec in self.outputs]
        results = self._session.run(names, dict(feeds))
        return {name: np.asarray(result) for name, result in zip(names, results, strict=True)}

    def _close(self) -> None:
        self._session = None


def _open_session(model: Path | str | bytes, providers: tuple[str, ...], threads: int | None) -> ort.InferenceSession:
    missing = [name for name in providers if name not in ort.get_available_providers()]
    if len(missing) == len(providers):
        raise RuntimeUnavailable(
            "ONNX Runtime has none of the asked providers",
            expected=", ".join(ort.get_available_providers()),
            received=", ".join(providers),
            hint="ask for CPUExecutionProvider, or install the onnxruntime build that has the provider",
        )
    ort.set_default_logger_severity(_ERRORS_ONLY)  # graph passes log to it, not to the session's own logger
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    # Its own default is a thread for each core of the machine, whatever this process may use.
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    try:
        usable = [name for name in providers if name not in missing]
        source = model if isinstance(model, bytes) else str(model)
        return ort.InferenceSession(source, options, providers=usable)
    except Exception as error:  # its exceptions share no base but Exception
        raise RuntimeUnavailable(
            "ONNX Runtime refused the model",
            expected="a model that ONNX Runtime can load",
            received=str(error).splitlines()[0],
        ) from error


def _specs(nodes: Sequence[ort.NodeArg]) -> list[TensorSpec]:
    specs = []
    for node in nodes:
        kind = str(node.type).removeprefix("tensor(").removesuffix(")")
        shape = tuple(axis if isinstance(axis, int) else str(axis or "?") for axis in node.shape)
        specs.append(TensorSpec(str(node.name), _NUMPY_NAMES.get(kind, kind), shape))
    return specs
