"""What every record store decides: claims, leases, moves, fencing, the lead of a fingerprint."""

from __future__ import annotations

import itertools
import time

import pytest

from app.storage.records import LEGAL_MOVES, RELEASED, Event, JobRecord, JobRef, Move, RecordStore
from tests.contract.conftest import OpenRecords
from tests.contract.jobs import LEASE_SEC, accepted, callback, claimed, in_status, running, state, together

pytestmark = pytest.mark.anyio

STATUSES = tuple(LEGAL_MOVES)
ECHO = frozenset({"echo"})


async def _claim(records: RecordStore, owner: str = "me", limit: int = 100, slot: str = "cpu") -> list[JobRecord]:
    return await records.claim(owner, time.time() + LEASE_SEC, slot, ECHO, limit)


# -- claims -------------------------------------------------------------------------------------------------------
async def test_a_job_is_claimed_once_however_many_want_it(open_records: OpenRecords) -> None:
    stores = [await open_records() for _ in range(3)]
    jobs = await together(accepted(stores[n % 3], f"P000{n % 2}") for n in range(60))
    taken = await together(_claim(stores[n % 3], owner=f"owner {n}", limit=7) for n in range(30))
    refs = [job.ref for jobs_of_one in taken for job in jobs_of_one]
    assert sorted(refs, key=str) == sorted((job.ref for job in jobs), key=str)
    for number, jobs_of_one in enumerate(taken):
        assert all((job.owner, job.claim) == (f"owner {number}", 1) for job in jobs_of_one)


async def test_the_oldest_free_jobs_of_the_slot_and_the_actions_are_taken(records: RecordStore) -> None:
    first = await accepted(records)
    await accepted(records, slot="gpu")
    await accepted(records, action="nap")
    second = await accepted(records, "P0002", "0002")
    await accepted(records)
    taken = await _claim(records, limit=2)
    assert [job.ref for job in taken] == [first.ref, second.ref]
    assert all(job.lease_until is not None and job.lease_until > time.time() for job in taken)
    assert [job.status for job in taken] == ["queued", "queued"]
    assert await records.get(first.ref) == taken[0]
    assert await records.claim("me", 0, "dla0", ECHO, 10) == []
    assert await records.claim("me", 0, "cpu", frozenset(), 10) == []
    assert len(await records.claim("me", 0, "cpu", {"echo", "nap"}, 10)) == 2


async def test_ended_and_running_jobs_are_not_claimed(records: RecordStore) -> None:
    for status in ("running", "completed", "failed", "cancelled"):
        await in_status(records, status)
    assert await _claim(records) == []


async def test_who_lost_a_job_cannot_end_it_before_somebody_else_takes_it(records: RecordStore) -> None:
    job = await running(records)
    assert await records.move(job.ref, Move("queued", job.claim)) is not None
    assert await records.move(job.ref, Move("failed", job.claim)) is None, "the old claim ended with the release"
    assert not await records.update(job.ref, job.claim, {"phase": "late"})


async def test_a_job_given_back_is_claimed_again_under_a_new_number(records: RecordStore) -> None:
    job = await running(records)
    back = await records.move(job.ref, Move("queued", job.claim, {"started_at": None}, state("queued")))
    assert back is not None
    assert {name: getattr(back, name) for name in RELEASED} == dict(RELEASED)
    (again,) = await _claim(records, "another")
    assert (again.ref, again.owner, again.attempt) == (job.ref, "another", 1)
    assert again.claim > job.claim


# -- leases -------------------------------------------------------------------------------------------------------
async def test_renewing_extends_what_one_owner_holds(records: RecordStore) -> None:
    mine, other = await claimed(records, owner="me"), await claimed(records, owner="other")
    await in_status(records, "completed", owner="me")
    until = time.time() + 1000
    held = await records.renew("me", until)
    assert set(held) == {mine.ref}
    assert held[mine.ref].lease_until == until
    assert await records.get(other.ref) == other
    assert await records.owners() == {"me", "other"}
    assert await records.renew("nobody", until) == {}


async def test_orphans_are_jobs_without_a_living_owner(records: RecordStore) -> None:
    dead, late, living = [await claimed(records, owner=name, pid=f"P{name}") for name in ("1", "2", "3")]
    await records.renew("2", time.time() - 1)
    await in_status(records, "failed", pid="P4")
    await accepted(records)
    now = time.time()
    assert [job.ref for job in await records.orphans(now)] == [late.ref]
    assert [job.ref for job in await records.orphans(now, frozenset({"1"}))] == [dead.ref, late.ref]
    everything = await records.orphans(now + LEASE_SEC + 1)
    assert [job.ref for job in everything] == [dead.ref, late.ref, living.ref]


async def test_a_running_job_that_nobody_owns_is_an_orphan(records: RecordStore) -> None:
    """Its release was written while who wrote it took it for queued: the answer to its start had been lost."""
    job = await running(records)
    assert await records.update(job.ref, job.claim, RELEASED)
    (orphan,) = await records.orphans(time.time())
    assert (orphan.ref, orphan.status, orphan.owner) == (job.ref, "running", None)
    assert await records.move(job.ref, Move("queued", orphan.claim)) is not None
    assert [taken.ref for taken in await _claim(records)] == [job.ref]


