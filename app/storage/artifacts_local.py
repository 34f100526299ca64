"""Artifacts in a local folder: the embedded default.

`ROOT/<key>` is the file, `ROOT/.digests/<key>` its digest, `ROOT/.incoming/` what is still being written. No segment of
a key begins with a dot, so the three never meet. A file that the platform put there itself has no digest yet: it is
made when first asked for and holds as long as size and modification time stay as they were.

A pointer is a relative symbolic link that leads down from its own folder; other links lead nowhere. `ROOT/.pointers` is
locked while one is moved.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import anyio.to_thread

from app.errors import NotFound
from app.storage.artifacts import (
    CHUNK_BYTES,
    ArtifactInfo,
    absent,
    check_pointer,
    is_key,
    key_parts,
    leads_below,
    taken,
)
from app.storage.files import created, digest_of, disk_fault, gone_afterwards, opened, receive, remove_stale

T = TypeVar("T")

ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
"""The errors by which a key has no file."""


class LocalArtifacts:
    """An `ArtifactStore` in a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._digests = root / ".digests"
        self._incoming = root / ".incoming"

    async def start(self) -> None:
        def make() -> None:
            self._root.mkdir(parents=True, exist_ok=True)
            self._digests.mkdir(exist_ok=True)
            self._incoming.mkdir(exist_ok=True)
            remove_stale(self._incoming)

        await self._run(make)
        await self.check()

    async def close(self) -> None:
        """Nothing is held open."""

    async def check(self) -> None:
        def write() -> None:
            with self._beside() as (file, _):
                file.write(b"ok")

        await self._run(write)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], *, max_bytes: int) -> ArtifactInfo:
        target = self._path(key)
        file, temporary = await self._run(self._create)
        with gone_afterwards(file, temporary):
            _, sha256 = await receive(chunks, file, max_bytes, self._run)
            return await self._run(self._publish, file, temporary, key, target, sha256)

    async def put_file(self, key: str, path: Path) -> ArtifactInfo:
        def put() -> ArtifactInfo:
            temporary = self._incoming / uuid.uuid4().hex
            try:
                with open(opened(path), "rb") as source:
                    _adopt(source, path, temporary)
                with open(opened(temporary), "rb") as file:
                    return self._publish(file, temporary, key, self._path(key), digest_of(file))
            finally:
                temporary.unlink(missing_ok=True)

        return await self._run(put)

    async def fetch(self, key: str, target: Path) -> ArtifactInfo:
        info = await self.stat(key, digest=True)
        await self._run(shutil.copyfile, self._path(key), target)
        return info

    async def stat(self, key: str, *, digest: bool = False) -> ArtifactInfo:
        return await self._run(self._stat, key, digest)

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        file = await self._run(self._open, key)
        try:
            size = os.fstat(file.fileno()).st_size
            left = min(size if end is None else end, size) - start
            if left > 0:
                await self._run(file.seek, start)
            while left > 0:
                chunk = await self._run(file.read, min(CHUNK_BYTES, left))
                if not chunk:
                    return
                left -= len(chunk)
                yield chunk
        finally:
            file.close()

    async def list(self, prefix: str) -> AsyncIterator[ArtifactInfo]:
        for key in await self._run(lambda: sorted(self._keys(prefix))):
            with contextlib.suppress(NotFound):  # removed by the platform since it was listed
                yield await self.stat(key)

    async def copy(self, source: str, target: str) -> ArtifactInfo:
        def link() -> ArtifactInfo:
            info, path = self._stat(source, True), self._path(target)
            temporary = self._incoming / uuid.uuid4().hex
            try:
                try:
                    os.link(self._path(source), temporary)
                except OSError:  # another file system, or one without hard links
                    shutil.copyfile(self._path(source), temporary)
                return self._place(temporary, target, path, info.sha256 or "")
            finally:
                # Where both are one file already, rename(2) did nothing and left the temporary name.
                temporary.unlink(missing_ok=True)

        return await self._run(link)

    async def pointer(self, key: str) -> str | None:
        return await self._run(self._pointer, key)

    async def point(self, key: str, target: str, *, instead_of: str | None) -> bool:
        def move() -> bool:
            check_pointer(key, target)
            path = self._path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._pointers_locked():
                ahead = self._pointer(key)
                if ahead is None and os.path.lexists(path):
                    raise taken(key)
                if ahead != instead_of:
                    return False
                self._place_link(path, target[key.rfind("/") + 1 :])
            return True

        return await self._run(move)

    def link(self, key: str, name: str) -> str | None:  # noqa: ARG002 - a folder has no address
        return None

    def _path(self, key: str) -> Path:
        """Where a key's file lies. Raises NotFound for a key that climbs, and below a link: links lead nowhere."""
        *folders, _ = key_parts(key)
        path = self._root / key
        if path.parent.resolve() != self._root.resolve().joinpath(*folders):
            raise absent(key)
        return path

    def _open(self, key: str) -> BinaryIO:
        """Opens a regular file for reading."""
        try:
            return open(opened(self._path(key)), "rb", buffering=0)
        except OSError as error:
            if error.errno in ABSENT:
                raise absent(key) from None
            raise

    def _pointer(self, key: str) -> str | None:
        try:
            target = key[: key.rfind("/") + 1] + str(self._path(key).readlink())
        except OSError as error:
            if error.errno in {errno.EINVAL, *ABSENT}:  # EINVAL: it is there and no link
                return None
            raise
        return target if leads_below(key, target) else None

    @contextlib.contextmanager
    def _pointers_locked(self) -> Iterator[None]:
        """Between the look at a pointer and its move nobody else moves one, in no other process either."""
        with open(self._root / ".pointers", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
            yield

    def _place_link(self, path: Path, target: str) -> None:
        temporary = self._incoming / uuid.uuid4().hex
        try:
            temporary.symlink_to(target)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)

    def _keys(self, prefix: str) -> Iterator[str]:
        folder = self._root / prefix.rpartition("/")[0]
        for parent, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                key = str((Path(parent) / name).relative_to(self._root))
                if key.startswith(prefix) and is_key(key):
                    yield key

    def _stat(self, key: str, digest: bool) -> ArtifactInfo:
        with self._open(key) as file:
            status = os.fstat(file.fileno())
            sha256 = self._known_digest(key, status)
            if digest and sha256 is None:
                sha256 = digest_of(file)
                self._remember(key, status, sha256)
        return ArtifactInfo(key, status.st_size, sha256, status.st_mtime)

    def _known_digest(self, key: str, status: os.stat_result) -> str | None:
        try:
            size, modified_ns, sha256 = (self._digests / key).read_text().split()
        except (OSError, ValueError):
            return None
        return sha256 if (int(size), int(modified_ns)) == (status.st_size, status.st_mtime_ns) else None

    def _remember(self, key: str, status: os.stat_result, sha256: str) -> None:
        note = self._digests / key
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._incoming / uuid.uuid4().hex
        temporary.write_text(f"{status.st_size} {status.st_mtime_ns} {sha256}")
        temporary.replace(note)

    def _create(self) -> tuple[BinaryIO, Path]:
        """A new file in `.incoming`, beside what is visible."""
        temporary = self._incoming / uuid.uuid4().hex
        return created(temporary), temporary

    @contextlib.contextmanager
    def _beside(self) -> Iterator[tuple[BinaryIO, Path]]:
        file, temporary = self._create()
        with gone_afterwards(file, temporary):
            yield file, temporary

    def _publish(self, file: BinaryIO, temporary: Path, key: str, target: Path, sha256: str) -> ArtifactInfo:
        file.flush()
        os.fsync(file.fileno())
        return self._place(temporary, key, target, sha256)

    def _place(self, temporary: Path, key: str, target: Path, sha256: str) -> ArtifactInfo:
        target.parent.mkdir(parents=True, exist_ok=True)
        status = temporary.stat()
        self._remember(key, status, sha256)
        # Two links to one file: rename(2) would then do nothing and leave the temporary name behind.
        temporary.replace(target)
        temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
        return ArtifactInfo(key, status.st_size, sha256, status.st_mtime)

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            return await anyio.to_thread.run_sync(function, *arguments)
        except OSError as error:
            raise disk_fault(error, self._root) from error


def _adopt(source: BinaryIO, path: Path, target: Path) -> None:
    """Makes `target` a second name of the file; a copy where it lies on another file system."""
    try:
        os.link(path, target, follow_symlinks=False)
    except OSError:
        with open(target, "xb") as copy:
            shutil.copyfileobj(source, copy, CHUNK_BYTES)


def _sync_folder(folder: Path) -> None:
    """A rename is durable only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
