"""The module: classes that have a release's members and none besides."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from tests.doubles.tensorrt.builder import BUILDER_CLASSES
from tests.doubles.tensorrt.engine import ENGINE_CLASSES
from tests.doubles.tensorrt.releases import names_of
from tests.doubles.tensorrt.scene import SCENARIOS, Scene

PACKAGE = "tensorrt.tensorrt"
"""As JetPack's messages have it; those of wheels have tensorrt_bindings.tensorrt."""


def make(release: str = "10.3.0", scenario: str = "success", *, dla_cores: int = 0) -> ModuleType:
    """A module of its own, whose `scene` tells what it has seen."""
    if scenario not in SCENARIOS:
        raise ValueError(f"the double cannot play {scenario}")
    scene = Scene(release, scenario, dla_cores)
    module = ModuleType("tensorrt")
    scene.module = module
    for owner, members in sorted(names_of(release).items()):  # an inner class comes after its outer one
        place, _, name = owner.rpartition(".")
        outer = getattr(module, place) if place else module
        setattr(outer, name, _enum(owner, members) if "=" in members else _class(owner, members, scene))
    for member in vars(module.ILogger.Severity).copy():
        if member.isupper():
            setattr(module.ILogger, member, getattr(module.ILogger.Severity, member))
    vars(module).update(__version__=release, scene=scene)
    return module


def _class(name: str, members: str, scene: Scene) -> type:
    behaviour = {**BUILDER_CLASSES, **ENGINE_CLASSES}.get(name, object)
    if behaviour in (bytes, tuple):
        return type(f"{PACKAGE}.{name}", (behaviour,), {})
    body: dict[str, Any] = {"__slots__": ("own",), "scene": scene}
    for member in members.split():
        if member in vars(behaviour):
            body[member] = vars(behaviour)[member]
        elif member != "__init__":
            body[member] = _NotPlayed(f"{name}.{member}")
    return type(f"{PACKAGE}.{name}", (), body)


def _enum(name: str, members: str) -> type:
    kind = type(f"{PACKAGE}.{name}", (_Member,), {"__slots__": ()})
    for entry in members.split():
        member, _, value = entry.partition("=")
        setattr(kind, member, kind(name.rpartition(".")[2], member, int(value)))
    return kind


class _Member:
    __slots__ = ("_kind", "name", "value")

    def __init__(self, kind: str, name: str, value: int) -> None:
        self._kind, self.name, self.value = kind, name, value

    def __int__(self) -> int:
        return self.value

    def __str__(self) -> str:
        return f"{self._kind}.{self.name}"


class _NotPlayed:
    """A member that the release has and nobody has needed of the double yet."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            return self
        raise NotImplementedError(f"the double does not play {self._path}")
