"""Makes the stores that the settings choose. A driver is imported only where it is used."""

from __future__ import annotations

from app.config import Settings
from app.storage.artifacts import ArtifactStore
from app.storage.records import RecordStore


def artifact_store(settings: Settings) -> ArtifactStore:
    if settings.artifact_store == "minio":
        from app.storage.artifacts_minio import MinioArtifacts

        return MinioArtifacts(settings)
    from app.storage.artifacts_local import LocalArtifacts

    return LocalArtifacts(settings.store_dir)


def record_store(settings: Settings) -> RecordStore:
    if settings.record_store == "mongo":
        from app.storage.records_mongo import MongoRecords

        return MongoRecords(settings)
    from app.storage.records_sqlite import SqliteRecords

    return SqliteRecords(settings.records_file)
