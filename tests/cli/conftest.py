"""The real command as a subprocess against the real service."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ROOT, Service

COMMAND = [sys.executable, "-m", "app.cli"]
RUN_SEC = 60


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


class Optimizing:
    """Calls `optimizing` in a folder of its own, with nothing of the environment of who runs the tests."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url

    def environment(self, **extra: str) -> dict[str, str]:
        ours = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
            "OPTIMIZING_URL": self.url,
        }
        return ours | extra

    def __call__(self, *words: str, **extra: str) -> Ended:
        done = subprocess.run(
            [*COMMAND, *words],
            cwd=self.folder,
            env=self.environment(**extra),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SEC,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *words],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> Iterator[None]:
    """What a shell puts in the background ignores SIGINT, and so would all that the tests start from there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def optimizing(service: Service, tmp_path: Path) -> Optimizing:
    return Optimizing(tmp_path, service.url)


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    """A file to send: large enough to be cut in the middle."""
    path = tmp_path / "hello.txt"
    path.write_bytes(b"".join(b"line %06d of a file to send\n" % number for number in range(40_000)))
    return path
