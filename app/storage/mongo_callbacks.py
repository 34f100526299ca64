"""The outbox of callbacks in MongoDB: each callback is a ledger's document, each delivery one of its steps."""

from __future__ import annotations

from app.storage import mongo_documents as documents
from app.storage.mongo_connection import Collection, Document
from app.storage.mongo_ledger import Ledger, Step
from app.storage.records import DeliveryAttempt, JobRef, Outbound


class Outbox:
    def __init__(self, callbacks: Collection, deliveries: Collection) -> None:
        self._callbacks = callbacks
        self._deliveries = deliveries
        self._ledger = Ledger(callbacks, deliveries)

    async def add(self, callback: Document) -> None:
        await self._ledger.begin(callback, {})

    async def take_due(self, now: float, hold_sec: float, limit: int) -> list[Outbound]:
        """Pending callbacks that are due, at most one of a job (its oldest), held against other takers."""

        def hold(document: Document) -> Step | None:
            due = document["state"] == "pending" and document["next_attempt_at"] <= now
            return Step({"next_attempt_at": now + hold_sec}) if due else None

        taken: list[Outbound] = []
        query = {"state": "pending", "next_attempt_at": {"$lte": now}}
        async for candidate in self._callbacks.find(query).sort("next_attempt_at", 1):
            if len(taken) == limit:
                break
            earlier = {"job": candidate["job"], "state": "pending", "number": {"$lt": candidate["number"]}}
            if await self._callbacks.find_one(earlier) is None and await self._ledger.change(candidate["_id"], hold):
                taken.append(documents.callback_of(candidate))
        return taken

    async def next_due(self) -> float | None:
        pending = self._callbacks.find({"state": "pending"}, {"next_attempt_at": 1}).sort("next_attempt_at", 1).limit(1)
        return min([float(found["next_attempt_at"]) async for found in pending], default=None)

    async def record(self, attempt: DeliveryAttempt, state: str, next_attempt_at: float | None) -> None:
        def delivered(document: Document) -> Step:
            # Two deliveries may cross (a replay while one is under way); both count.
            number = max(attempt.number, document["deliveries"] + 1)
            after = {"state": state, "next_attempt_at": next_attempt_at, "deliveries": number}
            return Step({**after, "attempts": document["attempts"] + 1}, documents.delivery_fields(attempt, number))

        await self._ledger.change(attempt.webhook_id, delivered)

    async def of_job(self, ref: JobRef) -> list[tuple[Outbound, list[DeliveryAttempt]]]:
        found = []
        for callback in await self._of(ref):
            steps = self._deliveries.find({"of": callback["_id"], "number": {"$gt": 0}}).sort("number", 1)
            deliveries = [documents.delivery_of(step) async for step in steps]
            found.append((documents.callback_of(callback), deliveries))
        return found

    async def replay(self, ref: JobRef, now: float) -> int:
        again = Step({"state": "pending", "next_attempt_at": now, "attempts": 0})
        replayed = [await self._ledger.change(callback["_id"], lambda _: again) for callback in await self._of(ref)]
        return len(replayed)

    async def _of(self, ref: JobRef) -> list[Document]:
        cursor = self._callbacks.find({"job": str(ref)}).sort("number", 1)
        return await self._ledger.caught_up([callback async for callback in cursor])
