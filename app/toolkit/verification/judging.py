"""A measure against its limit: by the estimate alone, or by a test that may have left it undecided."""

from __future__ import annotations

from collections.abc import Callable

from app.toolkit.verification.result import Gate, Verdict
from app.toolkit.verification.sequential import LookTest

Interval = tuple[float, float]
JudgeByLook = Callable[[str, LookTest, float, float, int], Gate]


def by_estimate(
    name: str,
    limit: float,
    measured: float | None,
    *,
    interval: Interval | None = None,
    confidence: float | None = None,
) -> Gate:
    """Passed up to and with the limit; failed where nothing could be measured."""
    return _gate(name, limit, measured, _side(limit, measured), interval, confidence)


def by_test(
    name: str,
    limit: float,
    measured: float | None,
    verdict: Verdict,
    *,
    interval: Interval | None = None,
    confidence: float,
) -> Gate:
    """What a sequential test says; where it has not decided, the gate leans to the estimate's side."""
    leans = _side(limit, measured) if verdict == "undecided" else None
    return _gate(name, limit, measured, verdict, interval, confidence, leans)


def estimate_in_interval(name: str, test: LookTest, estimate: float, standard_error: float, observations: int) -> Gate:
    """The estimate's magnitude, with the interval of its only look."""
    interval = test.interval(estimate, standard_error, observations)
    return by_estimate(name, test.limit, abs(estimate), interval=interval, confidence=test.confidence)


def by_look(name: str, test: LookTest, estimate: float, standard_error: float, observations: int) -> Gate:
    """What a look says of the estimate's magnitude."""
    return by_test(
        name,
        test.limit,
        abs(estimate),
        test.look(estimate, standard_error, observations),
        interval=test.interval(estimate, standard_error, observations),
        confidence=test.confidence,
    )


def _side(limit: float, measured: float | None) -> Verdict:
    return "passed" if measured is not None and measured <= limit else "failed"


def _gate(
    name: str,
    limit: float,
    measured: float | None,
    verdict: Verdict,
    interval: Interval | None,
    confidence: float | None,
    leans: Verdict | None = None,
) -> Gate:
    low, high = interval or (None, None)
    return Gate(name, limit, measured, verdict, low, high, confidence if interval else None, leans)
