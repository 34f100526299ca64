"""How the S3 artifact store starts: it makes its bucket, proves that it may write, or says what to mend."""

from __future__ import annotations

import asyncio
import os
import socket
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
import urllib3
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider

from app.errors import StoreUnavailable
from app.storage.artifacts_minio import PART_BYTES, MinioArtifacts
from app.storage.files import STALE_SEC
from tests.contract.jobs import together
from tests.contract.s3 import NOWHERE, opened, settings_of
from tests.contract.test_artifacts import KEY, keys, put
from tests.harness import free_port
from tests.services.servers import S3Server

pytestmark = pytest.mark.anyio


@pytest.fixture
def environment(s3_server: S3Server) -> Iterator[dict[str, str]]:
    with s3_server.fresh() as found:
        yield found


async def refused(environment: dict[str, str], tmp_path: Path, **more: str) -> StoreUnavailable:
    """The error of a start that must fail, within seconds, without a secret in any part of it."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as refusal:
        async with opened(environment, tmp_path, **more):
            pass
    assert time.monotonic() - began < 8
    text = "".join(traceback.format_exception(refusal.value)) + repr(refusal.value.__dict__)
    for secret in (environment["S3_SECRET_KEY"], more.get("s3_secret_key", "testsecret1")):
        assert secret not in text
    return refusal.value


async def test_the_bucket_is_made_by_whoever_starts_first(environment: dict[str, str], tmp_path: Path) -> None:
    async def start() -> None:
        async with opened(environment, tmp_path) as store:
            await store.check()
            assert await keys(store, "") == []

    await together(start() for _ in range(4))
    await start()


async def test_what_a_killed_service_had_taken_in_is_removed_when_it_is_old(
    environment: dict[str, str], tmp_path: Path
) -> None:
    incoming = tmp_path / "workspace" / "store" / ".incoming"
    incoming.mkdir(parents=True)
    for name, age_sec in (("old", STALE_SEC + 60), ("young", 60)):
        (incoming / name).write_text("half")
        os.utime(incoming / name, (time.time() - age_sec,) * 2)
    async with opened(environment, tmp_path):
        assert [path.name for path in incoming.iterdir()] == ["young"]


async def test_wrong_keys_are_told_from_each_other(environment: dict[str, str], tmp_path: Path) -> None:
    wrong = await refused(environment, tmp_path, s3_secret_key="not-the-secret-of-testkey")
    assert wrong.received is not None and wrong.received.startswith("SignatureDoesNotMatch")
    assert wrong.hint is not None and "S3_SECRET_KEY" in wrong.hint
    unknown = await refused(environment, tmp_path, s3_access_key="nobody")
    assert unknown.received is not None and unknown.received.startswith("InvalidAccessKeyId")
    assert unknown.hint is not None and "S3_ACCESS_KEY" in unknown.hint


async def test_an_address_where_nobody_listens(tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    error = await refused(NOWHERE, tmp_path, s3_endpoint=endpoint)
    assert endpoint in error.message
    assert error.hint is not None and "S3_ENDPOINT" in error.hint


@pytest.mark.slow
async def test_an_address_where_nobody_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        error = await refused(NOWHERE, tmp_path, s3_endpoint=endpoint)
        assert "timed out" in (error.received or "").lower()
        store = MinioArtifacts(settings_of(NOWHERE, tmp_path, s3_endpoint=endpoint))
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.check()
        assert time.monotonic() - began < 4
    await anyio.sleep(0.2)  # the thread that asked learns that nobody is there
    await store.close()


async def test_an_address_of_something_else(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 7\r\n\r\nwelcome")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        error = await refused(NOWHERE, tmp_path, s3_endpoint=f"http://127.0.0.1:{port}")
        assert error.message == "the store did not answer as S3 does"
        error = await refused(NOWHERE, tmp_path, s3_endpoint=f"https://127.0.0.1:{port}")
        assert "scheme" in (error.hint or "")


@pytest.mark.parametrize(
    ("setting", "value", "hint"), [("s3_bucket", "No Bucket!", "S3_BUCKET"), ("s3_region", "no region!", "S3_REGION")]
)
async def test_settings_that_s3_could_never_take(tmp_path: Path, setting: str, value: str, hint: str) -> None:
    error = await refused(NOWHERE, tmp_path, **{setting: value})
    assert hint in (error.hint or "")


@pytest.fixture
def make_user(minio_server: S3Server) -> Callable[..., dict[str, str]]:
    """Makes a user of MinIO who may do these actions only; returns the settings to be that user."""
    administration = MinioAdmin(
        endpoint=minio_server.endpoint.removeprefix("http://"),
        credentials=StaticProvider(minio_server.access_key, minio_server.secret_key),
        secure=False,
        http_client=urllib3.PoolManager(retries=False),
    )

    def make(*actions: str) -> dict[str, str]:
        user, secret = f"user-{uuid.uuid4().hex[:8]}", f"secret-{uuid.uuid4().hex}"
        allowed = {"Effect": "Allow", "Action": list(actions), "Resource": ["arn:aws:s3:::*"]}
        administration.policy_add(user, policy={"Version": "2012-10-17", "Statement": [allowed]})
        administration.user_add(user, secret)
        administration.attach_policy([user], user=user)
        return {"s3_access_key": user, "s3_secret_key": secret}

    return make


async def test_a_key_that_may_only_read(
    minio_server: S3Server, make_user: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    reader = make_user("s3:ListBucket", "s3:GetObject")
    with minio_server.fresh() as environment:
        error = await refused(environment, tmp_path, **reader)
        assert "could not be made" in error.message
        assert "s3:CreateBucket" in (error.hint or "")
        async with opened(environment, tmp_path) as store:
            await put(store, KEY)
        error = await refused(environment, tmp_path, **reader)
        assert "not written" in error.message
        assert "s3:PutObject" in (error.hint or "")
        error = await refused(environment, tmp_path, **make_user("s3:GetObject"))
        assert "s3:ListBucket" in (error.hint or "")


async def test_a_key_that_may_no_more_than_needed(
    minio_server: S3Server, make_user: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    needed = ("s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload")
    with minio_server.fresh() as environment:
        async with opened(environment, tmp_path):
            pass
        async with opened(environment, tmp_path, **make_user(*needed)) as store:
            await put(store, KEY, b"x" * (PART_BYTES + 1))
            await store.copy(KEY, KEY + ".copy")
            assert await keys(store, "") == [KEY, KEY + ".copy"]
