"""Callbacks: what is sent when a job ends, signed by Standard Webhooks, from an outbox, until it is taken.

Specification: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import os
import random
import secrets
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import anyio
import httpcore2

from app.config import SECRET_PREFIX, Settings
from app.errors import ServiceError
from app.jobs.callback_http import GuardedClient
from app.jobs.hub import wait_for_event
from app.jobs.telemetry import Telemetry
from app.schemas.common import ErrorDetail
from app.schemas.job import CallbackBody, JobDetails, JobInfo
from app.storage.artifacts import job_prefix
from app.storage.records import DeliveryAttempt, JobRecord, Outbound, RecordStore

logger = logging.getLogger(__name__)

DELIVERIES_AT_ONCE = 8
HOLD_MARGIN_SEC = 5.0
JITTER = 0.1
GONE = 410
MAX_RETRY_AFTER_SEC = 86400.0


def outbound(job: JobRecord, settings: Settings, workdir: Path, now: float) -> Outbound | None:
    """The callback of a job that has ended; None where nobody asked for one."""
    url = job.callback_url or settings.callback_url
    if url is None:
        return None
    body = CallbackBody(
        type=f"job.{job.status}",
        timestamp=datetime.fromtimestamp(now, timezone.utc),
        uid=job.uid,
        pid=job.pid,
        oid=job.oid,
        action=job.action,
        status=job.status,
        details=JobDetails(kind=job.kind),
        info=JobInfo(workdir=str(workdir)),
        metrics=job.metrics,
        artifacts_path=job_prefix(job.pid, job.oid),
        artifact_files=list(job.artifact_files),
        error=ErrorDetail(**job.error) if job.error else None,
    )
    identity = hashlib.sha256(f"{job.uid}/{job.ref}/{job.status}".encode()).hexdigest()[:32]
    return Outbound(f"msg_{identity}", job.ref, url, body.model_dump_json(), "pending", now)


def signature(secret: str, webhook_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` of a delivery: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    digest = hmac.new(key, f"{webhook_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def load_secret(settings: Settings) -> str:
    """The signing secret of the settings; where there is none, one that is made once and kept in the state folder."""
    if (given := settings.signing_secret()) is not None:
        return given
    kept = settings.state_dir / "callback_secret"
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    if not kept.exists():
        made = kept.with_name(f"{kept.name}.{secrets.token_hex(8)}")
        made.touch(mode=0o600)
        made.write_text(SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode())
        with suppress(FileExistsError):  # another service process was first
            os.link(made, kept)
        made.unlink()
    return kept.read_text().strip()


class Deliverer:
    """Sends what is due from the outbox; every attempt is recorded, whatever came of it."""

    def __init__(self, settings: Settings, records: RecordStore, telemetry: Telemetry, client: GuardedClient) -> None:
        self._settings = settings
        self._records = records
        self._telemetry = telemetry
        self._client = client
        self._secret = load_secret(settings)
        self._wake = asyncio.Event()
        self._places = asyncio.Semaphore(DELIVERIES_AT_ONCE)
        self._sending: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Delivers for ever; cancelled at the end of the service. What is under way then is sent again later."""
        try:
            while True:
                await wait_for_event(self._wake, await self._round())
        finally:
            for task in self._sending:
                task.cancel()

    async def _round(self) -> float:
        """Starts what is due; how long to sleep then, in seconds."""
        now = time.time()
        try:
            hold_sec = self._settings.callback_timeout_sec + HOLD_MARGIN_SEC
            for callback in await self._records.due_callbacks(now, hold_sec, DELIVERIES_AT_ONCE):
                await self._places.acquire()
                task = asyncio.ensure_future(self._deliver(callback))
                self._sending.add(task)
                task.add_done_callback(self._sent)
            following = await self._records.next_callback_at()
        except ServiceError as error:
            logger.warning("callbacks wait for the record store: %s", error.message)
            return 5.0
        return min(max((following or now + 5.0) - time.time(), 0.01), 5.0)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._places.release()
        self._wake.set()
        if not task.cancelled() and (error := task.exception()):
            logger.warning("a delivery could not be recorded and will be made again: %r", error)

    async def _deliver(self, callback: Outbound) -> None:
        began, moment = time.monotonic(), time.time()
        status, outcome, retry_after_sec = await self._post(callback, int(moment))
        number = callback.attempts + 1
        attempt = DeliveryAttempt(
            callback.webhook_id, number, moment, (time.monotonic() - began) * 1000, status, outcome
        )
        state, when = self._next(status, number, retry_after_sec)
        self._telemetry.deliveries.labels("delivered" if state == "delivered" else "refused").inc()
        await self._records.record_delivery(attempt, state, when)

    async def _post(self, callback: Outbound, timestamp: int) -> tuple[int | None, str, float]:
        """HTTP status, what happened in words, and how long the receiver asks us to wait."""
        body = callback.body.encode()
        headers = {
            "content-type": "application/json",
            "user-agent": "optimizing-api",
            "webhook-id": callback.webhook_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._secret, callback.webhook_id, timestamp, body),
        }
        try:
            with anyio.fail_after(self._settings.callback_timeout_sec):
                status, fields = await self._client.post(callback.url, headers, body)
        except TimeoutError:
            return None, f"no answer within {self._settings.callback_timeout_sec:g} s", 0
        except (
            httpcore2.NetworkError,
            httpcore2.ProtocolError,
            httpcore2.TimeoutException,
            OSError,
            ValueError,
        ) as error:
            return None, f"{type(error).__name__}: {error}"[:300], 0
        return status, f"HTTP {status}", _retry_after(fields.get("retry-after", ""))

    def _next(self, status: int | None, number: int, retry_after_sec: float) -> tuple[str, float | None]:
        """What becomes of a callback after its delivery: a 2xx is the only success, 410 the only final refusal."""
        if status is not None and 200 <= status < 300:
            return "delivered", None
        waits = self._settings.callback_retry_sec
        if status == GONE or number > len(waits):
            return "failed", None
        wait = max(waits[number - 1] * random.uniform(1 - JITTER, 1 + JITTER), retry_after_sec)  # noqa: S311
        return "pending", time.time() + wait


def _retry_after(text: str) -> float:
    """The seconds of a Retry-After header; its other form, a date, is not followed."""
    return min(float(text), MAX_RETRY_AFTER_SEC) if text.isascii() and text.isdigit() else 0.0
