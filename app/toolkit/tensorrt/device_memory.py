"""Memory of the GPU that TensorRT is given addresses of: by pycuda where it is installed, else by torch."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from app.toolkit.tensorrt.errors import CudaUnusable

Array = npt.NDArray[Any]


class DeviceMemory(Protocol):
    """One buffer, which grows as it is needed. An address holds until the next call of `put`, `reserve` or `close`."""

    def put(self, array: Array) -> int:
        """Copy an array there, as it lies in C order, and wait for it; the address."""
        ...

    def reserve(self, size_bytes: int) -> int:
        """Room for something that TensorRT writes; the address."""
        ...

    def get(self, array: Array) -> None:
        """Fill an array, which lies in C order, with what is there."""
        ...

    def close(self) -> None:
        """Give the buffer back."""
        ...


def device_memory() -> DeviceMemory:
    """A buffer on the first GPU. Raises CudaUnusable where neither package reaches one."""
    why = []
    for make in (_PycudaMemory, _TorchMemory):
        try:
            return make()
        except Exception as error:  # noqa: BLE001 - pycuda's errors share no base that is known before it is imported
            why.append(f"{type(error).__name__}: {error}")
    raise CudaUnusable(
        "nothing can be put into GPU memory",
        expected="pycuda, or a torch with CUDA, and a GPU",
        received="; ".join(why),
        hint="pip install pycuda; to calibrate without it, give a calibration cache or a Q/DQ ONNX",
    )


class _PycudaMemory:
    """In the GPU's primary context, which is TensorRT's; `pycuda.autoinit` would make one of its own."""

    def __init__(self) -> None:
        importlib.import_module("pycuda.autoprimaryctx")
        self._driver: Any = importlib.import_module("pycuda.driver")
        self._buffer: Any = None
        self._size_bytes = 0

    def put(self, array: Array) -> int:
        address = self.reserve(array.nbytes)
        self._driver.memcpy_htod(self._buffer, _bytes(array))
        return address

    def reserve(self, size_bytes: int) -> int:
        if self._buffer is None or self._size_bytes < size_bytes:
            self.close()
            self._buffer, self._size_bytes = self._driver.mem_alloc(max(size_bytes, 1)), size_bytes
        return int(self._buffer)

    def get(self, array: Array) -> None:
        self._driver.memcpy_dtoh(_bytes(array), self._buffer)

    def close(self) -> None:
        if self._buffer is not None:
            self._buffer.free()
            self._buffer = None


class _TorchMemory:
    """A CUDA tensor of bytes."""

    def __init__(self) -> None:
        self._torch: Any = importlib.import_module("torch")
        if not self._torch.cuda.is_available():
            raise RuntimeError("torch sees no GPU")
        self._buffer: Any = None

    def put(self, array: Array) -> int:
        address = self.reserve(array.nbytes)
        self._buffer[: array.nbytes].copy_(self._torch.from_numpy(_bytes(array)))
        self._torch.cuda.synchronize()  # TensorRT reads it on another stream
        return address

    def reserve(self, size_bytes: int) -> int:
        if self._buffer is None or len(self._buffer) < size_bytes:
            self._buffer = None  # before the larger one is taken
            self._buffer = self._torch.empty(max(size_bytes, 1), dtype=self._torch.uint8, device="cuda")
        return int(self._buffer.data_ptr())

    def get(self, array: Array) -> None:
        self._torch.from_numpy(_bytes(array)).copy_(self._buffer[: array.nbytes])

    def close(self) -> None:
        self._buffer = None


def _bytes(array: Array) -> npt.NDArray[np.uint8]:
    """The array's bytes in C order: its own memory where it lies so."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
