"""The import contracts hold, and one that is broken on purpose is caught."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT

LINT = Path(sys.executable).with_name("lint-imports")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINT, "--no-cache"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_contracts_hold() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("app/storage/artifacts_local.py", "from app.jobs import hub", "Imports run one way"),
        ("app/toolkit/errors.py", "from app.config import Settings", "The toolkit knows no web"),
        ("app/jobs/process.py", "import torch", "The service's own process stays light"),
        ("app/jobs/runner.py", "from app.toolkit import errors", "The service's own process stays light"),
        ("app/jobs/inputs.py", "import minio", "The drivers of databases and of S3 are the stores' own"),
        ("app/jobs/service.py", "import sqlite3", "The drivers of databases and of S3 are the stores' own"),
        ("app/storage/factory.py", "import httpx2", "HTTP leaves this service through its callbacks only"),
        ("app/cli_view.py", "from app.config import Settings", "The command line is a client"),
        ("app/two_stage/stages.py", "from app.config import Settings", "What works without the service"),
    ],
)
def test_a_broken_contract_is_caught(tmp_path: Path, module: str, line: str, contract: str) -> None:
    shutil.copytree(ROOT / "app", tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    broken = tmp_path / module
    broken.write_text(broken.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout
    assert any(shown.startswith(contract) and " BROKEN" in shown for shown in done.stdout.splitlines())
