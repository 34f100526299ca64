"""What every artifact store does with files of this machine: take them in, hash them, clear them away."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from app.errors import ServiceError, StoreFull, StoreUnavailable, TooLarge
from app.storage.artifacts import CHUNK_BYTES

STALE_SEC = 24 * 3600


async def receive(
    chunks: AsyncIterator[bytes], file: BinaryIO, max_bytes: int, in_thread: Callable[..., Awaitable[None]]
) -> tuple[int, str]:
    """Writes a stream into a file; its size and sha256. Raises TooLarge as soon as there are more than `max_bytes`."""
    sha, size, pending = hashlib.sha256(), 0, bytearray()

    def flush() -> None:
        sha.update(pending)
        file.write(pending)
        pending.clear()

    async for chunk in chunks:
        size += len(chunk)
        if size > max_bytes:
            raise TooLarge(
                "the upload is larger than this service takes",
                expected=f"at most {max_bytes} bytes (UPLOAD_MAX_MIB)",
                received="more",
            )
        pending += chunk
        if len(pending) >= CHUNK_BYTES:
            await in_thread(flush)
    await in_thread(flush)
    return size, sha.hexdigest()


def created(path: Path) -> BinaryIO:
    """A new file, for writing and reading."""
    return open(path, "x+b")


def opened(path: Path) -> int:
    """A file descriptor of a regular file, never of what a link points to or of a pipe, which would keep us waiting."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "that is no regular file", str(path))
    return descriptor


def digest_of(file: BinaryIO) -> str:
    """The sha256 of what is left of an open file."""
    sha = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        sha.update(chunk)
    return sha.hexdigest()


@contextlib.contextmanager
def gone_afterwards(file: BinaryIO, temporary: Path) -> Iterator[None]:
    """Closes and removes a temporary file, unless it was moved into place meanwhile."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # what counts was flushed before
            file.close()
        temporary.unlink(missing_ok=True)


def remove_stale(folder: Path) -> None:
    """Removes what a killed service was writing; younger files may be another service's."""
    for left in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # just put into its place
            if left.lstat().st_mtime < time.time() - STALE_SEC:
                left.unlink()


def disk_fault(error: OSError, folder: Path) -> ServiceError:
    """What an error of the disk under `folder` is to the caller of a store."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StoreFull("the artifact store's disk is full", hint=f"free space under {folder}")
    return StoreUnavailable(
        "the artifact store's folder cannot be used",
        received=f"{type(error).__name__}: {error.strerror}",
        hint=f"check that {folder} exists and that the service may write there",
    )
