"""What every artifact store must do with pointers: lead to files, be none, move in one step from where said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.errors import Conflict, NotFound
from app.storage.artifacts import ArtifactStore
from tests.contract.jobs import together
from tests.contract.test_artifacts import CLIMBING, keys, put, read

pytestmark = pytest.mark.anyio

BELOW = "artifacts/P0001/optimizing"
LATEST = f"{BELOW}/latest_detection.onnx"


def version(number: int) -> str:
    return f"{BELOW}/O{number:04d}/detection-20250810-{number:06d}-ab12cd3.onnx"


async def test_a_pointer_leads_where_it_was_moved_last(artifacts: ArtifactStore) -> None:
    assert await artifacts.pointer(LATEST) is None
    assert await artifacts.point(LATEST, version(1), instead_of=None)
    assert await artifacts.pointer(LATEST) == version(1)
    assert await artifacts.point(LATEST, version(2), instead_of=version(1))
    assert await artifacts.pointer(LATEST) == version(2)
    assert await artifacts.point(LATEST, version(1), instead_of=version(2)), "which way is forward is not the store's"
    assert await artifacts.pointer(LATEST) == version(1)


async def test_a_pointer_that_leads_elsewhere_by_now_is_not_moved(artifacts: ArtifactStore) -> None:
    await artifacts.point(LATEST, version(2), instead_of=None)
    for wrong in (None, version(1), version(3)):
        assert not await artifacts.point(LATEST, version(3), instead_of=wrong)
    assert not await artifacts.point(f"{BELOW}/latest_classification.onnx", version(3), instead_of=version(1))
    assert await artifacts.pointer(LATEST) == version(2)
    assert await artifacts.pointer(f"{BELOW}/latest_classification.onnx") is None


@pytest.mark.slow
async def test_of_many_who_move_a_pointer_at_once_one_does(artifacts: ArtifactStore) -> None:
    ahead: str | None = None
    for start in range(0, 40, 8):
        made: dict[str, bool] = {}

        async def move(target: str, instead_of: str | None, made: dict[str, bool] = made) -> None:
            made[target] = await artifacts.point(LATEST, target, instead_of=instead_of)

        await together(move(version(start + n), ahead) for n in range(8))
        (ahead,) = [target for target, moved in made.items() if moved]
        assert await artifacts.pointer(LATEST) == ahead


async def test_a_pointer_is_no_file(artifacts: ArtifactStore, tmp_path: Path) -> None:
    await put(artifacts, version(1), b"a model")
    await artifacts.point(LATEST, version(1), instead_of=None)
    for digest in (False, True):
        with pytest.raises(NotFound):
            await artifacts.stat(LATEST, digest=digest)
    for start, end in ((0, None), (0, 3), (3, 3)):
        with pytest.raises(NotFound):
            await read(artifacts, LATEST, start, end)
    with pytest.raises(NotFound):
        await artifacts.fetch(LATEST, tmp_path / "fetched")
    with pytest.raises(NotFound):
        await artifacts.copy(LATEST, f"{BELOW}/O0009/copy.onnx")
    assert not (tmp_path / "fetched").exists()
    assert await keys(artifacts, "artifacts/") == [version(1)]
    assert await read(artifacts, version(1)) == b"a model"


async def test_a_pointer_may_lead_to_what_is_not_there_any_more(artifacts: ArtifactStore) -> None:
    await artifacts.point(LATEST, version(7), instead_of=None)
    assert await artifacts.pointer(LATEST) == version(7)
    with pytest.raises(NotFound):
        await artifacts.stat(version(7))


async def test_a_file_is_no_pointer_and_none_takes_its_place(artifacts: ArtifactStore) -> None:
    await put(artifacts, LATEST, os.urandom(100_000))
    content = await read(artifacts, LATEST)
    assert await artifacts.pointer(LATEST) is None
    with pytest.raises(Conflict):
        await artifacts.point(LATEST, version(1), instead_of=None)
    assert await read(artifacts, LATEST) == content


async def test_a_file_whose_content_is_a_key_is_no_pointer(artifacts: ArtifactStore) -> None:
    """Whoever uploads may write any content, and must not make a pointer by it."""
    await put(artifacts, LATEST, version(1).encode())
    assert await artifacts.pointer(LATEST) is None
    assert await read(artifacts, LATEST) == version(1).encode()


@pytest.mark.parametrize("key", CLIMBING)
async def test_no_pointer_leads_out_of_the_store_or_lies_there(artifacts: ArtifactStore, key: str) -> None:
    with pytest.raises(NotFound):
        await artifacts.point(key, version(1), instead_of=None)
    with pytest.raises(NotFound):
        await artifacts.pointer(key)
    with pytest.raises(NotFound):
        await artifacts.point(LATEST, key, instead_of=None)
    assert await artifacts.pointer(LATEST) is None


@pytest.mark.parametrize("target", ["artifacts/P0002/optimizing/O0001/x.onnx", f"{BELOW}2/x.onnx", BELOW])
async def test_no_pointer_leads_out_of_its_folder(artifacts: ArtifactStore, target: str) -> None:
    with pytest.raises(NotFound):
        await artifacts.point(LATEST, target, instead_of=None)
    assert await artifacts.pointer(LATEST) is None