# -- moves --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("origin", "to"), list(itertools.product(STATUSES, STATUSES)))
async def test_a_status_moves_along_the_legal_moves_only(records: RecordStore, origin: str, to: str) -> None:
    job = await in_status(records, origin)
    before = await records.events(job.ref)
    moved = await records.move(
        job.ref, Move(to, job.claim, {"metrics": {"x": 1}, "phase": "p"}, state(to), callback(job.ref))
    )
    found = await records.get(job.ref)
    if to in LEGAL_MOVES[origin]:
        assert moved == found
        assert moved is not None
        assert (moved.status, moved.metrics, moved.phase) == (to, {"x": 1}, "p")
        assert (moved.owner is None) == (to != "running")
        assert [event.data for event in (await records.events(job.ref))[len(before) :]] == [{"status": to}]
        assert len(await records.callbacks(job.ref)) == 1
    else:
        assert moved is None
        assert found == job
        assert await records.events(job.ref) == before
        assert await records.callbacks(job.ref) == []


async def test_of_concurrent_ends_one_is_written(open_records: OpenRecords) -> None:
    stores = [await open_records(), await open_records()]
    job = await running(stores[0])
    ends = ["completed", "failed", "cancelled"] * 5
    moved = await together(
        stores[n % 2].move(job.ref, Move(end, job.claim, {}, state(end))) for n, end in enumerate(ends)
    )
    (written,) = [found for found in moved if found is not None]
    assert await stores[1].get(job.ref) == written
    assert (await stores[0].events(job.ref))[-1].data == {"status": written.status}
    assert len(await stores[0].events(job.ref)) == 2


async def test_who_lost_the_claim_writes_nothing(records: RecordStore) -> None:
    job = await claimed(records)
    assert await records.update(job.ref, job.claim, RELEASED)
    (now,) = await _claim(records, "another")
    for claim in (job.claim, job.claim + 7, None):
        assert await records.move(job.ref, Move("failed", claim, {}, state("failed"), callback(job.ref))) is None
    assert not await records.update(job.ref, job.claim, {"phase": "old"}, Event("progress", {}, 0.0))
    assert await records.get(job.ref) == now
    assert len(await records.events(job.ref)) == 1
    assert await records.callbacks(job.ref) == []
    assert await records.move(job.ref, Move("running", now.claim)) is not None


async def test_a_job_that_nobody_owns_is_moved_without_a_claim_and_never_updated(records: RecordStore) -> None:
    job = await accepted(records)
    assert not await records.update(job.ref, job.claim, {"phase": "x"})
    assert await records.move(job.ref, Move("cancelled", 3)) is None
    ended = await records.move(job.ref, Move("cancelled", None, {"finished_at": 5.0}))
    assert ended is not None
    assert (ended.status, ended.finished_at) == ("cancelled", 5.0)
    assert await _claim(records) == []


async def test_an_ended_job_is_not_updated(records: RecordStore) -> None:
    job = await in_status(records, "completed")
    assert not await records.update(job.ref, job.claim, {"phase": "late"}, Event("progress", {}, 0.0))
    assert await records.get(job.ref) == job


# -- cancel -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("status", STATUSES)
async def test_the_wish_to_cancel_is_noted_on_unfinished_jobs(records: RecordStore, status: str) -> None:
    job = await in_status(records, status)
    asked = await records.request_cancel(job.ref)
    found = await records.get(job.ref)
    assert found is not None
    if LEGAL_MOVES[status]:
        assert asked == found
        assert found.cancel_requested
        assert (found.status, found.owner) == (status, job.owner)
        assert (await records.renew("me", time.time() + 1))[job.ref].cancel_requested
    else:
        assert asked is None
        assert found == job


async def test_a_claim_shows_that_the_job_was_cancelled_before(records: RecordStore) -> None:
    job = await accepted(records)
    await records.request_cancel(job.ref)
    (taken,) = await _claim(records)
    assert taken.cancel_requested


# -- the same work once -------------------------------------------------------------------------------------------
async def test_one_leads_and_the_others_hear_who(open_records: OpenRecords) -> None:
    stores = [await open_records(), await open_records()]
    refs = [JobRef("P0001", f"O{n:04d}") for n in range(1, 31)]
    leaders = await together(stores[n % 2].lead("print", ref) for n, ref in enumerate(refs))
    assert len(set(leaders)) == 1
    leader = leaders[0]
    assert await stores[1].lead("other print", refs[-1]) == refs[-1]
    for ref in refs:
        if ref != leader:
            await stores[0].unlead("print", ref)
    assert await stores[0].lead("print", refs[0]) == leader
    await stores[1].unlead("print", leader)
    assert await stores[0].lead("print", refs[5]) == refs[5]


async def test_the_twin_is_the_newest_that_did_the_work_itself(records: RecordStore) -> None:
    async def ended(status: str, print_: str = "print", **fields: str) -> JobRecord:
        job = await running(records)
        moved = await records.move(job.ref, Move(status, job.claim, {"fingerprint": print_, **fields}))
        assert moved is not None
        return moved

    assert await records.completed_twin("print") is None
    await ended("failed")
    await ended("cancelled")
    assert await records.completed_twin("print") is None
    await ended("completed")
    newest = await ended("completed")
    await ended("completed", cached_from=str(newest.ref))
    await ended("completed", "other print")
    still = await running(records)
    await records.update(still.ref, still.claim, {"fingerprint": "print"})
    assert await records.completed_twin("print") == newest
