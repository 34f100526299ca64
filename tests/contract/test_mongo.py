"""What only the MongoDB store has: steps that its documents catch up with, and answers that were lost."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from app.errors import StoreUnavailable
from app.storage.records import Event, IdempotencyKey, JobRef, Move, RecordStore
from tests.contract.conftest import RECORD_STORES, OpenRecords
from tests.contract.jobs import accepted, callback, claimed, draft, running, state

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("record_environment", RECORD_STORES[1:], indirect=True)]

Raw = dict[str, Any]


@pytest.fixture
async def raw(record_environment: dict[str, str], anyio_backend: str) -> AsyncIterator[Any]:
    """The database itself, as a hand at the shell would have it."""
    async with AsyncMongoClient[Raw](record_environment["MONGO_URL"]) as client:
        yield client[record_environment["MONGO_DATABASE"]]


# -- a writer that died between its step and the document --------------------------------------------------------
async def test_an_end_is_an_end_once_its_step_is_there(records: RecordStore, raw: Any) -> None:
    job = await running(records)
    before = await raw["jobs"].find_one({"_id": str(job.ref)})
    sent = callback(job.ref, due=5.0)
    ended = await records.move(job.ref, Move("completed", job.claim, {"metrics": {"a.b": 1}}, state("completed"), sent))
    # As if nothing but the step had been written:
    await raw["jobs"].replace_one({"_id": str(job.ref)}, before)
    for name in ("callbacks", "metrics"):
        await raw[name].delete_many({})
    assert await records.get(job.ref) == ended
    assert [found for found, _ in await records.callbacks(job.ref)] == [sent]
    assert await records.orphans(time.time() + 1000) == []
    assert await raw["jobs"].count_documents({"_id": str(job.ref), "status": "completed"}) == 1
    (metrics,) = [found async for found in raw["metrics"].find({})]
    assert (metrics["_id"], metrics["action"], metrics["metrics"]) == (str(job.ref), "echo", {"a\uff0eb": 1})


async def test_lists_show_jobs_as_their_steps_have_them(records: RecordStore, raw: Any) -> None:
    jobs = [await running(records) for _ in range(3)]
    before = {job.ref: await raw["jobs"].find_one({"_id": str(job.ref)}) for job in jobs}
    for n in range(4):
        for job in jobs[:2]:
            assert await records.update(job.ref, job.claim, {"progress": n / 10}, Event("progress", {"n": n}, 0.0))
    for job in jobs:
        await raw["jobs"].replace_one({"_id": str(job.ref)}, before[job.ref])
    assert [job.progress for job in await records.find("0001")] == [0.0, 0.3, 0.3]
    assert len(await records.events(jobs[0].ref)) == 5


async def test_a_claim_whose_document_fell_back_is_still_a_claim(open_records: OpenRecords, raw: Any) -> None:
    first, second = await open_records(), await open_records()
    job = await accepted(first)
    before = await raw["jobs"].find_one({"_id": str(job.ref)})
    assert len(await first.claim("me", time.time() + 60, "cpu", {"echo"}, 5)) == 1
    await raw["jobs"].replace_one({"_id": str(job.ref)}, before)
    assert await second.claim("another", time.time() + 60, "cpu", {"echo"}, 5) == []
    assert set(await first.renew("me", time.time() + 60)) == {job.ref}


# -- answers that were lost ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("to", ["running", "completed", "queued"])
async def test_a_move_asked_for_again_was_made(records: RecordStore, to: str) -> None:
    job = await claimed(records) if to == "running" else await running(records)
    move = Move(to, job.claim, {"finished_at": 3.0}, state(to), callback(job.ref))
    moved = await records.move(job.ref, move)
    assert moved is not None
    assert await records.move(job.ref, move) == moved
    assert [event.data for event in await records.events(job.ref)].count({"status": to}) == (2 if to == "queued" else 1)
    assert len(await records.callbacks(job.ref)) == 1
    other = Move(to, job.claim, {"finished_at": 4.0}, state(to), callback(job.ref))
    assert await records.move(job.ref, other) is None


async def test_a_key_whose_first_request_did_not_come_to_its_job(records: RecordStore, raw: Any) -> None:
    key = IdempotencyKey("0001", "k", "body")
    first, _ = await records.accept(draft(), key)
    await raw["jobs"].delete_many({})
    again, replayed = await records.accept(draft(), key)
    assert replayed
    assert (again.ref, again.seq) == (first.ref, first.seq)
    assert len(await records.events(first.ref)) == 1
    assert [job.ref for job in await records.claim("me", time.time() + 60, "cpu", {"echo"}, 5)] == [first.ref]


# -- what lies there ----------------------------------------------------------------------------------------------
async def test_metrics_can_be_queried(records: RecordStore, raw: Any) -> None:
    job = await running(records, pid="P0007", uid="0002")
    metrics = {"stats": {"sparsity_pct": 20.5}, "layers": [{"model.0.conv": 2**70, "$x": None}]}
    await records.move(job.ref, Move("completed", job.claim, {"metrics": metrics, "finished_at": 5.0}))
    found = await raw["metrics"].find_one({"metrics.stats.sparsity_pct": {"$gt": 20}})
    assert (found["pid"], found["oid"], found["uid"], found["finished_at"]) == ("P0007", "O0001", "0002", 5.0)
    assert found["metrics"]["layers"] == [{"model\uff0e0\uff0econv": float(2**70), "\uff04x": None}]
    kept = await records.get(JobRef("P0007", "O0001"))
    assert kept is not None
    assert kept.metrics == metrics


async def test_a_store_made_by_a_newer_version_is_refused(open_records: OpenRecords, raw: Any) -> None:
    await open_records()
    await raw["meta"].update_one({"_id": "schema"}, {"$set": {"version": 99}})
    with pytest.raises(StoreUnavailable, match=r"newer version of this service.*schema 99"):
        await open_records()
