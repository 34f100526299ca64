"""Artifacts in an S3 bucket: MinIO, or any service that speaks S3.

An object's key is the artifact's key, and its digest the object's metadata `sha256`, which S3 wants before the body: a
stream is therefore written to a file of this machine first. An object that others put there has no digest yet: it is
made when first asked for and remembered in this process. It is not written back: S3 can change metadata only by
copying the object over itself, and that would race with the writer to whom it belongs.

A pointer is an object with the metadata `pointer`, whose content is the key that it leads to.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import anyio
import anyio.from_thread
import anyio.to_thread
from minio.commonconfig import ComposeSource, CopySource
from minio.datatypes import Object
from minio.error import S3Error

from app.config import Settings
from app.errors import NotFound, StoreUnavailable
from app.schemas.common import MAX_KEY_BYTES
from app.storage.artifacts import (
    ArtifactInfo,
    absent,
    check_pointer,
    disposition,
    is_key,
    key_parts,
    leads_below,
    taken,
)
from app.storage.files import created, digest_of, disk_fault, gone_afterwards, opened, receive, remove_stale
from app.storage.s3_client import (
    ABSENT_CODES,
    NOT_S3,
    S3_FAULTS,
    Download,
    Interrupted,
    UploadSource,
    fault,
    make_client,
    make_pool,
    put_if,
)

T = TypeVar("T")

THREADS = 16
"""Requests to S3 at once; more wait their turn, and the service's other threads stay free."""

CHECK_SEC = 3.0
PART_BYTES = 16 * 1024 * 1024
"""A part of a multipart upload. It is what one upload keeps in memory."""

MAX_PARTS = 10_000
COPY_PART_BYTES = 256 * 1024 * 1024
"""What S3 copies in one request: little enough to be done before the connection counts as dead."""

COPY_ATTEMPTS = 5
REMEMBERED_DIGESTS = 10_000
"""About 5 MiB, where keys are of a usual length."""

LINK_VALID = timedelta(minutes=15)
POINTER = "x-amz-meta-pointer"
PROBE = ".optimizing-probe"
SHA256 = re.compile(r"[0-9a-f]{64}")

Listed = tuple[str, str, int, float]
"""What a listing says of an object: key, ETag, bytes, Unix seconds of its last change."""


