"""`kill -9` of the service at random moments, with twelve jobs queued and running each time."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from tests.harness import FINAL, SECRET, Receiver, Service, alive, eventually

JOBS_A_ROUND = 12


def submit_twelve(service: Service, draw: random.Random, url: str, model_key: str) -> list[str]:
    """A mixed bag: short and longer sleeps, a failure, a crash, one with a grandchild, two that count a model."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("nap", {"seconds": draw.uniform(0.05, 1.5), "phases": 3}) for _ in range(7)
    ]
    kinds += [("fail", {}), ("crash", {"mode": "segfault"}), ("hang", {"grandchild": True, "seconds": 2})]
    kinds += [("check_model_stats", {"input_path": model_key}) for _ in range(2)]
    draw.shuffle(kinds)
    return [service.submit(action, "P1", parameters, callback_url=url) for action, parameters in kinds]


def power_loss(make_service: Callable[..., Service], receiver: Receiver, model: Path, rounds: int) -> None:
    draw = random.Random(20261121)
    service = make_service("power", CALLBACK_TIMEOUT_SEC="1", JOB_MAX_ATTEMPTS="50", JOB_CPU_CONCURRENCY="3")
    service.mistakes_expected = True
    model_key = service.upload("P1", "best.pt", model)
    jobs: list[str] = []
    for _ in range(rounds):
        jobs += submit_twelve(service, draw, receiver.url + "/hook", model_key)
        time.sleep(draw.uniform(0, 1.5))
        before = service.processes()
        service.kill()
        eventually(partial(_all_gone, before), 10, what="the former self's processes gone")
        service.start()
    records = {job: service.wait(job, 300) for job in jobs}
    assert len(set(jobs)) == rounds * JOBS_A_ROUND, "no oid twice"
    assert len({record["oid"] for record in records.values()}) == len(jobs)
    _check_truth(service, records)
    _check_callbacks(receiver, records)


def _all_gone(pids: list[int]) -> bool:
    return not any(alive(pid) for pid in pids)


def _check_truth(service: Service, records: dict[str, dict[str, object]]) -> None:
    expected = {"nap": "completed", "check_model_stats": "completed", "fail": "failed", "crash": "failed"}
    for job, record in records.items():
        wanted = expected.get(str(record["action"]), "completed")
        assert record["status"] == wanted, (job, record)
        listed = service.client.get(f"{job}/artifacts").json()["artifacts"]
        assert sorted(artifact["name"] for artifact in listed) == record["artifact_files"]
    eventually(lambda: not list(service.workspace.glob("jobs/*/*/*")), 5, what="no work folder is left")


def _check_callbacks(receiver: Receiver, records: dict[str, dict[str, object]]) -> None:
    """Every final state came at least once, signed, under one webhook-id."""
    eventually(lambda: len({d.json["oid"] for d in receiver.deliveries}) == len(records), 60, what="every callback")
    ids: defaultdict[str, set[str]] = defaultdict(set)
    for delivery in receiver.deliveries:
        body = Webhook(SECRET).verify(delivery.body, delivery.headers)
        record = records[f"/optimizing/jobs/{body['pid']}/{body['oid']}"]
        assert body["status"] == record["status"]
        assert body["status"] in FINAL
        ids[body["oid"]].add(delivery.id)
    assert all(len(of_job) == 1 for of_job in ids.values())
    assert len(set().union(*ids.values())) == len(records), "no two jobs share an id"


@pytest.mark.slow
def test_jobs_survive_the_loss_of_power(
    make_service: Callable[..., Service], receiver: Receiver, pills_model: Path
) -> None:
    power_loss(make_service, receiver, pills_model, rounds=2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_jobs_survive_twenty_losses_of_power(
    make_service: Callable[..., Service], receiver: Receiver, pills_model: Path
) -> None:
    power_loss(make_service, receiver, pills_model, rounds=20)
