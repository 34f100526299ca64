"""trtexec, NVIDIA's own builder: found, asked for its version, run, and believed only as far as its file goes.

It exits 0 for engines that are of no use (one built for 1x1 images, one with invented INT8 ranges), writes its file in
place, and on some releases prints nothing when it dies. So: the request is checked first, the engine gets its name only
when it is whole, and success is exit code 0 and PASSED and a plan in the file.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.toolkit.errors import ModelFileError
from app.toolkit.tensorrt.build_log import PHASES, BuildLog, BuildLogReader, Phase
from app.toolkit.tensorrt.dialects import Dialect, command_line, dialect_of
from app.toolkit.tensorrt.errors import BuildTimedOut, EngineBuildFailed, TrtexecMissing
from app.toolkit.tensorrt.failures import failure
from app.toolkit.tensorrt.plan import read_plan
from app.toolkit.tensorrt.process import NotStarted, TimedOut, run_lines
from app.toolkit.tensorrt.request import BuildRequest

DEBIAN_PLACE = Path("/usr/src/tensorrt/bin/trtexec")
"""Where NVIDIA's Debian packages put it, JetPack's too, without adding it to the PATH."""
PROBE_TIMEOUT_SEC = 60.0  # a Jetson's first start reads the libraries from an SD card
DEFAULT_TIMEOUT_SEC = 3600.0

Progress = Callable[[Phase, float], None]


@dataclass(frozen=True)
class Trtexec:
    """An executable that was asked. `build` is the build number that banners have from 10.10 on."""

    path: Path
    dialect: Dialect
    build: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {"path": str(self.path), "version": self.dialect.release, "build": self.build}


@dataclass(frozen=True)
class TrtexecBuild:
    """An engine that was built. `command` is what was run, but for the temporary name that the engine had in it."""

    engine: Path
    command: tuple[str, ...]
    trtexec: Trtexec
    seconds: float
    log: BuildLog

    def as_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        return {
            "engine": self.engine.name,
            "command": list(self.command),
            "trtexec": self.trtexec.as_dict(),
            "dialect": self.trtexec.dialect.name,
            "notes": list(self.trtexec.dialect.notes),
            "seconds": round(self.seconds, 3),
            "log": self.log.as_dict(),
        }


def find_trtexec(path: Path | None = None) -> Path:
    """`path` if given, else the PATH's, else where the Debian packages put it. Raises TrtexecMissing."""
    found = shutil.which(str(path or "trtexec")) or (None if path else shutil.which(str(DEBIAN_PLACE)))
    if found is None:
        raise TrtexecMissing(
            "there is no trtexec",
            expected=f"an executable {path}" if path else f"trtexec on the PATH, or {DEBIAN_PLACE}",
            received="none",
            hint="it comes with TensorRT's Debian packages and containers, not with its Python wheels",
        )
    return Path(found)


def probe(path: Path | None = None) -> Trtexec:
    """Ask for the version by `--help`, which needs no GPU. Raises TrtexecMissing, ReleaseUnsupported."""
    found = find_trtexec(path)
    reader, heard = BuildLogReader(), list[str]()

    def hear(line: str) -> None:
        reader.feed(line)
        heard.append(line)

    try:
        exit_code = run_lines([str(found), "--help"], hear, timeout_sec=PROBE_TIMEOUT_SEC)
        received = f"exit code {exit_code}, {' | '.join(heard[-2:]) or 'nothing printed'}"
    except (NotStarted, TimedOut) as error:
        received = str(error)
    log = reader.log()
    if log.version is None:
        raise TrtexecMissing(
            f"{found} did not say which TensorRT it is of",
            expected="a banner such as &&&& RUNNING TensorRT.trtexec [TensorRT v100300]",
            received=received,
            hint="run it by hand with --help: a library that it needs may be missing",
        )
    return Trtexec(found, dialect_of(log.version), log.build)


