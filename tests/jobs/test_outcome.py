"""One function decides how a job ended."""

from __future__ import annotations

from typing import Any

import pytest

from app.jobs.outcome import Stop, decide
from app.jobs.process import Exit

LIMITS = {"timeout_sec": 5.0, "log_max_mib": 1}
RESULT = {"type": "result", "metrics": {"a": 1}}
ERROR = {"type": "error", "code": "NO_IMAGES", "message": "none"}


@pytest.mark.parametrize(
    ("code", "last", "stop", "status", "error"),
    [
        (0, RESULT, None, "completed", None),
        (0, RESULT, Stop.CANCEL, "completed", None),
        (-9, RESULT, Stop.CANCEL, "cancelled", None),
        (-15, None, Stop.CANCEL, "cancelled", None),
        (-9, None, Stop.TIMEOUT, "failed", "JOB_TIMEOUT"),
        (-9, None, Stop.LOG_LIMIT, "failed", "JOB_LOG_LIMIT"),
        (-9, None, Stop.DRAIN, None, None),
        (0, ERROR, None, "failed", "NO_IMAGES"),
        (-9, None, None, "failed", "JOB_KILLED"),
        (-11, None, None, "failed", "JOB_CRASHED"),
        (-40, None, None, "failed", "JOB_CRASHED"),
        (0, None, None, "failed", "JOB_EXITED"),
        (3, None, None, "failed", "JOB_EXITED"),
        (3, RESULT, None, "failed", "JOB_EXITED"),
    ],
)
def test_the_end_follows_from_exit_last_message_and_stop(
    code: int, last: dict[str, Any] | None, stop: Stop | None, status: str | None, error: str | None
) -> None:
    outcome = decide(Exit(code), last, stop, LIMITS)
    assert (outcome.status, (outcome.error or {}).get("code")) == (status, error)


def test_a_lost_process_goes_back_to_the_queue() -> None:
    outcome = decide(Exit(255, lost=True), None, None, LIMITS)
    assert (outcome.status, outcome.lost) == (None, True)


def test_a_process_that_was_ended_for_garbage_is_not_said_to_have_run_out_of_memory() -> None:
    outcome = decide(Exit(-9, garbled=True), None, None, LIMITS)
    assert outcome.error is not None
    assert outcome.error["code"] == "JOB_EXITED"
    assert "cannot be read" in outcome.error["message"]
