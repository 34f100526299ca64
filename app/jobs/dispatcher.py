"""Takes jobs from the record store and sees each one to its end: claims, leases, cancels, what was left behind."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

import anyio.to_thread

from app.errors import ServiceError
from app.jobs import procfs
from app.jobs.control import Control
from app.jobs.hub import wait_for_event
from app.jobs.outcome import Outcome, Stop
from app.jobs.runner import Runner, lost_outcome
from app.schemas.kind import Slot
from app.storage.records import RELEASED, Event, JobRecord, JobRef, Move

logger = logging.getLogger(__name__)

POLL_SEC = 1.0
"""How often the queue is looked at without being told: another process may have put a job there."""

AHEAD = 4
"""Jobs claimed beyond what can run, so that their inputs are looked at while they wait."""

IDEMPOTENCY_SEC = 24 * 3600.0


class Dispatcher:
    """One a service process."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._records = runner.records
        self._settings = runner.settings
        self._actions = runner.registry.available()
        self.owner = procfs.owner_name()
        self._active: dict[JobRef, Control] = {}
        self._tasks: dict[JobRef, asyncio.Task[None]] = {}
        self._settling: dict[JobRef, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._draining = False
        self._store_away = False
        self._loops: list[asyncio.Task[None]] = []

    # -- life -----------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Settles what a former self left, then begins to take jobs."""
        owners = await self._records.owners()
        dead = frozenset(owner for owner in owners if procfs.is_dead_owner(owner))
        await self._reap(0.0, dead)  # leases that ran out are `_watch_dead`'s: their owners may just have been cut off
        await self._sweep_workspace()
        self._loops = [
            asyncio.ensure_future(self._forever(step)) for step in (self._take, self._tend, self._watch_dead)
        ]

    async def drain(self) -> None:
        """Takes no more jobs, lets running ones finish for a while, gives the rest back to the queue."""
        self._draining = True
        for control in list(self._active.values()):
            if control.job.status == "queued":
                control.stop(Stop.DRAIN)
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=self._settings.drain_timeout_sec)
        for control in list(self._active.values()):
            control.stop(Stop.DRAIN)
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()))
        left = [*self._loops, *self._settling.values()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def wake(self) -> None:
        self._wake.set()

    def cancel(self, ref: JobRef) -> bool:
        """Ends a job that this process holds; False where it holds none of that name."""
        control = self._active.get(ref)
        if control is not None:
            control.stop(Stop.CANCEL)
        return control is not None

    async def end_unowned(self, job: JobRecord) -> None:
        """Cancels a queued job that nobody has taken yet; if somebody does meanwhile, they see the wish to cancel."""
        await self._runner.finish(Control(job, Stop.CANCEL), Outcome("cancelled"))

    @staticmethod
    async def _forever(step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except ServiceError as error:
                logger.warning("the dispatcher waits for a store: %s", error.message)
                await asyncio.sleep(POLL_SEC)
            except Exception:
                logger.exception("the dispatcher made a mistake and goes on")
                await asyncio.sleep(POLL_SEC)

    # -- taking ---------------------------------------------------------------------------------------------------
    async def _take(self) -> None:
        await wait_for_event(self._wake, POLL_SEC)
        waiting = await self._records.counts()
        for status, slot in waiting:
            if status == "queued" and not self._draining:
                await self._claim(slot)

    async def _claim(self, slot: str) -> None:
        held = Counter(control.job.slot for control in self._active.values() if not control.following)
        room = self._runner.slots.width(Slot.parse(slot)) + AHEAD - held[slot]
        if room <= 0:
            return
        lease_until = time.time() + self._settings.job_lease_sec
        for job in await self._records.claim(self.owner, lease_until, slot, self._actions, room):
            control = Control(job, on_follow=self.wake)
            if job.cancel_requested:
                control.stop(Stop.CANCEL)
            task = asyncio.ensure_future(self._runner.run(control))
            self._active[job.ref], self._tasks[job.ref] = control, task
            task.add_done_callback(partial(self._done, job.ref))

    def _done(self, ref: JobRef, task: asyncio.Task[None]) -> None:
        self._active.pop(ref, None)
        self._tasks.pop(ref, None)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()):
            logger.error("job %s fell out of its runner; it will be settled as lost", ref, exc_info=error)

    # -- tending --------------------------------------------------------------------------------------------------
    async def _tend(self) -> None:
        """Renews the leases, hears of cancels that another process took, lets go of what was taken over."""
        await asyncio.sleep(min(self._settings.job_lease_sec / 2, POLL_SEC) if self._active else POLL_SEC)
        if not self._active:
            return
        asked = dict(self._active)
        held = await self._records.renew(self.owner, time.time() + self._settings.job_lease_sec)
        for ref, control in asked.items():
            job = held.get(ref)
            if job is None:
                if self._active.get(ref) is control:  # it did not simply end meanwhile
                    control.stop(Stop.DISOWNED)
            elif job.cancel_requested:
                control.stop(Stop.CANCEL)
        for ref, job in held.items():
            if ref not in asked:
                self._settle_soon(job)

    async def _watch_dead(self) -> None:
        """Takes over jobs whose lease has run out; forgets what is old.

        Not in the first round after the record store was away: nobody could renew a lease then.
        """
        await asyncio.sleep(self._settings.job_lease_sec / 2)
        was_away, self._store_away = self._store_away, True
        await self._records.check()
        if not was_away:
            await self._reap(time.time(), frozenset())
            await self._records.expire(time.time() - IDEMPOTENCY_SEC)
        self._store_away = False

    async def _reap(self, now: float, dead: frozenset[str]) -> None:
        for job in await self._records.orphans(now, dead):
            self._settle_soon(job)

    def _settle_soon(self, job: JobRecord) -> None:
        """In a task of its own: while a store is away it may take long, and the leases must go on."""
        if job.ref not in self._active and job.ref not in self._settling:
            self._settling[job.ref] = asyncio.ensure_future(self._settle(job))
            self._settling[job.ref].add_done_callback(partial(self._settled, job.ref))

    def _settled(self, ref: JobRef, task: asyncio.Task[None]) -> None:
        self._settling.pop(ref, None)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()):
            logger.error("job %s could not be settled; it is tried again when its lease ends", ref, exc_info=error)

    async def _settle(self, job: JobRecord) -> None:
        """Ends what is left of an abandoned job's process and decides what becomes of the job."""
        if job.child_pid is not None and job.owner is not None and job.owner.startswith(f"{procfs.this_host()}|"):
            mark = f"{job.uid}/{job.ref}#{job.attempt}"
            await anyio.to_thread.run_sync(procfs.end_family, job.child_pid, job.child_started, mark)
        control = Control(job)
        if job.cancel_requested:
            await self._runner.finish(control, Outcome("cancelled"))
        elif job.status == "running" and job.attempt >= self._settings.job_max_attempts:
            await self._runner.finish(control, lost_outcome(job.attempt))
        elif job.status == "running":
            event = Event("state", {"status": "queued", "reason": "lost"}, time.time())
            changes = {"phase": None, "progress": 0.0, "started_at": None}
            await self._records.move(job.ref, Move("queued", job.claim, changes, event))
        else:
            await self._records.update(job.ref, job.claim, RELEASED)
        if job.fingerprint:
            await self._records.unlead(job.fingerprint, job.ref)
        self._runner.hub.notify(job.ref)

    async def _sweep_workspace(self) -> None:
        """Removes the work folders of jobs that have ended: the service died before it came to that."""
        for uid, pid, oid in await anyio.to_thread.run_sync(lambda: list(self._runner.workspace.folders())):
            job = await self._records.get(JobRef(pid, oid))
            if job is not None and job.uid == uid and job.finished_at is not None:
                await self._runner.workspace.remove(job)
