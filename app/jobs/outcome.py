"""How a job ended: one function decides, from what the process said and how it went.

Codes of `failed` that this service gives itself (a handler's own errors bring theirs):

| code | what happened |
|---|---|
| JOB_TIMEOUT | the process ran beyond its time limit |
| JOB_CRASHED | a signal ended it: a native library crashed |
| JOB_KILLED | SIGKILL that was not ours: out of memory, or somebody's kill |
| JOB_EXITED | it ended without a result |
| JOB_LOG_LIMIT | its log grew beyond JOB_LOG_MAX_MIB |
| JOB_LOST | the service died under it JOB_MAX_ATTEMPTS times |
| INPUT_NOT_FOUND | an input is not there |
| HANDLER_ERROR | an error that nobody foresaw |
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import Enum
from typing import Any

from app.jobs.process import Exit


class Stop(Enum):
    """Why a job was ended before its own end."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    LOG_LIMIT = "log limit"
    DRAIN = "drain"
    """The service stops; the job goes back to the queue."""
    DISOWNED = "disowned"
    """Another process took the job over; nothing may be written any more."""


@dataclass(frozen=True)
class Outcome:
    """A final status with its metrics or error; `status` None gives the job back to the queue."""

    status: str | None
    metrics: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    lost: bool = False


def failed(code: str, message: str, **fields: str | None) -> Outcome:
    return Outcome("failed", error={"code": code, "message": message, **fields})


def decide(exit_: Exit, last: dict[str, Any] | None, stop: Stop | None, limits: dict[str, Any]) -> Outcome:
    """The end of a job whose process is over. `last` is its result or error message, if it sent one."""
    if last is not None and last["type"] == "result" and exit_.code == 0:
        return Outcome("completed", metrics=last["metrics"])  # it was done before any stop reached it
    if stop is not None:
        return _stopped(stop, limits)
    if last is not None and last["type"] == "error":
        return Outcome("failed", error={name: value for name, value in last.items() if name != "type"})
    if exit_.lost:
        return Outcome(None, lost=True)
    if exit_.garbled:
        return failed(
            "JOB_EXITED",
            "the job's process sent a message that cannot be read, and was ended",
            expected="lines of JSON, each shorter than 32 MiB",
            received="something else on its pipe",
            hint="a result as large as that belongs into a file of the work folder",
        )
    return _died(exit_.code)


def _stopped(stop: Stop, limits: dict[str, Any]) -> Outcome:
    if stop is Stop.CANCEL:
        return Outcome("cancelled")
    if stop is Stop.TIMEOUT:
        return failed(
            "JOB_TIMEOUT",
            "the job ran longer than its time limit and was ended",
            expected=f"at most {limits['timeout_sec']:g} s from the start of its process",
            received="still running then",
            hint="raise JOB_TIMEOUT_SEC, or ask for less work; the log shows how far it came",
        )
    if stop is Stop.LOG_LIMIT:
        return failed(
            "JOB_LOG_LIMIT",
            "the job wrote more log than it may and was ended",
            expected=f"at most {limits['log_max_mib']} MiB (JOB_LOG_MAX_MIB)",
            received="more",
            hint="the beginning of the log is kept",
        )
    return Outcome(None)


def _died(code: int | None) -> Outcome:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        if -code == signal.SIGKILL:
            return failed(
                "JOB_KILLED",
                "the job's process was killed, most likely because memory ran out",
                received=name,
                hint="take a smaller input size or batch, run fewer jobs at once (JOB_CPU_CONCURRENCY), or add memory; "
                "the kernel's log says whether it was the out-of-memory killer",
            )
        return failed(
            "JOB_CRASHED",
            "the job's process crashed in native code",
            received=name,
            hint="the log's last lines show where; the same input will most likely crash again",
        )
    return failed(
        "JOB_EXITED",
        "the job's process ended without a result",
        expected="a result or an error on its pipe",
        received=f"exit code {code}",
        hint="the log's last lines show why",
    )
