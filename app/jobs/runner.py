"""One job's way from its claim to its written end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from app.config import Settings
from app.errors import ServiceError, StoreFull, StoreUnavailable
from app.jobs import callbacks, latest
from app.jobs.control import Control, Stopped
from app.jobs.fingerprint import fingerprint
from app.jobs.hub import Hub, wait_for_event
from app.jobs.inputs import Inputs, ResolvedInputs
from app.jobs.outcome import Outcome, Stop, decide, failed
from app.jobs.process import ChildProcess, Launcher
from app.jobs.protocol import LOG_NAME, JobSpec
from app.jobs.registry import Registry
from app.jobs.slots import Held, Slots
from app.jobs.telemetry import Telemetry
from app.jobs.workspace import Workspace
from app.schemas.common import FINAL_STATUSES
from app.schemas.kind import Kind, Parameters, Slot
from app.storage.artifacts import ArtifactStore, job_prefix
from app.storage.records import RELEASED, Event, JobRecord, JobRef, Move, RecordStore

T = TypeVar("T")
logger = logging.getLogger(__name__)

WATCH_SEC = 0.25
"""How often the log's size and the clock are looked at while a process runs."""

PROGRESS_SEC = 0.2
"""Progress within a phase is recorded at most this often."""

FOLLOW_SEC = 2.0
"""A waiting twin looks again by itself, in case the one it waits for belongs to another process."""

MAX_BACKOFF_SEC = 15.0

STORE_PAUSE_SEC = 5.0
"""A job that could not begin because a store was away goes back to the queue after so long."""


OTHER_BUILDS = "other_builds_meanwhile"
"""The metric of builds that the service itself fills in."""


