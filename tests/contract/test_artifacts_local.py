"""What only the local artifact store has: files that others put there by hand, links, what a kill left behind."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.errors import Conflict, NotFound, ServiceError, StoreUnavailable
from app.storage.artifacts_local import LocalArtifacts
from app.storage.files import STALE_SEC
from tests.contract.test_artifacts import KEY, keys, put, read, sha256
from tests.contract.test_pointers import LATEST
from tests.harness import tree

pytestmark = pytest.mark.anyio

VERSION = "artifacts/P0001/optimizing/O0001/detection-20250810-143012-ab12cd3.onnx"


@pytest.fixture
async def local(tmp_path: Path, anyio_backend: str) -> LocalArtifacts:
    store = LocalArtifacts(tmp_path / "store")
    await store.start()
    return store


def by_hand(tmp_path: Path, key: str, content: bytes) -> Path:
    path = tmp_path / "store" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


async def test_a_file_put_there_by_hand_is_an_artifact_and_gets_a_digest(local: LocalArtifacts, tmp_path: Path) -> None:
    by_hand(tmp_path, KEY, b"by hand")
    assert await keys(local, "artifacts/") == [KEY]
    assert (await local.stat(KEY)).sha256 is None
    assert (await local.stat(KEY, digest=True)).sha256 == sha256(b"by hand")
    assert (await local.stat(KEY)).sha256 == sha256(b"by hand")
    assert (await local.fetch(KEY, tmp_path / "fetched")).sha256 == sha256(b"by hand")


@pytest.mark.parametrize("content", [b"other", b"a longer one"])
async def test_a_file_changed_by_hand_gets_a_new_digest(local: LocalArtifacts, tmp_path: Path, content: bytes) -> None:
    await put(local, KEY, b"first")
    path = by_hand(tmp_path, KEY, content)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert (await local.stat(KEY)).sha256 is None
    assert (await local.stat(KEY, digest=True)).sha256 == sha256(content)
    assert await read(local, KEY) == content


async def test_a_file_removed_by_hand_is_gone(local: LocalArtifacts, tmp_path: Path) -> None:
    await put(local, KEY)
    (tmp_path / "store" / KEY).unlink()
    assert await keys(local, "artifacts/") == []
    with pytest.raises(NotFound):
        await local.stat(KEY)
    await put(local, KEY, b"again")
    assert await read(local, KEY) == b"again"


@pytest.mark.parametrize("target", ["outside", "inside"])
async def test_links_lead_nowhere(local: LocalArtifacts, tmp_path: Path, target: str) -> None:
    """Also within the store: a link in one job's folder must not show another's."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    by_hand(tmp_path, "artifacts/P0002/optimizing/O0001/secret.txt", b"another's")
    folder = outside if target == "outside" else tmp_path / "store/artifacts/P0002/optimizing/O0001"
    mine = tmp_path / "store" / "artifacts/P0001/optimizing/O0001"
    mine.mkdir(parents=True)
    (mine / "file.txt").symlink_to(folder / "secret.txt")
    (mine / "folder").symlink_to(folder, target_is_directory=True)
    before = tree(tmp_path)
    for key in ("file.txt", "folder/secret.txt"):
        with pytest.raises(NotFound):
            await local.stat(f"artifacts/P0001/optimizing/O0001/{key}", digest=True)
        with pytest.raises(NotFound):
            await read(local, f"artifacts/P0001/optimizing/O0001/{key}")
        with pytest.raises(NotFound):
            await local.fetch(f"artifacts/P0001/optimizing/O0001/{key}", tmp_path / "fetched")
        with pytest.raises(NotFound):
            await local.copy(f"artifacts/P0001/optimizing/O0001/{key}", "artifacts/P0001/optimizing/O0009/x")
    assert await keys(local, "artifacts/P0001/") == []
    assert await keys(local, "artifacts/P0001/optimizing/O0001/folder/") == []
    with pytest.raises(ServiceError):
        await put(local, "artifacts/P0001/optimizing/O0001/folder/new.txt")
    with pytest.raises(ServiceError):
        await put(local, "artifacts/P0001/optimizing/O0001/folder/new/er.txt")
    assert tree(tmp_path) == before


