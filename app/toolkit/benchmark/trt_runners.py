"""TensorRT's ways: an engine that was given, or one built here for each batch size.

Where TensorRT's Python package is, our runtime runs the engine: its answers are checked, its copies are timed apart by
the monotonic clock, as each is waited for, and computing is the rest. It has no CUDA graph, so its figures are not
those of trtexec. Where only trtexec is, it times the engine on numbers of its own, and nobody sees the answers.

What trtexec times by default changed with 11: a CUDA graph and spinning while it waits came in, data transfers went
out. Here every release has the graph, spins, and transfers (`timing_options`), so that figures of releases compare.
It writes every run's times (`--exportTimes`), which are judged as those of any other way: a start is a window.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from app.toolkit.benchmark.request import BenchmarkRequest, Way
from app.toolkit.benchmark.result import Part
from app.toolkit.benchmark.source import Source, check_batch, engine_tensors
from app.toolkit.benchmark.timers import Feeds, Timer, host_timer, page_locked, page_locked_room
from app.toolkit.errors import RuntimeUnavailable
from app.toolkit.latency import LatencyReport, LatencySettings, latency_of
from app.toolkit.models.exported import ExportedModel
from app.toolkit.onnx_file import input_specs, output_specs, write_whole
from app.toolkit.runtimes.base import Array, TensorSpec
from app.toolkit.runtimes.trt_runtime import TrtRuntime
from app.toolkit.tensorrt.build_log import BuildLog, BuildLogReader
from app.toolkit.tensorrt.device_memory import DeviceMemory, device_memory
from app.toolkit.tensorrt.dialects import Dialect
from app.toolkit.tensorrt.pipeline import Builders, EngineRequest, build_engine, find_builders
from app.toolkit.tensorrt.preflight import Wish
from app.toolkit.tensorrt.process import NotStarted, TimedOut, descendants, run_lines
from app.toolkit.tensorrt.request import Precision
from app.toolkit.tensorrt.trtexec import Trtexec
from app.toolkit.verification.request import Dtype

Tensors = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Mapping[str, tuple[int, ...]]]

PRECISIONS: Mapping[Way, Precision] = {"tensorrt_fp16": "fp16", "tensorrt_int8": "int8"}
WARM_UP_MS = 500
DURATION_SEC = 3
RUN_TIMEOUT_SEC = 600.0
EXPORTED: Mapping[Part, str] = {
    "end_to_end": "latencyMs",
    "compute": "computeMs",
    "copy_in": "h2dMs",
    "copy_out": "d2hMs",
}
"""trtexec's names in the file of `--exportTimes`. Its latency is the sum of the other three."""


def why_lacking(way: Way, source: Source, request: BenchmarkRequest) -> str:
    """Why a way of TensorRT cannot run here; "" where it can. Asks trtexec for its version."""
    if request.device != "cuda":
        return "TensorRT needs an NVIDIA GPU; the device is cpu"
    builders = find_builders()
    if builders.trtexec is None and builders.python is None:
        return "there is neither trtexec nor TensorRT's Python package"
    if source.engine is not None:
        made = engine_precision(source)
        return "" if (made == "int8") == (PRECISIONS[way] == "int8") else f"the engine computes in {made}"
    if way == "tensorrt_int8" and not _has_ranges(source, request):
        return "INT8 needs calibration images, or a Q/DQ file"
    return ""


def engine_precision(source: Source) -> Dtype:
    """What the manifest says; FP16, which is why engines are built, where there is none."""
    manifest = source.engine.manifest if source.engine is not None else None
    found: Mapping[str, Dtype] = {"fp32": "fp32", "int8": "int8"}
    return "fp16" if manifest is None else found.get(manifest.precision, "fp16")


def prepared(
    way: Way, source: Source, request: BenchmarkRequest, batch_size: int
) -> tuple[Callable[[], TrtRunner | TrtexecRunner], Dtype]:
    """What loads an engine for this batch size, and what it computes in. It is built first unless it was given.

    Raises what `build_engine` raises, and FeedMismatch where a given engine has another batch size. Opening raises what
    `TrtRuntime` raises.
    """
    builders = find_builders()
    given = source.engine is not None
    tensors = _tensors(source, batch_size)
    engine = request.model if given else _built(way, source, request, batch_size, mixed=_mixes(builders))
    dtype: Dtype = engine_precision(source) if given else PRECISIONS[way]
    if builders.python is not None:
        return lambda: TrtRunner(engine, trusted=request.trusted), dtype
    trtexec = builders.trtexec
    assert trtexec is not None  # noqa: S101 - why_lacking() has said so; this tells the type checker
    return lambda: TrtexecRunner(engine, trtexec, tensors, request.folder), dtype


