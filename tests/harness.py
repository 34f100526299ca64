"""The real service as a subprocess, and a real little receiver of callbacks: what the tests drive."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import httpx2

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
FINAL = {"completed", "failed", "cancelled"}
SECRET = "whsec_" + "c2VjcmV0IG9mIHRoZSB0ZXN0cywgMzIgYnl0ZXMgbG9uZw=="
START_SEC, STOP_SEC, JOB_SEC = 60.0, 40.0, 60.0
MISTAKES = ("Traceback", "never retrieved", "never awaited", "made a mistake", "fell out of its runner", "Warning:")
"""What a service that works never writes into its log."""


def eventually(look: Callable[[], T | None], timeout_sec: float = 10.0, pause_sec: float = 0.02, what: str = "") -> T:
    """The first true answer of `look`. Raises AssertionError when there is none within the time."""
    deadline = time.monotonic() + timeout_sec
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {timeout_sec:g} s: {what or look}"
        time.sleep(pause_sec)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@dataclass
class Service:
    """One service process with a workspace of its own. `environment` is all that it is told."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    mistakes_expected: bool = False
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.home = self.folder / "home"
        self.home.mkdir(exist_ok=True)
        self.workspace = self.folder / "workspace"
        self.log = self.folder / "service.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx2.Client(base_url=self.url, timeout=30, trust_env=False)

    # -- life -----------------------------------------------------------------------------------------------------
    def command_environment(self) -> dict[str, str]:
        ours = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONWARNINGS": "default::ResourceWarning",
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "WORKSPACE_DIR": str(self.workspace),
            "KIND_PACKAGES": "tests.kinds",
            "CALLBACK_ALLOWED_HOSTS": "127.0.0.1",
            "CALLBACK_RETRY_SEC": "0.1,0.1,0.1",
            "CALLBACK_TIMEOUT_SEC": "5",
            "CALLBACK_SECRET": SECRET,
            "DRAIN_TIMEOUT_SEC": "2",
        }
        return {name: value for name, value in {**ours, **self.environment}.items() if value != "(unset)"}

    def start(self, *, wait: bool = True) -> Service:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app"], cwd=ROOT, env=self.command_environment(), stdout=log, stderr=log
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        eventually(self._is_ready, START_SEC, what=f"ready; its log:\n{self.text()}")

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the service ended with {self.process.returncode}:\n{self.text()}"
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def kill(self) -> None:
        """As `kill -9`: nothing is cleaned up."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(STOP_SEC)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SEC)

    def close(self) -> None:
        """Stops the service and asserts that it went well and left nothing."""
        self.client.close()
        try:
            code = self.stop() if self.process is not None else 0
            eventually(lambda: not self.processes(), 10, what=f"all gone; left over: {self.processes()}")
        finally:
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)
        if not self.mistakes_expected:
            assert code == 0, f"the service ended with {code}:\n{self.text()[-4000:]}"
            for sign in MISTAKES:
                assert sign not in self.text(), f"its log has {sign!r}:\n{self.text()[-4000:]}"

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def processes(self) -> list[int]:
        """Every process of this service: itself, its fork server, jobs and what they started."""
        mark = f"HOME={self.home}".encode()
        return [pid for pid in _pids() if alive(pid) and mark in _environment(pid)]

    # -- use ------------------------------------------------------------------------------------------------------
    def upload(self, pid: str, name: str, content: bytes | Path, **headers: str) -> str:
        """The key of a new upload."""
        body = content.read_bytes() if isinstance(content, Path) else content
        query = {"pid": pid, "name": name}
        answer = self.client.post("/optimizing/uploads", params=query, content=body, headers=headers)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["key"])

    def post(self, action: str, pid: str, parameters: Mapping[str, Any], **envelope: Any) -> httpx2.Response:
        headers = envelope.pop("headers", {})
        body = {"pid": pid, "parameters": {"kind": action, **parameters}, **envelope}
        return self.client.post(f"/optimizing/{action}", json=body, headers=headers)

    def submit(self, action: str, pid: str, parameters: Mapping[str, Any], **envelope: Any) -> str:
        """The path of a new job, as its Location has it."""
        answer = self.post(action, pid, parameters, **envelope)
        assert answer.status_code == 202, answer.text
        return str(answer.headers["location"])

    def job(self, path: str, **headers: str) -> dict[str, Any]:
        answer = self.client.get(path, headers=headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def wait(self, path: str, timeout_sec: float = JOB_SEC, statuses: set[str] | None = None) -> dict[str, Any]:
        """The job once it has ended, or has one of `statuses`."""
        wanted = statuses or FINAL
        last: dict[str, Any] = {}

        def look() -> bool:
            last.update(self.job(path))
            return last["status"] in wanted

        eventually(look, timeout_sec, what=f"{path} {wanted}")
        return last

    def run(self, action: str, pid: str, parameters: Mapping[str, Any], **envelope: Any) -> dict[str, Any]:
        return self.wait(self.submit(action, pid, parameters, **envelope))

    def job_log(self, path: str) -> str:
        return str(self.client.get(f"{path}/log").text)


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - thousands of paths are slow


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


# -- callbacks ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Delivery:
    """One callback as it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    answered: int

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


class Receiver:
    """Takes callbacks on the loopback, notes them, and answers as it was told to: 200 unless scripted."""

    def __init__(self, port: int = 0) -> None:
        self.deliveries: list[Delivery] = []
        self._scripts: defaultdict[str, list[tuple[int, dict[str, str]]]] = defaultdict(list)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def script(self, path: str, *statuses: int, **headers: str) -> str:
        """The next answers under a path, in this order; returns the URL."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with self._lock:
            self._scripts[path] += [(status, named) for status in statuses]
        return self.url + path

    def of(self, path: str) -> list[Delivery]:
        with self._lock:
            return [delivery for delivery in self.deliveries if delivery.path == path]

    def wait(self, path: str, count: int = 1, timeout_sec: float = 15.0) -> list[Delivery]:
        """The deliveries under a path once there are `count`."""
        eventually(lambda: len(self.of(path)) >= count, timeout_sec, what=f"{count} deliveries at {path}")
        return self.of(path)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        fields = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            script = self._scripts[handler.path]
            status, headers = script.pop(0) if script else (200, {})
            self.deliveries.append(Delivery(handler.path, fields, body, time.time(), status))
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            handler.send_header(name, value)
        handler.end_headers()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                receiver._take(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
                """Silent."""

        return Handler


@contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    receiver = Receiver(port)
    try:
        yield receiver
    finally:
        receiver.close()


def tree(folder: Path) -> dict[str, str]:
    """Every entry below a folder with what it is: to see whether something was written."""
    found = {}
    for path in sorted(folder.rglob("*")):
        with suppress(FileNotFoundError):  # gone since
            status = path.lstat()
            found[str(path.relative_to(folder))] = f"{status.st_mode:o} {status.st_size if path.is_file() else ''}"
    return found


# -- server-sent events -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Sent:
    """One event of a stream."""

    type: str
    id: str
    data: dict[str, Any]


def follow(service: Service, path: str, last_event_id: str | None = None) -> Iterator[Sent]:
    """A job's events as they come, until the service ends the stream."""
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    with service.client.stream("GET", f"{path}/events", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value
            elif "data" in fields:
                yield Sent(fields["event"], fields["id"], json.loads(fields["data"]))
                fields = {}
