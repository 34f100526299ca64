"""The stores that the contract suites run against. A new store joins by a name in the list and its settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from app.config import Settings
from app.storage import factory
from app.storage.artifacts import ArtifactStore
from app.storage.records import RecordStore
from tests.services.plugin import MONGO_SERVERS, S3_SERVERS, mongo_server_named, s3_server_named
from tests.services.servers import S3Server

SLOW = {"motor": pytest.mark.slow, "seaweedfs": pytest.mark.slow}
"""Of two drivers and two servers that keep the same contract the quick suite runs one each."""
MONGO_STORES = [
    pytest.param(f"{server}-{driver}", marks=SLOW.get(driver, ()))
    for server in MONGO_SERVERS
    for driver in ("pymongo", "motor")
]
S3_STORES = [pytest.param(server, marks=SLOW.get(server, ())) for server in S3_SERVERS]
RECORD_STORES = ["sqlite", *MONGO_STORES]
ARTIFACT_STORES = ["local", *S3_STORES]

OpenRecords = Callable[[], Awaitable[RecordStore]]


@pytest.fixture(params=RECORD_STORES)
def record_environment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment that chooses an empty record store; for this process and for others."""
    workspace = {"WORKSPACE_DIR": str(tmp_path / "workspace")}
    if request.param == "sqlite":
        yield {"RECORD_STORE": "sqlite", **workspace}
        return
    server, _, driver = request.param.rpartition("-")
    with mongo_server_named(request, server).fresh(driver) as environment:
        yield environment | workspace


@pytest.fixture
async def open_records(record_environment: dict[str, str], anyio_backend: str) -> AsyncIterator[OpenRecords]:
    """Opens one more store object on the same records, as another process would."""
    settings = Settings(**{name.lower(): value for name, value in record_environment.items()})  # type: ignore[arg-type]
    async with AsyncExitStack() as stack:

        async def open_() -> RecordStore:
            store = factory.record_store(settings)
            await store.start()
            stack.push_async_callback(store.close)
            return store

        yield open_


@pytest.fixture
async def records(open_records: OpenRecords) -> RecordStore:
    return await open_records()


@pytest.fixture(params=S3_STORES)
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Every S3 server, for tests of what only S3 has."""
    return s3_server_named(request, request.param)


@pytest.fixture(params=ARTIFACT_STORES)
def artifact_environment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment that chooses an empty artifact store; for this process and for others."""
    workspace = {"WORKSPACE_DIR": str(tmp_path / "workspace")}
    if request.param == "local":
        yield {"ARTIFACT_STORE": "local", **workspace}
        return
    with s3_server_named(request, request.param).fresh() as environment:
        yield environment | workspace


@pytest.fixture
async def artifacts(artifact_environment: dict[str, str], anyio_backend: str) -> AsyncIterator[ArtifactStore]:
    settings = Settings(**{name.lower(): value for name, value in artifact_environment.items()})  # type: ignore[arg-type]
    store = factory.artifact_store(settings)
    await store.start()
    yield store
    await store.close()
