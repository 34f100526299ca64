"""Versioned names, and the pointers that lead to the newest version of a project."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.harness import JOB_SEC, Service, eventually
from tests.services import by_hand
from tests.services.servers import S3Server, Stores

pytestmark = pytest.mark.every_store

KEYS = {"first-key-of-user-1": "0001", "second-key-of-user-2": "0002"}
NAME = re.compile(r"(detection|classification)-(\d{8}-\d{6})-([0-9a-f]{7}|nogit)\.onnx")

MakeService = Callable[..., Service]


def _version(service: Service, pid: str, content: bytes, **parameters: Any) -> str:
    """The path of a job that makes a version."""
    key = service.upload(pid, "detection_best.pt", content)
    return service.submit("version", pid, {"input_path": key, **parameters})


def _made(service: Service, path: str, timeout_sec: float = JOB_SEC) -> str:
    """The name of what a job made."""
    job = service.wait(path, timeout_sec)
    assert job["status"] == "completed", job
    (name,) = [name for name in job["artifact_files"] if name.endswith(".onnx")]
    return str(name)


def _latest(service: Service, pid: str, series: str = "detection") -> httpx2.Response:
    return service.client.get(f"/optimizing/projects/{pid}/latest_{series}.onnx")


def _leads_to(service: Service, pid: str, path: str) -> bool:
    """Whether the project's pointer leads to what that job made."""
    expected = f"{path}/artifacts/{_made(service, path)}"
    return _latest(service, pid).headers.get("location") == expected


# -- names --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("series", ["detection", "classification"])
def test_a_version_s_name_has_the_second_of_its_request(service: Service, pid: str, series: str) -> None:
    key = service.upload(pid, f"{series}_best.pt", b"model")
    path = service.submit("version", pid, {"input_path": key})
    found = NAME.fullmatch(_made(service, path))
    assert found
    created = service.job(path)["created_at"]
    assert (found[1], found[2]) == (series, re.sub(r"[-:]", "", created[:19]).replace("T", "-"))


def test_a_name_that_was_asked_for_is_no_version(service: Service, pid: str) -> None:
    assert _made(service, _version(service, pid, b"a", output_path="mine.onnx")) == "mine.onnx"
    other = service.submit("version", pid, {"input_path": service.upload(pid, "best.pt", b"a")})
    assert _made(service, other) == "best_copy.onnx"
    assert _latest(service, pid).status_code == 404


def test_a_commit_can_be_given(make_service: MakeService, pid: str) -> None:
    service = make_service(GIT_SHA="0123456789abcdef0123456789abcdef01234567", JOB_START_METHOD="exec")
    assert _made(service, _version(service, pid, b"a")).endswith("-0123456.onnx")


def test_a_retry_makes_a_name_of_its_own(service: Service, pid: str) -> None:
    failed = _version(service, pid, b"a", fails=True)
    first = service.wait(failed)
    assert first["error"]["code"] == "NOT_PROVEN"
    time.sleep(1.1)
    again = service.wait(service.client.post(f"{failed}/retry").headers["location"])
    names = [next(name for name in job["artifact_files"] if NAME.fullmatch(name)) for job in (first, again)]
    assert names == sorted(set(names)) and len(names) == 2


def test_the_same_export_asked_for_later_is_a_version_of_its_own(service: Service, pid: str) -> None:
    key = service.upload(pid, "detection_best.pt", b"a")
    first = service.submit("version", pid, {"input_path": key})
    time.sleep(1.1)
    second = service.submit("version", pid, {"input_path": key})
    assert _made(service, first) < _made(service, second)
    assert service.job(second)["cached"] is False
    assert _leads_to(service, pid, second)


# -- the pointer --------------------------------------------------------------------------------------------------
def test_the_newest_version_is_found_by_download_and_as_an_input(service: Service, pid: str) -> None:
    for content in (b"one", b"two!"):
        path = _version(service, pid, content)
        assert _leads_to(service, pid, path)
        assert service.client.get(_latest(service, pid).headers["location"]).content == content
        job = service.run("echo", pid, {"input_path": f"artifacts/{pid}/optimizing/latest_detection.onnx"})
        assert job["metrics"]["size_bytes"] == len(content)
        assert job["metrics"]["name"] == "latest_detection.onnx"
    assert _latest(service, pid, "classification").status_code == 404


def test_the_pointer_lies_where_s4_has_it(service: Service, pid: str, stores: Stores) -> None:
    path = _version(service, pid, b"model")
    name = _made(service, path)
    content = by_hand.read(service, f"artifacts/{pid}/optimizing/latest_detection.onnx")
    target = f"artifacts/{pid}/optimizing/{path.rpartition('/')[2]}/{name}"
    assert content == (b"model" if stores.is_embedded else target.encode()), "a link in a folder, a key in a bucket"


def test_of_two_jobs_that_end_in_the_wrong_order_the_newer_one_stays(service: Service, pid: str) -> None:
    older = _version(service, pid, b"older", seconds=2)
    newer = _version(service, pid, b"newer")
    assert _leads_to(service, pid, newer)
    assert service.job(older)["status"] == "running"
    _made(service, older)
    assert _leads_to(service, pid, newer)


