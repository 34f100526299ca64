"""Where a request's inputs are, whose they are, and what they contain."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import anyio.to_thread

from app.archives import ARCHIVE_ENDINGS
from app.config import SECRETS, Settings
from app.errors import InvalidRequest, NotFound
from app.jobs.keys import is_foreign, job_of_key
from app.jobs.latest import is_pointer
from app.schemas.common import DataSource, InputFile
from app.schemas.kind import Kind, Parameters
from app.storage.artifacts import CHUNK_BYTES, ArtifactStore
from app.storage.records import JobRef, RecordStore


@dataclass(frozen=True)
class Source:
    """One file of a job's input: an artifact (`key`) or a file of this machine (`path`), and its name when staged."""

    name: str
    key: str | None = None
    path: Path | None = None
    sha256: str = ""


@dataclass(frozen=True)
class ResolvedInputs:
    """Parameter name -> its files; `folders` are image folders of this machine, which are read in place."""

    files: dict[str, list[Source]] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    """Parameter name -> a digest of names and contents."""


class Inputs:
    """Checks and finds what requests name."""

    def __init__(self, settings: Settings, artifacts: ArtifactStore, records: RecordStore) -> None:
        self._settings = settings
        self._artifacts = artifacts
        self._records = records

    async def check(self, uid: str, kind: Kind, parameters: Parameters) -> None:
        """Raises for locations that this user may not name: NotFound for another's, InvalidRequest for paths."""
        for location in _locations(kind, parameters):
            if location.startswith("/"):
                self._allowed_path(uid, location)
            await self._check_owner(uid, location)

    async def resolve(self, uid: str, kind: Kind, parameters: Parameters) -> ResolvedInputs:
        """Finds every input and its digest. Raises NotFound or InvalidRequest with what is missing."""
        await self.check(uid, kind, parameters)
        found = ResolvedInputs()
        for name, mark in kind.input_fields():
            location = getattr(parameters, name)
            if location is None:
                continue
            sources = [await self._file(uid, location), *await self._companion(uid, location, mark)]
            found.files[name] = sources
            found.digests[name] = ",".join(f"{source.name}:{source.sha256}" for source in sources)
        for name, data in kind.data_sources(parameters):
            await self._image_set(uid, name, data, found)
        return found

    async def _companion(self, uid: str, location: str, mark: InputFile) -> list[Source]:
        """The file that belongs to an input, if it lies beside it."""
        if mark.companion is None:
            return []
        path = PurePosixPath(location)
        with contextlib.suppress(NotFound):
            return [await self._file(uid, str(path.with_name(mark.companion.format(stem=path.stem))))]
        return []

    async def _image_set(self, uid: str, name: str, data: DataSource, found: ResolvedInputs) -> None:
        if data.images.startswith("/") and not data.images.lower().endswith(ARCHIVE_ENDINGS):
            folder = self._allowed_path(uid, data.images)
            found.folders[name] = folder
            found.digests[name] = await anyio.to_thread.run_sync(_folder_digest, folder)
            sources = []
        elif data.images.lower().endswith(ARCHIVE_ENDINGS):
            sources = [await self._file(uid, data.images)]
        else:
            sources = await self._below(uid, data.images)
        found.digests[f"{name}.sample"] = str(data.sample)
        if data.annotations:
            annotations = await self._file(uid, data.annotations)
            found.files[f"{name}.annotations"] = [annotations]
            found.digests[f"{name}.annotations"] = annotations.sha256
        if sources:
            found.files[name] = sources
            listing = "\n".join(f"{source.name}:{source.sha256}" for source in sources)
            found.digests[name] = hashlib.sha256(listing.encode()).hexdigest()

    async def _below(self, uid: str, prefix: str) -> list[Source]:
        folder = prefix.rstrip("/") + "/"
        sources = []
        foreign: dict[JobRef | None, bool] = {None: False}
        async for info in self._artifacts.list(folder):
            ref = job_of_key(info.key)
            if ref is not None and ref not in foreign:
                foreign[ref] = await self._records.owner_of(ref) not in {None, uid}
            if foreign[ref]:
                continue
            full = await self._artifacts.stat(info.key, digest=True)
            sources.append(Source(info.key[len(folder) :], key=info.key, sha256=full.sha256 or ""))
        if not sources:
            raise NotFound("no artifact lies under that prefix", received=prefix, code="INPUT_NOT_FOUND")
        return sources

    async def _file(self, uid: str, location: str) -> Source:
        if not location.startswith("/"):
            return await self._artifact(uid, location)
        path = self._allowed_path(uid, location)
        if not path.is_file():
            raise NotFound(
                "the input is not a file of this machine",
                received=location,
                hint="check the path on the server, or upload the file",
                code="INPUT_NOT_FOUND",
            )
        sha256 = await anyio.to_thread.run_sync(_file_digest, path)
        return Source(PurePosixPath(location).name, path=path, sha256=sha256)

    async def _artifact(self, uid: str, location: str) -> Source:
        """The file under a key. A pointer is followed here and only once: the job gets the file that it led to now."""
        key = location
        try:
            target = await self._artifacts.pointer(location) if is_pointer(location) else None
            if target is not None:
                await self._check_owner(uid, target)
                key = target
            info = await self._artifacts.stat(key, digest=True)
        except NotFound as error:
            raise NotFound(
                "the input is not in the artifact store",
                expected="the key of an upload, or of a job's artifact",
                received=location if key == location else f"{location}, which leads to {key}, and that is gone",
                hint="POST the file to /optimizing/uploads and use the key that comes back",
                code="INPUT_NOT_FOUND",
            ) from error
        return Source(PurePosixPath(location).name, key=key, sha256=info.sha256 or "")

    def _allowed_path(self, uid: str, location: str) -> Path:
        """The path with links resolved, if it lies where requests may read."""
        if not self._settings.absolute_input_paths:
            raise InvalidRequest(
                "absolute paths are turned off here (ABSOLUTE_INPUT_PATHS)",
                expected="an artifact key",
                received=location,
                hint="POST the file to /optimizing/uploads and use the key that comes back",
            )
        path = Path(os.path.realpath(location))
        workspace = self._settings.workspace_dir.resolve()
        roots = [workspace, *(Path(root).resolve() for root in self._settings.input_roots)]
        if not any(path == root or path.is_relative_to(root) for root in roots) or self._is_private(uid, path):
            raise InvalidRequest(
                "that path may not be read by requests",
                expected=f"an artifact key, or a path under {' or '.join(map(str, roots))} (INPUT_ROOTS)",
                received=location,
            )
        return path

    def _is_private(self, uid: str, path: Path) -> bool:
        """Whether a path is the service's own or another user's; the artifact store is reached by key only."""
        records = self._settings.records_file
        kept = [self._settings.state_dir, self._settings.store_dir, self._settings.cache_dir, records]
        kept += [records.with_name(records.name + ending) for ending in ("-wal", "-shm")]
        kept += [file for secret in SECRETS if (file := getattr(self._settings, f"{secret}_file"))]
        if any(path.is_relative_to(own.resolve()) or own.resolve().is_relative_to(path) for own in kept):
            return True
        jobs = self._settings.jobs_dir.resolve()
        return path.is_relative_to(jobs) and path.relative_to(jobs).parts[:1] != (uid,)

    async def _check_owner(self, uid: str, location: str) -> None:
        """A key below another user's job or upload does not exist for this user."""
        if await is_foreign(self._records, uid, location):
            raise NotFound("there is no artifact under that key", received=location)


def _locations(kind: Kind, parameters: Parameters) -> Iterator[str]:
    for name, _ in kind.input_fields():
        if (location := getattr(parameters, name)) is not None:
            yield location
    for _, data in kind.data_sources(parameters):
        yield data.images
        if data.annotations:
            yield data.annotations


def _file_digest(path: Path) -> str:
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()


def _folder_digest(folder: Path) -> str:
    if not folder.is_dir():
        raise NotFound("that folder is not on this machine", received=str(folder), code="INPUT_NOT_FOUND")
    sha = hashlib.sha256()
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent) / name
            if path.is_file():
                sha.update(f"{path.relative_to(folder)}:{_file_digest(path)}\n".encode())
    return sha.hexdigest()
