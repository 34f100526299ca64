"""How one run of a model is timed: on the host by the monotonic clock, on a GPU by CUDA events.

On a GPU a run takes its images from page-locked host memory and leaves its answers there, as trtexec does and as a
program does that cares for speed. So the ways differ by what they compute, not by whose copies are better.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from app.toolkit.benchmark.result import Part
from app.toolkit.runtimes.base import Array

Feeds = Mapping[str, Array]
Timer = Callable[[int], float]
"""Runs the feeds of a call's number, and gives its milliseconds."""


def host_timer(run: Callable[[Feeds], object], feeds: Sequence[Feeds]) -> Timer:
    """On the monotonic clock; `run` must wait for its end."""

    def sample_ms(number: int) -> float:
        one = feeds[number % len(feeds)]
        begun = time.perf_counter_ns()
        run(one)
        return (time.perf_counter_ns() - begun) / 1e6

    return sample_ms


@dataclass(frozen=True)
class GpuSteps:
    """The three steps of one run on a GPU, each put on `stream` and none waited for."""

    stream: torch.cuda.Stream
    copy_in: Callable[[Feeds], object]
    compute: Callable[[], object]
    copy_out: Callable[[], object]

    def run(self, feeds: Feeds) -> None:
        """All three, and wait."""
        with torch.cuda.stream(self.stream):
            self.copy_in(feeds)
            self.compute()
            self.copy_out()
        self.stream.synchronize()

    def timers(self, feeds: Sequence[Feeds]) -> dict[Part, Timer]:
        """Each step by CUDA events, begun on an idle GPU; all together, from host array to host array, on the host."""
        locked = [{name: page_locked(array) for name, array in one.items()} for one in feeds]
        self.run(locked[0])  # there are answers to copy

        def copy_in(number: int) -> float:
            return self._event_ms(lambda: self.copy_in(locked[number % len(locked)]))

        def compute(number: int) -> float:
            with torch.cuda.stream(self.stream):
                self.copy_in(locked[number % len(locked)])
            return self._event_ms(self.compute)

        def copy_out(_number: int) -> float:
            return self._event_ms(self.copy_out)

        return {
            "end_to_end": host_timer(self.run, locked),
            "compute": compute,
            "copy_in": copy_in,
            "copy_out": copy_out,
        }

    def _event_ms(self, step: Callable[[], object]) -> float:
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self.stream.synchronize()
        with torch.cuda.stream(self.stream):
            begun.record()
            step()
            ended.record()
        ended.synchronize()
        return float(begun.elapsed_time(ended))


def side_stream() -> torch.cuda.Stream:
    """A stream of its own: a graph cannot be captured on the default one, nor can ONNX Runtime be given that."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def page_locked(array: Array) -> Array:
    """The same in page-locked host memory; itself where it lies there, or torch sees no GPU.

    CUDA knows such memory by its address, whoever copies from it.
    """
    if not torch.cuda.is_available():
        return array
    return torch.from_numpy(np.ascontiguousarray(array)).pin_memory().numpy()


def page_locked_room(shape: Sequence[int], dtype: str) -> Array:
    """An array of any content in page-locked host memory, which torch keeps for the next; as `page_locked`."""
    if not torch.cuda.is_available():
        return np.empty(shape, dtype)
    size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True).numpy().view(dtype).reshape(shape)
