"""Records in MongoDB, or a server that speaks its protocol. Any number of service processes may share the database.

Collections: `oids` (every oid drawn, for jobs and uploads, with the idempotency key it was drawn under), `jobs` and
their steps in `events`, `callbacks` and theirs in `deliveries`, `metrics` (of ended jobs, for those who query them),
`leads`, `leases`. What must have one winner is an insert under a unique index; see `app.storage.mongo_ledger`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from pymongo.errors import DuplicateKeyError

from app.config import Settings
from app.storage import mongo_documents as documents
from app.storage.mongo_callbacks import Outbox
from app.storage.mongo_connection import Document, MongoConnection, aggregate, told
from app.storage.mongo_indexes import make_indexes
from app.storage.mongo_ledger import Decide, Ledger, Step
from app.storage.records import (
    LEGAL_MOVES,
    RELEASED,
    DeliveryAttempt,
    Event,
    IdempotencyKey,
    IdempotencyMismatch,
    JobRecord,
    JobRef,
    Move,
    Outbound,
    oid_of,
)

UNFINISHED = [status for status, moves in LEGAL_MOVES.items() if moves]
OWNED = {"$gt": ""}
"""Owned by anybody; unlike `$ne: null` it can use an index."""


class MongoRecords:
    """A `RecordStore` in a MongoDB database. It belongs to the event loop in which it was started."""

    def __init__(self, settings: Settings) -> None:
        self._connection = MongoConnection(settings)
        self._drawing = asyncio.Lock()
        self._claiming = asyncio.Lock()
        self._leading = asyncio.Lock()

    @told
    async def start(self) -> None:
        self._database = database = self._connection.open()
        try:
            await database.command("ping")
            await make_indexes(database)
        except BaseException:
            await self._connection.close()
            raise
        self._outbox = Outbox(database["callbacks"], database["deliveries"])
        self._jobs = Ledger(database["jobs"], database["events"], self._entailed)

    async def close(self) -> None:
        await self._connection.close()

    @told
    async def check(self) -> None:
        await self._database.command("ping")

    # -- accepting ------------------------------------------------------------------------------------------------
    @told
    async def accept(self, draft: JobRecord, key: IdempotencyKey | None = None) -> tuple[JobRecord, bool]:
        row, earlier = await self._draw(draft.uid, draft.pid, draft.created_at, key)
        ref = JobRef(row["pid"], oid_of(row["number"]))
        if earlier and (job := await self._get(ref)):
            return job, True
        # Where an earlier request drew the oid but did not come to its job, this one, which is the same, makes it.
        job = replace(draft, oid=ref.oid, seq=row["seq"])
        born = Event("state", {"status": "queued"}, job.created_at)
        await self._jobs.begin(documents.job_document(job), documents.event_fields(born, 1))
        return job, earlier

    @told
    async def draw_upload(self, uid: str, pid: str) -> JobRef:
        row, _ = await self._draw(uid, pid, time.time(), None)
        return JobRef(pid, oid_of(row["number"]))

    async def _draw(self, uid: str, pid: str, now: float, key: IdempotencyKey | None) -> tuple[Document, bool]:
        """Draws the next oid, in one insert with the key that it belongs to; or the row that has that key already.

        Both numbers are the next after the largest, so that rows have no gaps: who finds one taken looks again.
        """
        oids = self._database["oids"]
        # While the store is away its callers shall hear so beside each other, not one after the other at the lock.
        await self._database.command("ping")
        while True:
            async with self._drawing:
                if key and (row := await oids.find_one({"key": f"{key.uid}/{key.key}"})):
                    if row["body_sha256"] != key.body_sha256:
                        raise IdempotencyMismatch(JobRef(row["pid"], oid_of(row["number"])))
                    return row, True
                number = await self._largest("number", {"pid": pid}) + 1
                seq = await self._largest("seq", {}) + 1
                id_ = str(JobRef(pid, oid_of(number)))
                row = {"_id": id_, "pid": pid, "number": number, "seq": seq, "uid": uid, "at": now, "keyed": bool(key)}
                row["key"] = f"{key.uid}/{key.key}" if key else id_
                row["body_sha256"] = key.body_sha256 if key else None
                with suppress(DuplicateKeyError):
                    await oids.insert_one(row)
                    return row, False
            await asyncio.sleep(random.uniform(0, 0.01))  # noqa: S311 - another process draws at the same moment

    async def _largest(self, name: str, among: Document) -> int:
        found = self._database["oids"].find(among, {"_id": 0, name: 1}).sort(name, -1).limit(1)
        return max([int(row[name]) async for row in found], default=0)

    @told
    async def owner_of(self, ref: JobRef) -> str | None:
        row = await self._database["oids"].find_one({"_id": str(ref)})
        return str(row["uid"]) if row else None

    # -- reading --------------------------------------------------------------------------------------------------
    @told
    async def get(self, ref: JobRef) -> JobRecord | None:
        return await self._get(ref)

    async def _get(self, ref: JobRef) -> JobRecord | None:
        document = await self._jobs.get(str(ref))
        return documents.job_of(document) if document else None

    async def _those(self, query: Document, newest: bool = False, limit: int = 0) -> list[JobRecord]:
        """Jobs in the order of acceptance, as they are now: one that has moved on since may not fit the query."""
        cursor = self._database["jobs"].find(query).sort("seq", -1 if newest else 1).limit(limit)
        return [documents.job_of(found) for found in await self._jobs.caught_up([one async for one in cursor])]

    @told
    async def find(
        self,
        uid: str,
        *,
        pid: str | None = None,
        status: str | None = None,
        action: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> list[JobRecord]:
        wanted = {"uid": uid, "pid": pid, "status": status, "action": action}
        query: Document = {name: value for name, value in wanted.items() if value is not None}
        if before is not None:
            query["seq"] = {"$lt": before}
        return await self._those(query, newest=True, limit=limit)

    @told
    async def events(self, ref: JobRef, *, after: int = 0, limit: int = 500) -> list[Event]:
        query = {"of": str(ref), "number": {"$gt": after}}
        cursor = self._database["events"].find(query).sort("number", 1).limit(limit)
        return [documents.event_of(step) async for step in cursor]

    @told
    async def counts(self) -> dict[tuple[str, str], int]:
        group = {"_id": {"status": "$status", "slot": "$slot"}, "n": {"$sum": 1}}
        found = aggregate(self._database["jobs"], [{"$match": {"status": {"$in": UNFINISHED}}}, {"$group": group}])
        return {(row["_id"]["status"], row["_id"]["slot"]): row["n"] async for row in found}

    # -- running --------------------------------------------------------------------------------------------------
    @told
    async def claim(
        self, owner: str, lease_until: float, slot: str, actions: Collection[str], limit: int
    ) -> list[JobRecord]:
        query = {"status": "queued", "owner": None, "slot": slot, "action": {"$in": list(actions)}}
        taken: list[JobRecord] = []
        lost: set[JobRef] = set()
        async with self._claiming:  # else all claims of this process would race for the same jobs
            while len(taken) < limit:
                free = await self._those(query, limit=limit - len(taken))
                if not {job.ref for job in free} - lost:
                    break
                await self._lease(owner, lease_until)
                for job in free:
                    mine = await self._claim_one(job.ref, owner, lease_until)
                    if mine is None:
                        lost.add(job.ref)
                    else:
                        taken.append(mine)
        return taken

    async def _claim_one(self, ref: JobRef, owner: str, lease_until: float) -> JobRecord | None:
        def decide(document: Document) -> Step | None:
            if document["status"] != "queued" or document["owner"] is not None:
                return None
            return _step(document, {"owner": owner, "lease_until": lease_until, "claim": document["claim"] + 1})

        return await self._change(ref, decide)

    async def _lease(self, owner: str, until: float) -> None:
        """One lease an owner, in a document that nobody else writes."""
        with suppress(DuplicateKeyError):  # this process made it at the same moment
            await self._database["leases"].update_one({"_id": owner}, {"$set": {"until": until}}, upsert=True)

    @told
    async def renew(self, owner: str, lease_until: float) -> dict[JobRef, JobRecord]:
        await self._lease(owner, lease_until)
        held = [job for job in await self._those({"owner": owner}) if job.owner == owner]
        return {job.ref: replace(job, lease_until=lease_until) for job in held}

    @told
    async def orphans(self, now: float, dead_owners: frozenset[str] = frozenset()) -> list[JobRecord]:
        jobs = await self._those({"$or": [{"owner": OWNED}, {"status": "running"}]})
        leases = {lease["_id"]: lease["until"] async for lease in self._database["leases"].find({})}
        return [
            job
            for job in jobs
            if (job.owner is not None or job.status == "running")
            and (job.owner in dead_owners or leases.get(job.owner, 0.0) < now)
        ]

    @told
    async def owners(self) -> set[str]:
        return set(await self._database["jobs"].distinct("owner", {"owner": OWNED}))

    @told
    async def move(self, ref: JobRef, move: Move) -> JobRecord | None:
        def decide(document: Document) -> Step | None:
            if move.to not in LEGAL_MOVES[document["status"]]:
                return None
            if (document["owner"] is not None or move.claim is not None) and document["claim"] != move.claim:
                return None
            changes = {**move.changes, "status": move.to}
            if move.to != "running":
                changes = {**changes, **RELEASED, "claim": document["claim"] + 1}
            return _step(document, changes, move.event, move.callback)

        return await self._change(ref, decide, _token(move))

    @told
    async def update(self, ref: JobRef, claim: int, changes: Mapping[str, Any], event: Event | None = None) -> bool:
        def decide(document: Document) -> Step | None:
            if document["owner"] is None or document["claim"] != claim:
                return None
            released = changes.get("owner", document["owner"]) is None
            return _step(document, {**changes, "claim": claim + 1} if released else changes, event)

        return await self._change(ref, decide) is not None

    @told
    async def request_cancel(self, ref: JobRef) -> JobRecord | None:
        def decide(document: Document) -> Step | None:
            return _step(document, {"cancel_requested": True}) if LEGAL_MOVES[document["status"]] else None

        return await self._change(ref, decide)

    async def _change(self, ref: JobRef, decide: Decide, token: str | None = None) -> JobRecord | None:
        document = await self._jobs.change(str(ref), decide, token)
        return documents.job_of(document) if document else None

    async def _entailed(self, document: Document, step: Document) -> None:
        """What else a job's step writes: its callback, and the metrics of an end."""
        if "callback" in step:
            await self._outbox.add(step["callback"])
        if document["status"] not in UNFINISHED and document["metrics"] is not None:
            with suppress(DuplicateKeyError):
                await self._database["metrics"].insert_one(documents.metrics_document(documents.job_of(document)))

    # -- the same work once ---------------------------------------------------------------------------------------
    @told
    async def lead(self, fingerprint: str, ref: JobRef) -> JobRef:
        leads = self._database["leads"]
        async with self._leading:
            while True:
                with suppress(DuplicateKeyError):
                    await leads.insert_one({"_id": fingerprint, "pid": ref.pid, "oid": ref.oid})
                    return ref
                if (row := await leads.find_one({"_id": fingerprint})) is not None:
                    return JobRef(row["pid"], row["oid"])

    @told
    async def unlead(self, fingerprint: str, ref: JobRef) -> None:
        async with self._leading:
            await self._database["leads"].delete_one({"_id": fingerprint, "pid": ref.pid, "oid": ref.oid})

    @told
    async def completed_twin(self, fingerprint: str) -> JobRecord | None:
        query = {"fingerprint": fingerprint, "status": "completed", "cached_from": None}
        return next(iter(await self._those(query, newest=True, limit=1)), None)

    # -- callbacks ------------------------------------------------------------------------------------------------
    @told
    async def due_callbacks(self, now: float, hold_sec: float, limit: int = 50) -> list[Outbound]:
        return await self._outbox.take_due(now, hold_sec, limit)

    @told
    async def next_callback_at(self) -> float | None:
        return await self._outbox.next_due()

    @told
    async def record_delivery(self, attempt: DeliveryAttempt, state: str, next_attempt_at: float | None) -> None:
        await self._outbox.record(attempt, state, next_attempt_at)

    @told
    async def callbacks(self, ref: JobRef) -> list[tuple[Outbound, list[DeliveryAttempt]]]:
        return await self._outbox.of_job(ref)

    @told
    async def replay_callbacks(self, ref: JobRef, now: float) -> int:
        return await self._outbox.replay(ref, now)

    @told
    async def expire(self, before: float) -> None:
        oids = self._database["oids"]
        async for row in oids.find({"keyed": True, "at": {"$lt": before}}):
            await oids.update_one({"_id": row["_id"]}, {"$set": {"keyed": False, "key": row["_id"]}})
        await self._database["leases"].delete_many({"until": {"$lt": before}})


def _step(
    document: Document, changes: Mapping[str, Any], event: Event | None = None, callback: Outbound | None = None
) -> Step:
    set_, fields = documents.encoded(changes), {}
    if event is not None:
        set_["events"] = document["events"] + 1
        fields = documents.event_fields(event, set_["events"])
    if callback is not None:
        fields["callback"] = documents.callback_document(callback, document["rev"])
    return Step(set_, fields)


def _token(move: Move) -> str:
    """The same for the same move asked for again: its answer may have been lost with the connection."""
    return hashlib.sha256(json.dumps(asdict(move), sort_keys=True, default=str).encode()).hexdigest()
