"""What a kind of job says of itself. One module under `schemas/kinds` a kind; the module's name is its route."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple, get_args

from pydantic.fields import FieldInfo

from app.schemas.common import DataSource, ImageFolder, InputFile, OutputFile, StrictModel

Device = Literal["cpu", "light", "gpu", "dla0", "dla1"]


class Slot(NamedTuple):
    """The place a job needs: a device, and whether it must have the device to itself."""

    device: Device = "cpu"
    exclusive: bool = False

    def __str__(self) -> str:
        return f"{self.device}!" if self.exclusive else self.device

    @classmethod
    def parse(cls, text: str) -> Slot:
        return cls(text.rstrip("!"), text.endswith("!"))  # type: ignore[arg-type]


class Parameters(StrictModel):
    """The base of every kind's `parameters`: a `kind` word, files to stage, at most one output name."""

    kind: str


class Metrics(StrictModel):
    """The base of every kind's `metrics`."""


@dataclass(frozen=True)
class Kind:
    """One kind of job. `action` is filled in from the module's name by the registry."""

    parameters: type[Parameters]
    metrics: type[Metrics]
    summary: str
    example: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    """Importable modules, or programs, without which the kind cannot run here; `a or b` where one of two will do.

    Their versions are part of the fingerprint.
    """
    lacking: str = ""
    """Where to find what is missing, for whoever is refused for want of it."""
    slot: Callable[[Any], Slot] = field(default=lambda _: Slot())
    reusable: bool = True
    """Whether the same inputs, parameters and versions may be answered with an earlier result."""
    answers_at_once: bool = False
    """Whether the POST waits for the end, which takes well under a second, and answers with the job."""
    timeout_sec: float | None = None
    """A time limit of its own; None takes JOB_TIMEOUT_SEC."""
    action: str = ""
    handler: str = ""

    @property
    def word(self) -> str:
        """The `kind` that the request's body must bear."""
        annotation = self.parameters.model_fields["kind"].annotation
        (word,) = annotation.__args__  # type: ignore[union-attr]
        return str(word)

    def input_fields(self) -> Iterator[tuple[str, InputFile]]:
        """The parameters that name one file to stage; the first one is never left out."""
        for name, info in self.parameters.model_fields.items():
            for mark in _marks(info):
                if isinstance(mark, InputFile):
                    yield name, mark

    def data_sources(self, parameters: Parameters) -> Iterator[tuple[str, DataSource]]:
        """The sets of images that a request names, by parameter; one within another is `outer.inner`."""
        return _data_sources(parameters, "")

    def output_name(self, parameters: Parameters, tag: str) -> str | None:
        """The file name of the output: as asked for, else a version with `tag`, else by the first input's stem (S0)."""
        for name, mark in self._output_fields():
            stem, series = self.input_stem(parameters), self.output_series(parameters)
            derived = f"{series}-{tag}{mark.suffix}" if series else mark.default.format(stem=stem, **vars(parameters))
            return getattr(parameters, name) or derived
        return None

    def output_series(self, parameters: Parameters) -> str | None:
        """The series that the output is a new version of (S4 E-1); None for an output with a name of its own."""
        for name, mark in self._output_fields():
            return None if getattr(parameters, name) else mark.series.get(self.input_stem(parameters))
        return None

    def _output_fields(self) -> Iterator[tuple[str, OutputFile]]:
        for name, info in self.parameters.model_fields.items():
            for mark in _marks(info):
                if isinstance(mark, OutputFile):
                    yield name, mark

    def input_stem(self, parameters: Parameters) -> str:
        for name, _ in self.input_fields():
            return PurePosixPath(getattr(parameters, name)).stem.removesuffix(".tar")  # of .tar.gz
        return "output"


def _data_sources(model: StrictModel, place: str) -> Iterator[tuple[str, DataSource]]:
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, DataSource):
            yield place + name, value
        elif value is not None and any(isinstance(mark, ImageFolder) for mark in _marks(info)):
            yield place + name, DataSource(images=value, annotations=None, sample=None)
        elif isinstance(value, StrictModel):
            yield from _data_sources(value, f"{place}{name}.")


def _marks(info: FieldInfo) -> Iterator[Any]:
    """The marks of a parameter's annotation, also where it may be None."""
    yield from info.metadata
    for part in get_args(info.annotation):
        yield from getattr(part, "__metadata__", ())
