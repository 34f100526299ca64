"""Memory, by the names of pycuda.driver."""

from __future__ import annotations

import ctypes
from typing import Any


class DeviceAllocation:
    def __init__(self, size: int) -> None:
        self.memory: Any = ctypes.create_string_buffer(size)

    def __int__(self) -> int:
        return ctypes.addressof(self.memory)

    def free(self) -> None:
        self.memory = None


def mem_alloc(size: int) -> DeviceAllocation:
    return DeviceAllocation(size)


def memcpy_htod(dest: DeviceAllocation, src: Any) -> None:
    data = memoryview(src).cast("B")
    ctypes.memmove(int(dest), bytes(data), data.nbytes)


def memcpy_dtoh(dest: Any, src: DeviceAllocation) -> None:
    target = memoryview(dest).cast("B")
    target[:] = ctypes.string_at(int(src), target.nbytes)
