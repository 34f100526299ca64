"""S3 as this service speaks to it: connections of its own, a download that goes on, errors that say what to mend."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Mapping
from typing import Any, BinaryIO
from urllib.parse import urlsplit
from xml.etree.ElementTree import ParseError

import anyio.from_thread
import certifi
import urllib3
from minio import Minio
from minio.error import MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError, MaxRetryError, SSLError
from urllib3.response import BaseHTTPResponse

from app.config import Settings
from app.errors import ServiceError, StoreFull, StoreUnavailable
from app.storage.artifacts import CHUNK_BYTES, absent

S3_FAULTS = (MinioException, HTTPError, OSError, ValueError, ParseError)
"""All that the client raises: S3's refusals, the network's, and its own where the answer is no S3 answer."""

CONNECT_SEC, READ_SEC, PROBE_SEC = 3.0, 60.0, 2.0
CONNECTIONS_KEPT = 64
SEND_BYTES = 256 * 1024
RESUMES = 3
"""How often in a row a download may break without a byte having come."""

ABSENT_CODES = {"NoSuchKey", "KeyTooLongError", "InvalidObjectName", "XMinioInvalidObjectName"}
MOVED_CODES = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"}
"""Another writer was first: https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html."""

FULL_CODES = {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage"}
INSUFFICIENT_STORAGE = 507

NOT_S3 = "the store did not answer as S3 does"
HINTS = {
    "InvalidAccessKeyId": "check S3_ACCESS_KEY: the store does not know it",
    "SignatureDoesNotMatch": "check S3_SECRET_KEY: it is not the one of S3_ACCESS_KEY",
    "AccessDenied": "grant the key in S3_ACCESS_KEY s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject and "
    "s3:AbortMultipartUpload on the bucket in S3_BUCKET, or check both settings",
    "RequestTimeTooSkewed": "set this machine's clock: it and the store's are more than 15 minutes apart",
    "NoSuchBucket": "create the bucket in S3_BUCKET, or start the service anew: it makes the bucket if it may",
    **dict.fromkeys(
        ("AuthorizationHeaderMalformed", "InvalidRegion", "PermanentRedirect", "Redirect", "BadRequest"),
        "set S3_REGION to the bucket's region, and S3_ENDPOINT to the address for it",
    ),
}


class Pool(urllib3.PoolManager):
    """Sends bodies in pieces: urllib3 gives one `send` the connect timeout, too short for 16 MiB on a slow line."""

    def urlopen(  # type: ignore[override]  # as the class above has it
        self, method: str, url: str, redirect: bool = True, **kw: Any
    ) -> BaseHTTPResponse:
        if kw.get("body"):
            kw["body"] = io.BytesIO(kw["body"])
        return super().urlopen(method, url, redirect, **kw)


def make_pool(*, patient: bool) -> Pool:
    """Connections that wait and try again (about 7 s where nothing listens), or ones that give up in seconds."""
    retries = urllib3.Retry(
        total=4 if patient else 1,
        backoff_factor=0.5 if patient else 0,
        status_forcelist=(500, 502, 503, 504),
        allowed_methods=None,  # POST too: to begin or complete a multipart upload twice does no harm
        redirect=False,  # a redirect means a wrong region, and the signature would not hold elsewhere
        raise_on_status=False,  # the last answer says more than that there were too many
        respect_retry_after_header=False,  # MinIO asks for two minutes; a thread cannot sleep that long
    )
    timeout = urllib3.Timeout(connect=CONNECT_SEC, read=READ_SEC) if patient else urllib3.Timeout(PROBE_SEC)
    return Pool(
        maxsize=CONNECTIONS_KEPT,
        retries=retries,
        timeout=timeout,
        blocksize=SEND_BYTES,
        cert_reqs="CERT_REQUIRED",
        ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
    )


def make_client(settings: Settings, endpoint: str, pool: Pool) -> Minio:
    """A client for one address of the store. Knowing its region it need not ask for it. Raises StoreUnavailable."""
    address = urlsplit(endpoint)
    try:
        return Minio(
            address.netloc,
            settings.s3_access_key,
            settings.secret("s3_secret_key"),
            secure=address.scheme == "https",
            region=settings.s3_region,
            http_client=pool,
        )
    except ValueError as error:
        raise StoreUnavailable(
            "the S3 settings cannot be used", received=str(error), hint="check S3_ENDPOINT and S3_REGION"
        ) from error


def put_if(client: Minio, bucket: str, key: str, content: bytes, etag: str | None, headers: dict[str, Any]) -> bool:
    """Stores a small object in one step if the one there has that ETag, or (None) if none is there. False where not.

    A store that knows no such conditions ignores them, or refuses and is then asked without: of two writers at the same
    moment the last one wins there.
    """
    condition = {"If-Match": f'"{etag}"'} if etag else {"If-None-Match": "*"}
    put = client._put_object  # noqa: SLF001 - none of the public calls takes a condition
    try:
        put(bucket, key, content, {**headers, **condition})
    except S3Error as error:
        if error.code in MOVED_CODES:
            return False
        if error.code != "NotImplemented":
            raise
        put(bucket, key, content, headers)
    return True


def fault(error: Exception, endpoint: str, key: str | None = None) -> ServiceError:
    """What one of S3_FAULTS is to the caller of the store."""
    if isinstance(error, S3Error):
        return _refusal(error, endpoint, key)
    if isinstance(error, ServerError) and error.status_code == INSUFFICIENT_STORAGE:
        return _full(endpoint, str(error))
    if isinstance(error, MinioException | ParseError):
        hint = "check that S3_ENDPOINT is an S3 service, and its scheme (http or https)"
        return StoreUnavailable(NOT_S3, received=str(error)[:300].strip(), hint=hint)
    if isinstance(error, ValueError):
        return StoreUnavailable(
            "the S3 client cannot ask that", received=str(error)[:300], hint="check S3_BUCKET and S3_ENDPOINT"
        )
    cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    hint = "check S3_ENDPOINT, and that the S3 service runs and can be reached from here"
    if isinstance(cause, SSLError):
        hint = "check the scheme of S3_ENDPOINT; SSL_CERT_FILE names the certificates to trust where they are private"
    return StoreUnavailable(
        f"the S3 store at {endpoint} cannot be reached", received=f"{type(cause).__name__}: {cause}"[:300], hint=hint
    )


def _refusal(error: S3Error, endpoint: str, key: str | None) -> ServiceError:
    code = error.code or "unknown"
    if key is not None and code in ABSENT_CODES:
        return absent(key)
    received = f"{code}: {error.message}"[:300]
    if code in FULL_CODES or error.response.status == INSUFFICIENT_STORAGE:
        return _full(endpoint, received)
    return StoreUnavailable(f"the S3 store at {endpoint} refused", received=received, hint=HINTS.get(code))


def _full(endpoint: str, received: str) -> StoreFull:
    hint = f"free space at {endpoint}, or raise the bucket's quota"
    return StoreFull("the S3 store has no room left", received=received, hint=hint)


class Interrupted(Exception):
    """The request that waits for an upload was cancelled."""


class UploadSource:
    """A file whose reading ends when whoever waits for the upload is cancelled.

    As an ordinary exception, at which the client aborts its multipart upload: a CancelledError would leave the parts.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        try:
            anyio.from_thread.check_cancelled()
        except asyncio.CancelledError as cancelled:
            raise Interrupted from cancelled
        return self._file.read(size)


