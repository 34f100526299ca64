"""The stores that the contract suites run against. A new store joins by a name in the list and its settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from app.config import Settings
from app.storage import factory
from app.storage.artifacts import ArtifactStore
from app.storage.records import RecordStore

RECORD_STORES = ["sqlite"]
ARTIFACT_STORES = ["local"]

OpenRecords = Callable[[], Awaitable[RecordStore]]


@pytest.fixture(params=RECORD_STORES)
def record_environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment that chooses an empty record store; for this process and for others."""
    return {"RECORD_STORE": request.param, "WORKSPACE_DIR": str(tmp_path / "workspace")}


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


@pytest.fixture(params=ARTIFACT_STORES)
def artifact_environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    return {"ARTIFACT_STORE": request.param, "WORKSPACE_DIR": str(tmp_path / "workspace")}


@pytest.fixture
async def artifacts(artifact_environment: dict[str, str], anyio_backend: str) -> AsyncIterator[ArtifactStore]:
    settings = Settings(**{name.lower(): value for name, value in artifact_environment.items()})  # type: ignore[arg-type]
    store = factory.artifact_store(settings)
    await store.start()
    yield store
    await store.close()
