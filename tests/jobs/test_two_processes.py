"""Two service processes, each with a workspace of its own, on one record store and one bucket."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Receiver, Service, eventually
from tests.services.servers import Driver, MongoServer, S3Server

JOBS = 50
LEASE_SEC = "2"


@pytest.fixture
def pair(
    make_service: Callable[..., Service], ferretdb_server: MongoServer, minio_server: S3Server, driver: Driver
) -> Iterator[tuple[Service, Service]]:
    with minio_server.fresh() as artifacts, ferretdb_server.fresh(driver) as records:
        shared = {**artifacts, **records, "JOB_LEASE_SEC": LEASE_SEC, "JOB_MAX_ATTEMPTS": "50"}
        services = make_service("one", **shared), make_service("two", **shared)
        yield services
        for service in services:
            service.stop()


def _submit(pair: tuple[Service, Service], journal: Path, url: str) -> list[str]:
    turns = itertools.cycle(pair)
    return [
        next(turns).submit(
            "nap",
            f"P{1 + n % 3}",
            {"seconds": 0.2 + n % 4 / 10, "journal": str(journal), "note": str(n)},
            callback_url=url,
        )
        for n in range(JOBS)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["pymongo", pytest.param("motor", marks=pytest.mark.slow)])
def test_one_is_killed_and_the_other_takes_over(
    pair: tuple[Service, Service], receiver: Receiver, tmp_path: Path
) -> None:
    one, two = pair
    one.mistakes_expected = True
    journal = tmp_path / "journal"
    jobs = _submit(pair, journal, receiver.url + "/hook")
    assert len(set(jobs)) == JOBS, "no oid twice"
    eventually(lambda: len(_marks(journal)) >= 12, 30, what="both at work")
    eventually(lambda: any(_runs_at(one, job) for job in jobs), 10, what="one at work")
    one.kill()
    died = time.time()
    records = [two.wait(job, 120) for job in jobs]
    assert [record["status"] for record in records] == ["completed"] * JOBS
    marks = _marks(journal)
    assert set(marks.values()) == {1}, "no attempt was run twice"
    attempts = {f"{record['uid']}/{record['pid']}/{record['oid']}#{record['attempt']}" for record in records}
    assert attempts <= set(marks)
    assert any(record["attempt"] == 2 for record in records), "something was taken over"
    assert time.time() - died < 60
    for job, record in zip(jobs, records, strict=True):
        listed = two.client.get(f"{job}/artifacts").json()["artifacts"]
        assert [artifact["name"] for artifact in listed] == record["artifact_files"] == ["job.log"]
    eventually(lambda: len({d.id for d in receiver.of("/hook")}) == JOBS, 30, what="every callback")
    one.start()
    assert [one.job(job)["status"] for job in jobs] == ["completed"] * JOBS
    eventually(lambda: not list(one.workspace.glob("jobs/*/*/*")), 10, what="what it left is swept away")
    assert _marks(journal) == marks, "nothing is run again"


def _marks(journal: Path) -> Counter[str]:
    return Counter(journal.read_text().split()) if journal.exists() else Counter()


def _runs_at(service: Service, job: str) -> bool:
    record = service.job(job)
    folder = service.workspace / "jobs" / record["uid"] / record["pid"] / record["oid"]
    return bool(record["status"] == "running") and folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["pymongo"])
def test_either_one_answers_for_the_other_s_jobs(pair: tuple[Service, Service], receiver: Receiver) -> None:
    one, two = pair
    key = one.upload("P1", "input.txt", b"content")
    jobs = [one.submit("echo", "P1", {"input_path": key, "note": str(n)}) for n in range(6)]
    assert all(two.wait(job)["status"] == "completed" for job in jobs)
    assert {two.client.get(f"{job}/artifacts/input_echo.txt").status_code for job in jobs} == {200}
    again = two.run("echo", "P1", {"input_path": key, "note": "0"})
    assert again["cached"], "the same work was done before, by whichever of them"
    sleeper = one.submit("nap", "P1", {"seconds": 60})
    one.wait(sleeper, statuses={"running"})
    two.client.post(f"{sleeper}/cancel")
    assert one.wait(sleeper, 10)["status"] == "cancelled"
