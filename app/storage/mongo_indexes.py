"""The indexes of the MongoDB record store, and the version of what lies there."""

from __future__ import annotations

import itertools
from contextlib import suppress

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError

from app.errors import StoreUnavailable
from app.storage.mongo_connection import Document

SCHEMA_VERSION = 1

# Every combination of the list's filters has an index that ends in `seq`, so that a page costs the same whether a user
# has a thousand jobs or a hundred thousand.
_FILTERS = ("pid", "status", "action")
_LISTS = [
    ("uid", *chosen, "seq") for size in range(len(_FILTERS) + 1) for chosen in itertools.combinations(_FILTERS, size)
]

INDEXES: dict[str, list[tuple[str, ...]]] = {
    "oids": [("pid", "number"), ("keyed", "at")],
    "jobs": [
        *_LISTS,
        ("status", "owner", "slot", "seq"),
        ("status", "slot"),
        ("owner", "seq"),
        ("fingerprint", "status", "seq"),
    ],
    "events": [("of", "number")],
    "callbacks": [("state", "next_attempt_at"), ("job", "number")],
    "deliveries": [("of", "number")],
    "metrics": [("pid", "action", "finished_at")],
}
UNIQUE = {"oids": ["seq", "key"]}
"""Besides every collection's `_id`, which is all else that must have one winner."""


async def make_indexes(database: AsyncDatabase[Document]) -> None:
    """Makes what is missing; several processes may do so at once. Raises StoreUnavailable for a newer schema."""
    with suppress(DuplicateKeyError):
        await database["meta"].insert_one({"_id": "schema", "version": SCHEMA_VERSION})
    schema = await database["meta"].find_one({"_id": "schema"})
    if schema is None or schema["version"] > SCHEMA_VERSION:
        raise StoreUnavailable(
            "the record store was made by a newer version of this service",
            received=f"schema {schema and schema['version']}; this one knows {SCHEMA_VERSION}",
            hint="run that version, or choose another MONGO_DATABASE",
        )
    for collection, of_collection in INDEXES.items():
        for names in of_collection:
            await database[collection].create_index([(name, 1) for name in names])
    for collection, unique in UNIQUE.items():
        for name in unique:
            await database[collection].create_index([(name, 1)], unique=True)
