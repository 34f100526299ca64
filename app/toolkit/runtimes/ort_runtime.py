"""ONNX Runtime, and which of its execution providers a model is given to.

A provider that cannot be used does not end the session: the next one takes its place. ONNX Runtime itself leaves CUDA
out without a word where its libraries are missing, and raises for TensorRT (seen with onnxruntime-gpu 1.31.1), so what
was asked for, taken and refused is kept apart here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from app.toolkit.errors import RuntimeUnavailable
from app.toolkit.runtimes.base import Array, CheckedRuntime, TensorSpec

Options = dict[str, str]
Provider = tuple[str, Options]
Device = Literal["cpu", "cuda", "auto"]

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
CPU_PROVIDERS: tuple[str | Provider, ...] = (CPU,)

# S4 E-4. TF32, the provider's default, would be compared instead of the model: it keeps 10 of FP32's 23 fraction bits.
CUDA_OPTIONS: Options = {"cudnn_conv_use_max_workspace": "1", "use_tf32": "0"}
TENSORRT_OPTIONS: Options = {
    "device_id": "0",
    "trt_max_workspace_size": str(8 << 30),
    "trt_max_partition_iterations": "1000",
    "trt_min_subgraph_size": "1",
    "trt_fp16_enable": "True",
    "trt_int8_enable": "False",
}
"""S4 E-8's, but for the cache. The workspace is in bytes."""

# ONNX Runtime's type names that NumPy calls otherwise; the rest are the same in both ("tensor(int64)").
_NUMPY_NAMES = {"float": "float32", "double": "float64"}
_ERRORS_ONLY = 3
NOT_UP = "ONNX Runtime lists it and left it out: a library of it or the GPU is missing; standard error has which"


def select_providers(
    device: Device = "auto", *, tensorrt: bool = False, cache_dir: Path | None = None
) -> list[Provider]:
    """What to give to `OrtRuntime`, the first choice first: CUDA, then the CPU (S4 E-4).

    `auto` asks for CUDA where this build of ONNX Runtime has it. TensorRT comes first, only where it is asked for: its
    FP16 (S4 E-8) would be compared instead of the model. CUDA follows it; its engines are cached in `cache_dir`, None
    for nowhere.
    """
    providers: list[Provider] = []
    if tensorrt:
        cache = {"trt_engine_cache_enable": str(cache_dir is not None)}
        place = {} if cache_dir is None else {"trt_engine_cache_path": str(cache_dir)}
        providers.append((TENSORRT, {**TENSORRT_OPTIONS, **cache, **place}))
    if tensorrt or device == "cuda" or (device == "auto" and CUDA in ort.get_available_providers()):
        providers.append((CUDA, dict(CUDA_OPTIONS)))
    return [*providers, (CPU, {})]


class OrtRuntime(CheckedRuntime):
    """Runs an ONNX file, or its bytes.

    `providers` is what was asked for, `used_providers` what the session really took, `refused` why it did not take the
    others; `provider_options` and `session_options` are those that took effect.
    Raises RuntimeUnavailable if ONNX Runtime refuses the model or takes none of the providers.
    """

    def __init__(
        self,
        model: Path | str | bytes,
        *,
        providers: Sequence[str | Provider] = CPU_PROVIDERS,
        threads: int | None = None,
    ) -> None:
        asked = [(one, Options()) if isinstance(one, str) else one for one in providers]
        self.providers = tuple(name for name, _ in asked)
        session, self.refused = _open_session(model, asked, threads)
        self._session: ort.InferenceSession | None = session
        self.used_providers = tuple(session.get_providers())
        self.provider_options: dict[str, Options] = session.get_provider_options()
        self.session_options = _in_effect(session.get_session_options())
        super().__init__("onnxruntime", _specs(session.get_inputs()), _specs(session.get_outputs()))

    def summary(self) -> str:
        """One line for a log: providers with their options, what was refused and why, the session's options."""
        used = ", ".join(
            f"{name} {_words(self.provider_options.get(name, {}))}".strip() for name in self.used_providers
        )
        refused = "".join(f"; without {name}: {why}" for name, why in self.refused.items())
        return f"onnxruntime {ort.__version__} runs on {used}{refused}; {_words(self.session_options)}"

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


def _open_session(
    model: Path | str | bytes, asked: Sequence[Provider], threads: int | None
) -> tuple[ort.InferenceSession, dict[str, str]]:
    """The session, and by name why a provider is not in it."""
    listed = ort.get_available_providers()
    refused = {name: "this build of ONNX Runtime does not have it" for name, _ in asked if name not in listed}
    if len(refused) == len(asked):
        raise RuntimeUnavailable(
            "ONNX Runtime has none of the asked providers",
            expected=", ".join(listed),
            received=", ".join(refused),
            hint="ask for CPUExecutionProvider, or install the onnxruntime build that has the provider",
        )
    session, raised = _first_that_opens(
        model, [one for one in asked if one[0] not in refused], _session_options(threads)
    )
    used = session.get_providers()
    refused |= {name: raised.get(name, NOT_UP) for name, _ in asked if name not in used and name not in refused}
    if len(refused) == len(asked):  # it went on with the CPU, which nobody asked for
        raise RuntimeUnavailable(
            "none of the asked providers came up",
            expected=", ".join(name for name, _ in asked),
            received="; ".join(f"{name}: {why}" for name, why in refused.items()),
            hint="ask for CPUExecutionProvider too, or look at nvidia-smi and the CUDA libraries",
        )
    return session, refused


def _first_that_opens(
    model: Path | str | bytes, providers: list[Provider], options: ort.SessionOptions
) -> tuple[ort.InferenceSession, dict[str, str]]:
    """A session, and by name what was raised for the providers that had to be left out, the first choice first."""
    source = model if isinstance(model, bytes) else str(model)
    raised: dict[str, str] = {}
    while True:
        try:
            # Its own falling back prints to standard output and keeps what it raised to itself.
            return ort.InferenceSession(source, options, providers=providers, enable_fallback=0), raised
        except Exception as error:  # its exceptions share no base but Exception
            first, *rest = providers
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            if not rest:
                raise RuntimeUnavailable(
                    "ONNX Runtime refused the model", expected="a model that ONNX Runtime can load", received=why
                ) from error
            raised[first[0]] = why
            providers = rest


def _session_options(threads: int | None) -> ort.SessionOptions:
    ort.set_default_logger_severity(_ERRORS_ONLY)  # graph passes log to it, not to the session's own logger
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Its own default (0, as S4 E-4 has it) is a thread for each core of the machine, whatever this process may use.
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    return options


def _in_effect(options: ort.SessionOptions) -> Options:
    return {
        "graph_optimization_level": str(options.graph_optimization_level.name),
        "intra_op_num_threads": str(options.intra_op_num_threads),
        "inter_op_num_threads": str(options.inter_op_num_threads),
    }


def _words(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items())


def _specs(nodes: Sequence[ort.NodeArg]) -> list[TensorSpec]:
    specs = []
    for node in nodes:
        kind = str(node.type).removeprefix("tensor(").removesuffix(")")
        shape = tuple(axis if isinstance(axis, int) else str(axis or "?") for axis in node.shape)
        specs.append(TensorSpec(str(node.name), _NUMPY_NAMES.get(kind, kind), shape))
    return specs
