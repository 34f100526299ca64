"""A real service of our own for a benchmark: started, warmed, asked, stopped."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).resolve().parent.parent
PILLS = ROOT / "tests" / "assets" / "pills" / "pills_yolov8n.pt"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def service(**settings: str) -> Iterator[tuple[httpx2.Client, subprocess.Popen[bytes], Path]]:
    """A client, the process and its workspace; the fork server has loaded its libraries when this begins."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        port = free_port()
        environment = {**os.environ, "WORKSPACE_DIR": folder, "PORT": str(port), **settings}
        process = subprocess.Popen([sys.executable, "-m", "app"], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                wait_until(lambda: _ready(client), 30)
                key = upload(client, PILLS, "warm.pt")
                finish(client, submit(client, "check_model_stats", {"kind": "check_model_stats", "input_path": key}))
                yield client, process, Path(folder)
        finally:
            process.terminate()
            process.wait(60)


def _ready(client: httpx2.Client) -> bool:
    with contextlib.suppress(httpx2.HTTPError):
        return client.get("/readyz").status_code == 200
    return False


def wait_until(condition: Any, timeout_sec: float, pause_sec: float = 0.01) -> None:
    end = time.monotonic() + timeout_sec
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("it did not become true in time")
        time.sleep(pause_sec)


def upload(client: httpx2.Client, path: Path, name: str, pid: str = "P0001") -> str:
    answer = client.post("/optimizing/uploads", params={"pid": pid, "name": name}, content=path.read_bytes())
    answer.raise_for_status()
    return str(answer.json()["key"])


def submit(client: httpx2.Client, action: str, parameters: dict[str, Any], **envelope: Any) -> str:
    """The path of the accepted job."""
    body = {"pid": "P0001", "parameters": parameters, **envelope}
    answer = client.post(f"/optimizing/{action}", json=body)
    answer.raise_for_status()
    return str(answer.headers["location"])


def finish(client: httpx2.Client, job: str, pause_sec: float = 0.01) -> dict[str, Any]:
    """The job's record once it has ended."""
    while (record := client.get(job).json())["status"] in {"queued", "running"}:
        time.sleep(pause_sec)
    return dict(record)


def rss_mib(pid: int) -> float:
    """Resident memory of a process, in MiB (proc(5), statm)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(part * (len(ordered) - 1)))]


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
