"""Documents that change by steps, where each step has one winner on every server that speaks MongoDB's protocol.

A change is the *insert* of a step under the unique id `<document>#<n>`: whoever inserts it has made the change, with
all that belongs to it (an event, a callback), at once and durably. The document holds what its steps add up to, for
queries; it is brought up to date right after, by compare-and-set on `rev`, the number of steps in it. A reader looks
whether the next step exists already and catches up: the writer may have died in between, and servers whose updates are
not atomic may lose one update to another (FerretDB does; its inserts under a unique index are right).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from pymongo.errors import DuplicateKeyError

from app.storage.mongo_connection import Collection, Document


@dataclass(frozen=True)
class Step:
    """What a change sets in the document, and what else is told of it in the step's own document."""

    changes: Mapping[str, Any]
    fields: Mapping[str, Any] = field(default_factory=dict)


Decide = Callable[[Document], "Step | None"]
Effects = Callable[[Document, Document], Awaitable[None]]


class Ledger:
    """The documents of one collection, with their steps in another.

    `effects(document as it is after the step, step)` writes what a step entails elsewhere. It runs at least once a
    step, before the document shows that step.
    """

    def __init__(self, documents: Collection, steps: Collection, effects: Effects | None = None) -> None:
        self._documents = documents
        self._steps = steps
        self._effects = effects
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def begin(self, document: Document, fields: Mapping[str, Any]) -> None:
        """Adds a document with its first step; no harm where another did the same."""
        with suppress(DuplicateKeyError):
            await self._steps.insert_one({"_id": _step_id(document, 1), "of": document["_id"], "changes": {}, **fields})
        with suppress(DuplicateKeyError):
            await self._documents.insert_one({**document, "rev": 1})

    async def get(self, id_: str) -> Document | None:
        document = await self._documents.find_one({"_id": id_})
        return None if document is None else (await self.caught_up([document]))[0]

    async def caught_up(self, documents: Sequence[Document]) -> list[Document]:
        """The documents, with the steps that they do not show yet."""
        now = {document["_id"]: document for document in documents}
        looked: Iterable[Document] = documents
        while steps := await self._next_steps(looked):
            for step in steps:
                now[step["of"]] = await self._show(now[step["of"]], step)
            looked = [now[step["of"]] for step in steps]
        return list(now.values())

    async def change(self, id_: str, decide: Decide, token: str | None = None) -> Document | None:
        """Makes the change that `decide` chooses for the document as it is, and returns the document after it.

        None where there is no such document, or `decide` chose None. `decide` may be asked several times. A change
        whose `token` is that of the last step was made before (its answer was lost): it is not made again.
        """
        async with self._locks.setdefault(id_, asyncio.Lock()):
            while True:
                document = await self.get(id_)
                if document is None or (token is not None and document.get("token") == token):
                    return document
                chosen = decide(document)
                if chosen is None:
                    return None
                changes = {**chosen.changes, "token": token, "rev": document["rev"] + 1}
                step = {"_id": _step_id(document, changes["rev"]), "of": id_, "changes": changes, **chosen.fields}
                try:
                    await self._steps.insert_one(step)
                except DuplicateKeyError:  # somebody else's step came first: look again
                    continue
                return await self._show(document, step)

    async def _next_steps(self, documents: Iterable[Document]) -> list[Document]:
        wanted = [_step_id(document, document["rev"] + 1) for document in documents]
        if len(wanted) == 1:  # by far the most frequent; servers without a query planner know this form best
            step = await self._steps.find_one({"_id": wanted[0]})
            return [] if step is None else [step]
        return [step async for step in self._steps.find({"_id": {"$in": wanted}})] if wanted else []

    async def _show(self, document: Document, step: Document) -> Document:
        after = {**document, **step["changes"]}
        if self._effects is not None:
            await self._effects(after, step)
        await self._documents.update_one(
            {"_id": document["_id"], "rev": document["rev"]}, {"$set": dict(step["changes"])}
        )
        return after


def _step_id(document: Document, number: int) -> str:
    return f"{document['_id']}#{number}"