class Download:
    """One object from `start` to before `end`, for a thread to read.

    A connection that breaks is taken up where it broke, of the same version: S3 is told its ETag.
    """

    def __init__(self, client: Minio, bucket: str, key: str, start: int = 0, end: int | None = None) -> None:
        self.key = key
        self.headers: Mapping[str, str] = {}
        """Those of the first answer; empty until then."""
        self._client, self._bucket = client, bucket
        self._start, self._at, self._end = start, start, end
        self._response: BaseHTTPResponse | None = None
        self._is_closed = False

    def next(self) -> bytes:
        """At most CHUNK_BYTES; nothing at the end. Raises one of S3_FAULTS."""
        breaks = 0
        while True:
            response = self._response or self._open()
            if response is None:
                return b""
            try:
                chunk = response.read(CHUNK_BYTES, decode_content=False)
            except (HTTPError, OSError):
                self._release()
                breaks += 1
                if breaks > RESUMES:
                    raise
            else:
                self._at += len(chunk)
                return chunk

    def close(self) -> None:
        """Gives the connection back. From any thread: one that is just opening sees it."""
        self._is_closed = True
        self._release()

    def _open(self) -> BaseHTTPResponse | None:
        """Asks for what is missing; None where that is nothing."""
        if self._end is not None and self._at >= self._end:
            return None
        resumed = self._at > self._start
        try:
            response = self._client.get_object(
                self._bucket,
                self.key,
                offset=self._at,
                length=self._end - self._at if self._end is not None else 0,
                request_headers={"If-Match": self.headers["etag"]} if resumed else None,
            )
        except S3Error as error:
            if error.code == "InvalidRange":  # S3's word for a start beyond the end, also of an empty file
                return None
            raise
        if not resumed:
            self.headers = response.headers
        self._response = response
        if self._is_closed:
            self._release()
        return response

    def _release(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.close()
            response.release_conn()
