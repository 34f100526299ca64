"""The S3 artifact store as its own tests open it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
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
