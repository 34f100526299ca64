"""One runner for each way: opened with `with`, asked for answers, then timed part by part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

import numpy as np

from app.toolkit.benchmark import ort_runners, torch_runners, trt_runners
from app.toolkit.benchmark.request import BenchmarkRequest, Way
from app.toolkit.benchmark.result import Part
from app.toolkit.benchmark.source import Source
from app.toolkit.benchmark.timers import Feeds, Timer
from app.toolkit.errors import RuntimeUnavailable, ToolkitError
from app.toolkit.latency import LatencyReport, LatencySettings
from app.toolkit.runtimes.base import Array, TensorSpec, check_feeds
from app.toolkit.runtimes.failures import failures_told
from app.toolkit.verification.request import Dtype


class TimedRuntime(Protocol):
    """A runtime that can be timed in parts; `notes` are complete once its timers were made."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: list[str]

    def __enter__(self) -> TimedRuntime:
        """As `runtimes.base.Runtime`."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As `runtimes.base.Runtime`."""
        ...

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        """As `runtimes.base.Runtime`."""
        ...

    def timers(self, feeds: Sequence[Feeds]) -> dict[Part, Timer]:
        """As `Runner`."""
        ...


class Family(Protocol):
    """A module of runners."""

    def why_lacking(self, way: Way, source: Source, request: BenchmarkRequest) -> str:
        """As below."""
        ...

    def prepared(
        self, way: Way, source: Source, request: BenchmarkRequest, batch_size: int
    ) -> tuple[Callable[[], TimedRuntime], Dtype]:
        """What makes the runtime of a way that is not lacking, and what it computes in."""
        ...


class Runner:
    """One way of running the model at one batch size. What opening it takes is what running it takes: exporting,
    quantising and building are done before.

    `dtype` is what it computes in. Open, it has `inputs`, `outputs`, and `answers`, which is False where only trtexec
    runs the model: it times itself, in processes of `started_pids`. Only then is there `latencies`, else `infer` and
    `timers`; the others raise RuntimeUnavailable.

    Memory that runs out in any of its methods is OutOfMemory, what a library raises else is RuntimeUnavailable.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    answers: bool
    started_pids: AbstractSet[int] = frozenset()

    def __init__(self, way: Way, dtype: Dtype, make: Callable[[], TimedRuntime], batch_size: int) -> None:
        self.way, self.dtype, self.batch_size = way, dtype, batch_size
        self._make = make
        self._runtime: TimedRuntime | None = None
        self.notes: tuple[str, ...] = ()

    def __enter__(self) -> Runner:
        """Take memory, compile, capture: all that is done once. Raises RuntimeUnavailable."""
        with self._told():
            runtime = self._make()
            runtime.__enter__()
        self._runtime = runtime
        self.inputs, self.outputs = runtime.inputs, runtime.outputs
        self.answers = not isinstance(runtime, trt_runners.TrtexecRunner)
        if isinstance(runtime, trt_runners.TrtexecRunner):
            self.started_pids = runtime.started_pids
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it all back."""
        runtime, self._runtime = self._opened(), None
        runtime.__exit__(kind, error, trace)

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        """One run. Arrays by input name in, float32 arrays by output name out. Raises FeedMismatch."""
        runtime = self._opened()
        with self._told():
            answers = runtime.infer(feeds)
        return {name: np.asarray(answer, dtype=np.float32) for name, answer in answers.items()}

    def timers(self, feeds: Sequence[Feeds]) -> Mapping[Part, Timer]:
        """By part, a function of a call's number n that runs `feeds[n % len(feeds)]` and gives its milliseconds.

        On a CPU only `end_to_end`, from host array to host array on the monotonic clock; on a GPU also `compute`,
        `copy_in` and `copy_out`, by CUDA events where the runtime puts its work on a stream that is known. `notes` is
        then what the figures are to be read with.
        """
        runtime = self._opened()
        for one in feeds:
            check_feeds(self.inputs, one)
        with self._told():
            timers = runtime.timers(feeds)
        self.notes = tuple(runtime.notes)
        return {part: self._guarded(timer) for part, timer in timers.items()}

    def latencies(self, settings: LatencySettings) -> Mapping[Part, LatencyReport]:
        """By part, as trtexec timed itself. `notes` is complete then too."""
        runtime = self._opened()
        if not isinstance(runtime, trt_runners.TrtexecRunner):
            raise RuntimeUnavailable(f"{self.way} does not time itself", expected="trtexec")
        with self._told():
            reports = runtime.latencies(settings)
        self.notes = tuple(runtime.notes)
        return reports

    def _guarded(self, timer: Timer) -> Timer:
        def sample_ms(number: int) -> float:
            with self._told():
                return timer(number)

        return sample_ms

    def _opened(self) -> TimedRuntime:
        if self._runtime is None:
            raise ValueError(f"the runner of {self.way} is not open: use it inside `with`")
        return self._runtime

    def _told(self) -> AbstractContextManager[None]:
        return failures_told(f"{self.way} at batch size {self.batch_size}")


def why_lacking(way: Way, source: Source, request: BenchmarkRequest) -> str:
    """Why a way cannot run this model on this machine, in a sentence; "" where nothing is known against it."""
    try:
        return _of(way).why_lacking(way, source, request)
    except ToolkitError as error:  # a trtexec or a TensorRT that is there and cannot be used
        return str(error)


def open_runner(way: Way, source: Source, request: BenchmarkRequest, batch_size: int) -> Runner:
    """Make what the way runs (an export, an INT8 file, an engine), and a runner that is to be opened.

    Raises RuntimeUnavailable for a way that is lacking, FeedMismatch where the file's batch is another, OutOfMemory,
    and what exporting, quantising and building raise.
    """
    why = why_lacking(way, source, request)
    if why:
        raise RuntimeUnavailable(f"{way} cannot run here", received=why)
    with failures_told(f"{way} at batch size {batch_size}"):
        make, dtype = _of(way).prepared(way, source, request, batch_size)
    return Runner(way, dtype, make, batch_size)


def _of(way: Way) -> Family:
    """The module of a way's family."""
    return {"torch": torch_runners, "onnxruntime": ort_runners, "tensorrt": trt_runners}[way.partition("_")[0]]