async def test_a_pointer_is_a_relative_link_that_others_can_follow(local: LocalArtifacts, tmp_path: Path) -> None:
    await put(local, VERSION, b"a model")
    await local.point(LATEST, VERSION, instead_of=None)
    (tmp_path / "store").rename(tmp_path / "moved")
    link = tmp_path / "moved" / LATEST
    assert str(link.readlink()) == "O0001/detection-20250810-143012-ab12cd3.onnx"
    assert link.read_bytes() == b"a model"


async def test_only_links_down_from_their_own_folder_are_pointers(local: LocalArtifacts, tmp_path: Path) -> None:
    path = tmp_path / "store" / LATEST
    path.parent.mkdir(parents=True)
    by_hand(tmp_path, VERSION, b"a model")
    (path.parent / "folder").symlink_to("O0001", target_is_directory=True)
    for target in (tmp_path / "store" / VERSION, "../optimizing/O0001/x.onnx", "O0001/../O0001/x.onnx", ".hidden", "."):
        path.symlink_to(target)
        assert await local.pointer(LATEST) is None
        with pytest.raises(Conflict):
            await local.point(LATEST, VERSION, instead_of=None)
        path.unlink()
    with pytest.raises(NotFound):
        await local.pointer("artifacts/P0001/optimizing/folder/latest_detection.onnx")


async def test_at_every_moment_a_pointer_leads_to_a_version(local: LocalArtifacts, tmp_path: Path) -> None:
    """What another process sees while it is moved, and so what a crash leaves, is one of the two."""
    link = tmp_path / "store" / LATEST
    await local.point(LATEST, VERSION, instead_of=None)
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.add(str(link.readlink()))

    looking = ThreadPoolExecutor(1).submit(look)
    ahead = VERSION
    made = [f"artifacts/P0001/optimizing/O{n:04d}/x.onnx" for n in range(2, 60)]
    for target in made:
        assert await local.point(LATEST, target, instead_of=ahead)
        ahead = target
    done.set()
    looking.result()
    assert seen <= {target.removeprefix("artifacts/P0001/optimizing/") for target in (VERSION, *made)}
    assert list((tmp_path / "store" / ".incoming").iterdir()) == []


async def test_a_link_that_a_killed_service_left_is_removed(local: LocalArtifacts, tmp_path: Path) -> None:
    left = tmp_path / "store" / ".incoming" / "left"
    left.symlink_to("O0001/not-there.onnx")
    os.utime(left, (time.time() - STALE_SEC - 60,) * 2, follow_symlinks=False)
    await local.start()
    assert not left.is_symlink()


async def test_what_is_no_file_is_not_found_and_nobody_waits_for_it(local: LocalArtifacts, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "artifacts"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(NotFound):
            await local.stat(f"artifacts/{name}", digest=True)
        with pytest.raises(NotFound):
            await read(local, f"artifacts/{name}")
    assert await keys(local, "artifacts/") == []


async def test_what_a_killed_service_was_writing_is_removed_when_it_is_old(
    local: LocalArtifacts, tmp_path: Path
) -> None:
    incoming = tmp_path / "store" / ".incoming"
    for name, age_sec in (("old", STALE_SEC + 60), ("young", 60)):
        (incoming / name).write_text("half")
        os.utime(incoming / name, (time.time() - age_sec,) * 2)
    await LocalArtifacts(tmp_path / "store").start()
    assert [path.name for path in incoming.iterdir()] == ["young"]
    assert await keys(local, "") == []


async def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable) as refusal:
        await LocalArtifacts(tmp_path / "file" / "store").start()
    assert str(tmp_path / "file") in (refusal.value.hint or "")


async def test_a_store_whose_folder_went_away_is_unavailable(local: LocalArtifacts, tmp_path: Path) -> None:
    await local.check()
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailable):
        await local.check()
    with pytest.raises(StoreUnavailable):
        await put(local, KEY)
