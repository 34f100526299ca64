"""INT8 calibration by TensorRT itself, up to 10.x: it asks for batches of images and finds each tensor's range.

TensorRT takes a calibrator that fails for one that has no more images, and builds with what it had. So what goes wrong
is kept by the guard, and whoever builds must look there before believing the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from app.toolkit.errors import FeedMismatch, InvalidBuild
from app.toolkit.images import Float32Array
from app.toolkit.onnx_file import write_whole
from app.toolkit.tensorrt.api import Api
from app.toolkit.tensorrt.callbacks import Guard
from app.toolkit.tensorrt.device_memory import DeviceMemory, device_memory
from app.toolkit.tensorrt.request import CACHE_BEGINS

Method = Literal["entropy", "minmax"]
CacheUse = Literal["none", "read", "written"]

BASES: dict[Method, str] = {"entropy": "IInt8EntropyCalibrator2", "minmax": "IInt8MinMaxCalibrator"}
"""A DLA takes the entropy one only (NVIDIA's class reference, 10.14)."""
DEFAULT_MAX_BATCHES = 10


@dataclass(frozen=True)
class Calibration:
    """What to calibrate with.

    `batches` are [batch_size, C, H, W] float32, preprocessed as the model wants them; the first `max_batches` are used.
    A `cache` that exists is used instead of them, else it is written: its name must hold what it depends on (graph,
    images, method, TensorRT). `memory` makes the buffer that the batches are copied to.
    """

    batches: Iterable[Float32Array]
    batch_size: int
    max_batches: int = DEFAULT_MAX_BATCHES
    method: Method = "entropy"
    cache: Path | None = None
    memory: Callable[[], DeviceMemory] = device_memory


@dataclass(frozen=True)
class Calibrated:
    """What was used."""

    method: Method
    batches: int
    batch_size: int
    cache: CacheUse

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return dict(vars(self))


def from_cache(path: Path, batch_size: int) -> Calibration:
    """An earlier calibration alone, by the method that its first line names."""
    with path.open("rb") as file:
        method: Method = "minmax" if b"MinMax" in file.readline(200) else "entropy"
    return Calibration((), batch_size, method=method, cache=path)


class Feed:
    """What the calibrator answers. `shape` is the network's input while it is calibrated, [N, C, H, W]."""

    def __init__(
        self,
        calibration: Calibration,
        shape: tuple[int, ...],
        *,
        should_stop: Callable[[], bool],
        say: Callable[[str, str], None],
    ) -> None:
        self._calibration = calibration
        self._shape = shape
        self._should_stop = should_stop
        self._say = say
        self._batches = iter(calibration.batches)
        self._used = 0
        self._cache_use: CacheUse = "none"
        self._cached = _usable_cache(calibration.cache)
        self._memory = calibration.memory() if self._cached is None else None  # what is missing is told before a build

    def batch(self, names: Sequence[str]) -> list[int] | None:
        """The next batch's address, None when there are no more. Raises InvalidBuild, FeedMismatch, CudaUnusable."""
        self._cache_use = "none"  # TensorRT asks only where it was given no cache, or did not take it
        if len(names) != 1:  # TensorRT copies as many addresses as it named inputs, whatever it is given
            raise InvalidBuild(
                "calibration feeds networks with one input", expected="one input", received=", ".join(names) or "none"
            )
        if self._used >= self._calibration.max_batches or self._should_stop():
            return None
        batch = next(self._batches, None)
        if batch is None:
            return None
        if batch.shape != self._shape:
            raise FeedMismatch(
                "a calibration batch does not fit the network",
                expected=f"{names[0]}: float32 {list(self._shape)}",
                received=f"{batch.dtype} {list(batch.shape)}",
            )
        self._memory = self._memory or self._calibration.memory()
        address = self._memory.put(np.ascontiguousarray(batch, dtype=np.float32))
        self._used += 1
        self._say("I", f"Calibrating with batch {self._used} of at most {self._calibration.max_batches}")
        return [address]

    def read_cache(self) -> bytes | None:
        """The earlier calibration, if there is one."""
        if self._cached is not None:
            self._cache_use = "read"
        return self._cached

    def write_cache(self, cache: Any) -> None:
        """Keep what was found; the memory that `cache` shows is TensorRT's and gone after the call."""
        if self._calibration.cache is not None and self._used:
            write_whole(bytes(cache), self._calibration.cache)
            self._cache_use = "written"

    def close(self) -> None:
        """Give the GPU's memory back."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def calibrated(self) -> Calibrated:
        """What was used so far."""
        return Calibrated(self._calibration.method, self._used, self._calibration.batch_size, self._cache_use)


def calibrator(api: Api, feed: Feed, calibration: Calibration, guard: Guard) -> Any:
    """The object that `config.int8_calibrator` takes. Raises ReleaseUnsupported from 11 on."""
    base: Any = api.get(BASES[calibration.method])

    class Calibrator(base):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            base.__init__(self)

        def get_batch_size(self) -> int:
            return calibration.batch_size

        def get_batch(self, names: Sequence[str]) -> list[int] | None:
            return guard.run(lambda: feed.batch(names), None)

        def read_calibration_cache(self) -> bytes | None:
            return guard.run(feed.read_cache, None)

        def write_calibration_cache(self, cache: Any) -> None:
            guard.run(lambda: feed.write_cache(cache), None)

    return Calibrator()


def _usable_cache(path: Path | None) -> bytes | None:
    """What is in the file; None where there is none, or something else."""
    if path is None or not path.is_file():
        return None
    content = path.read_bytes()
    return content if CACHE_BEGINS.match(content) else None
