"""What routes are given: the wired services, the user behind the key, the job that a path names.

All of them are coroutines, those that await nothing too: FastAPI would send a plain function to a thread and back.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, cast
from urllib.parse import urlsplit

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from app.config import Settings
from app.errors import ForeignOrigin, Unauthenticated
from app.jobs.service import Jobs
from app.schemas.common import Oid, Pid
from app.storage.records import JobRecord, JobRef

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")

_bearer = HTTPBearer(auto_error=False, description="An API key of the setting API_KEYS.")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key, for tools that cannot do Bearer.")


class KeyRing:
    """The API keys, kept as SHA-256 only; compared in constant time, and all of them each time."""

    def __init__(self, pairs: Sequence[tuple[str, str]], local_uid: str) -> None:
        self._hashes = [(hashlib.sha256(key.encode()).hexdigest(), uid) for key, uid in pairs]
        self._local_uid = local_uid

    @property
    def is_open(self) -> bool:
        """Whether there is no key, and so one local user."""
        return not self._hashes

    def uid(self, key: str | None) -> str:
        """The user of a key. Raises Unauthenticated."""
        if self.is_open:
            return self._local_uid
        presented = hashlib.sha256((key or "").encode("utf-8", "surrogateescape")).hexdigest()
        matches = [uid for known, uid in self._hashes if hmac.compare_digest(known, presented)]
        if key is None or not matches:
            logger.info("refused a request with %s", f"key sha256:{presented[:12]}" if key else "no key")
            raise Unauthenticated(
                "this service asks for an API key",
                expected="`Authorization: Bearer KEY` or `X-API-Key: KEY`",
                received="no key" if key is None else "a key that is not known here",
                hint="ask the operator for a key, or add one to API_KEYS",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return matches[0]


@dataclass(frozen=True)
class Services:
    """All that the composition root wired together."""

    settings: Settings
    jobs: Jobs
    keys: KeyRing


async def services(request: Request) -> Services:
    return cast(Services, request.state.services)


ServicesDep = Annotated[Services, Depends(services)]


async def current_uid(
    request: Request,
    wired: ServicesDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    header: Annotated[str | None, Security(_header)],
) -> str:
    if wired.keys.is_open:
        _refuse_foreign_pages(request, wired.settings)
    return wired.keys.uid(bearer.credentials if bearer else header)


def _refuse_foreign_pages(request: Request, settings: Settings) -> None:
    """Without keys a browser is the way in: a page of any site can post to the loopback, or give it a name of its own.

    Raises ForeignOrigin for a page of another site, and on the loopback for a Host that is not the loopback's.
    """
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    try:
        name = urlsplit(f"//{host}").hostname
        foreign = origin is not None and urlsplit(origin).netloc != host
    except ValueError:
        name, foreign = None, True
    if foreign or (settings.bind_host in LOOPBACK and name not in LOOPBACK):
        raise ForeignOrigin(
            "without API keys this service answers local programs, not pages of other sites",
            expected=f"Host {' or '.join(LOOPBACK)}, and no Origin of another site",
            received=f"Host {host[:100]}, Origin {str(origin)[:100]}",
            hint="set API_KEYS, and a page may ask with a key",
        )


UidDep = Annotated[str, Depends(current_uid)]


async def jobs(wired: ServicesDep) -> Jobs:
    return wired.jobs


JobsDep = Annotated[Jobs, Depends(jobs)]


async def job_ref(pid: Pid, oid: Oid) -> JobRef:
    return JobRef(pid, oid)


RefDep = Annotated[JobRef, Depends(job_ref)]


async def own_job(uid: UidDep, use: JobsDep, ref: RefDep) -> JobRecord:
    """The job of the path, if it is this user's. Raises NotFound."""
    return await use.job(uid, ref)


OwnJobDep = Annotated[JobRecord, Depends(own_job)]
