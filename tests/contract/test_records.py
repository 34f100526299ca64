"""What every record store keeps: accepting, reading, idempotency, events."""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict, replace

import pytest

from app.errors import StoreUnavailable
from app.storage.records import Event, IdempotencyKey, IdempotencyMismatch, JobRef, Move, RecordStore
from tests.contract.conftest import OpenRecords
from tests.contract.jobs import accepted, draft, in_status, running, together

pytestmark = pytest.mark.anyio


# -- accepting ----------------------------------------------------------------------------------------------------
async def test_concurrent_accepts_draw_every_oid_once_and_in_order(open_records: OpenRecords) -> None:
    stores = [await open_records(), await open_records()]
    work = [stores[n % 2].accept(draft(f"P000{1 + n % 3}")) for n in range(90)]
    jobs = [job for job, _ in await together(work)]
    for pid in ("P0001", "P0002", "P0003"):
        drawn = sorted(job.oid for job in jobs if job.pid == pid)
        assert drawn == [f"O{n:04d}" for n in range(1, 31)]
    assert len({job.seq for job in jobs}) == 90
    by_seq = sorted((job for job in jobs if job.pid == "P0001"), key=lambda job: job.seq)
    assert [job.oid for job in by_seq] == [f"O{n:04d}" for n in range(1, 31)]


async def test_an_accepted_job_is_queued_and_is_what_was_given(records: RecordStore) -> None:
    given = draft(
        parameters={"kind": "echo", "name": "모델.pt", "size": [640, 640], "none": None},
        output_name="모델_fp32.onnx",
        callback_url="http://receiver.test/a",
        force=True,
        retry_of="O0009",
    )
    job, replayed = await records.accept(given)
    assert not replayed
    assert job == replace(given, oid="O0001", seq=job.seq)
    assert job.status == "queued"
    assert await records.get(job.ref) == job
    (event,) = await records.events(job.ref)
    assert (event.number, event.type, event.data) == (1, "state", {"status": "queued"})


async def test_uploads_and_jobs_share_one_row_of_oids(records: RecordStore) -> None:
    first = await records.draw_upload("0001", "P0001")
    second = await accepted(records)
    third = await records.draw_upload("0002", "P0001")
    other = await records.draw_upload("0001", "P0002")
    assert [first.oid, second.oid, third.oid, other.oid] == ["O0001", "O0002", "O0003", "O0001"]
    assert await records.get(first) is None


async def test_oids_go_on_after_a_restart_and_beyond_four_digits(open_records: OpenRecords) -> None:
    first = await open_records()
    for _ in range(3):
        await accepted(first)
    await first.close()
    assert (await accepted(await open_records())).oid == "O0004"


async def test_the_owner_of_jobs_uploads_and_of_nothing(records: RecordStore) -> None:
    job = await accepted(records, uid="0002")
    upload = await records.draw_upload("0003", "P0001")
    assert await records.owner_of(job.ref) == "0002"
    assert await records.owner_of(upload) == "0003"
    for nothing in (("P0001", "O0003"), ("P0002", "O0001"), ("P0001", "O" + "9" * 18)):
        assert await records.owner_of(JobRef(*nothing)) is None


@pytest.mark.parametrize("oid", ["O1", "O01", "O00001", "O0"])
async def test_an_oid_has_one_spelling(records: RecordStore, oid: str) -> None:
    await accepted(records)
    assert await records.owner_of(JobRef("P0001", oid)) is None
    assert await records.get(JobRef("P0001", oid)) is None


# -- idempotency --------------------------------------------------------------------------------------------------
async def test_the_same_key_and_body_is_the_same_job(records: RecordStore) -> None:
    key = IdempotencyKey("0001", "k", "body")
    job, replayed = await records.accept(draft(), key)
    again, replayed_again = await records.accept(draft(), key)
    assert (again, replayed, replayed_again) == (job, False, True)
    assert (await accepted(records)).oid == "O0002"


async def test_a_replay_shows_the_job_as_it_is_now(records: RecordStore) -> None:
    key = IdempotencyKey("0001", "k", "body")
    job, _ = await records.accept(draft(), key)
    await records.move(job.ref, Move("cancelled", None))
    again, replayed = await records.accept(draft(), key)
    assert replayed
    assert again.status == "cancelled"


async def test_the_same_key_with_another_body_is_refused_and_draws_nothing(records: RecordStore) -> None:
    await records.accept(draft(), IdempotencyKey("0001", "k", "body"))
    with pytest.raises(IdempotencyMismatch) as refusal:
        await records.accept(draft(), IdempotencyKey("0001", "k", "other"))
    assert refusal.value.status == 422
    assert (await accepted(records)).oid == "O0002"


async def test_keys_belong_to_their_user(records: RecordStore) -> None:
    job, _ = await records.accept(draft(), IdempotencyKey("0001", "k", "body"))
    other, replayed = await records.accept(draft(uid="0002"), IdempotencyKey("0002", "k", "other"))
    assert not replayed
    assert other.ref != job.ref


async def test_concurrent_posts_with_one_key_make_one_job(open_records: OpenRecords) -> None:
    stores = [await open_records(), await open_records()]
    key = IdempotencyKey("0001", "k", "body")
    answers = await together(stores[n % 2].accept(draft(), key) for n in range(30))
    assert {job.oid for job, _ in answers} == {"O0001"}
    assert sorted(replayed for _, replayed in answers) == [False] + [True] * 29


