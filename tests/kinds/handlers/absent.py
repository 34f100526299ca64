"""Would run `absent`, where its library were."""

from __future__ import annotations

from app.jobs.context import JobContext
from app.schemas.kind import Metrics
from tests.kinds.schemas.absent import Absent


def run(parameters: Absent, context: JobContext) -> Metrics:
    raise AssertionError("a kind whose library is missing was run")