class MinioArtifacts:
    """An `ArtifactStore` in a bucket."""

    def __init__(self, settings: Settings) -> None:
        self._endpoint = settings.s3_endpoint or ""
        self._bucket = settings.s3_bucket
        self._incoming = settings.store_dir / ".incoming"  # as the local store has it: no request may read there
        self._pool, self._quick_pool = make_pool(patient=True), make_pool(patient=False)
        self._client = make_client(settings, self._endpoint, self._pool)
        self._quick = make_client(settings, self._endpoint, self._quick_pool)
        public = settings.s3_public_endpoint
        self._public = make_client(settings, public, self._pool) if public else None
        self._threads = anyio.CapacityLimiter(THREADS)
        self._check_threads = anyio.CapacityLimiter(2)
        self._digests: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def start(self) -> None:
        def prepare() -> None:
            self._incoming.mkdir(parents=True, exist_ok=True)
            remove_stale(self._incoming)

        await self._disk(prepare)
        await self._ask(self._make_usable)

    async def close(self) -> None:
        self._pool.clear()
        self._quick_pool.clear()

    async def check(self) -> None:
        try:
            with anyio.fail_after(CHECK_SEC):
                there = await anyio.to_thread.run_sync(
                    self._quick.bucket_exists, self._bucket, limiter=self._check_threads, abandon_on_cancel=True
                )
        except S3_FAULTS as error:
            raise fault(error, self._endpoint) from error
        if not there:
            raise StoreUnavailable(f"the bucket {self._bucket} at {self._endpoint} is gone", hint="create it again")

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], *, max_bytes: int) -> ArtifactInfo:
        key_parts(key)
        temporary = self._incoming / uuid.uuid4().hex
        file = await self._disk(created, temporary)
        with gone_afterwards(file, temporary):
            size, sha256 = await receive(chunks, file, max_bytes, self._disk)
            return await self._upload(key, file, size, sha256)

    async def put_file(self, key: str, path: Path) -> ArtifactInfo:
        key_parts(key)
        with await self._disk(lambda: open(opened(path), "rb")) as file:
            sha256 = await self._disk(digest_of, file)
            return await self._upload(key, file, file.tell(), sha256)

    async def fetch(self, key: str, target: Path) -> ArtifactInfo:
        key_parts(key)
        temporary = target.with_name(f".{uuid.uuid4().hex}.part")  # the target's own name may be as long as names get
        file = await self._disk(created, temporary)
        with gone_afterwards(file, temporary):
            info = await self._drain(key, file)
            await self._disk(file.close)
            await self._disk(temporary.replace, target)
        return info

    async def stat(self, key: str, *, digest: bool = False) -> ArtifactInfo:
        key_parts(key)
        found = await self._ask(self._client.stat_object, self._bucket, key, key=key)
        info = self._info(key, found.metadata or {})
        return await self._drain(key) if digest and info.sha256 is None else info

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        if end is not None and end <= start:
            await self.stat(key)
            return
        key_parts(key)
        download = Download(self._client, self._bucket, key, start, end)
        try:
            while chunk := await self._ask(download.next, key=key):
                _refuse_pointer(key, download.headers)
                yield chunk
        finally:  # also when the reader went away
            download.close()

    async def list(self, prefix: str) -> AsyncIterator[ArtifactInfo]:
        listed = await self._ask(self._list, prefix)
        for start in range(0, len(listed), THREADS):
            some = listed[start : start + THREADS]
            found = await asyncio.gather(*(self._listed(*one) for one in some), return_exceptions=True)
            for info in found:
                if isinstance(info, ArtifactInfo):
                    yield info
                elif not isinstance(info, NotFound):  # removed since it was listed
                    raise info

    async def copy(self, source: str, target: str) -> ArtifactInfo:
        key_parts(source)
        key_parts(target)
        if source != target:  # which S3 refuses
            await self._ask(self._copy, source, target, key=source)
        return await self.stat(target)

    async def pointer(self, key: str) -> str | None:
        key_parts(key)
        return (await self._ask(self._look, key))[1]

    async def point(self, key: str, target: str, *, instead_of: str | None) -> bool:
        def move() -> bool:
            etag, ahead = self._look(key)
            if ahead is None and etag is not None:
                raise taken(key)
            if ahead != instead_of:
                return False
            headers = {POINTER: "1", "Content-Type": "text/plain"}
            return put_if(self._client, self._bucket, key, target.encode(), etag, headers)

        check_pointer(key, target)
        return await self._ask(move)

    def link(self, key: str, name: str) -> str | None:
        key_parts(key)
        if self._public is None:
            return None
        answer = {
            "response-content-disposition": disposition(name),
            "response-content-type": "application/octet-stream",
        }
        try:
            return self._public.presigned_get_object(self._bucket, key, LINK_VALID, response_headers=answer)  # type: ignore[arg-type]
        except S3_FAULTS as error:
            raise fault(error, self._endpoint, key) from error

    # -- in threads -----------------------------------------------------------------------------------------------
    def _make_usable(self) -> None:
        """The bucket, made where it is not there, and proof that it can be written."""
        try:
            # A listing, as the answer to HEAD has no body that could say why not.
            any(self._quick.list_objects(self._bucket, prefix=PROBE))
        except S3Error as error:
            if error.code != "NoSuchBucket":
                raise
            self._make_bucket()
        try:
            self._client.put_object(self._bucket, PROBE, io.BytesIO(b"ok"), 2)
            self._client.remove_object(self._bucket, PROBE)
        except S3Error as error:
            if error.code != "AccessDenied":
                raise
            raise StoreUnavailable(
                f"the bucket {self._bucket} can be read and not written",
                received=f"{error.code}: {error.message}",
                hint="grant the key in S3_ACCESS_KEY s3:PutObject and s3:DeleteObject on it",
            ) from error

    def _make_bucket(self) -> None:
        try:
            self._client.make_bucket(self._bucket)
        except S3Error as error:
            if error.code in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:  # another service, at this moment
                return
            raise StoreUnavailable(
                f"there is no bucket {self._bucket} at {self._endpoint}, and it could not be made",
                received=f"{error.code}: {error.message}",
                hint="create the bucket, name another in S3_BUCKET, or grant the key in S3_ACCESS_KEY s3:CreateBucket",
            ) from error

    def _put(self, key: str, file: BinaryIO, size: int, sha256: str) -> None:
        file.seek(0)
        try:
            self._client.put_object(
                self._bucket,
                key,
                cast(BinaryIO, UploadSource(file)),
                size,
                metadata={"sha256": sha256},
                part_size=max(PART_BYTES, -(-size // MAX_PARTS)),
                num_parallel_uploads=1,  # more would be threads of the client's own, which nobody bounds
            )
        except Interrupted:
            anyio.from_thread.check_cancelled()
            raise

    def _look(self, key: str) -> tuple[str | None, str | None]:
        """An object's ETag, if there is one, and of a pointer the key that it leads to."""
        try:
            response = self._client.get_object(self._bucket, key)
        except S3Error as error:
            if error.code in ABSENT_CODES:
                return None, None
            raise
        try:
            target = response.read(MAX_KEY_BYTES + 1).decode("utf-8", "replace") if POINTER in response.headers else ""
            return _etag(response.headers), target if leads_below(key, target) else None
        finally:
            response.close()
            response.release_conn()

    def _copy(self, source: str, target: str) -> None:
        """Server-side, in parts where it is large; again where the source was replaced meanwhile."""
        for attempt in range(1, COPY_ATTEMPTS + 1):
            found = self._client.stat_object(self._bucket, source)
            try:
                self._copy_version(source, target, found)
            except S3Error as error:
                if error.code != "PreconditionFailed" or attempt == COPY_ATTEMPTS:
                    raise
            else:
                return

    def _copy_version(self, source: str, target: str, found: Object) -> None:
        size, sha256 = found.size or 0, self._info(source, found.metadata or {}).sha256
        if size <= COPY_PART_BYTES:  # with its metadata
            self._client.copy_object(self._bucket, target, CopySource(self._bucket, source, match_etag=found.etag))
            return
        parts = [
            ComposeSource(
                self._bucket, source, match_etag=found.etag, offset=start, length=min(COPY_PART_BYTES, size - start)
            )
            for start in range(0, size, COPY_PART_BYTES)
        ]
        self._client.compose_object(self._bucket, target, parts, metadata={"sha256": sha256} if sha256 else None)

    def _list(self, prefix: str) -> Sequence[Listed]:
        """Every artifact, sorted here: SeaweedFS lists folder by folder."""
        return sorted(
            # Whole seconds, as the Last-Modified of a single object has them.
            (one.object_name, one.etag or "", one.size or 0, float(int(one.last_modified.timestamp())))
            for one in self._client.list_objects(self._bucket, prefix=prefix, recursive=True)
            if one.object_name and one.last_modified and is_key(one.object_name)
        )

    # -- digests --------------------------------------------------------------------------------------------------
    async def _drain(self, key: str, file: BinaryIO | None = None) -> ArtifactInfo:
        """Reads an object to its end, into `file` if there is one, and proves that it is what S3 says it is."""
        download, sha, size = Download(self._client, self._bucket, key), hashlib.sha256(), 0

        def step() -> int:
            chunk = download.next()
            sha.update(chunk)
            try:
                return file.write(chunk) if file else len(chunk)
            except OSError as error:
                raise disk_fault(error, Path(file.name if file else "").parent) from error

        try:
            while moved := await self._ask(step, key=key):
                size += moved
        finally:
            download.close()
        info, sha256 = self._info(key, download.headers), sha.hexdigest()
        if size != info.size_bytes or info.sha256 not in {None, sha256}:
            self._digests.pop((key, _etag(download.headers)), None)
            raise StoreUnavailable(
                "an artifact did not arrive as it was stored",
                received=f"{key}: {size} bytes, sha256 {sha256}",
                hint=f"its object should have {info.size_bytes} bytes and sha256 {info.sha256}; store it again",
            )
        self._remember(key, download.headers, sha256)
        return replace(info, sha256=sha256)

    async def _listed(self, key: str, etag: str, size: int, modified: float) -> ArtifactInfo:
        known = self._digests.get((key, etag))
        return ArtifactInfo(key, size, known, modified) if known else await self.stat(key)

    def _info(self, key: str, headers: Mapping[str, str]) -> ArtifactInfo:
        """What the headers of an answer about a whole object say. The digest is S3's metadata, or known from before."""
        _refuse_pointer(key, headers)
        sha256 = headers.get("x-amz-meta-sha256", "")
        try:
            if SHA256.fullmatch(sha256):
                self._remember(key, headers, sha256)
            known = self._digests.get((key, _etag(headers)))
            modified = parsedate_to_datetime(headers["last-modified"]).timestamp()
            return ArtifactInfo(key, int(headers["content-length"]), known, modified)
        except (KeyError, ValueError) as error:
            raise StoreUnavailable(NOT_S3, received=f"{type(error).__name__}: {error} in the headers") from error

    def _remember(self, key: str, headers: Mapping[str, str], sha256: str) -> None:
        """Keeps a digest for as long as the object has that ETag; of too many, the oldest goes."""
        self._digests[key, _etag(headers)] = sha256
        if len(self._digests) > REMEMBERED_DIGESTS:
            self._digests.popitem(last=False)

    # -- asking ---------------------------------------------------------------------------------------------------
    async def _upload(self, key: str, file: BinaryIO, size: int, sha256: str) -> ArtifactInfo:
        await self._ask(self._put, key, file, size, sha256)
        return replace(await self.stat(key), size_bytes=size, sha256=sha256)  # its time is the store's

    async def _ask(self, call: Callable[..., T], *arguments: object, key: str | None = None) -> T:
        """Calls what asks S3, in a thread. Raises NotFound where `key` is not there."""
        try:
            return await anyio.to_thread.run_sync(partial(call, *arguments), limiter=self._threads)
        except S3_FAULTS as error:
            raise fault(error, self._endpoint, key) from error

    async def _disk(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            return await anyio.to_thread.run_sync(function, *arguments)
        except OSError as error:
            folder = Path(error.filename).parent if isinstance(error.filename, str) else self._incoming
            raise disk_fault(error, folder) from error


def _refuse_pointer(key: str, headers: Mapping[str, str]) -> None:
    if POINTER in headers:
        raise absent(key)


def _etag(headers: Mapping[str, str]) -> str:
    return headers["etag"].strip('"')
