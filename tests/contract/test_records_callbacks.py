"""The outbox that every record store keeps: order, holds, deliveries, replays."""

from __future__ import annotations

import pytest

from app.storage.records import DeliveryAttempt, JobRef, Move, Outbound, RecordStore
from tests.contract.conftest import OpenRecords
from tests.contract.jobs import callback, running, together

pytestmark = pytest.mark.anyio

HOLD_SEC = 30.0


async def _outbound(records: RecordStore, due: float = 100.0, **fields: str) -> Outbound:
    """A callback of a job that has just ended."""
    job = await running(records, **fields)
    sent = callback(job.ref, due=due)
    assert await records.move(job.ref, Move("completed", job.claim, callback=sent)) is not None
    return sent


def _attempt(sent: Outbound, number: int, status: int | None = 200) -> DeliveryAttempt:
    return DeliveryAttempt(sent.webhook_id, number, 100.0 + number, 12.5, status, f"HTTP {status}")


async def _due(records: RecordStore, now: float, limit: int = 50) -> list[str]:
    return [found.webhook_id for found in await records.due_callbacks(now, HOLD_SEC, limit)]


async def test_a_callback_is_due_at_its_time_and_then_held(records: RecordStore) -> None:
    sent = await _outbound(records, due=100.0)
    assert await records.next_callback_at() == 100.0
    assert await records.due_callbacks(99.9, HOLD_SEC) == []
    (taken,) = await records.due_callbacks(100.0, HOLD_SEC)
    assert (taken.webhook_id, taken.ref, taken.url, taken.body) == (sent.webhook_id, sent.ref, sent.url, sent.body)
    assert taken.attempts == 0
    assert await _due(records, 100.0 + HOLD_SEC - 1) == []
    assert await _due(records, 100.0 + HOLD_SEC) == [sent.webhook_id]


async def test_of_concurrent_takers_one_gets_it(open_records: OpenRecords) -> None:
    stores = [await open_records(), await open_records()]
    sent = [await _outbound(stores[0], pid=f"P{n:04d}") for n in range(1, 11)]
    taken = await together(_due(stores[n % 2], 100.0, limit=3) for n in range(12))
    assert sorted(found for some in taken for found in some) == sorted(found.webhook_id for found in sent)


async def test_only_the_oldest_of_a_job_is_due_and_the_next_follows_it(records: RecordStore) -> None:
    job = await running(records)
    first, second = callback(job.ref, 1, 200.0), callback(job.ref, 2, 100.0)
    assert await records.move(job.ref, Move("queued", job.claim, callback=first))
    (again,) = await records.claim("me", 1e12, "cpu", {"echo"}, 1)
    assert await records.move(job.ref, Move("failed", again.claim, callback=second))
    other = await _outbound(records, pid="P0002", due=150.0)
    assert await _due(records, 199.0) == [other.webhook_id]
    assert await _due(records, 200.0, limit=1) == [first.webhook_id]
    assert await _due(records, 200.0) == []
    await records.record_delivery(_attempt(first, 1, 500), "pending", 300.0)
    assert await _due(records, 299.0) == [other.webhook_id]  # its hold is over; the job's second still waits
    await records.record_delivery(_attempt(first, 2), "delivered", None)
    assert await _due(records, 299.0) == [second.webhook_id]


async def test_every_delivery_is_a_row(records: RecordStore) -> None:
    sent = await _outbound(records)
    await records.record_delivery(_attempt(sent, 1, None), "pending", 200.0)
    await records.record_delivery(_attempt(sent, 2, 500), "pending", 300.0)
    ((found, attempts),) = await records.callbacks(sent.ref)
    assert (found.state, found.next_attempt_at, found.attempts) == ("pending", 300.0, 2)
    assert attempts == [_attempt(sent, 1, None), _attempt(sent, 2, 500)]
    assert await records.next_callback_at() == 300.0
    await records.record_delivery(_attempt(sent, 3), "delivered", None)
    ((found, attempts),) = await records.callbacks(sent.ref)
    assert (found.state, found.next_attempt_at, found.attempts) == ("delivered", None, 3)
    assert await records.next_callback_at() is None
    assert await _due(records, 1e9) == []


async def test_two_deliveries_that_cross_are_both_rows(records: RecordStore) -> None:
    """A replay, or a hold that ran out, sends again while the first delivery is still under way."""
    sent = await _outbound(records)
    await together(
        [
            records.record_delivery(_attempt(sent, 1, 500), "pending", 200.0),
            records.record_delivery(_attempt(sent, 1), "delivered", None),
        ]
    )
    ((_, attempts),) = await records.callbacks(sent.ref)
    assert [attempt.number for attempt in attempts] == [1, 2]
    assert {attempt.http_status for attempt in attempts} == {200, 500}


@pytest.mark.parametrize("state", ["delivered", "failed"])
async def test_a_replay_begins_anew_under_the_same_id(records: RecordStore, state: str) -> None:
    sent = await _outbound(records)
    await records.record_delivery(_attempt(sent, 1, 410), state, None)
    assert await _due(records, 1e9) == []
    assert await records.replay_callbacks(sent.ref, 500.0) == 1
    assert await records.next_callback_at() == 500.0
    (taken,) = await records.due_callbacks(500.0, HOLD_SEC)
    assert (taken.webhook_id, taken.body, taken.attempts) == (sent.webhook_id, sent.body, 0)
    await records.record_delivery(_attempt(sent, 1), "delivered", None)
    ((_, attempts),) = await records.callbacks(sent.ref)
    assert [attempt.number for attempt in attempts] == [1, 2]


async def test_a_job_without_callbacks_has_none_to_replay(records: RecordStore) -> None:
    job = await running(records)
    assert await records.replay_callbacks(job.ref, 0.0) == 0
    assert await records.replay_callbacks(JobRef("P0009", "O0001"), 0.0) == 0
    assert await records.callbacks(job.ref) == []


async def test_the_same_callback_is_kept_once(records: RecordStore) -> None:
    """Its id is made of the job and its end: whoever writes that end again writes the same callback."""
    job = await running(records)
    sent = callback(job.ref, due=100.0)
    assert await records.move(job.ref, Move("queued", job.claim, callback=sent))
    (again,) = await records.claim("me", 1e12, "cpu", {"echo"}, 1)
    assert await records.move(job.ref, Move("completed", again.claim, callback=sent))
    assert [found for found, _ in await records.callbacks(job.ref)] == [sent]


async def test_callbacks_survive_a_restart(open_records: OpenRecords) -> None:
    first = await open_records()
    sent = await _outbound(first)
    await first.record_delivery(_attempt(sent, 1, 503), "pending", 200.0)
    await first.close()
    second = await open_records()
    (taken,) = await second.due_callbacks(200.0, HOLD_SEC)
    assert (taken.webhook_id, taken.attempts) == (sent.webhook_id, 1)