def test_only_what_was_completed_is_led_to(service: Service, pid: str) -> None:
    good = _version(service, pid, b"good")
    assert _leads_to(service, pid, good)
    assert service.wait(_version(service, pid, b"bad", fails=True))["status"] == "failed"
    cancelled = _version(service, pid, b"cancelled", seconds=30)
    service.wait(cancelled, statuses={"running"})
    service.client.post(f"{cancelled}/cancel")
    assert service.wait(cancelled)["status"] == "cancelled"
    assert _leads_to(service, pid, good)


def test_a_pointer_is_no_file_of_a_prefix(service: Service, pid: str) -> None:
    _made(service, _version(service, pid, b"model"))
    key = service.upload(pid, "a.txt", b"a")
    data = {"images": f"artifacts/{pid}/optimizing"}
    images = service.run("echo", pid, {"input_path": key, "data": data})["metrics"]["images"]
    assert any(NAME.search(name) for name in images)
    assert not [name for name in images if "latest" in name]


def test_a_version_that_is_gone_is_told(service: Service, pid: str) -> None:
    path = _version(service, pid, b"model")
    target = f"artifacts/{pid}/optimizing/{path.rpartition('/')[2]}/{_made(service, path)}"
    by_hand.remove(service, target)
    latest = f"artifacts/{pid}/optimizing/latest_detection.onnx"
    error = service.run("echo", pid, {"input_path": latest})["error"]
    assert error["code"] == "INPUT_NOT_FOUND"
    assert error["received"] == f"{latest}, which leads to {target}, and that is gone"
    answer = service.client.get(_latest(service, pid).headers["location"])
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")
    newer = _version(service, pid, b"newer")
    assert _leads_to(service, pid, newer)


def test_a_file_that_was_put_there_by_hand_stays_and_is_an_input(service: Service, pid: str) -> None:
    key = f"artifacts/{pid}/optimizing/latest_detection.onnx"
    by_hand.put(service, key, b"by hand")
    _made(service, _version(service, pid, b"model"))
    assert service.run("echo", pid, {"input_path": key})["metrics"]["size_bytes"] == len(b"by hand")
    assert by_hand.read(service, key) == b"by hand"
    assert _latest(service, pid).status_code == 404


# -- users --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, stores: Stores) -> Iterator[Service]:
    with stores.fresh() as environment:
        given = {"API_KEYS": ",".join(f"{key}:{uid}" for key, uid in KEYS.items())}
        running = Service(tmp_path_factory.mktemp("keyed"), environment | given).start()
        yield running
        running.close()


def _be(service: Service, uid: str) -> None:
    (service.client.headers["x-api-key"],) = [key for key, whose in KEYS.items() if whose == uid]


@pytest.mark.slow
def test_another_user_neither_follows_nor_moves_a_pointer(keyed: Service, pid: str) -> None:
    latest = f"artifacts/{pid}/optimizing/latest_detection.onnx"
    _be(keyed, "0001")
    path = _version(keyed, pid, b"of the first user")
    assert _leads_to(keyed, pid, path)

    _be(keyed, "0002")
    absent = _latest(keyed, pid, "classification").json()
    assert {**_latest(keyed, pid).json(), "instance": 0, "received": 0} == {**absent, "instance": 0, "received": 0}
    error = keyed.run("echo", pid, {"input_path": latest})["error"]
    assert (error["code"], error["received"]) == ("INPUT_NOT_FOUND", latest), "not where it leads"
    assert NAME.fullmatch(_made(keyed, _version(keyed, pid, b"of the second user")))
    assert _latest(keyed, pid).status_code == 404

    _be(keyed, "0001")
    assert _leads_to(keyed, pid, path)
    assert keyed.run("echo", pid, {"input_path": latest})["metrics"]["size_bytes"] == len(b"of the first user")


def test_a_name_that_is_no_pointer_is_refused(service: Service, pid: str) -> None:
    for name in ("latest_other.onnx", "latest_detection.pt", "best.onnx"):
        assert service.client.get(f"/optimizing/projects/{pid}/{name}").status_code == 422


# -- the real thing -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("action", ["pt_to_onnx_fp32", "pt_to_onnx_fp16"])
def test_an_export_of_detection_best_is_a_version(service: Service, pid: str, pills_model: Path, action: str) -> None:
    parameters = {"kind": "pt_to_onnx", "input_path": service.upload(pid, "detection_best.pt", pills_model)}
    path = service.submit(action, pid, {**parameters, "input_size": [160, 160]})
    name = _made(service, path, 280)
    assert NAME.fullmatch(name)
    assert f"{Path(name).stem}_stats.txt" in service.job(path)["artifact_files"]
    assert _leads_to(service, pid, path)


@pytest.mark.slow
def test_a_store_that_goes_away_gets_the_pointer_when_it_is_back(
    make_service: MakeService, make_minio: Callable[[], S3Server], pid: str
) -> None:
    server = make_minio()
    service = make_service(**server.environment("outage"))
    path = _version(service, pid, b"model", seconds=2)
    service.wait(path, statuses={"running"})
    server.kill()
    eventually(lambda: service.job(path)["phase"] == "upload", 30, what="it is to be stored")
    server.start()
    assert _leads_to(service, pid, path)
