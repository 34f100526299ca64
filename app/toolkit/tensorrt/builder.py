"""Engines built by TensorRT's Python API: where there is no trtexec, and for INT8 calibrated on images.

The contract is trtexec's in `trtexec.py`: the request is checked first, the engine gets its name only when it is whole,
and the log is made of the same lines. `build_serialized_network` says no more than None when it fails: the cause is in
the messages and in the parser's errors. TensorRT keeps its first logger for the life of a process and may take the
process with it, so a build belongs into a process of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from app.toolkit.errors import CalibrationMissing, InvalidBuild, ModelFileError, ToolkitError
from app.toolkit.tensorrt import timing_cache
from app.toolkit.tensorrt.api import Api, open_api
from app.toolkit.tensorrt.build_log import BuildLog, BuildLogReader, Phase
from app.toolkit.tensorrt.calibrator import Calibrated, Calibration, Feed, calibrator, from_cache
from app.toolkit.tensorrt.callbacks import Guard, line_of, listening, monitor
from app.toolkit.tensorrt.configure import Calls, DlaSupport, configure, create_network, input_shapes_of
from app.toolkit.tensorrt.dialects import refuse_what_is_missing
from app.toolkit.tensorrt.errors import BuildStopped, CudaUnusable, EngineBuildFailed
from app.toolkit.tensorrt.failures import failure
from app.toolkit.tensorrt.node_errors import UNSUPPORTED, NodeError
from app.toolkit.tensorrt.plan import read_plan
from app.toolkit.tensorrt.request import BuildRequest

Progress = Callable[[Phase, float], None]


@dataclass(frozen=True)
class PythonBuild:
    """An engine that was built. `calls` are those that say what it is, in order; `dla` is None for the GPU."""

    engine: Path
    calls: tuple[str, ...]
    api: Api
    seconds: float
    log: BuildLog
    dla: DlaSupport | None
    calibrated: Calibrated | None

    @property
    def command(self) -> tuple[str, ...]:
        """The manifest's `command`."""
        return self.calls

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {
            "engine": self.engine.name,
            "command": list(self.calls),
            "tensorrt": self.api.as_dict(),
            "dialect": self.api.dialect.name,
            "notes": list(self.api.dialect.notes),
            "seconds": round(self.seconds, 3),
            "log": self.log.as_dict(),
            "dla_support": self.dla.as_dict() if self.dla else None,
            "calibration": self.calibrated.as_dict() if self.calibrated else None,
        }