def build(
    request: BuildRequest,
    trtexec: Trtexec,
    *,
    timeout_sec: float = DEFAULT_TIMEOUT_SEC,
    on_line: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> TrtexecBuild:
    """Build an engine; it appears under its name whole or not at all.

    `on_line` hears every line of both streams while trtexec runs, `progress` (phase, fraction of that phase) for the
    phases of `build_log.PHASES`; trtexec tells nothing within a phase, so the fraction is 0 and then 1.

    Raises InvalidBuild, CalibrationMissing, ReleaseUnsupported, FileMissing, EmptyFile before it starts; then
    OnnxRefused, UnsupportedOperator, OutOfMemory, and the EngineBuildFaileds.
    """
    command = [str(trtexec.path), *command_line(request, trtexec.dialect)]
    request.check_files()
    part = request.engine.with_name(f".{request.engine.name}.{os.getpid()}.part")
    cache = _CacheCopy(request.timing_cache, trtexec.dialect.cache_locked)
    private = replace(request, engine=part, timing_cache=cache.used)
    begun = time.monotonic()
    try:
        log = _run(private, trtexec, timeout_sec, on_line, progress or _silent)
        _believe(part, trtexec.dialect)
        part.replace(request.engine)
        cache.keep()
    finally:
        part.unlink(missing_ok=True)
        cache.discard()
    return TrtexecBuild(request.engine, tuple(command), trtexec, time.monotonic() - begun, log)


class _CacheCopy:
    """The timing cache that trtexec is given: the shared one where the release locks it, else a copy of our own that
    takes the shared one's place when the build is over, so that nobody reads half a file."""

    def __init__(self, shared: Path | None, locked: bool) -> None:
        self.shared = shared
        self.used = shared
        if shared is not None:
            shared.parent.mkdir(parents=True, exist_ok=True)
        if shared is not None and not locked:
            self.used = shared.with_name(f".{shared.name}.{os.getpid()}.part")
            if shared.is_file():
                shutil.copyfile(shared, self.used)

    def keep(self) -> None:
        if self.shared is not None and self.used is not None and self.used != self.shared and self.used.is_file():
            self.used.replace(self.shared)

    def discard(self) -> None:
        if self.used is not None and self.used != self.shared:
            self.used.unlink(missing_ok=True)


def _run(
    request: BuildRequest,
    trtexec: Trtexec,
    timeout_sec: float,
    on_line: Callable[[str], None] | None,
    progress: Progress,
) -> BuildLog:
    phases = _Phases(progress)
    reader = BuildLogReader(phases.enter)

    def hear(line: str) -> None:
        reader.feed(line)
        if on_line is not None:
            on_line(line)

    command = [str(trtexec.path), *command_line(request, trtexec.dialect)]
    try:
        exit_code = run_lines(command, hear, timeout_sec=timeout_sec)
    except TimedOut as error:
        raise BuildTimedOut(
            "the build took too long and was ended",
            expected=f"an engine within {timeout_sec:g} s",
            received=f"still at: {reader.log().phase}",
            hint="allow it more time, share a timing cache, or take a smaller input",
        ) from error
    except NotStarted as error:
        raise TrtexecMissing("trtexec could not be started", received=str(error)) from error
    log = reader.log()
    if exit_code != 0 or not log.passed or "invented_shape" in log.texts:
        raise failure(exit_code, log, request)
    phases.leave()
    return log


class _Phases:
    """Tells that one phase is over when the next begins."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._now: Phase = PHASES[0]
        progress(self._now, 0.0)

    def enter(self, phase: Phase) -> None:
        self.leave()
        self._now = phase
        self._progress(phase, 0.0)

    def leave(self) -> None:
        self._progress(self._now, 1.0)


def _believe(engine: Path, dialect: Dialect) -> None:
    """Raises EngineBuildFailed unless there is a file with content, and a plan where the release writes its header."""
    received = ""
    if not engine.is_file() or not engine.stat().st_size:
        received = "an empty file" if engine.is_file() else "no file"
    elif dialect.plan_header:
        try:
            read_plan(engine)
        except ModelFileError as error:
            received = error.message.replace(engine.name, "a file that")
    if received:
        raise EngineBuildFailed(
            "trtexec reported success and left no engine",
            expected="a plan",
            received=received,
            hint="look whether the disk is full",
        )


def _silent(_phase: Phase, _fraction: float) -> None:
    """Hears progress where nobody asked for it."""
