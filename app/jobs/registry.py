"""Finds the kinds by walking their package: a new kind is a schema module and a handler module of the same name."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from app.schemas.kind import Kind

DEBIAN_TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
"""Where NVIDIA's Debian packages put it, JetPack's too, without adding it to the PATH."""

OWN_KINDS = ("app.schemas.kinds", "app.jobs.handlers")


class Registry(Mapping[str, Kind]):
    """Every kind by its action (the last part of its route), in alphabetical order."""

    def __init__(self, packages: Iterable[str] = ()) -> None:
        self._kinds: dict[str, Kind] = {}
        for schemas, handlers in (OWN_KINDS, *((f"{name}.schemas", f"{name}.handlers") for name in packages)):
            for action in _public_modules(schemas):
                kind = importlib.import_module(f"{schemas}.{action}").KIND
                self._kinds[action] = replace(kind, action=action, handler=f"{handlers}.{action}")
        self._kinds = dict(sorted(self._kinds.items()))
        self._found = {module: _version(module) for kind in self._kinds.values() for module in kind.needs}

    def __getitem__(self, action: str) -> Kind:
        return self._kinds[action]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def versions(self, kind: Kind) -> dict[str, str | None]:
        """The modules that a kind needs, with the version found on this machine or None. Nothing is imported."""
        return {module: self._found[module] for module in kind.needs}

    def available(self) -> frozenset[str]:
        """The actions that this machine can do."""
        return frozenset(action for action, kind in self.items() if None not in self.versions(kind).values())


def _public_modules(package: str) -> list[str]:
    path = importlib.import_module(package).__path__
    return [module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_")]


def _version(need: str) -> str | None:
    """What is there of a need: a module's version, or a program's size and age; the first of several."""
    found = [(name, _module_version(name) or _program_version(name)) for name in need.split(" or ")]
    versions = [(name, version) for name, version in found if version]
    if " or " not in need:
        return versions[0][1] if versions else None
    return ", ".join(f"{name} {version}" for name, version in versions) or None


def _module_version(module: str) -> str | None:
    if not module.isidentifier() or importlib.util.find_spec(module) is None:
        return None
    for distribution in (module, module.replace("_", "-"), f"{module}-gpu"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _program_version(name: str) -> str | None:
    """Without running it: another release is another file."""
    path = shutil.which(name) or (shutil.which(DEBIAN_TRTEXEC) if name == "trtexec" else None)
    if path is None:
        return None
    about = Path(path).stat()
    return f"of {about.st_size} bytes, {about.st_mtime_ns}"


def kinds_table(registry: Registry) -> str:
    """The kinds as a Markdown table, for the API's own pages and the command line."""
    rows = ["| route | `kind` | what it does |", "|---|---|---|"]
    for action, kind in registry.items():
        summary = re.sub(r"\s+", " ", kind.summary)
        rows.append(f"| `POST /optimizing/{action}` | `{kind.word}` | {summary} |")
    return "\n".join(rows)
