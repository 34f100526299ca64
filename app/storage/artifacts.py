"""The artifact store: files under keys such as `artifacts/P0001/optimizing/O0007/best_fp32.onnx`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from app.errors import Conflict, NotFound

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class ArtifactInfo:
    """One stored file. `sha256` is None where the store was not asked to read the file for it."""

    key: str
    size_bytes: int
    sha256: str | None
    modified_at: float
    """Unix seconds."""


def is_key(key: str) -> bool:
    """Whether a client could ask for that key: no segment of it is empty or begins with a dot."""
    return all(part and not part.startswith(".") for part in key.split("/"))


def key_parts(key: str) -> list[str]:
    """The segments of a key. Raises NotFound for one that is none, such as one that climbs."""
    if not is_key(key):
        raise NotFound("there is no artifact of that name", received=key)
    return key.split("/")


def absent(key: str) -> NotFound:
    return NotFound("there is no artifact under that key", received=key, hint="upload it, or list the job's artifacts")


def disposition(name: str) -> str:
    """The Content-Disposition by which a download keeps its own name, also where it is not ASCII (RFC 6266)."""
    return f"attachment; filename*=UTF-8''{quote(name.rsplit('/', 1)[-1], safe='')}"


def leads_below(key: str, target: str) -> bool:
    """Whether a pointer may lead there: to a key below its own folder, as in one project."""
    folder = key[: key.rfind("/") + 1]
    return target.startswith(folder) and is_key(target)


def check_pointer(key: str, target: str) -> None:
    """Raises NotFound where either is no key or the one may not lead to the other."""
    key_parts(key)
    if not leads_below(key, target):
        raise absent(target)


def taken(key: str) -> Conflict:
    hint = "remove that file from the store, and the next version moves the pointer"
    return Conflict("a pointer cannot be written where a file lies", received=key, hint=hint)


def job_prefix(pid: str, oid: str) -> str:
    """Where a job's artifacts lie (S0); the same place serves uploads."""
    return f"artifacts/{pid}/optimizing/{oid}/"


class ArtifactStore(Protocol):
    """Keeps files. Every method raises StoreUnavailable when the store does not answer, StoreFull when it has no room.

    A key is checked by the caller (`schemas.common.check_key`); a store refuses one that would leave it all the same.
    What is visible under a key is always a whole file: writes go beside and are moved into place.

    A pointer is a key that leads to another. It is no file: it is not listed, and what reads files does not find it.
    Whoever wants the file asks where it leads, once, checks whose that is, and reads there: between a check and a look
    through the pointer it could be moved.
    """

    async def start(self) -> None:
        """Makes the store usable; raises StoreUnavailable with what to mend."""

    async def close(self) -> None: ...

    async def check(self) -> None:
        """Raises StoreUnavailable, within seconds, unless the store answers now."""

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], *, max_bytes: int) -> ArtifactInfo:
        """Stores a stream while it is hashed, in constant memory. Raises TooLarge beyond `max_bytes`; nothing stays."""

    async def put_file(self, key: str, path: Path) -> ArtifactInfo:
        """Takes over a local regular file, which must not be written to any more; a link is refused.

        The file itself is left where it is. A local store may keep it without copying it.
        """

    async def fetch(self, key: str, target: Path) -> ArtifactInfo:
        """Copies an artifact to a local path, digest included. Raises NotFound."""

    async def stat(self, key: str, *, digest: bool = False) -> ArtifactInfo:
        """What is known of a key; with `digest`, the sha256 even if the file must be read. Raises NotFound."""

    def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` to before `end`, in chunks. Raises NotFound at the first chunk."""

    def list(self, prefix: str) -> AsyncIterator[ArtifactInfo]:
        """Every artifact whose key begins with `prefix`, in the order of keys; digests where already known."""

    async def copy(self, source: str, target: str) -> ArtifactInfo:
        """Makes `target` the same file as `source`, without passing it through here. Raises NotFound."""

    async def pointer(self, key: str) -> str | None:
        """The key that a pointer leads to, whether or not a file is there; None where `key` is no pointer."""

    async def point(self, key: str, target: str, *, instead_of: str | None) -> bool:
        """Makes `key` a pointer to `target` in one step, if it still leads to `instead_of` (None: nothing is there).

        False, and nothing changed, where it does not. Raises Conflict where a file lies under `key`, NotFound for a
        `target` that is not below the pointer's own folder.
        """

    def link(self, key: str, name: str) -> str | None:
        """A URL by which a client can fetch the file itself for a while, to be saved as `name`.

        None where the store cannot be reached by clients: the file then passes through this service.
        """
