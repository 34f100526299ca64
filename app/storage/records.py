"""The record store: jobs, their events, callbacks, uploads and idempotency keys.

What must have one winner among all service processes (an `oid`, a claim, an idempotency key, the lead of a fingerprint)
is decided by the store. A status moves by compare-and-set along `LEGAL_MOVES`; a write by somebody who no longer owns
the job changes nothing and says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from app.errors import Conflict

LEGAL_MOVES: Mapping[str, frozenset[str]] = {
    "queued": frozenset({"running", "completed", "failed", "cancelled"}),  # completed: an earlier result was copied
    "running": frozenset({"queued", "completed", "failed", "cancelled"}),  # queued: given back or lost, to run again
    "completed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

RELEASED: Mapping[str, Any] = {"owner": None, "lease_until": None, "child_pid": None, "child_started": None}
"""The changes by which a job belongs to nobody."""


@dataclass(frozen=True)
class JobRecord:
    """A job's row. Times are Unix seconds."""

    uid: str
    pid: str
    oid: str
    action: str
    kind: str
    parameters: dict[str, Any]
    slot: str
    created_at: float
    output_name: str | None = None
    callback_url: str | None = None
    force: bool = False
    retry_of: str | None = None
    seq: int = 0
    """Order of acceptance, over all projects; set by the store."""
    status: str = "queued"
    phase: str | None = None
    progress: float = 0.0
    attempt: int = 0
    """How many times the job's process was started."""
    owner: str | None = None
    claim: int = 0
    """Counts claims and releases; a write that bears an older number is refused (a fencing token)."""
    lease_until: float | None = None
    child_pid: int | None = None
    child_started: int | None = None
    """The child's start time in clock ticks since boot, so that a pid used again is not mistaken for it."""
    cancel_requested: bool = False
    fingerprint: str | None = None
    cached_from: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    metrics: dict[str, Any] | None = None
    artifact_files: tuple[str, ...] = ()
    error: dict[str, Any] | None = None

    @property
    def ref(self) -> JobRef:
        return JobRef(self.pid, self.oid)


@dataclass(frozen=True)
class JobRef:
    """The name of a job (or an upload): unique over all users."""

    pid: str
    oid: str

    def __str__(self) -> str:
        return f"{self.pid}/{self.oid}"


def oid_of(number: int) -> str:
    """The one spelling of a project's n-th `oid`: O1 and O00001 are not O0001, their artifacts would lie elsewhere."""
    return f"O{number:04d}"


@dataclass(frozen=True)
class Event:
    """Something that happened to a job. `number` counts from 1 within the job; set by the store."""

    type: str
    data: dict[str, Any]
    at: float
    number: int = 0


@dataclass(frozen=True)
class IdempotencyKey:
    """A caller's promise that two requests are one; `body_sha256` is what the first one asked for."""

    uid: str
    key: str
    body_sha256: str


@dataclass(frozen=True)
class Outbound:
    """A callback to be delivered. `state` is pending, delivered or failed; a replay counts `attempts` anew."""

    webhook_id: str
    ref: JobRef
    url: str
    body: str
    state: str = "pending"
    next_attempt_at: float | None = None
    attempts: int = 0


@dataclass(frozen=True)
class DeliveryAttempt:
    """One delivery of a callback, as it went."""

    webhook_id: str
    number: int
    at: float
    duration_ms: float
    http_status: int | None
    outcome: str


@dataclass(frozen=True)
class Move:
    """A change of status by the owner of a claim (or, with `claim` None, of a job that nobody owns)."""

    to: str
    claim: int | None
    changes: Mapping[str, Any] = field(default_factory=dict)
    event: Event | None = None
    callback: Outbound | None = None


class IdempotencyMismatch(Conflict):
    """The same key came before with another body."""

    code, status = "IDEMPOTENCY_KEY_REUSED", 422

    def __init__(self, first: JobRef) -> None:
        super().__init__(
            "this Idempotency-Key came before with another request",
            expected="the same route and body as the first time",
            received=f"a different one; the key belongs to {first}",
            hint="draw a new key for a new request",
        )


