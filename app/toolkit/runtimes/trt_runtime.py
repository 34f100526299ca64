"""TensorRT engines, through its Python package of 8.2 to 11.4.

One way of running suits every release: `execute_v2`, which waits for its end, with an address for each input and output
in the engine's order. Ultralytics runs TensorRT 7 to 11 by it. Only the shapes are told by name (8.5 on) or by index.

It has never run on a real TensorRT: its names were held against genuine packages, its behaviour against a double.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from app.toolkit.errors import FeedMismatch, RuntimeUnavailable
from app.toolkit.runtimes.base import Array, CheckedRuntime, TensorSpec
from app.toolkit.tensorrt.api import Api
from app.toolkit.tensorrt.build_log import BuildLogReader
from app.toolkit.tensorrt.callbacks import Guard, listening
from app.toolkit.tensorrt.device_memory import DeviceMemory, device_memory
from app.toolkit.tensorrt.errors import TensorrtMissing
from app.toolkit.tensorrt.loading import (
    FREE_AXIS,
    EngineFile,
    EngineTensor,
    deserialised,
    io_tensors,
    read_engine,
    usable_api,
)
from app.toolkit.tensorrt.versions import version_text

NUMPY_DTYPES = frozenset({"float32", "float16", "int8", "uint8", "int32", "int64", "bool"})


class TrtRuntime(CheckedRuntime):
    """Runs an engine on the first GPU, free axes within its first optimisation profile.

    `file` is what the engine's file and its manifest tell. `module` stands for the installed tensorrt, `memory` makes
    the buffers that TensorRT reads and writes, `room` the arrays of a run's answers. Raises what `loading.read_engine`
    raises, UntrustedEngine unless the engine is ours or `trusted`, ReleaseUnsupported, CudaUnusable, EngineNotLoaded,
    and RuntimeUnavailable where TensorRT is missing, is another release than the engine's, or has types that NumPy has
    not.
    """

    def __init__(
        self,
        engine: Path,
        *,
        trusted: bool = False,
        module: ModuleType | None = None,
        memory: Callable[[], DeviceMemory] = device_memory,
        room: Callable[[tuple[int, ...], str], Array] = np.empty,
    ) -> None:
        self.file = read_engine(engine)
        self._api = _api(self.file, module, trusted)
        self._reader, self._guard = BuildLogReader(), Guard()
        with self._listening() as logger:
            self._engine, self._runtime = deserialised(self.file, self._api, logger, self._reader)
            tensors = list(io_tensors(self._engine, self._api))
        self._tensors = [tensor for _, tensor in tensors]
        self._make_memory, self._room = memory, room
        self._memories: list[DeviceMemory] = []
        self._context: Any = None
        _check_dtypes(self._tensors)
        inputs = [_spec(tensor) for is_input, tensor in tensors if is_input]
        super().__init__("tensorrt", inputs, [_spec(tensor) for is_input, tensor in tensors if not is_input])

    @property
    def release(self) -> str:
        """The TensorRT that runs it: `10.3.0`."""
        return version_text(self._api.version)

    def _open(self) -> None:
        if self._engine is None:
            raise RuntimeError("the tensorrt runtime was closed and cannot be opened again")
        with self._listening():
            self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failed("made no execution context", "free memory of the GPU for the engine's activations")
        self._memories = [self._make_memory() for _ in self._tensors]

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        for tensor in self._tensors:
            _check_profile(tensor, feeds)
        answers: dict[str, Array] = {}
        with self._listening():
            self._tell_shapes(feeds)
            addresses = []
            for index, (tensor, memory) in enumerate(zip(self._tensors, self._memories, strict=True)):
                if tensor.name in feeds:
                    addresses.append(memory.put(feeds[tensor.name]))
                    continue
                answer = answers[tensor.name] = self._room(self._shape(index), tensor.dtype)
                addresses.append(memory.reserve(answer.nbytes))
            ran = self._context.execute_v2(addresses)
        if not ran:
            raise self._failed("did not run the engine", "a run to its end")
        for tensor, memory in zip(self._tensors, self._memories, strict=True):
            if tensor.name in answers:
                memory.get(answers[tensor.name])
        return answers

    def _close(self) -> None:
        for memory in self._memories:
            memory.close()
        self._memories = []
        self._context = None
        self._engine = None  # before its runtime
        self._runtime = None

    @contextmanager
    def _listening(self) -> Iterator[Any]:
        """The logger of TensorRT, whose messages `_failed` tells, until the end of the block."""
        self._reader = BuildLogReader()
        with listening(self._api, self._reader.feed, self._guard) as logger:
            yield logger
        self._guard.check()

    def _tell_shapes(self, feeds: Mapping[str, Array]) -> None:
        for index, tensor in enumerate(self._tensors):
            if tensor.name not in feeds or FREE_AXIS not in tensor.shape:
                continue
            shape = feeds[tensor.name].shape
            if self._api.has("IExecutionContext.set_input_shape"):
                taken = self._context.set_input_shape(tensor.name, shape)
            else:
                taken = self._context.set_binding_shape(index, shape)
            if not taken:
                raise self._failed(f"did not take {list(shape)} for {tensor.name}", "a shape of the engine's profile")

    def _shape(self, index: int) -> tuple[int, ...]:
        """An output's, once the inputs' are told."""
        tensor = self._tensors[index]
        if self._api.has("IExecutionContext.get_tensor_shape"):
            shape = tuple(self._context.get_tensor_shape(tensor.name))
        else:
            shape = tuple(self._context.get_binding_shape(index))
        if FREE_AXIS in shape:
            raise self._failed(f"does not know the shape of {tensor.name}", "shapes that follow from the inputs'")
        return shape

    def _failed(self, what: str, expected: str) -> RuntimeUnavailable:
        return RuntimeUnavailable(
            f"TensorRT {self.release} {what}: {self.file.plan.path.name}",
            expected=expected,
            received=" | ".join(self._reader.log().errors) or "no error among its messages",
            hint="nvidia-smi (tegrastats on a Jetson) shows the GPU and its memory",
        )


def _api(file: EngineFile, module: ModuleType | None, trusted: bool) -> Api:
    try:
        return usable_api(file, module=module, trusted=trusted)
    except TensorrtMissing as error:
        raise RuntimeUnavailable(
            f"{file.plan.path.name} cannot be run here: {error.message}",
            expected=error.expected,
            received=error.received,
            hint=error.hint,
        ) from error


def _check_dtypes(tensors: list[EngineTensor]) -> None:
    unknown = [tensor for tensor in tensors if tensor.dtype not in NUMPY_DTYPES]
    if unknown:
        raise RuntimeUnavailable(
            "the engine's inputs or outputs have types that NumPy has not",
            expected=", ".join(sorted(NUMPY_DTYPES)),
            received=", ".join(f"{tensor.name}: {tensor.dtype}" for tensor in unknown),
            hint="build it from an ONNX whose inputs and outputs are float32 or float16",
        )


def _check_profile(tensor: EngineTensor, feeds: Mapping[str, Array]) -> None:
    if tensor.name not in feeds or not tensor.profiles:
        return
    low, _, high = tensor.profiles[0]
    shape = feeds[tensor.name].shape
    if not all(least <= axis <= most for least, axis, most in zip(low, shape, high, strict=True)):
        raise FeedMismatch(
            f"input {tensor.name} is outside of the engine's profile",
            expected=f"{list(low)} to {list(high)}",
            received=str(list(shape)),
            hint="build an engine for this size",
        )


def _spec(tensor: EngineTensor) -> TensorSpec:
    """Free axes have no names in an engine."""
    return TensorSpec(tensor.name, tensor.dtype, tuple("?" if axis == FREE_AXIS else axis for axis in tensor.shape))
