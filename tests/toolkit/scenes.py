"""Pill scenes that no training saw, drawn by tests/assets/pills/make_pills.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "pills"


def make_scenes(folder: Path, *, images: int, seed: int) -> Path:
    """`images` scenes of 640 x 640 px with COCO annotations, in the folder, which is returned."""
    script = ASSETS / "make_pills.py"
    command = [sys.executable, str(script), str(folder), "--images", str(images), "--size", "640", "--seed", str(seed)]
    subprocess.run(command, check=True, capture_output=True)
    return folder
