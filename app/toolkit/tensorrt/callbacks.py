"""What TensorRT calls back while it works: the logger, and from 10.0 on the progress monitor.

Its bindings call back out of functions that must not throw: an exception in one of ours would end the process without
a word. So each is caught and kept, and raised when TensorRT has returned.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, TypeVar

from app.toolkit.tensorrt.api import Api

LETTERS = {"INTERNAL_ERROR": "F", "ERROR": "E", "WARNING": "W", "INFO": "I"}
"""trtexec's letters. VERBOSE, hundreds of lines for each layer, is left out as trtexec leaves it out."""
SMALLEST_STEP = 0.01

Result = TypeVar("Result")


class Guard:
    """Runs what is called back and keeps the first thing that it raised."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def run(self, work: Callable[[], Result], otherwise: Result) -> Result:
        """The work's result, or `otherwise` once it has raised."""
        try:
            return work()
        except BaseException as error:  # noqa: BLE001 - a signal's exception too would end the process here
            self.error = self.error or error
            return otherwise

    def check(self) -> None:
        """Raises what was kept."""
        if self.error is not None:
            raise self.error


# -- messages -------------------------------------------------------------------------------------------------------
def line_of(letter: str, text: str, *, of_tensorrt: bool = False) -> list[str]:
    """A message as trtexec prints it: `[11/21/2026-10:00:00] [E] [TRT] text`, its further lines as they are."""
    first, *rest = text.splitlines() or [""]
    source = "[TRT] " if of_tensorrt else ""
    return [f"{time.strftime('[%m/%d/%Y-%H:%M:%S]')} [{letter}] {source}{first}", *rest]


@contextmanager
def listening(api: Api, hear: Callable[[str], None], guard: Guard) -> Iterator[Any]:
    """The process's logger, which tells `hear` each line until the end of the block."""
    logger, switch = _logger(api.module)
    before, switch.hear, switch.guard = (switch.hear, switch.guard), hear, guard
    try:
        yield logger
    finally:
        switch.hear, switch.guard = before


class _Switch:
    """Where the messages go at the moment."""

    def __init__(self) -> None:
        self.hear: Callable[[str], None] = _nobody
        self.guard = Guard()

    def tell(self, letter: str, text: str) -> None:
        for line in line_of(letter, text, of_tensorrt=True):
            self.hear(line)


@cache
def _logger(module: ModuleType) -> tuple[Any, _Switch]:
    """One for the life of the process: TensorRT keeps the first that it is given, and uses it when all else is gone."""
    switch = _Switch()
    base: Any = module.ILogger

    class Logger(base):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            letter = LETTERS.get(severity.name)
            if letter is not None:
                switch.guard.run(lambda: switch.tell(letter, msg), None)

    return Logger(), switch


def _nobody(_line: str) -> None:
    """Hears what TensorRT says between two builds."""


# -- progress -------------------------------------------------------------------------------------------------------
@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Steps:
    """One rising fraction out of nested phases, which several threads report."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._told = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins, within `parent` if it has one."""
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))

    def complete(self, name: str, step: int) -> float | None:
        """A step, counted from 0, is done. The fraction where it rose by SMALLEST_STEP or more, else None."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            root = next((name for name, phase in self._phases.items() if phase.parent is None), None)
            now = 0.0 if root is None else self._fraction(root)
            if now < self._told + SMALLEST_STEP:
                return None
            self._told = now
            return now

    def finish(self, name: str) -> None:
        """A phase is over."""
        with self._lock:
            self._phases.pop(name, None)

    def _fraction(self, name: str) -> float:
        phase = self._phases[name]
        within = [self._fraction(child) for child, one in self._phases.items() if one.parent == name]
        return min((phase.done + sum(within) / max(len(within), 1)) / phase.steps, 1.0)


def monitor(api: Api, guard: Guard, progress: Callable[[float], None], should_stop: Callable[[], bool]) -> Any:
    """A progress monitor; it ends the build where `should_stop` says so or a callback has raised. From 10.0 on."""
    base: Any = api.get("IProgressMonitor")
    steps = Steps()

    def complete(name: str, step: int) -> bool:
        fraction = steps.complete(name, step)
        if fraction is not None:
            progress(fraction)
        return guard.error is None and not should_stop()

    class Monitor(base):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            guard.run(lambda: steps.start(phase_name, parent_phase, num_steps), None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return guard.run(lambda: complete(phase_name, step), otherwise=False)

        def phase_finish(self, phase_name: str) -> None:
            guard.run(lambda: steps.finish(phase_name), None)

    return Monitor()