class TrtRunner(TrtRuntime):
    """An engine in TensorRT's Python package."""

    def __init__(self, engine: Path, *, trusted: bool) -> None:
        self._copies_ns = {"copy_in": 0, "copy_out": 0}
        super().__init__(engine, trusted=trusted, memory=self._timed_memory, room=page_locked_room)
        kind = "page-locked" if torch.cuda.is_available() else "pageable"
        self.notes = [
            f"TensorRT {self.release} by execute_v2, without a CUDA graph",
            f"images and answers in {kind} host memory",
            "copies by the monotonic clock, each waited for; compute is the rest of the run",
        ]

    def timers(self, feeds: Sequence[Feeds]) -> dict[Part, Timer]:
        """From host array to host array, and of the same run its parts."""
        locked = [{name: page_locked(array) for name, array in one.items()} for one in feeds]
        whole = host_timer(self._run, locked)

        def compute(number: int) -> float:
            return self._parts_ms(whole, number)["compute"]

        def copy_in(number: int) -> float:
            return self._parts_ms(whole, number)["copy_in"]

        def copy_out(number: int) -> float:
            return self._parts_ms(whole, number)["copy_out"]

        return {"end_to_end": whole, "compute": compute, "copy_in": copy_in, "copy_out": copy_out}

    def _timed_memory(self) -> TimedMemory:
        return TimedMemory(device_memory(), self._copies_ns)

    def _parts_ms(self, whole: Timer, number: int) -> dict[str, float]:
        for name in self._copies_ns:
            self._copies_ns[name] = 0
        total_ms = whole(number)
        copies_ms = {name: taken / 1e6 for name, taken in self._copies_ns.items()}
        return {**copies_ms, "compute": total_ms - sum(copies_ms.values())}


class TimedMemory:
    """Memory of the GPU that adds the time of its copies to `copies_ns`."""

    def __init__(self, memory: DeviceMemory, copies_ns: dict[str, int]) -> None:
        self._memory, self._copies_ns = memory, copies_ns
        self.reserve, self.close = memory.reserve, memory.close

    def put(self, array: Array) -> int:
        """Copy an array there and wait for it."""
        begun = time.perf_counter_ns()
        address = self._memory.put(array)
        self._copies_ns["copy_in"] += time.perf_counter_ns() - begun
        return address

    def get(self, array: Array) -> None:
        """Fill an array with what is there."""
        begun = time.perf_counter_ns()
        self._memory.get(array)
        self._copies_ns["copy_out"] += time.perf_counter_ns() - begun


class TrtexecRunner:
    """An engine that trtexec times, by `latencies`. It cannot answer: `infer` and `timers` raise RuntimeUnavailable.

    `started_pids` are the processes that it started so far.
    """

    def __init__(self, engine: Path, trtexec: Trtexec, tensors: Tensors, folder: Path) -> None:
        self.inputs, self.outputs, self._shapes = tensors
        self.notes = [
            f"timed by trtexec {trtexec.dialect.release} itself, with a CUDA graph, spinning, and transfers",
            "trtexec feeds random numbers of its own, and its answers were not seen",
        ]
        self._engine, self._trtexec, self._folder = engine, trtexec, folder
        self.started_pids: set[int] = set()

    def __enter__(self) -> TrtexecRunner:
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing is held."""

    def infer(self, _feeds: Feeds) -> dict[str, Array]:
        """Nothing: trtexec gives no answers."""
        raise _no_answers()

    def timers(self, _feeds: Sequence[Feeds]) -> dict[Part, Timer]:
        """Nothing: trtexec takes no feeds."""
        raise _no_answers()

    def latencies(self, settings: LatencySettings) -> dict[Part, LatencyReport]:
        """Each start gives each part one window; it is started until the windows of whole runs agree, or time is up."""
        begun = time.monotonic()
        starts: list[list[dict[str, float]]] = []
        while True:
            starts.append(self._time())
            windows = {part: [tuple(run[key] for run in runs) for runs in starts] for part, key in EXPORTED.items()}
            reports = {part: latency_of(those, settings) for part, those in windows.items()}
            is_late = len(starts) >= settings.max_windows or time.monotonic() - begun > settings.max_seconds
            if reports["end_to_end"].stable or is_late:
                return reports

    def _time(self) -> list[dict[str, float]]:
        """One start's runs, without those of the warm-up, which old releases export too. trtexec counts these alike."""
        times = self._folder / f"{self._engine.stem}_times.json"
        options = timing_options(self._trtexec.dialect, self._shapes)
        command = [str(self._trtexec.path), f"--loadEngine={self._engine}", f"--exportTimes={times}", *options]
        reader, started = BuildLogReader(), set[int]()

        def feed(line: str) -> None:
            if not started:  # it has not been waited for yet, so it is listed
                started.update(descendants(os.getpid()))
            reader.feed(line)

        times.unlink(missing_ok=True)
        try:
            exit_code = run_lines(command, feed, timeout_sec=RUN_TIMEOUT_SEC)
        except (NotStarted, TimedOut) as error:
            raise RuntimeUnavailable("trtexec could not time the engine", received=str(error)) from error
        log = reader.log()
        self.started_pids |= started
        exported = json.loads(times.read_bytes()) if times.is_file() else []
        runs = [run for run in exported if run["startComputeMs"] >= WARM_UP_MS]
        if exit_code != 0 or not log.passed or not runs:
            raise _not_timed(exit_code, log)
        unstable = log.performance.totals.get("unstable_pct") if log.performance else None
        if unstable is not None:
            self.notes.append(f"trtexec calls the GPU's times unstable: coefficient of variation {unstable:g} %")
        return runs


