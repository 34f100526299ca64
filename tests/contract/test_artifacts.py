"""What every artifact store must do: whole files under keys, found again by content, and nothing outside."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from app.errors import NotFound, ServiceError, TooLarge
from app.storage.artifacts import CHUNK_BYTES, ArtifactInfo, ArtifactStore
from tests.contract.jobs import together
from tests.harness import ROOT, tree

pytestmark = pytest.mark.anyio

KEY = "artifacts/P0001/optimizing/O0001/best.pt"
CLIMBING = ["../out", "a/../../out", "/tmp/out", "a//b", ".hidden", "a/.hidden/b", "a/./b", "..", ".", "", "a/", "/"]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def put(store: ArtifactStore, key: str, content: bytes = b"content") -> ArtifactInfo:
    return await store.put_stream(key, chunks(content), max_bytes=1 << 30)


async def read(store: ArtifactStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([part async for part in store.read(key, start, end)])


async def keys(store: ArtifactStore, prefix: str) -> list[str]:
    return [info.key async for info in store.list(prefix)]


# -- in and out ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sizes", [[], [0], [1], [5, 0, 7], [CHUNK_BYTES], [CHUNK_BYTES + 1, 3], [70_000] * 40])
async def test_a_stream_comes_back_as_it_went_in(artifacts: ArtifactStore, sizes: list[int]) -> None:
    parts = [os.urandom(size) for size in sizes]
    content = b"".join(parts)
    info = await artifacts.put_stream(KEY, chunks(*parts), max_bytes=len(content))
    assert (info.key, info.size_bytes, info.sha256) == (KEY, len(content), sha256(content))
    assert await read(artifacts, KEY) == content
    assert await artifacts.stat(KEY) == info


async def test_names_of_every_script_and_length(artifacts: ArtifactStore) -> None:
    for name in ("모델.pt", "a b+c%20&?#.pt", "x" * 200, "ü", "name.with.dots", "-rf"):
        key = f"artifacts/P0001/optimizing/O0001/{name}"
        await put(artifacts, key, name.encode())
        assert await read(artifacts, key) == name.encode()
        assert (await artifacts.stat(key)).key == key


async def test_a_local_file_is_taken_over_and_outlives_its_first_place(
    artifacts: ArtifactStore, tmp_path: Path
) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(os.urandom(3 * CHUNK_BYTES + 17))
    info = await artifacts.put_file(KEY, source)
    assert info.sha256 == sha256(source.read_bytes())
    content = source.read_bytes()
    source.unlink()
    assert await read(artifacts, KEY) == content


async def test_a_link_is_no_file(artifacts: ArtifactStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (tmp_path / "link").symlink_to(secret)
    with pytest.raises(ServiceError):
        await artifacts.put_file(KEY, tmp_path / "link")
    with pytest.raises(NotFound):
        await artifacts.stat(KEY)


async def test_a_pipe_is_no_file_and_nobody_waits_for_it(artifacts: ArtifactStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ServiceError):
            await artifacts.put_file(KEY, path)
    with pytest.raises(NotFound):
        await artifacts.stat(KEY)


async def test_fetching_gives_the_file_and_its_digest(artifacts: ArtifactStore, tmp_path: Path) -> None:
    content = os.urandom(2 * CHUNK_BYTES + 1)
    await put(artifacts, KEY, content)
    info = await artifacts.fetch(KEY, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == content
    assert info.sha256 == sha256(content)
    (tmp_path / "fetched").write_bytes(b"the copy is another file")
    assert await read(artifacts, KEY) == content


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, None), (0, 0), (0, 1), (5, 10), (9, None), (10, None), (0, 10), (3, 100), (50, 60), (10**17, None)],
)
async def test_ranges(artifacts: ArtifactStore, start: int, end: int | None) -> None:
    await put(artifacts, KEY, b"0123456789")
    assert await read(artifacts, KEY, start, end) == b"0123456789"[start:end]


async def test_ranges_over_the_edges_of_chunks(artifacts: ArtifactStore) -> None:
    content = os.urandom(3 * CHUNK_BYTES)
    await put(artifacts, KEY, content)
    for start, end in ((CHUNK_BYTES - 1, CHUNK_BYTES + 1), (1, 3 * CHUNK_BYTES - 1), (2 * CHUNK_BYTES, None)):
        assert await read(artifacts, KEY, start, end) == content[start:end]


async def test_a_reader_may_go_away_early(artifacts: ArtifactStore) -> None:
    content = os.urandom(4 * CHUNK_BYTES)
    await put(artifacts, KEY, content)
    for _ in range(30):
        reader = artifacts.read(KEY)
        assert content.startswith(await anext(reader))
        await reader.aclose()
    with anyio.move_on_after(0.001):
        await read(artifacts, KEY)
    assert await read(artifacts, KEY) == content


async def test_an_empty_part_of_nothing_is_not_found(artifacts: ArtifactStore) -> None:
    for start, end in ((0, 0), (5, 5), (7, 3)):
        with pytest.raises(NotFound):
            await read(artifacts, KEY, start, end)


@pytest.mark.parametrize(("start", "end"), [(0, None), (0, 0), (0, 1), (5, None)])
async def test_every_part_of_an_empty_file_is_empty(artifacts: ArtifactStore, start: int, end: int | None) -> None:
    await put(artifacts, KEY, b"")
    assert await read(artifacts, KEY, start, end) == b""


async def test_what_is_not_there_is_not_found(artifacts: ArtifactStore, tmp_path: Path) -> None:
    await put(artifacts, KEY)
    for key in ("artifacts/P0001/optimizing/O0002/best.pt", "artifacts/P0001/optimizing/O0001", KEY + "/more"):
        with pytest.raises(NotFound):
            await artifacts.stat(key)
        with pytest.raises(NotFound):
            await artifacts.stat(key, digest=True)
        with pytest.raises(NotFound):
            await read(artifacts, key)
        with pytest.raises(NotFound):
            await artifacts.fetch(key, tmp_path / "target")
        with pytest.raises(NotFound):
            await artifacts.copy(key, "artifacts/P0001/optimizing/O0003/copy.pt")
    assert await keys(artifacts, "artifacts/P0001/optimizing/O0003/") == []
    assert not (tmp_path / "target").exists()


# -- limits -------------------------------------------------------------------------------------------------------
async def test_too_large_leaves_nothing(artifacts: ArtifactStore, tmp_path: Path) -> None:
    await put(artifacts, "artifacts/P0001/optimizing/O0002/kept.pt")
    before = tree(tmp_path)
    with pytest.raises(TooLarge):
        await artifacts.put_stream(KEY, chunks(b"x" * CHUNK_BYTES, b"y", b"z"), max_bytes=CHUNK_BYTES + 1)
    with pytest.raises(NotFound):
        await artifacts.stat(KEY)
    assert tree(tmp_path) == before
    await artifacts.put_stream(KEY, chunks(b"x" * CHUNK_BYTES, b"y"), max_bytes=CHUNK_BYTES + 1)


async def test_a_stream_that_breaks_leaves_nothing(artifacts: ArtifactStore, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 3 * CHUNK_BYTES
        raise ConnectionResetError("the client is gone")

    before = tree(tmp_path)
    with pytest.raises(ConnectionResetError):
        await artifacts.put_stream(KEY, broken(), max_bytes=1 << 30)
    assert tree(tmp_path) == before
    await put(artifacts, KEY, b"old")
    with pytest.raises(ConnectionResetError):
        await artifacts.put_stream(KEY, broken(), max_bytes=1 << 30)
    assert await read(artifacts, KEY) == b"old"


@pytest.mark.parametrize("key", CLIMBING)
async def test_keys_that_would_leave_the_store_are_refused(artifacts: ArtifactStore, tmp_path: Path, key: str) -> None:
    await put(artifacts, KEY)
    (tmp_path / "source").write_text("source")
    before = tree(tmp_path)
    for attempt in (
        put(artifacts, key),
        artifacts.put_file(key, tmp_path / "source"),
        artifacts.copy(KEY, key),
        artifacts.copy(key, "artifacts/P0001/optimizing/O0009/x"),
        artifacts.stat(key, digest=True),
        artifacts.fetch(key, tmp_path / "fetched"),
        read(artifacts, key),
    ):
        with pytest.raises(ServiceError):
            await attempt
    assert tree(tmp_path) == before


# -- many ---------------------------------------------------------------------------------------------------------
async def test_a_list_is_in_the_order_of_keys_and_below_the_prefix_only(artifacts: ArtifactStore) -> None:
    below = [f"artifacts/P0001/optimizing/O0001/{name}" for name in ("a.txt", "a/z.txt", "b", "B", "10", "9", "é")]
    outside = ["artifacts/P0001/optimizing/O00010/x", "artifacts/P0001/optimizing/O0002/a.txt", "other/x"]
    for key in (*below, *outside):
        await put(artifacts, key)
    assert await keys(artifacts, "artifacts/P0001/optimizing/O0001/") == sorted(below)
    assert await keys(artifacts, "artifacts/P0001/optimizing/O0001/a") == sorted(below[:2])
    assert await keys(artifacts, "artifacts/") == sorted([*below, *outside[:2]])
    assert await keys(artifacts, "artifacts/P0009/") == []
    infos = [info async for info in artifacts.list("other/")]
    assert [(info.size_bytes, info.sha256) for info in infos] == [(7, sha256(b"content"))]


@pytest.mark.slow
async def test_twelve_hundred_keys_are_listed(artifacts: ArtifactStore) -> None:
    made = [f"artifacts/P0001/optimizing/O0001/{n // 100}/{n}.txt" for n in range(1200)]
    for start in range(0, 1200, 200):
        await together(put(artifacts, key, key.encode()) for key in made[start : start + 200])
    assert await keys(artifacts, "artifacts/P0001/optimizing/O0001/") == sorted(made)


async def test_a_copy_is_the_same_file_and_stays_when_the_source_is_replaced(artifacts: ArtifactStore) -> None:
    target = "artifacts/P0001/optimizing/O0002/copy.pt"
    info = await put(artifacts, KEY, b"first")
    for _ in range(2):
        copied = await artifacts.copy(KEY, target)
        assert (copied.key, copied.size_bytes, copied.sha256) == (target, 5, info.sha256)
    await put(artifacts, KEY, b"second")
    assert await read(artifacts, target) == b"first"
    assert (await artifacts.stat(target, digest=True)).sha256 == sha256(b"first")
    await artifacts.copy(KEY, target)
    assert await read(artifacts, target) == b"second"
    await artifacts.copy(KEY, KEY)
    assert await read(artifacts, KEY) == b"second"


async def test_readers_of_a_file_that_is_replaced_see_one_of_both_whole(artifacts: ArtifactStore) -> None:
    versions = [bytes([n]) * (2 * CHUNK_BYTES + 5) for n in range(6)]
    await put(artifacts, KEY, versions[0])

    async def write() -> None:
        for version in versions[1:]:
            await put(artifacts, KEY, version)

    async def look() -> None:
        for _ in range(5):
            content = await read(artifacts, KEY)
            assert content in versions

    await together([write(), *(look() for _ in range(4))])
    assert await read(artifacts, KEY) == versions[-1]
    assert (await artifacts.stat(KEY)).sha256 == sha256(versions[-1])


UPLOAD = """
import asyncio, resource, sys
from app.config import Settings
from app.storage import factory

MIB = 1024 * 1024

async def stream(mib):
    for n in range(mib * 4):
        yield n.to_bytes(4, "little") * (MIB // 16)

async def main():
    store = factory.artifact_store(Settings())
    await store.start()
    await store.put_stream("a/warm", stream(4), max_bytes=1 << 40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    info = await store.put_stream("a/large", stream(256), max_bytes=1 << 40)
    async for _ in store.read("a/large"):
        pass
    print(info.size_bytes // MIB, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_memory_does_not_grow_with_the_file(artifact_environment: dict[str, str]) -> None:
    """In a process of its own, whose peak is nobody else's."""
    command = [sys.executable, "-c", UPLOAD]
    done = await anyio.run_process(command, cwd=ROOT, env=artifact_environment)
    size_mib, grown_mib = map(int, done.stdout.split())
    assert size_mib == 256
    assert grown_mib < 64