async def test_keys_expire_and_jobs_stay(records: RecordStore) -> None:
    key = IdempotencyKey("0001", "k", "body")
    job, _ = await records.accept(draft(created_at=1000.0), key)
    await records.expire(999.0)
    assert (await records.accept(draft(), key))[1]
    await records.expire(1001.0)
    again, replayed = await records.accept(draft(), IdempotencyKey("0001", "k", "other"))
    assert not replayed
    assert again.ref != job.ref
    assert await records.get(job.ref) == job


# -- reading ------------------------------------------------------------------------------------------------------
async def test_unknown_jobs_are_none(records: RecordStore) -> None:
    nothing = JobRef("P0001", "O0001")
    assert await records.get(nothing) is None
    assert await records.events(nothing) == []
    assert await records.callbacks(nothing) == []
    assert await records.request_cancel(nothing) is None
    assert await records.move(nothing, Move("cancelled", None)) is None
    assert not await records.update(nothing, 0, {"phase": "x"})


async def test_find_by_every_combination_of_filters_newest_first(records: RecordStore) -> None:
    for made in itertools.product(("running", "failed"), ("0001", "0002"), ("P0001", "P0002"), ("echo", "nap")):
        await in_status(records, made[0], uid=made[1], pid=made[2], action=made[3])
    everything = [job for uid in ("0001", "0002") for job in await records.find(uid)]
    assert len(everything) == 16
    for uid, wanted in itertools.product(
        ("0001", "0002"), itertools.product((None, "P0001"), (None, "running", "queued"), (None, "nap"))
    ):
        pid, status, action = wanted
        expected = sorted(
            (
                job
                for job in everything
                if job.uid == uid
                and pid in {None, job.pid}
                and status in {None, job.status}
                and action in {None, job.action}
            ),
            key=lambda job: -job.seq,
        )
        assert await records.find(uid, pid=pid, status=status, action=action) == expected
        if len(expected) > 1:
            page = await records.find(uid, pid=pid, status=status, action=action, before=expected[0].seq, limit=1)
            assert page == [expected[1]]
    assert await records.find("0003") == []


async def test_pages_hold_every_job_once_while_new_ones_come(records: RecordStore) -> None:
    jobs = [await accepted(records) for _ in range(25)]
    seen: list[str] = []
    before = None
    while page := await records.find("0001", before=before, limit=10):
        seen += [job.oid for job in page]
        before = page[-1].seq
        await accepted(records)
    assert seen == [job.oid for job in reversed(jobs)]


async def test_counts_are_of_jobs_that_have_not_ended(records: RecordStore) -> None:
    assert await records.counts() == {}
    await running(records)
    await in_status(records, "completed")
    await accepted(records)
    await accepted(records, slot="gpu!")
    assert await records.counts() == {("running", "cpu"): 1, ("queued", "cpu"): 1, ("queued", "gpu!"): 1}


# -- events -------------------------------------------------------------------------------------------------------
async def test_events_are_numbered_without_gaps_whoever_writes_them(open_records: OpenRecords) -> None:
    stores = [await open_records(), await open_records()]
    job = await running(stores[0])
    other = await running(stores[1], pid="P0002")
    work = [
        stores[n % 2].update(ref, 1, {"progress": n / 40}, Event("progress", {"n": n, "ref": str(ref)}, time.time()))
        for n in range(40)
        for ref in (job.ref, other.ref)
    ]
    assert all(await together(work))
    for ref in (job.ref, other.ref):
        events = await stores[0].events(ref)
        assert [event.number for event in events] == list(range(1, 42))
        assert {event.data["n"] for event in events[1:]} == set(range(40))
        assert {event.data["ref"] for event in events[1:]} == {str(ref)}


async def test_events_after_a_number_and_up_to_a_limit(records: RecordStore) -> None:
    job = await running(records)
    for n in range(9):
        await records.update(job.ref, job.claim, {}, Event("progress", {"n": n}, float(n)))
    assert [event.number for event in await records.events(job.ref, after=4)] == [5, 6, 7, 8, 9, 10]
    assert [event.number for event in await records.events(job.ref, after=4, limit=2)] == [5, 6]
    assert await records.events(job.ref, after=10) == []


# -- life ---------------------------------------------------------------------------------------------------------
async def test_every_field_survives_being_written_and_read(open_records: OpenRecords) -> None:
    records = await open_records()
    job = await running(records)
    changes = {
        "phase": "export",
        "progress": 0.25,
        "child_pid": 4_000_000,
        "child_started": 2**40,
        "fingerprint": "f" * 64,
        "cached_from": "P0001/O0009",
        "metrics": {"stats": {"size_mb": 6.2}, "text": "한국어 ' \" \u0000"},
        "artifact_files": ("a.onnx", "nested/b.txt"),
        "error": {"code": "X", "message": "m", "hint": None},
    }
    assert await records.update(job.ref, job.claim, changes)
    await records.close()
    found = await (await open_records()).get(job.ref)
    assert found is not None
    assert asdict(found) == {**asdict(job), **changes}


async def test_a_closed_store_says_that_it_does_not_answer(open_records: OpenRecords) -> None:
    records = await open_records()
    await records.check()
    await records.close()
    with pytest.raises(StoreUnavailable):
        await records.check()