def build(
    request: BuildRequest,
    *,
    calibration: Calibration | None = None,
    module: ModuleType | None = None,
    on_line: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> PythonBuild:
    """Build an engine; it appears under its name whole or not at all.

    `calibration` is for `int8_from="calibrator"`; a request with a calibration cache needs none. `module` stands for
    the installed tensorrt. `on_line` hears every line, `progress` (phase, fraction of it) for the phases of
    `build_log.PHASES`; from 10.0 on the build's fraction rises within it. `should_stop` is asked between phases and for
    each calibration batch, from 10.0 on at each step.

    Raises InvalidBuild, CalibrationMissing, ReleaseUnsupported, FileMissing, EmptyFile, TensorrtMissing before it
    starts; then OnnxRefused, UnsupportedOperator, OutOfMemory, FeedMismatch, DlaUnavailable, CudaUnusable,
    BuildStopped, EngineBuildFailed, and what the callables raise.
    """
    api = open_api(module)
    request.check()
    refuse_what_is_missing(request, api.dialect)
    request.check_files()
    _check_calibration(request, calibration)
    begun = time.monotonic()
    work = _Build(api, request, on_line or _silent_line, progress or _silent, should_stop or _never)
    part = request.engine.with_name(f".{request.engine.name}.{os.getpid()}.part")
    try:
        with listening(api, work.hear, work.guard) as logger:
            work.run(logger, calibration, part)
        part.replace(request.engine)
    finally:
        part.unlink(missing_ok=True)
    return PythonBuild(
        request.engine,
        tuple(work.calls.made),
        api,
        time.monotonic() - begun,
        replace(work.reader.log(), version=api.version, passed=True),
        work.dla,
        work.feed.calibrated() if work.feed else None,
    )


class _Build:
    """One build while it runs. It holds what TensorRT must not lose before the end: parser, calibrator, cache."""

    def __init__(
        self,
        api: Api,
        request: BuildRequest,
        on_line: Callable[[str], None],
        progress: Progress,
        should_stop: Callable[[], bool],
    ) -> None:
        self.api = api
        self.request = request
        self.calls = Calls(api)
        self.guard = Guard()
        self.reader = BuildLogReader()
        self.dla: DlaSupport | None = None
        self.feed: Feed | None = None
        self._on_line = on_line
        self._progress = progress
        self._should_stop = should_stop
        self._kept: list[Any] = []

    # -- what is heard --------------------------------------------------------------------------------------------
    def hear(self, line: str) -> None:
        """One line of the log."""
        self.reader.feed(line)
        self._on_line(line)

    def say(self, letter: str, text: str) -> None:
        """A line of our own, in trtexec's words where it has some."""
        for line in line_of(letter, text):
            self.hear(line)

    @contextmanager
    def _phase(self, phase: Phase) -> Iterator[None]:
        self._check()
        self._progress(phase, 0.0)
        yield
        self._progress(phase, 1.0)

    def _check(self) -> None:
        """Raises what a callback raised, or BuildStopped."""
        self.guard.check()
        if self._should_stop():
            raise BuildStopped(
                "the build was stopped", expected="a build to its end", received=f"a stop at: {self.reader.log().phase}"
            )

    # -- the steps --------------------------------------------------------------------------------------------------
    def run(self, logger: Any, calibration: Calibration | None, part: Path) -> None:
        """All of it; `part` is the engine's temporary name."""
        try:
            with self._phase("start"):
                builder = self._builder(logger)
                network = create_network(self.calls, builder, self.request)
            with self._phase("parse"):
                self._parse(network, logger)
            with self._phase("build"):
                config = builder.create_builder_config()
                self.dla = configure(self.calls, builder, config, network, self.request)
                self._calibrate(config, network, calibration)
                plan = self._plan(builder, config, network)
            with self._phase("save"):
                self._save(plan, part)
        finally:
            if self.feed is not None:
                self.feed.close()

    def _builder(self, logger: Any) -> Any:
        try:
            builder = self.api.get("Builder")(logger)
        except TypeError as error:  # what the bindings make of the library's null pointer
            raise CudaUnusable(
                "TensorRT made no builder",
                expected="a GPU and a driver that this TensorRT supports",
                received=" | ".join((*self.reader.log().errors, str(error))),
                hint="nvidia-smi (tegrastats on a Jetson) must show the GPU, in the container too",
            ) from error
        self.guard.check()
        if "cuda_failure" in self.reader.log().texts:
            raise self._failure()
        return builder

    def _parse(self, network: Any, logger: Any) -> None:
        self.say("I", "Start parsing network model.")
        begun = time.monotonic()
        parser = self.api.get("OnnxParser")(network, logger)
        self._kept.append(parser)
        self.calls.note(f"parser.parse_from_file({str(self.request.onnx)!r})")
        parsed = parser.parse_from_file(str(self.request.onnx))
        self.guard.check()
        if not parsed:
            self.say("E", "Failed to parse onnx file")
            raise self._failure(_node_errors(self.api, parser))
        self.say("I", f"Finished parsing network model. Parse time: {time.monotonic() - begun:.6g}")

    def _calibrate(self, config: Any, network: Any, calibration: Calibration | None) -> None:
        if self.request.int8_from not in {"calibrator", "calibration_cache"}:
            return
        shape = self._calibration_shape(network)
        if self.request.calibration_cache is not None:
            calibration = from_cache(self.request.calibration_cache, shape[0])
        assert calibration is not None  # noqa: S101 - _check_calibration() has seen to it
        if calibration.batch_size != shape[0]:
            raise InvalidBuild(
                "the calibration's batch is not the network's",
                expected=f"batches of {shape[0]}",
                received=f"batches of {calibration.batch_size}",
                hint="a static ONNX has one batch size; for a dynamic one it is the optimum's",
            )
        self.feed = Feed(calibration, shape, should_stop=self._should_stop, say=self.say)
        self.calls.note(f"config.int8_calibrator = {calibration.method} calibrator, batches of {shape[0]}")
        made = calibrator(self.api, self.feed, calibration, self.guard)
        self._kept.append(made)
        config.int8_calibrator = made

    def _calibration_shape(self, network: Any) -> tuple[int, ...]:
        """Of the only input; the optimum where it has free axes."""
        inputs = input_shapes_of(network) | {one.name: one.optimum for one in self.request.shapes}
        if len(inputs) != 1:
            raise InvalidBuild(
                "calibration feeds networks with one input", expected="one input", received=", ".join(inputs) or "none"
            )
        return next(iter(inputs.values()))

    def _plan(self, builder: Any, config: Any, network: Any) -> Any:
        cache = self.request.timing_cache
        if cache is not None:
            self.calls.note(f"config.set_timing_cache({str(cache)!r}, ignore_mismatch=False)")
            self._kept.append(timing_cache.attach(config, cache, self.say))
        if self.api.has("IBuilderConfig.progress_monitor"):
            watch = monitor(self.api, self.guard, lambda now: self._progress("build", now), self._should_stop)
            self._kept.append(watch)
            config.progress_monitor = watch
        self.calls.note("builder.build_serialized_network(network, config)")
        begun = time.monotonic()
        plan = builder.build_serialized_network(network, config)
        self._check()
        if plan is None:
            raise self._failure()
        self._check_calibrated()
        self.say("I", f"Engine built in {time.monotonic() - begun:.6g} sec.")
        if cache is not None:
            timing_cache.merge(config, cache, self.say)
        return plan

    def _check_calibrated(self) -> None:
        """An engine that was asked to be calibrated, for which TensorRT was given no image and took no cache."""
        used = self.feed.calibrated() if self.feed else None
        if used is not None and not used.batches and used.cache != "read":
            raise CalibrationMissing(
                "TensorRT calibrated with nothing",
                expected="one batch of images or more, or a calibration cache of this TensorRT",
                received="no batch, or a cache that it did not take",
                hint="give calibration images, which need no cache",
            )

    def _save(self, plan: Any, part: Path) -> None:
        """Raises EngineBuildFailed unless there is a plan where the release writes its header."""
        part.write_bytes(plan)
        size = part.stat().st_size
        try:
            if not size or self.api.dialect.plan_header:
                read_plan(part)
        except ModelFileError as error:
            raise EngineBuildFailed(
                "TensorRT reported success and gave no engine",
                expected="a plan",
                received=error.message.replace(part.name, "what it gave"),
                hint="look whether the disk is full",
            ) from error
        self.say("I", f"Created engine with size: {size / 2**20:.6g} MiB")

    def _failure(self, node_errors: tuple[NodeError, ...] = ()) -> ToolkitError:
        log = self.reader.log()
        if node_errors:
            known = {one.number: one for one in log.node_errors}
            log = replace(log, node_errors=tuple(_merged(one, known.get(one.number)) for one in node_errors))
        error = failure(1, log, self.request)
        if type(error) is not EngineBuildFailed:
            return error
        return EngineBuildFailed(
            "TensorRT's builder made no engine",
            expected="a serialised network",
            received=" | ".join(log.errors) or "None, and no error among its messages",
            hint="the job's log has all that it said",
        )


def _check_calibration(request: BuildRequest, calibration: Calibration | None) -> None:
    wanted = request.int8_from == "calibrator"
    if wanted and calibration is None:
        raise CalibrationMissing("INT8 needs calibration images", expected="a calibration", received="none")
    if calibration is None:
        return
    if not wanted and request.calibration_cache is None:
        raise InvalidBuild("this build is not calibrated", expected="no calibration", received=request.summary())
    if calibration.batch_size < 1 or calibration.max_batches < 1:
        raise InvalidBuild(
            "a calibration takes one batch of one image or more",
            expected="1 or more",
            received=f"{calibration.max_batches} batches of {calibration.batch_size}",
        )
    if request.dla_core is not None and calibration.method != "entropy":
        raise InvalidBuild("a DLA takes entropy calibration only", expected="entropy", received=calibration.method)


def _node_errors(api: Api, parser: Any) -> tuple[NodeError, ...]:
    """The parser's errors node by node; those of no node are among the messages."""
    named = api.has("ParserError.node_name")
    found: dict[int, NodeError] = {}
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        reason = str(error.desc())
        op, name = (str(error.node_operator()), str(error.node_name())) if named else ("", "")
        unsupported = any(text in reason for text in UNSUPPORTED)
        found.setdefault(int(error.node()), NodeError(int(error.node()), op, "", name, reason, unsupported))
    return tuple(found[number] for number in sorted(found) if number >= 0)


def _merged(told: NodeError, logged: NodeError | None) -> NodeError:
    """The parser's error with what only the messages have: up to 8.6 they alone name the node."""
    if logged is None:
        return told
    return replace(
        told,
        op=told.op or logged.op,
        name=told.name or logged.name,
        output=logged.output,
        unsupported=told.unsupported or logged.unsupported,
    )


def _silent_line(_line: str) -> None:
    """Hears the log where nobody asked for it."""


def _silent(_phase: Phase, _fraction: float) -> None:
    """Hears progress where nobody asked for it."""


def _never() -> bool:
    """Whether to stop where nobody asks."""
    return False
