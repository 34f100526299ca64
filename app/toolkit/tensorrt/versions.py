"""TensorRT's version numbers as tuples: (10, 3, 0, 26), or shorter where less is known."""

from __future__ import annotations

import re

Version = tuple[int, ...]

LINT_RELEASES: tuple[tuple[Version, str], ...] = (
    ((8, 2), "8.2"),
    ((8, 4), "8.5"),
    ((8, 6), "8.6"),
    ((9,), "10"),
    ((11,), "11"),
    ((12,), ""),
)
"""From which version on which of `onnx_lint.RELEASES` speaks; the empty one is past what is known."""


def version_of(text: str) -> Version | None:
    """The numbers that a text begins with: "10.3.0.26", "8.6.1.post1"; None where it begins with none."""
    found = re.match(r"[0-9]+(?:\.[0-9]+){0,3}", text.strip())
    return tuple(int(part) for part in found[0].split(".")) if found else None


def version_text(version: Version | None) -> str:
    """As people write it; "unknown" for None."""
    return "unknown" if version is None else ".".join(map(str, version))


def lint_release(version: Version) -> str | None:
    """Which of the lint's releases that version behaves like; None before 8.2 and after 11."""
    behaves = [name for since, name in LINT_RELEASES if version >= since]
    return (behaves[-1] or None) if behaves else None