class RecordStore(Protocol):
    """Keeps records. Every method raises StoreUnavailable when the store does not answer.

    What a method has returned is durable: it survives the loss of power.
    """

    async def start(self) -> None:
        """Makes the store usable (schema, indexes); raises StoreUnavailable with what to mend."""

    async def close(self) -> None: ...

    async def check(self) -> None:
        """Raises StoreUnavailable unless the store answers now."""

    # -- accepting ------------------------------------------------------------------------------------------------
    async def accept(self, draft: JobRecord, key: IdempotencyKey | None = None) -> tuple[JobRecord, bool]:
        """Draws the `oid`, stores the job with its first event, and says whether it is an earlier one (same key).

        Raises IdempotencyMismatch for a known key with another body.
        """

    async def draw_upload(self, uid: str, pid: str) -> JobRef:
        """Draws an `oid` for an upload; never the `oid` of a job, never twice."""

    async def owner_of(self, ref: JobRef) -> str | None:
        """The uid whose job or upload this is; None where the service never drew that `oid`."""

    # -- reading --------------------------------------------------------------------------------------------------
    async def get(self, ref: JobRef) -> JobRecord | None: ...

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
        """The user's jobs, newest first, with `seq` below `before`."""

    async def events(self, ref: JobRef, *, after: int = 0, limit: int = 500) -> list[Event]:
        """A job's events in order, those with a number above `after`."""

    async def counts(self) -> dict[tuple[str, str], int]:
        """How many jobs are (status, slot), for those that have not ended."""

    # -- running --------------------------------------------------------------------------------------------------
    async def claim(
        self, owner: str, lease_until: float, slot: str, actions: Collection[str], limit: int
    ) -> list[JobRecord]:
        """Takes at most `limit` queued jobs of a slot and of these actions that nobody owns, oldest first.

        Each job has one taker.
        """

    async def renew(self, owner: str, lease_until: float) -> dict[JobRef, JobRecord]:
        """Extends the leases of all that `owner` holds, and returns those jobs as they are now."""

    async def orphans(self, now: float, dead_owners: frozenset[str] = frozenset()) -> list[JobRecord]:
        """Unfinished jobs whose lease ended before `now`, or whose owner is one of `dead_owners`.

        So are running jobs that nobody owns: a release was written whose job was thought to be queued still.
        """

    async def owners(self) -> set[str]:
        """Everybody who owns an unfinished job."""

    async def move(self, ref: JobRef, move: Move) -> JobRecord | None:
        """Changes the status, with its event and callback in the same step.

        None, and nothing changed, where the claim is not the current one or the move is not in LEGAL_MOVES.
        """

    async def update(self, ref: JobRef, claim: int, changes: Mapping[str, Any], event: Event | None = None) -> bool:
        """Changes fields of a job that is owned under `claim`; False, and nothing changed, where it is not."""

    async def request_cancel(self, ref: JobRef) -> JobRecord | None:
        """Notes the wish to cancel on an unfinished job and returns it; None where it is unknown or has ended."""

    async def lead(self, fingerprint: str, ref: JobRef) -> JobRef:
        """Makes `ref` the one that runs this work, unless another does; returns the one that does."""

    async def unlead(self, fingerprint: str, ref: JobRef) -> None:
        """Ends the lead of `ref`, if it has it."""

    async def completed_twin(self, fingerprint: str) -> JobRecord | None:
        """The newest completed job with this fingerprint that did the work itself."""

    # -- callbacks ------------------------------------------------------------------------------------------------
    async def due_callbacks(self, now: float, hold_sec: float, limit: int = 50) -> list[Outbound]:
        """Pending callbacks whose time has come, the oldest of each job only; nobody else gets them for `hold_sec`."""

    async def next_callback_at(self) -> float | None:
        """When the next pending callback is due."""

    async def record_delivery(self, attempt: DeliveryAttempt, state: str, next_attempt_at: float | None) -> None:
        """Notes a delivery and what is to become of its callback; one that crossed another gets the next number."""

    async def callbacks(self, ref: JobRef) -> list[tuple[Outbound, list[DeliveryAttempt]]]:
        """A job's callbacks with all their deliveries."""

    async def replay_callbacks(self, ref: JobRef, now: float) -> int:
        """Makes all of a job's callbacks pending again, under the same webhook ids; returns how many."""

    async def expire(self, before: float) -> None:
        """Forgets idempotency keys that were made before a moment."""
