"""Callbacks as a receiver sees them: signed, repeated until taken, recorded, sent again on demand."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from typing import Any

import httpcore2
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from app.errors import InvalidRequest
from app.jobs.callback_http import Allowance, GuardedClient
from tests.harness import SECRET, Delivery, Receiver, Service, eventually

pytestmark = pytest.mark.every_store

KEYS = {
    *("uid", "pid", "oid", "action", "status", "details", "info"),
    *("metrics", "artifacts_path", "artifact_files", "error", "type", "timestamp"),
}


def verified(delivery: Delivery) -> dict[str, Any]:
    """The body, after the reference implementation has found its signature good."""
    body: dict[str, Any] = Webhook(SECRET).verify(delivery.body, delivery.headers)
    return body


def _outbox(service: Service, path: str, state: str) -> dict[str, Any]:
    """The job's one callback, once it has a state."""
    seen: list[dict[str, Any]] = []

    def look() -> bool:
        seen[:] = service.client.get(f"{path}/callbacks").json()["callbacks"]
        return [one["state"] for one in seen] == [state]

    eventually(look, 15, what=f"a callback that is {state}: {seen}")
    return seen[0]


# -- what is sent -------------------------------------------------------------------------------------------------
def test_a_completed_job_is_told_with_all_it_made(service: Service, pid: str, receiver: Receiver) -> None:
    key = service.upload(pid, "a.txt", b"a")
    path = service.submit("echo", pid, {"input_path": key}, callback_url=f"{receiver.url}/hook?x=1")
    job = service.wait(path)
    (delivery,) = receiver.wait("/hook?x=1")
    body = verified(delivery)
    assert set(body) == KEYS
    assert (body["type"], body["status"], body["error"]) == ("job.completed", "completed", None)
    for name in ("uid", "pid", "oid", "action", "details", "info", "metrics", "artifacts_path", "artifact_files"):
        assert body[name] == job[name], name
    assert body["artifact_files"] == ["a_echo.txt", "job.log"]
    assert body["timestamp"] == job["finished_at"]
    assert delivery.headers["content-type"] == "application/json"
    assert re.fullmatch(r"msg_[0-9a-f]{32}", delivery.id)
    assert abs(int(delivery.headers["webhook-timestamp"]) - delivery.at) < 3


def test_a_failed_and_a_cancelled_job_are_told(service: Service, pid: str, receiver: Receiver) -> None:
    failed = service.submit("fail", pid, {}, callback_url=f"{receiver.url}/failed")
    cancelled = service.submit("nap", pid, {"seconds": 30}, callback_url=f"{receiver.url}/cancelled")
    service.client.post(f"{cancelled}/cancel")
    body = verified(receiver.wait("/failed")[0])
    assert (body["type"], body["status"], body["metrics"]) == ("job.failed", "failed", None)
    assert body["error"] == service.job(failed)["error"]
    body = verified(receiver.wait("/cancelled")[0])
    assert set(body) == KEYS
    assert (body["type"], body["status"], body["error"]) == ("job.cancelled", "cancelled", None)


def test_a_reused_result_is_told_as_well(service: Service, pid: str, receiver: Receiver) -> None:
    key = service.upload(pid, "a.txt", b"reused")
    for number in range(2):
        job = service.run("echo", pid, {"input_path": key}, callback_url=f"{receiver.url}/{number}")
        assert job["cached"] == bool(number)
        assert verified(receiver.wait(f"/{number}")[0])["oid"] == job["oid"]
    assert receiver.of("/0")[0].id != receiver.of("/1")[0].id