def timing_options(dialect: Dialect, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """The same conditions for every release: CUDA graph, spin-wait, transfers in the latency. See the module.

    11 has the first two by default, and only warns of their options; up to 10 the third is the default.
    """
    told = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
    return [
        f"--warmUp={WARM_UP_MS}",
        f"--duration={DURATION_SEC}",
        *([f"--shapes={told}"] if told else []),
        *(["--useCudaGraph", "--useSpinWait"] if dialect.version < (11, 0, 0) else ["--includeDataTransfers"]),
    ]


def _no_answers() -> RuntimeUnavailable:
    return RuntimeUnavailable(
        "trtexec times an engine on numbers of its own and gives no answers",
        expected="TensorRT's Python package",
        hint="install tensorrt to have the answers checked",
    )


def _not_timed(exit_code: int, log: BuildLog) -> RuntimeUnavailable:
    return RuntimeUnavailable(
        "trtexec did not time the engine",
        expected="exit code 0, PASSED, and the times of its runs",
        received=f"exit code {exit_code}; {' | '.join(log.errors) or 'no error among its messages'}",
        hint="nvidia-smi (tegrastats on a Jetson) shows the GPU and its memory",
    )


def _mixes(builders: Builders) -> bool:
    """Whether INT8 may leave layers to FP16; from 11 on the graph's own types, INT8 and FP32, are all there is."""
    return builders.dialect is not None and builders.dialect.precision_flags


def _has_ranges(source: Source, request: BenchmarkRequest) -> bool:
    return source.is_int8 or request.calibration is not None or request.int8 is not None


def _built(way: Way, source: Source, request: BenchmarkRequest, batch_size: int, *, mixed: bool) -> Path:
    """An engine of static shapes, in the request's folder."""
    precision = PRECISIONS[way]
    quantise = precision == "int8" and not source.is_int8
    graph = source.onnx_for(batch_size, "tensorrt" if quantise else None)
    engine = request.folder / f"{request.model.stem}_{precision}_batch{batch_size}.engine"
    write_whole(graph.SerializeToString(), engine.with_suffix(".onnx"))
    asked = EngineRequest(
        engine.with_suffix(".onnx"),
        engine,
        Wish(precision, input_size=source.input_size, max_batch=batch_size),
        mixed_fp16=mixed and precision == "int8",
    )
    return build_engine(asked, request.folder, on_line=lambda _line: None).engine


def _tensors(source: Source, batch_size: int) -> Tensors:
    """Inputs, outputs, and the shapes that trtexec must be told: those of an engine's inputs with free axes."""
    if source.engine is None:
        graph = source.onnx_for(batch_size)
        return input_specs(graph), output_specs(graph), {}
    assert isinstance(source.model, ExportedModel)  # noqa: S101 - an engine's is; this tells the type checker
    given, (_, outputs) = source.model.input, engine_tensors(source.engine)
    check_batch(given, batch_size)
    shape = (batch_size, source.model.channels, *source.input_size)
    fixed = TensorSpec(given.name, given.dtype, shape)
    return (fixed,), outputs, {} if given.shape == shape else {fixed.name: shape}
