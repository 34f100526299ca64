"""Builds by the Python API for the tests: through the double, with memory that needs no GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from app.toolkit.errors import ToolkitError
from app.toolkit.images import Float32Array
from app.toolkit.tensorrt.builder import PythonBuild, build
from app.toolkit.tensorrt.calibrator import Calibration
from app.toolkit.tensorrt.request import BuildRequest, InputShapes
from tests.doubles.tensorrt import make

DOUBLES = Path(__file__).parents[1] / "doubles"
IMAGES = InputShapes("images", (1, 3, 64, 64), (2, 3, 64, 64), (4, 3, 64, 64))


class HostMemory:
    """The machine's own memory; `closed` tells whether it was given back."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)
        self.closed = False

    def put(self, array: npt.NDArray[Any]) -> int:
        address = self.reserve(array.nbytes)
        self._buffer[: array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
        return address

    def reserve(self, size_bytes: int) -> int:
        if self._buffer.nbytes < size_bytes:
            self._buffer = np.empty(size_bytes, np.uint8)
        return int(self._buffer.ctypes.data)

    def get(self, array: npt.NDArray[Any]) -> None:
        array.reshape(-1).view(np.uint8)[:] = self._buffer[: array.nbytes]

    def close(self) -> None:
        self.closed = True


def batches(count: int, batch_size: int = 1) -> list[Float32Array]:
    """The n-th, counted from 1, is full of n."""
    return [np.full((batch_size, 3, 64, 64), number, np.float32) for number in range(1, count + 1)]


def calibration(count: int = 3, batch_size: int = 1, **options: Any) -> Calibration:
    return Calibration(batches(count, batch_size), batch_size, **{"memory": HostMemory, **options})


def failed(
    request: BuildRequest, error: type[ToolkitError], module: ModuleType | None = None, **options: Any
) -> ToolkitError:
    """The error of a build that leaves nothing behind."""
    before = sorted(request.engine.parent.iterdir())
    with pytest.raises(error) as caught:
        build(request, module=module or make(), **options)
    assert type(caught.value) is error
    assert sorted(request.engine.parent.iterdir()) == before
    return caught.value


def int8(request: BuildRequest, **changes: Any) -> BuildRequest:
    return replace(request, **{"precision": "int8", "int8_from": "calibrator", **changes})


def built(request: BuildRequest, release: str = "10.3.0", scenario: str = "success", **options: Any) -> PythonBuild:
    return build(request, module=make(release, scenario), **options)


@contextmanager
def importable(*names: str) -> Iterator[None]:
    """The doubles of these packages are what `import` finds."""
    sys.path.insert(0, str(DOUBLES))
    try:
        yield
    finally:
        sys.path.remove(str(DOUBLES))
        for loaded in [one for one in sys.modules if one.partition(".")[0] in names]:
            del sys.modules[loaded]


def after(count: int) -> Callable[[], bool]:
    """A `should_stop` that says so from its n-th call on."""
    asked = iter(range(1, 1_000_000))
    return lambda: next(asked) >= count
