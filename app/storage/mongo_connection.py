"""A connection to MongoDB, by PyMongo's asynchronous client or by Motor, and what its errors mean."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import ConfigurationError, OperationFailure, PyMongoError

from app.config import Settings
from app.errors import StoreFull, StoreUnavailable

P = ParamSpec("P")
T = TypeVar("T")
Document = dict[str, Any]
Collection = AsyncCollection[Document]

UNANSWERED_MS = 3_000
"""How long an operation looks for a server before it gives up; a POST is then answered with 503."""

SILENT_MS = 20_000
"""How long a connected server may take for one answer."""

AUTHENTICATION_FAILED, UNAUTHORIZED, OUT_OF_DISK_SPACE = 18, 13, 14031
"""https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml"""

OPTIONS: dict[str, Any] = {
    "appname": "optimizing-api",
    "serverSelectionTimeoutMS": UNANSWERED_MS,
    "connectTimeoutMS": UNANSWERED_MS,
    "socketTimeoutMS": SILENT_MS,
    # What was answered survives the loss of power, and of the primary where there are several.
    "w": "majority",
    "journal": True,
}


class MongoConnection:
    """A client of the driver that the settings choose. It belongs to the event loop in which it was opened.

    Motor has the same calls and names; `close` and `aggregate` differ in what is awaited.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = settings.secret("mongo_url") or ""
        self._name = settings.mongo_database
        self._driver = settings.mongo_driver
        self._client: Any = None

    def open(self) -> AsyncDatabase[Document]:
        """The database; no server is asked yet. Raises StoreUnavailable for a URL that cannot be used."""
        try:
            self._client = _client_class(self._driver)(self._url, **OPTIONS)
        except (ConfigurationError, ValueError) as error:  # their texts may hold a part of the password
            raise StoreUnavailable(
                "MONGO_URL cannot be understood",
                received=type(error).__name__,
                hint="write mongodb://user:password@host:27017/, with user and password percent-encoded",
            ) from None
        database: AsyncDatabase[Document] = self._client[self._name]
        return database

    async def close(self) -> None:
        if self._client is not None and inspect.isawaitable(closing := self._client.close()):
            await closing


def _client_class(driver: str) -> Callable[..., Any]:
    if driver == "pymongo":
        return AsyncMongoClient
    from motor.motor_asyncio import AsyncIOMotorClient  # noqa: PLC0415 - only for those who ask for it

    return AsyncIOMotorClient


async def aggregate(collection: Collection, pipeline: Sequence[Document]) -> AsyncIterator[Document]:
    cursor: Any = collection.aggregate(pipeline)
    async for document in (await cursor) if inspect.isawaitable(cursor) else cursor:
        yield document


def told(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Makes a method raise StoreUnavailable or StoreFull where the driver raises an error of its own."""

    @functools.wraps(method)
    async def telling(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return await method(*arguments, **named)
        except PyMongoError as error:
            raise _meaning(error) from error

    return telling


def _meaning(error: PyMongoError) -> StoreUnavailable | StoreFull:
    code = error.code if isinstance(error, OperationFailure) else None
    text = str(error).partition(", Timeout:")[0].partition(", full error:")[0][:300]
    if code == OUT_OF_DISK_SPACE:
        return StoreFull("the record store's disk is full", received=text, hint="free space on the MongoDB server")
    if code == AUTHENTICATION_FAILED:
        return StoreUnavailable(
            "the record store refuses the user of MONGO_URL",
            received=text,
            hint="check user, password and authSource in MONGO_URL",
        )
    if code == UNAUTHORIZED:
        return StoreUnavailable(
            "the user of MONGO_URL may not do this", received=text, hint="name one that has readWrite on MONGO_DATABASE"
        )
    return StoreUnavailable(
        "the record store does not answer", received=text, hint="check that MongoDB runs where MONGO_URL says"
    )
