"""What one module plays, and what it has seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

SCENARIOS = (
    "success",
    "out_of_memory",
    "workspace_short",
    "none",  # no engine, and no word why
    "no_plan",  # something that is no engine
    "no_builder",  # CUDA cannot be used: no builder and no runtime
    "no_cuda",  # CUDA cannot be used: they are there, and of no use
    "cache_refused",  # calibration and timing caches are not taken
    "not_loaded",
    "no_context",
    "not_run",
)
Result = TypeVar("Result")


class Terminated(BaseException):
    """The process would be gone: std::terminate, or a segmentation fault."""


@dataclass
class Scene:
    """`build` has what the last build was told, by name; `batches` the mean of each calibration batch that was read."""

    release: str
    scenario: str
    dla_cores: int
    module: Any = None
    build: dict[str, Any] = field(default_factory=dict)
    batches: list[float] = field(default_factory=list)

    @property
    def version(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.release.split("."))

    def new(self, name: str, /, **own: Any) -> Any:
        """An object of a class that Python cannot construct."""
        kind = getattr(self.module, name)
        made = kind.__new__(kind)
        made.own = SimpleNamespace(**own)
        return made

    def log(self, logger: Any, severity: str, text: str) -> None:
        value = getattr(self.module.ILogger.Severity, severity)
        self.noexcept(lambda: logger.log(value, text))

    @staticmethod
    def noexcept(call: Callable[[], Result]) -> Result:
        """A call back into Python out of a function that must not throw."""
        try:
            return call()
        except BaseException as error:
            raise Terminated(f"terminate called after throwing an instance of {type(error).__name__}") from error
