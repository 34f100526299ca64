"""Counters of energy as the kernel shows them in /sys/class/powercap."""

from __future__ import annotations

from pathlib import Path


def package(root: Path, folder: str, energy_uj: int, name: str = "package-0") -> Path:
    """The folder of one counter, which starts anew after 9.999 J."""
    path = root / "sys/class/powercap" / folder
    path.mkdir(parents=True)
    for file, text in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", 9_999_000)):
        (path / file).write_text(f"{text}\n")
    return path
