"""What only the S3 artifact store has: connections that break, files of many parts, other writers, links."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import httpx2
import pytest
import urllib3
from minio import Minio
from minio.error import S3Error

from app.errors import NotFound, ServiceError, StoreFull, StoreUnavailable
from app.storage.artifacts import CHUNK_BYTES
from app.storage.artifacts_minio import COPY_PART_BYTES, PART_BYTES, THREADS, MinioArtifacts
from app.storage.s3_client import fault
from tests.cli.cutting_proxy import cutting
from tests.contract.jobs import together
from tests.contract.s3 import NOWHERE, opened, port_of, refusing_conditions, settings_of
from tests.contract.test_artifacts import KEY, chunks, keys, put, read, sha256
from tests.contract.test_pointers import LATEST
from tests.harness import eventually, tree
from tests.services.servers import S3Server, fresh_name

pytestmark = pytest.mark.anyio

POOL_THREADS = 40
"""What anyio gives the rest of the service."""


@pytest.fixture
def environment(s3_server: S3Server) -> Iterator[dict[str, str]]:
    with s3_server.fresh() as found:
        yield found


@pytest.fixture
async def store(environment: dict[str, str], tmp_path: Path, anyio_backend: str) -> AsyncIterator[MinioArtifacts]:
    async with opened(environment, tmp_path) as made:
        yield made


@pytest.fixture
def foreign(s3_server: S3Server, environment: dict[str, str]) -> Iterator[Callable[..., None]]:
    """Puts an object as another program would: `foreign(key, content, sha256="...")`."""
    with s3_server.client() as client:

        def put_(key: str, content: bytes, **metadata: Any) -> None:
            bucket = environment["S3_BUCKET"]
            client.put_object(bucket, key, io.BytesIO(content), len(content), metadata=metadata or None)

        yield put_


# -- a network and a server that fail -----------------------------------------------------------------------------
async def test_a_download_that_is_cut_goes_on_where_it_broke(environment: dict[str, str], tmp_path: Path) -> None:
    content = os.urandom(9 * CHUNK_BYTES + 5)
    port = port_of(environment)
    sign = f"GET /{environment['S3_BUCKET']}/{KEY}".encode()
    with cutting(port, sign, cut_after=3 * CHUNK_BYTES, cuts=2) as proxy:
        async with opened(environment, tmp_path, s3_endpoint=proxy.url) as store:
            await put(store, KEY, content)
            info = await store.fetch(KEY, tmp_path / "fetched")
            assert ((tmp_path / "fetched").read_bytes(), info.sha256) == (content, sha256(content))
            whole, *rest = proxy.asked(sign)
            assert b"range:" not in whole.lower() and len(rest) == 2
            for head in rest:
                assert b"range: bytes=" in head.lower() and b"if-match:" in head.lower()
            proxy.cuts = 2
            assert await read(store, KEY, 7, len(content) - 3) == content[7:-3]
            assert len(proxy.asked(sign)) == 6


async def test_a_file_replaced_while_its_download_is_cut_is_not_mixed_with_the_new_one(
    environment: dict[str, str], foreign: Callable[..., None], tmp_path: Path
) -> None:
    port = port_of(environment)
    sign = f"GET /{environment['S3_BUCKET']}/{KEY}".encode()
    with cutting(port, sign, cut_after=CHUNK_BYTES + 300_000) as proxy:
        async with opened(environment, tmp_path, s3_endpoint=proxy.url) as store:
            await put(store, KEY, b"1" * 20 * CHUNK_BYTES)
            seen = bytearray()

            async def look() -> None:
                async for chunk in store.read(KEY):
                    seen.extend(chunk)
                    await anyio.to_thread.run_sync(eventually, lambda: proxy.cuts == 0)
                    await anyio.to_thread.run_sync(foreign, KEY, b"2" * 20 * CHUNK_BYTES)

            with pytest.raises(StoreUnavailable):
                await look()
            assert set(seen) == {ord("1")}
            assert set(await read(store, KEY)) == {ord("2")}


async def test_a_server_that_is_killed_and_comes_back_is_waited_for(
    make_minio: Callable[[], S3Server], tmp_path: Path
) -> None:
    server = make_minio()
    async with opened(server.environment(fresh_name()), tmp_path) as store:
        await put(store, KEY, b"before")
        server.kill()
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.check()
        assert time.monotonic() - began < 3.5

        async def come_back() -> None:
            await anyio.sleep(0.5)
            await anyio.to_thread.run_sync(server.start)

        back = asyncio.create_task(come_back())
        assert await read(store, KEY) == b"before"
        await put(store, KEY, b"after")
        await back
        assert await read(store, KEY) == b"after"
        await store.check()


@pytest.mark.slow
async def test_a_server_that_stays_away_is_unavailable_and_leaves_nothing_here(
    make_minio: Callable[[], S3Server], tmp_path: Path
) -> None:
    server = make_minio()
    async with opened(server.environment(fresh_name()), tmp_path) as store:
        await put(store, KEY)
        (tmp_path / "file").write_bytes(b"x" * 100)
        server.kill()
        attempts = [
            put(store, KEY),
            store.put_file(KEY, tmp_path / "file"),
            store.fetch(KEY, tmp_path / "fetched"),
            store.stat(KEY),
            read(store, KEY),
            keys(store, ""),
            store.copy(KEY, KEY + ".copy"),
        ]
        ended = await asyncio.gather(*attempts, return_exceptions=True)
        assert [type(error) for error in ended] == [StoreUnavailable] * len(attempts)
        assert not (tmp_path / "fetched").exists()
        assert sorted(tree(tmp_path)) == ["file", "workspace", "workspace/store", "workspace/store/.incoming"]


async def test_a_bucket_that_was_removed_is_told(
    environment: dict[str, str], s3_server: S3Server, tmp_path: Path
) -> None:
    async with opened(environment, tmp_path) as store:
        s3_server.drop(environment["S3_BUCKET"])
        with pytest.raises(StoreUnavailable, match="is gone"):
            await store.check()
        with pytest.raises(ServiceError):
            await store.stat(KEY)


class Crawling:
    """A TCP proxy that takes no more than `bytes_per_sec` on the way to the server."""

    def __init__(self, port: int, bytes_per_sec: int) -> None:
        self._port, self._piece = port, bytes_per_sec // 20
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                server = socket.create_connection(("127.0.0.1", self._port))
                threading.Thread(target=self._forward, args=(caller, server, 0.05), daemon=True).start()
                threading.Thread(target=self._forward, args=(server, caller, 0), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, pause_sec: float) -> None:
        with suppress(OSError), source, target:
            while data := source.recv(self._piece):
                target.sendall(data)
                time.sleep(pause_sec)
            target.shutdown(socket.SHUT_WR)


@pytest.mark.slow
async def test_a_slow_line_is_no_broken_one(minio_server: S3Server, tmp_path: Path) -> None:
    """A part takes longer than a connection may take to be made, which is what urllib3 would give it."""
    proxy = Crawling(int(minio_server.endpoint.rpartition(":")[2]), 3 * 1024 * 1024)
    try:
        with minio_server.fresh() as environment:
            async with opened(environment, tmp_path, s3_endpoint=proxy.url) as store:
                await put(store, KEY, b"x" * PART_BYTES)
                assert (await store.stat(KEY)).size_bytes == PART_BYTES
    finally:
        proxy.close()


def test_no_room_is_told_as_such() -> None:
    for code, status in (("XMinioStorageFull", 507), ("QuotaExceeded", 403), ("SomethingNew", 507)):
        answer = urllib3.HTTPResponse(status=status)
        error = fault(S3Error(answer, code, "no room", None, None, None), "http://store:9000", KEY)
        assert isinstance(error, StoreFull)
        assert "http://store:9000" in (error.hint or "")


# -- large files, many files --------------------------------------------------------------------------------------
async def test_a_file_of_many_parts(
    store: MinioArtifacts, s3_server: S3Server, environment: dict[str, str], tmp_path: Path
) -> None:
    content = os.urandom(2 * PART_BYTES + 12345)
    (tmp_path / "large").write_bytes(content)
    for info in (
        await store.put_file(KEY, tmp_path / "large"),
        await store.put_stream(KEY + ".stream", chunks(content[:5_000_000], content[5_000_000:]), max_bytes=1 << 30),
    ):
        assert (info.size_bytes, info.sha256) == (len(content), sha256(content))
        assert await store.stat(info.key) == info
        fetched = await store.fetch(info.key, tmp_path / "fetched")
        assert fetched == info
        assert (tmp_path / "fetched").read_bytes() == content
        with s3_server.client() as client:
            assert (client.stat_object(environment["S3_BUCKET"], info.key).etag or "").endswith("-3")
    assert (tmp_path / "large").read_bytes() == content


def unfinished(client: Minio, bucket: str) -> int:
    """Multipart uploads that were begun and neither completed nor aborted."""
    return len(client._list_multipart_uploads(bucket, prefix=KEY).uploads)


async def test_an_upload_that_is_cancelled_ends_at_once_and_leaves_no_parts(
    environment: dict[str, str], s3_server: S3Server, tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(bytes(20 * PART_BYTES))
    with cutting(port_of(environment), b"nothing", 0, cuts=0) as proxy:
        async with opened(environment, tmp_path, s3_endpoint=proxy.url) as store:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.put_file, KEY, tmp_path / "large")
                await anyio.to_thread.run_sync(eventually, lambda: proxy.asked(b"?uploads"))
                tasks.cancel_scope.cancel()
            with pytest.raises(NotFound):
                await store.stat(KEY)
            with s3_server.client() as client:
                assert unfinished(client, environment["S3_BUCKET"]) == 0


@pytest.mark.slow
async def test_a_large_file_is_copied_in_parts_with_its_digest(store: MinioArtifacts, tmp_path: Path) -> None:
    content = os.urandom(CHUNK_BYTES) * (COPY_PART_BYTES // CHUNK_BYTES) + b"and the rest"
    info = await put(store, KEY, content)
    copied = await store.copy(KEY, KEY + ".copy")
    assert (copied.size_bytes, copied.sha256) == (info.size_bytes, info.sha256)
    assert (await store.fetch(KEY + ".copy", tmp_path / "fetched")).sha256 == info.sha256
    assert hashlib.sha256((tmp_path / "fetched").read_bytes()).hexdigest() == info.sha256


async def test_threads_do_not_grow_with_the_requests(store: MinioArtifacts) -> None:
    before, highest = threading.active_count(), 0

    async def watch() -> None:
        nonlocal highest
        while True:
            highest = max(highest, threading.active_count())
            await anyio.sleep(0.005)

    watcher = asyncio.create_task(watch())
    await together(put(store, f"{KEY}.{number}", b"x" * 300_000) for number in range(100))
    watcher.cancel()
    assert highest - before <= THREADS + POOL_THREADS
    assert len(await keys(store, KEY)) == 100


async def test_readers_that_wait_hold_no_threads(store: MinioArtifacts) -> None:
    """More than there are threads; each in the middle of a file, and one more request is answered."""
    await put(store, KEY, b"x" * 3 * CHUNK_BYTES)
    readers = [store.read(KEY) for _ in range(2 * THREADS)]
    for reader in readers:
        assert await anext(reader)
    with anyio.fail_after(10):
        assert (await store.stat(KEY)).size_bytes == 3 * CHUNK_BYTES
    for reader in readers:
        await reader.aclose()


@pytest.mark.slow
async def test_listings_of_more_than_one_answer(store: MinioArtifacts) -> None:
    made = [f"artifacts/P0001/optimizing/O0001/{n % 7}/{n}.txt" for n in range(2500)]
    for start in range(0, len(made), 250):
        await together(put(store, key, b"x") for key in made[start : start + 250])
    assert await keys(store, "artifacts/P0001/") == sorted(made)


# -- what others put there ----------------------------------------------------------------------------------------
async def test_an_object_without_a_digest_gets_one(
    store: MinioArtifacts, foreign: Callable[..., None], tmp_path: Path
) -> None:
    foreign(KEY, b"by another program")
    assert [(info.key, info.sha256) async for info in store.list("artifacts/")] == [(KEY, None)]
    assert (await store.stat(KEY)).sha256 is None
    assert (await store.stat(KEY, digest=True)).sha256 == sha256(b"by another program")
    assert (await store.stat(KEY)).sha256 == sha256(b"by another program")
    assert [info.sha256 async for info in store.list("artifacts/")] == [sha256(b"by another program")]
    assert await store.fetch(KEY, tmp_path / "fetched") == await store.stat(KEY)
    await store.copy(KEY, KEY + ".copy")
    assert await read(store, KEY + ".copy") == b"by another program"
    foreign(KEY, b"by another program, later")
    assert (await store.stat(KEY)).sha256 is None
    assert (await store.stat(KEY, digest=True)).sha256 == sha256(b"by another program, later")


@pytest.mark.parametrize("said", ["", "none", "A" * 64, "0" * 63])
async def test_a_digest_that_is_none_is_not_taken_for_one(
    store: MinioArtifacts, foreign: Callable[..., None], said: str
) -> None:
    foreign(KEY, b"content", sha256=said)
    assert (await store.stat(KEY)).sha256 is None
    assert (await store.stat(KEY, digest=True)).sha256 == sha256(b"content")


async def test_a_digest_that_is_another_files_is_found_out(
    store: MinioArtifacts, foreign: Callable[..., None], tmp_path: Path
) -> None:
    foreign(KEY, b"content", sha256=sha256(b"other content"))
    with pytest.raises(StoreUnavailable, match="did not arrive as it was stored"):
        await store.fetch(KEY, tmp_path / "fetched")
    assert sorted(tree(tmp_path)) == ["workspace", "workspace/store", "workspace/store/.incoming"]
    foreign(KEY, b"content")
    assert (await store.fetch(KEY, tmp_path / "fetched")).sha256 == sha256(b"content")


async def test_keys_that_no_client_could_ask_for_are_left_out(
    store: MinioArtifacts, foreign: Callable[..., None]
) -> None:
    foreign(KEY, b"content")
    for key in ("artifacts/P0001/folder/", "artifacts/P0001/.hidden/file", "artifacts/P0001/.file"):
        foreign(key, b"")
    assert await keys(store, "artifacts/") == [KEY]


# -- links --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["best.pt", "모델 최종.pt", 'a"b;c.pt'])
async def test_a_link_gives_the_file_under_its_name(environment: dict[str, str], tmp_path: Path, name: str) -> None:
    async with opened(environment, tmp_path, s3_public_endpoint=environment["S3_ENDPOINT"]) as store:
        key = f"artifacts/P0001/optimizing/O0001/{name}"
        await put(store, key, b"0123456789")
        link = store.link(key, name)
        assert link is not None
        answer = httpx2.get(link, trust_env=False)
        assert (answer.status_code, answer.content) == (200, b"0123456789")
        assert answer.headers["content-disposition"] == f"attachment; filename*=UTF-8''{quote(name, safe='')}"
        assert answer.headers["content-type"] == "application/octet-stream"
        part = httpx2.get(link, headers={"Range": "bytes=4-"}, trust_env=False)
        assert (part.status_code, part.content) == (206, b"456789")


async def test_a_link_that_was_changed_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    async with opened(environment, tmp_path, s3_public_endpoint=environment["S3_ENDPOINT"]) as store:
        await put(store, KEY)
        await put(store, KEY + ".other")
        link = store.link(KEY, "best.pt")
        assert link is not None
        for changed in (
            link.replace("best.pt?", "best.pt.other?"),
            link.replace("Expires=900", "Expires=90000"),
            link.replace("best.pt&", "worst.pt&"),
            link.partition("?")[0],
        ):
            assert changed != link
            assert httpx2.get(changed, trust_env=False).status_code in {400, 403}


async def test_a_link_leads_to_the_public_address_and_asks_nobody(tmp_path: Path) -> None:
    store = MinioArtifacts(settings_of(NOWHERE, tmp_path, s3_public_endpoint="https://files.example.com"))
    link = store.link(KEY, "best.pt")
    assert link is not None and link.startswith(f"https://files.example.com/{NOWHERE['S3_BUCKET']}/{KEY}?")
    assert NOWHERE["S3_SECRET_KEY"] not in link
    assert MinioArtifacts(settings_of(NOWHERE, tmp_path)).link(KEY, "best.pt") is None


# -- pointers -----------------------------------------------------------------------------------------------------
async def test_a_pointer_is_an_object_that_others_can_read(
    store: MinioArtifacts, environment: dict[str, str], s3_server: S3Server
) -> None:
    target = "artifacts/P0001/optimizing/O0001/detection-20250810-143012-ab12cd3.onnx"
    await store.point(LATEST, target, instead_of=None)
    with s3_server.client() as client, closing(client.get_object(environment["S3_BUCKET"], LATEST)) as answer:
        assert answer.data == target.encode()
        assert answer.headers["x-amz-meta-pointer"] == "1"


async def test_a_pointer_that_others_wrote_leads_nowhere_else(
    store: MinioArtifacts, foreign: Callable[..., None]
) -> None:
    for target in (b"artifacts/P0002/optimizing/O0001/x.onnx", b"../x", b"", b"\xff" * 2000):
        foreign(LATEST, target, pointer="1")
        assert await store.pointer(LATEST) is None


async def test_a_store_without_conditional_writes_is_asked_without(tmp_path: Path, anyio_backend: str) -> None:
    """Some refuse the condition with 501; a pointer is then written all the same."""
    with refusing_conditions() as server:
        store = MinioArtifacts(settings_of({**NOWHERE, "S3_ENDPOINT": server.url}, tmp_path))
        try:
            assert await store.point(LATEST, f"{KEY.rpartition('/')[0]}/x.onnx", instead_of=None)
            assert server.puts == [True, False], "with a condition, then without"
            assert await store.pointer(LATEST) == f"{KEY.rpartition('/')[0]}/x.onnx"
        finally:
            await store.close()
