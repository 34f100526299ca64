"""Imports run one way: import-linter's contracts hold, and break when somebody breaks them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT

PLANTED = [
    ("app/storage/artifacts.py", "from app.jobs.service import Jobs"),
    ("app/schemas/common.py", "from app.storage import records"),
    ("app/jobs/service.py", "from app.routers import views"),
    ("app/toolkit/stats.py", "from app.errors import ServiceError"),
    ("app/jobs/runner.py", "import torch"),
    ("app/routers/health.py", "from app.toolkit import stats"),
]


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--config", "pyproject.toml", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree, to be broken."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "app", folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    return folder


def test_the_contracts_hold() -> None:
    done = _lint(ROOT)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(("path", "line"), PLANTED, ids=[line for _, line in PLANTED])
def test_a_planted_violation_is_caught(copied: Path, path: str, line: str) -> None:
    planted = copied / path
    whole = planted.read_text(encoding="utf-8")
    try:
        planted.write_text(f"{whole}\n{line}\n", encoding="utf-8")
        done = _lint(copied)
    finally:
        planted.write_text(whole, encoding="utf-8")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout
    assert path.removesuffix(".py").replace("/", ".") in done.stdout
