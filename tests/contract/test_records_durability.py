"""What a record store has answered is there, whatever happens to who asked; processes share one store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from app.storage.records import JobRef
from tests.contract.conftest import OpenRecords
from tests.harness import ROOT

pytestmark = pytest.mark.anyio

ACCEPT = """
import asyncio, itertools, time
from app.config import Settings
from app.storage import factory
from app.storage.records import JobRecord

async def main():
    records = factory.record_store(Settings())
    await records.start()
    for number in itertools.count() if {count} is None else range({count}):
        draft = JobRecord("0001", "P0001", "", "echo", "echo", {{"n": number}}, "cpu", time.time())
        job, _ = await records.accept(draft)
        print(job.oid, flush=True)
        if {claim}:
            for taken in await records.claim("{name}", time.time() + 60, "cpu", ["echo"], 1):
                print("claimed", taken.oid, flush=True)
    await records.close()

asyncio.run(main())
"""


@contextmanager
def _process(environment: dict[str, str], **fields: object) -> Iterator[subprocess.Popen[str]]:
    code = ACCEPT.format(**{"count": None, "claim": False, "name": "", **fields})
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_what_was_answered_survives_a_kill(record_environment: dict[str, str], open_records: OpenRecords) -> None:
    answered: list[str] = []
    for _ in range(3):
        with _process(record_environment) as process:
            assert process.stdout is not None
            for _, line in zip(range(20), process.stdout, strict=False):
                answered.append(line.strip())
            process.kill()
            answered += [line.strip() for line in process.stdout if line.endswith("\n")]
    assert len(set(answered)) == len(answered)
    records = await open_records()
    for oid in answered:
        job = await records.get(JobRef("P0001", oid))
        assert job is not None
        assert job.status == "queued"
        assert await records.events(job.ref)
    numbers = [int(job.oid[1:]) for job in await records.find("0001", limit=100_000)]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.slow
async def test_two_processes_share_one_store(record_environment: dict[str, str], open_records: OpenRecords) -> None:
    with (
        _process(record_environment, count=60, claim=True, name="one") as one,
        _process(record_environment, count=60, claim=True, name="two") as two,
    ):
        lines = [line.split() for process in (one, two) for line in process.communicate()[0].splitlines()]
        assert (one.returncode, two.returncode) == (0, 0)
    drawn = [words[0] for words in lines if len(words) == 1]
    taken = [words[1] for words in lines if len(words) == 2]
    assert sorted(drawn) == [f"O{n:04d}" for n in range(1, 121)]
    assert len(set(taken)) == len(taken)
    records = await open_records()
    held = {name: len(await records.renew(name, 0.0)) for name in ("one", "two")}
    assert sum(held.values()) == len(taken)


async def test_several_processes_may_start_on_an_empty_store_at_once(record_environment: dict[str, str]) -> None:
    with ExitStack() as stack:
        started = [stack.enter_context(_process(record_environment, count=1)) for _ in range(6)]
        drawn = [process.communicate()[0].strip() for process in started]
        assert [process.returncode for process in started] == [0] * 6
    assert sorted(drawn) == [f"O{n:04d}" for n in range(1, 7)]
