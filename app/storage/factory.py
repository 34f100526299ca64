"""Makes the stores that the settings choose."""

from __future__ import annotations

from app.config import Settings
from app.storage.artifacts import ArtifactStore
from app.storage.artifacts_local import LocalArtifacts
from app.storage.records import RecordStore
from app.storage.records_sqlite import SqliteRecords


def artifact_store(settings: Settings) -> ArtifactStore:
    return LocalArtifacts(settings.store_dir)


def record_store(settings: Settings) -> RecordStore:
    return SqliteRecords(settings.records_file)
