"""A store goes away in the middle of jobs and comes back: running jobs go on, and nothing is lost or done twice."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.harness import Receiver, Service, eventually, follow
from tests.services.servers import Driver, MongoServer, S3Server, Server

JOBS = 6
STATES = ["queued", "running", "completed"]

MakeService = Callable[..., Service]


def _naps(service: Service, receiver: Receiver, journal: Path) -> list[str]:
    """Six jobs of one to three seconds, three at once; each leaves its mark when it is really started."""
    return [
        service.submit(
            "nap",
            "P1",
            {"seconds": 1 + n / 2, "phases": 4, "journal": str(journal), "note": str(n)},
            callback_url=receiver.url + "/hook",
        )
        for n in range(JOBS)
    ]


def _some_run(service: Service, jobs: list[str]) -> None:
    eventually(lambda: sum(service.job(job)["status"] == "running" for job in jobs) >= 2, 20, what="two running")


@contextmanager
def _away(server: Server, seconds: float) -> Iterator[None]:
    """The server is killed at once, and comes back after `seconds`, or when the block is left if that is later."""
    server.kill()
    began = time.monotonic()
    yield
    time.sleep(max(0.0, seconds - (time.monotonic() - began)))
    server.start()


def _refused(answer: Any) -> None:
    assert (answer.status_code, answer.json()["code"]) == (503, "STORE_UNAVAILABLE"), answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["hint"]


def _check_all(service: Service, jobs: list[str], receiver: Receiver, journal: Path, others: int = 0) -> None:
    """Every nap completed, in one attempt, with its artifacts, told under one webhook-id; `others` more jobs exist."""
    for job in jobs:
        record = service.wait(job, 120)
        assert (record["status"], record["attempt"]) == ("completed", 1), record
        listed = service.client.get(f"{job}/artifacts").json()["artifacts"]
        assert sorted(artifact["name"] for artifact in listed) == record["artifact_files"] == ["job.log"]
        assert [event.data["status"] for event in follow(service, job) if event.type == "state"] == STATES
    started = Counter(journal.read_text().split())
    assert len(started) == len(jobs)
    assert set(started.values()) == {1}
    receiver.wait("/hook", len(jobs), 60)
    by_job = {delivery.json["oid"]: delivery.id for delivery in receiver.of("/hook")}
    assert len(by_job) == len(set(by_job.values())) == len(jobs)
    assert len(service.client.get("/optimizing/jobs?limit=100").json()["jobs"]) == len(jobs) + others
    eventually(lambda: not list(service.workspace.glob("jobs/*/*/*")), 10, what="no work folder is left")


def _record_store_goes(
    driver: Driver, seconds: float, make_service: MakeService, server: MongoServer, receiver: Receiver, tmp_path: Path
) -> None:
    environment = server.environment("outage", driver)
    service = make_service(JOB_CPU_CONCURRENCY="3", **environment)
    journal = tmp_path / "journal"
    jobs = _naps(service, receiver, journal)
    _some_run(service, jobs)
    with _away(server, seconds):
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            for answer in pool.map(lambda n: service.post("nap", "P1", {"seconds": 0, "note": f"late {n}"}), range(8)):
                _refused(answer)
        assert time.monotonic() - began < 15
        _refused(service.client.get("/readyz"))
        _refused(service.client.get(jobs[0]))
        assert service.client.get("/healthz").status_code == 200
        assert service.process is not None and service.process.poll() is None
    late = service.submit(
        "nap",
        "P1",
        {"seconds": 0, "journal": str(journal)},
        callback_url=receiver.url + "/hook",
        headers={"Idempotency-Key": "two"},
    )
    _check_all(service, [*jobs, late], receiver, journal)


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["pymongo", pytest.param("motor", marks=pytest.mark.slow)])
def test_the_record_store_is_killed_and_comes_back(
    driver: Driver,
    make_service: MakeService,
    make_ferretdb: Callable[[], MongoServer],
    receiver: Receiver,
    tmp_path: Path,
) -> None:
    _record_store_goes(driver, 4, make_service, make_ferretdb(), receiver, tmp_path)


@pytest.mark.slow
def test_the_record_store_is_away_for_longer_than_a_lease(
    make_service: MakeService, make_ferretdb: Callable[[], MongoServer], receiver: Receiver, tmp_path: Path
) -> None:
    _record_store_goes("pymongo", 60, make_service, make_ferretdb(), receiver, tmp_path)


def _has(accepted: list[str], enough: int) -> bool:
    return len(accepted) >= enough


@pytest.mark.slow
def test_posts_that_are_repeated_until_they_are_accepted_make_one_job_each(
    make_service: MakeService, make_ferretdb: Callable[[], MongoServer], tmp_path: Path
) -> None:
    """The server dies under a stream of requests; each is sent again, under its key, until it is answered with 202."""
    server = make_ferretdb()
    service = make_service(**server.environment("stream"))
    accepted: list[str] = []

    def post() -> None:
        for n in range(40):
            while (answer := service.post("nap", "P1", {"seconds": 0}, headers={"Idempotency-Key": f"k{n}"})).is_error:
                _refused(answer)
            accepted.append(answer.json()["oid"])

    posting = Thread(target=post)
    posting.start()
    for enough in (5, 15, 25):
        eventually(partial(_has, accepted, enough), 60, what=f"{enough} accepted")
        with _away(server, 0.2):
            pass
    posting.join(120)
    assert len(accepted) == 40
    listed = service.client.get("/optimizing/jobs?limit=100").json()["jobs"]
    assert sorted(job["oid"] for job in listed) == sorted(set(accepted))
    for oid in accepted:
        service.wait(f"/optimizing/jobs/P1/{oid}")


@pytest.mark.slow
def test_the_artifact_store_is_killed_and_comes_back(
    make_service: MakeService, make_minio: Callable[[], S3Server], receiver: Receiver, tmp_path: Path
) -> None:
    server = make_minio()
    service = make_service(JOB_CPU_CONCURRENCY="3", **server.environment("outage"))
    journal = tmp_path / "journal"
    key = service.upload("P1", "input.txt", b"content")
    jobs = _naps(service, receiver, journal)
    _some_run(service, jobs)
    with _away(server, 4):
        _refused(service.client.post("/optimizing/uploads?pid=P1&name=a.txt", content=b"content"))
        _refused(service.client.get("/readyz"))
        waiting = service.submit("echo", "P1", {"input_path": key})
        eventually(lambda: len(journal.read_text().split()) >= 3, 20, what="running jobs go on")
        statuses = {service.job(job)["status"] for job in jobs}
        assert "completed" not in statuses, "a job is complete once its artifacts are stored"
    echoed = service.wait(waiting, 60)
    assert (echoed["status"], echoed["artifact_files"]) == ("completed", ["input_echo.txt", "job.log"])
    assert service.client.get(f"{waiting}/artifacts/input_echo.txt").content
    _check_all(service, jobs, receiver, journal, others=1)