@dataclass(frozen=True)
class Runner:
    """Everything that running a job needs."""

    settings: Settings
    registry: Registry
    records: RecordStore
    artifacts: ArtifactStore
    inputs: Inputs
    workspace: Workspace
    launcher: Launcher
    slots: Slots
    hub: Hub
    telemetry: Telemetry
    wake_callbacks: Callable[[], None]

    async def run(self, control: Control) -> None:
        """Takes a claimed job to an end that is written, or back to the queue. Never raises."""
        job = control.job
        mark: str | None = None
        try:
            kind = self.registry.get(job.action)
            if kind is None:
                await self.finish(control, failed("UNKNOWN_KIND", "this service no longer has that kind of job"))
                return
            parameters = kind.parameters.model_validate(job.parameters)
            found = await control.unless_stopped(self.inputs.resolve(job.uid, kind, parameters))
            mark = fingerprint(job, found, self.registry.versions(kind), self.settings.job_options)
            await self._owned(self.records.update(job.ref, job.claim, {"fingerprint": mark}), control)
            if kind.reusable and not job.force and await self._reuse(control, mark):
                return
            async with self.slots.hold(Slot.parse(job.slot), job.seq, control.unless_stopped) as held:
                outcome = await self._execute(control, kind, parameters, found)
                await self.finish(control, _with_neighbours(outcome, held))
        except Stopped:
            await self.finish(control, decide_stop(control))
        except StoreUnavailable as error:
            logger.warning("job %s goes back to the queue: %s", job.ref, error.message)
            with contextlib.suppress(Stopped):
                await control.unless_stopped(asyncio.sleep(STORE_PAUSE_SEC))
            await self.finish(control, decide_stop(control))
        except ServiceError as error:
            await self.finish(control, _service_failure(error))
        except Exception as error:
            logger.exception("job %s could not be run", job.ref)
            await self.finish(control, failed("INTERNAL_ERROR", "the service made a mistake", received=repr(error)))
        finally:
            if mark is not None:
                await self._patiently(lambda: self.records.unlead(mark, job.ref), control)
            self.hub.notify(job.ref)

    # -- the same work once ---------------------------------------------------------------------------------------
    async def _reuse(self, control: Control, mark: str) -> bool:
        """Answers with an earlier result of the same work, waiting for it where it is running now.

        False where this job is the one that has to do the work.
        """
        job = control.job
        while True:
            if await self._copy_twin(control, mark):
                return True
            leader = await self.records.lead(mark, job.ref)
            if leader == job.ref:
                # The former leader may have finished between the look and the lead.
                return await self._copy_twin(control, mark)
            control.following = True
            control.on_follow()
            await self._follow(control, leader, mark)
            control.following = False

    async def _follow(self, control: Control, leader: JobRef, mark: str) -> None:
        with self.hub.listening(leader) as changed:
            while True:
                ahead = await self.records.get(leader)
                if ahead is None or ahead.status in FINAL_STATUSES:
                    await self.records.unlead(mark, leader)
                    return
                await control.unless_stopped(wait_for_event(changed, FOLLOW_SEC))

    async def _copy_twin(self, control: Control, mark: str) -> bool:
        job = control.job
        twin = await self.records.completed_twin(mark)
        if twin is None or twin.ref == job.ref:
            return False
        names = [name for name in twin.artifact_files if name != LOG_NAME]
        source, target = job_prefix(twin.pid, twin.oid), job_prefix(job.pid, job.oid)
        try:
            for name in names:
                await self.artifacts.copy(source + name, target + name)
        except ServiceError as error:
            logger.info("job %s cannot reuse %s: %s", job.ref, twin.ref, error.message)
            return False
        await self.workspace.make(job)
        self.workspace.note(job, f"the same work was done before: copied from {twin.ref}")
        self.telemetry.cached.labels(job.action).inc()
        control.job = replace(control.job, cached_from=str(twin.ref))
        await self.finish(control, Outcome("completed", metrics=twin.metrics), copied=tuple(names))
        return True

    # -- the process ----------------------------------------------------------------------------------------------
    async def _execute(self, control: Control, kind: Kind, parameters: Parameters, found: ResolvedInputs) -> Outcome:
        """Stages the inputs, runs the process, and decides how it ended."""
        job = control.job
        folder = await self.workspace.make(job)
        staged = await control.unless_stopped(self.workspace.stage(job, kind, parameters, found))
        now = time.time()
        started = await self.records.move(
            job.ref,
            Move(
                "running",
                job.claim,
                {"started_at": now, "attempt": job.attempt + 1, "phase": "start", "progress": 0.0},
                Event("state", {"status": "running", "attempt": job.attempt + 1}, now),
            ),
        )
        if started is None:
            control.stop(Stop.DISOWNED)
            raise Stopped
        control.job = job = started
        self.hub.notify(job.ref)
        self.telemetry.wait.labels(job.action).observe(now - job.created_at)
        spec = JobSpec(
            mark=f"{job.uid}/{job.ref}#{job.attempt}",
            workdir=str(folder),
            schema=kind.parameters.__module__,
            handler=kind.handler,
            parameters=job.parameters,
            inputs=staged,
            output_name=job.output_name,
            threads=self._threads(),
            preloaded=self.launcher.method == "forkserver" and "torch" in kind.needs,
            cache_dir=str(self.settings.cache_dir),
            timing_cache_dir=str(self.settings.timing_cache_dir),
            options=self.settings.job_options,
        )
        running = self.telemetry.running.labels(job.slot)
        running.inc()
        try:
            return await self._supervise(control, await self.launcher.start(spec), kind)
        finally:
            running.dec()

    def _threads(self) -> int:
        """A job alone takes every core; beside others it takes its share."""
        return max(1, (os.cpu_count() or 1) // max(1, self.slots.busy()))

    async def _supervise(self, control: Control, process: ChildProcess, kind: Kind) -> Outcome:
        job, last, limits = control.job, _Last(), self._limits(kind)
        with contextlib.suppress(ServiceError):  # the job's mark and its watch of the parent still find the process
            await self.records.update(job.ref, job.claim, {"child_pid": process.pid, "child_started": process.started})
        reports: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        def on_message(message: dict[str, Any]) -> None:
            if message["type"] in {"result", "error"}:
                last.message = message
            elif message["type"] == "phase":
                reports.put_nowait(message)
            elif message["type"] == "cold":
                self.telemetry.cold.inc()

        reporting = asyncio.ensure_future(self._report(job, reports))
        listening = asyncio.ensure_future(process.listen(on_message))
        await self._watch(control, limits, listening)
        if not listening.done():
            await process.stop(self.settings.job_kill_grace_sec)
        exit_ = await listening
        reports.put_nowait(None)
        await reporting
        return decide(exit_, last.message, control.reason, limits)

    async def _watch(self, control: Control, limits: dict[str, Any], listening: asyncio.Future[Any]) -> None:
        """Returns when the process is over, or when it is to be ended: its control says why."""
        began = time.monotonic()
        stopping: asyncio.Future[Any] = asyncio.ensure_future(control.stopping.wait())
        while not listening.done() and not stopping.done():
            await asyncio.wait({listening, stopping}, timeout=WATCH_SEC, return_when=asyncio.FIRST_COMPLETED)
            if time.monotonic() - began > limits["timeout_sec"]:
                control.stop(Stop.TIMEOUT)
            elif self._log_bytes(control.job) > limits["log_max_mib"] * 1024 * 1024:
                control.stop(Stop.LOG_LIMIT)
        stopping.cancel()

    def _limits(self, kind: Kind) -> dict[str, Any]:
        return {
            "timeout_sec": kind.timeout_sec or self.settings.job_timeout_sec,
            "log_max_mib": self.settings.job_log_max_mib,
        }

    def _log_bytes(self, job: JobRecord) -> int:
        try:
            return self.workspace.log(job).stat().st_size
        except OSError:
            return 0

    async def _report(self, job: JobRecord, reports: asyncio.Queue[dict[str, Any] | None]) -> None:
        """Records progress: every new phase at once, steps within a phase now and then."""
        phase, recorded = None, 0.0
        while (message := await reports.get()) is not None:
            now = time.time()
            if message["phase"] == phase and now - recorded < PROGRESS_SEC:
                continue
            phase, recorded = message["phase"], now
            state = {"phase": phase, "progress": float(message["progress"])}
            with contextlib.suppress(ServiceError):  # the next one will tell
                await self.records.update(job.ref, job.claim, state, Event("progress", state, now))
                self.hub.notify(job.ref)

    # -- the end --------------------------------------------------------------------------------------------------
    async def finish(self, control: Control, outcome: Outcome, copied: tuple[str, ...] = ()) -> None:
        """Delivers what the job made and writes its end, however long the stores take to be there again."""
        job = control.job
        if control.reason is Stop.DISOWNED:
            return  # the work folder is somebody else's now
        if outcome.status is None:
            await self._requeue(control, outcome)
            return
        names: tuple[str, ...] = ()
        if outcome.error is not None:
            self.workspace.note(job, f"failed, {outcome.error['code']}: {outcome.error['message']}")
        if self.workspace.folder(job).exists():
            await self._phase_upload(job)
            collected = await self._patiently(lambda: self._collect(job, outcome), control)
            if collected is None:
                return
            if not isinstance(collected, StoreFull):
                names = collected
            elif outcome.status == "completed":
                outcome = _service_failure(collected)
        await self._write_end(control, outcome, tuple(sorted({*names, *copied})))

    async def _collect(self, job: JobRecord, outcome: Outcome) -> tuple[str, ...] | StoreFull:
        """The names of what was stored, or that there is no room for it: this is not waited for."""
        try:
            names = await self.workspace.collect(job)
            if outcome.status == "completed":  # before that is told: whoever is told finds it by its pointer
                await latest.advance(self.artifacts, self.records, job, self.registry[job.action])
        except StoreFull as error:
            return error
        return names

    async def _phase_upload(self, job: JobRecord) -> None:
        if job.status == "running":
            state = {"phase": "upload", "progress": 0.95}
            with contextlib.suppress(ServiceError):
                await self.records.update(job.ref, job.claim, state, Event("progress", state, time.time()))
                self.hub.notify(job.ref)

    async def _write_end(self, control: Control, outcome: Outcome, names: tuple[str, ...]) -> None:
        job, now = control.job, time.time()
        status = outcome.status or "failed"
        changes: dict[str, Any] = {
            "finished_at": now,
            "phase": None,
            "progress": 1.0 if status == "completed" else job.progress,
            "metrics": outcome.metrics,
            "error": outcome.error,
            "artifact_files": names,
            "cached_from": job.cached_from,
        }
        ended = replace(job, status=status, **changes)
        event = Event("state", {"status": status, "error": outcome.error}, now)
        callback = callbacks.outbound(ended, self.settings, self.workspace.folder(job), now)
        written = await self._patiently(
            lambda: self.records.move(job.ref, Move(status, job.claim, changes, event, callback)), control
        )
        if written is None:
            logger.warning("job %s: its end (%s) was not written: it is another process's now", job.ref, status)
            return
        await self.workspace.remove(job)
        self.hub.notify(job.ref)
        self.wake_callbacks()
        code = (outcome.error or {}).get("code", "")
        self.telemetry.finished.labels(job.action, status, code).inc()
        if job.started_at is not None:
            self.telemetry.run.labels(job.action, status).observe(now - job.started_at)

    async def _requeue(self, control: Control, outcome: Outcome) -> None:
        """Back to the queue: the service stops, or the process was lost; the latter not more often than allowed."""
        job = control.job
        if outcome.lost and job.attempt >= self.settings.job_max_attempts:
            await self.finish(control, lost_outcome(job.attempt))
            return
        # A stop of the service is not the job's fault: that start does not count.
        attempt = job.attempt if outcome.lost or job.status == "queued" else job.attempt - 1
        event = Event("state", {"status": "queued", "reason": "lost" if outcome.lost else "drained"}, time.time())
        changes = {"phase": None, "progress": 0.0, "attempt": attempt, "started_at": None}
        # A job that we think queued may be running in the record: the answer to that move may have been lost.
        back = await self._patiently(
            lambda: self.records.move(job.ref, Move("queued", job.claim, changes, event)), control
        )
        if back is None:
            await self._patiently(lambda: self.records.update(job.ref, job.claim, RELEASED), control)

    async def _patiently(self, work: Callable[[], Awaitable[T]], control: Control) -> T | Any:
        """Tries until the store is back; gives up (None) when the job was taken over or the service must go."""
        backoff = 0.1
        while True:
            try:
                return await work()
            except (StoreUnavailable, StoreFull) as error:
                logger.warning("job %s waits for a store: %s", control.job.ref, error.message)
                if control.given_up:
                    return None
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, MAX_BACKOFF_SEC)

    @staticmethod
    async def _owned(written: Awaitable[bool], control: Control) -> None:
        if not await written:
            control.stop(Stop.DISOWNED)
            raise Stopped


@dataclass
class _Last:
    message: dict[str, Any] | None = None


def decide_stop(control: Control) -> Outcome:
    """The end of a job that was stopped before its process started."""
    return Outcome("cancelled") if control.reason is Stop.CANCEL else Outcome(None)


def lost_outcome(attempts: int) -> Outcome:
    return failed(
        "JOB_LOST",
        "the service died under the job each time it was started",
        expected="a service that lives as long as the job",
        received=f"{attempts} starts, none of which came to an end",
        hint="look for what ends the service (memory, power); then POST .../retry",
    )


def _with_neighbours(outcome: Outcome, held: Held) -> Outcome:
    """A build's metrics with what only the service knows: how many others ran beside it."""
    if not outcome.metrics or OTHER_BUILDS not in outcome.metrics:
        return outcome
    return replace(outcome, metrics={**outcome.metrics, OTHER_BUILDS: held.most_builds - 1})


def _service_failure(error: ServiceError) -> Outcome:
    return failed(error.problem_code, error.message, expected=error.expected, received=error.received, hint=error.hint)