def test_a_changed_body_does_not_verify(service: Service, pid: str, receiver: Receiver) -> None:
    service.run("nap", pid, {"seconds": 0}, callback_url=f"{receiver.url}/a")
    (delivery,) = receiver.wait("/a")
    forged = json.dumps({**delivery.json, "status": "failed"}).encode()
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(forged, delivery.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(delivery.body, {**delivery.headers, "webhook-id": "msg_other"})


# -- again and again ----------------------------------------------------------------------------------------------
def test_it_is_sent_until_it_is_taken_under_one_id(service: Service, pid: str, receiver: Receiver) -> None:
    path = service.submit("nap", pid, {"seconds": 0}, callback_url=receiver.script("/a", 500, 302, 404, Location="/b"))
    deliveries = receiver.wait("/a", 4)
    assert len({delivery.id for delivery in deliveries}) == 1
    assert len({delivery.body for delivery in deliveries}) == 1
    for delivery in deliveries:
        verified(delivery)
    outbox = _outbox(service, path, "delivered")
    assert [attempt["http_status"] for attempt in outbox["attempts"]] == [500, 302, 404, 200]
    assert [attempt["number"] for attempt in outbox["attempts"]] == [1, 2, 3, 4]
    assert outbox["webhook_id"] == deliveries[0].id
    assert outbox["next_attempt_at"] is None
    assert receiver.of("/b") == []  # a redirect is not followed


def test_it_gives_up_after_the_last_wait(service: Service, pid: str, receiver: Receiver) -> None:
    path = service.submit("nap", pid, {"seconds": 0}, callback_url=receiver.script("/a", *[503] * 9))
    outbox = _outbox(service, path, "failed")
    assert [attempt["http_status"] for attempt in outbox["attempts"]] == [503] * 4
    assert len(receiver.of("/a")) == 4


def test_gone_is_final(service: Service, pid: str, receiver: Receiver) -> None:
    path = service.submit("nap", pid, {"seconds": 0}, callback_url=receiver.script("/a", 410))
    assert len(_outbox(service, path, "failed")["attempts"]) == 1
    assert len(receiver.of("/a")) == 1


def test_a_receiver_may_ask_for_time(service: Service, pid: str, receiver: Receiver) -> None:
    path = service.submit("nap", pid, {"seconds": 0}, callback_url=receiver.script("/a", 429, Retry_After="1"))
    _outbox(service, path, "delivered")
    first, second = receiver.of("/a")
    assert second.at - first.at >= 0.95


def test_nobody_listening_is_recorded_in_words(service: Service, pid: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/"
        path = service.submit("nap", pid, {"seconds": 0}, callback_url=url)
        outbox = _outbox(service, path, "failed")
    assert [attempt["http_status"] for attempt in outbox["attempts"]] == [None] * 4
    assert all("Connect" in attempt["outcome"] for attempt in outbox["attempts"])


def test_it_is_sent_again_on_demand(service: Service, pid: str, receiver: Receiver) -> None:
    path = service.submit("nap", pid, {"seconds": 0}, callback_url=receiver.script("/a", 410))
    _outbox(service, path, "failed")
    answer = service.client.post(f"{path}/callbacks/replay")
    assert answer.status_code == 202
    assert [one["state"] for one in answer.json()["callbacks"]] == ["pending"]
    first, second = receiver.wait("/a", 2)
    assert first.id == second.id
    assert first.body == second.body
    verified(second)
    assert [attempt["http_status"] for attempt in _outbox(service, path, "delivered")["attempts"]] == [410, 200]
    service.client.post(f"{path}/callbacks/replay")
    assert receiver.wait("/a", 3)[2].id == first.id


def test_a_replay_begins_the_waits_anew(service: Service, pid: str, receiver: Receiver) -> None:
    path = service.submit("nap", pid, {"seconds": 0}, callback_url=receiver.script("/a", *[500] * 6))
    _outbox(service, path, "failed")
    service.client.post(f"{path}/callbacks/replay")
    _outbox(service, path, "delivered")
    assert [delivery.answered for delivery in receiver.wait("/a", 7)] == [500] * 6 + [200]


def test_a_slow_receiver_holds_up_nobody_else(service: Service, pid: str, receiver: Receiver) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        service.submit("nap", pid, {"seconds": 0}, callback_url=f"http://127.0.0.1:{silent.getsockname()[1]}/")
        silent.settimeout(20)
        connection, _ = silent.accept()
        service.submit("nap", pid, {"seconds": 0}, callback_url=f"{receiver.url}/quick")
        receiver.wait("/quick", timeout_sec=5)
        connection.close()


# -- where they may go --------------------------------------------------------------------------------------------
LOOPBACK = ["http://localhost/", "http://LOCALHOST./", "http://a.localhost/", "http://127.0.0.1:80/"]
"""The tests' own service allows these."""

PRIVATE = [
    "http://127.0.0.2/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.2]/",
    "http://[::ffff:10.0.0.1]/",
    "http://2130706434/",
    "http://0x7f.2/",
    "http://0177.0.0.2/",
    "http://127.2/",
    "http://0/",
    "http://0.0.0.0/",
    "http://10.1.2.3/",
    "http://172.16.0.1/",
    "http://192.168.1.1:8080/",
    "http://169.254.169.254/latest/meta-data/",
    "http://192.0.0.192/",
    "http://100.100.100.200/",
    "http://[fe80::1]/",
    "http://[fd00:ec2::254]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://224.0.0.1/",
    "http://[fe80::1%25eth0]/",
]
NO_URL = [
    "ftp://example.com/",
    "file:///etc/passwd",
    "http://",
    "http:///path",
    "//example.com/",
    "example.com",
    "",
    "http://user:secret@example.com/",
    "http://ex\u00e4mple.com/",
    "http://example.com:99999/",
    "http://[::1/",
    "javascript:alert(1)",
    "http://exa mple.com/",
    "http://example.com/\r\nX-Injected: 1",
    "http://\u0000example.com/",
    "x" * 3000,
]


@pytest.mark.parametrize("url", [*PRIVATE, *NO_URL], ids=lambda url: ascii(url)[:50])
def test_a_url_that_may_not_be_called_is_refused_at_once(service: Service, pid: str, url: str) -> None:
    answer = service.post("nap", pid, {"seconds": 0}, callback_url=url)
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] in {"CALLBACK_URL_REFUSED", "INVALID_REQUEST"}
    assert "secret" not in answer.text
    assert service.client.get("/optimizing/jobs", params={"pid": pid}).json()["jobs"] == []


@pytest.mark.parametrize(
    "url", ["http://example.com/", "https://example.com:8443/a?b=c#d", "http://8.8.8.8/", "http://[2606:4700::1]/"]
)
def test_public_urls_are_taken(url: str) -> None:
    Allowance(()).check_url(url)


@pytest.mark.parametrize("url", [*LOOPBACK, *PRIVATE])
def test_what_is_refused_is_allowed_by_name_or_network(url: str) -> None:
    with pytest.raises(InvalidRequest):
        Allowance(("hooks.internal",)).check_url(url)
    everything = Allowance(("0.0.0.0/0", "::/0"))
    everything.check_url(url)


def test_a_name_is_judged_by_where_it_leads_when_it_is_called(receiver: Receiver) -> None:
    """By the real client: a name that is refused reaches nobody; allowed by name or by address, it does."""

    async def post(*allowed: str) -> int:
        client = GuardedClient(Allowance(allowed))
        try:
            url = f"http://localhost:{receiver.url.rpartition(':')[2]}/{len(allowed)}"
            return (await client.post(url, {"content-type": "application/json"}, b"{}"))[0]
        finally:
            await client.close()

    with pytest.raises(httpcore2.ConnectError, match="CALLBACK_ALLOWED_HOSTS"):
        asyncio.run(post())
    assert receiver.deliveries == []
    assert asyncio.run(post("localhost")) == 200
    assert asyncio.run(post("127.0.0.0/8", "::1")) == 200
    assert [delivery.path for delivery in receiver.deliveries] == ["/1", "/2"]
