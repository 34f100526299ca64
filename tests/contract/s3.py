"""The S3 artifact store as its own tests open it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from app.config import Settings
from app.storage.artifacts_minio import MinioArtifacts

NOWHERE = {
    "ARTIFACT_STORE": "minio",
    "S3_ENDPOINT": "http://127.0.0.1:9",
    "S3_ACCESS_KEY": "testkey",
    "S3_SECRET_KEY": "testsecret1",
    "S3_BUCKET": "optimizing",
}
"""Settings of a server that is not there."""


def settings_of(environment: dict[str, str], tmp_path: Path, **more: str) -> Settings:
    given = {name.lower(): value for name, value in environment.items()} | more
    return Settings(workspace_dir=tmp_path / "workspace", **given)  # type: ignore[arg-type]


@asynccontextmanager
async def opened(environment: dict[str, str], tmp_path: Path, **more: str) -> AsyncIterator[MinioArtifacts]:
    store = MinioArtifacts(settings_of(environment, tmp_path, **more))
    try:
        await store.start()
        yield store
    finally:
        await store.close()


def port_of(environment: dict[str, str]) -> int:
    """The server's port. Skips the test where that is on another machine: the proxies of the tests reach none."""
    endpoint = urlsplit(environment["S3_ENDPOINT"])
    if (endpoint.scheme, endpoint.hostname) != ("http", "127.0.0.1") or not endpoint.port:
        pytest.skip("the server is not of this machine")
    return endpoint.port


class ConditionsRefused(ThreadingHTTPServer):
    """A little S3 of one object that answers a conditional PUT with 501, as some stores do."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _RefusesConditions)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.puts: list[bool] = []
        """Of each PUT, whether it had a condition."""
        self.stored: tuple[bytes, dict[str, str]] | None = None


class _RefusesConditions(BaseHTTPRequestHandler):
    server: ConditionsRefused

    def do_GET(self) -> None:
        if self.server.stored is None:
            self._refuse(404, "NoSuchKey")
        else:
            self._answer(200, *self.server.stored)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        self.server.puts.append("if-match" in self.headers or "if-none-match" in self.headers)
        if self.server.puts[-1]:
            self._refuse(501, "NotImplemented")
            return
        marks = {name: text for name, text in self.headers.items() if name.lower().startswith("x-amz-meta-")}
        self.server.stored = content, marks | {"ETag": '"1"'}
        self._answer(200, b"", {"ETag": '"1"'})

    def _refuse(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
        self._answer(status, body.encode(), {"Content-Type": "application/xml"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, text in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Silent."""


@contextmanager
def refusing_conditions() -> Iterator[ConditionsRefused]:
    with ConditionsRefused() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(5)
