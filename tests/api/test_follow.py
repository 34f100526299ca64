"""Following a job: server-sent events that can be taken up again, and its log."""

from __future__ import annotations

import pytest

from tests.harness import Sent, Service, follow

pytestmark = pytest.mark.every_store


def _states(events: list[Sent]) -> list[str]:
    return [event.data["status"] for event in events if event.type == "state"]


def _lines(events: list[Sent]) -> list[str]:
    return [line for event in events if event.type == "log" for line in event.data["lines"]]


def test_a_job_is_followed_from_its_acceptance_to_its_end(service: Service, pid: str) -> None:
    key = service.upload(pid, "a.txt", b"a")
    path = service.submit("echo", pid, {"input_path": key, "seconds": 0.6, "lines": 3})
    events = list(follow(service, path))
    assert _states(events) == ["queued", "running", "completed"]
    phases = [event.data["phase"] for event in events if event.type == "progress"]
    assert phases == ["read", "write", "upload"]
    assert _lines(events) == [f"echo {n}: a.txt" for n in range(3)]
    assert {event.type for event in events} == {"state", "progress", "log"}
    moments = [event.data["at"] for event in events if event.type != "log"]
    assert moments == sorted(moments)
    assert len({event.id for event in events}) == len(events)


def test_events_come_while_the_job_runs(service: Service, pid: str) -> None:
    path = service.submit("nap", pid, {"seconds": 30})
    stream = follow(service, path)
    seen = []
    for event in stream:
        seen.append(event)
        if event.type == "progress" and event.data["phase"] == "nap 1":
            service.client.post(f"{path}/cancel")
    assert _states(seen) == ["queued", "running", "cancelled"]


def test_a_stream_is_taken_up_after_any_event(service: Service, pid: str) -> None:
    key = service.upload(pid, "a.txt", b"a")
    path = service.submit("echo", pid, {"input_path": key, "lines": 50})
    live = list(follow(service, path))
    afterwards = list(follow(service, path))
    assert _states(live) == _states(afterwards)
    assert _lines(live) == _lines(afterwards)
    for number, event in enumerate(live):
        rest = list(follow(service, path, event.id))
        assert _states(rest) == _states(live[number + 1 :])
        assert _lines(rest) == _lines(live[number + 1 :])


def test_a_stream_of_a_job_with_many_events_and_much_log_is_whole(service: Service, pid: str) -> None:
    key = service.upload(pid, "a.txt", b"a")
    path = service.submit("echo", pid, {"input_path": key, "lines": 60_000})
    expected = [f"echo {n}: a.txt" for n in range(60_000)]
    assert _lines(list(follow(service, path))) == expected
    assert _lines(list(follow(service, path))) == expected
    assert service.job_log(path).splitlines() == expected


@pytest.mark.parametrize("wrong", ["x", "1", "1.", ".1", "1.x", "-1.0", "1.2.3", "1" * 30 + ".0", "\u0661.0".encode()])
def test_an_event_id_of_somebody_else_is_refused(service: Service, pid: str, wrong: str | bytes) -> None:
    path = service.submit("nap", pid, {"seconds": 0})
    value = wrong if isinstance(wrong, bytes) else wrong.encode()
    answer = service.client.get(f"{path}/events", headers={b"last-event-id": value})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_event_id_beyond_the_end_ends_at_once(service: Service, pid: str) -> None:
    path = service.submit("nap", pid, {"seconds": 0})
    service.wait(path)
    assert list(follow(service, path, "9999.999999")) == []
    assert list(follow(service, path, f"{'9' * 17}.{'9' * 17}")) == []


def test_a_job_that_never_started_has_a_log_all_the_same(service: Service, pid: str) -> None:
    path = service.submit("absent", pid, {}, queue=True)
    assert (service.client.get(f"{path}/log").status_code, service.job_log(path)) == (200, "")
    service.client.post(f"{path}/cancel")
    service.wait(path)
    assert (service.client.get(f"{path}/log").status_code, service.job_log(path)) == (200, "")
    assert _states(list(follow(service, path))) == ["queued", "cancelled"]


def test_the_log_of_a_running_job_is_as_it_is_now(service: Service, pid: str) -> None:
    path = service.submit("hang", pid, {})
    service.wait(path, statuses={"running"})
    for event in follow(service, path):
        if event.type == "log":
            assert "pids" in service.job_log(path)
            service.client.post(f"{path}/cancel")
    assert "pids" in service.job_log(path)
    assert service.client.get(f"{path}/log").headers["content-type"].startswith("text/plain")
