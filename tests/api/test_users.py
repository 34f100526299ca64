"""API keys: who may, and that nobody sees what is another's. This service starts its jobs cold (`exec`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.harness import Service, eventually
from tests.services.servers import Stores

pytestmark = pytest.mark.every_store

FIRST, SECOND = "first-key-of-user-1", "key:with:colons-of-user-2"
KEYS = f"{FIRST}:0001,{SECOND}:0002,another-key-of-user-1:0001"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, stores: Stores) -> Iterator[Service]:
    with stores.fresh() as environment:
        keys = {"API_KEYS": KEYS, "JOB_START_METHOD": "exec"}
        running = Service(tmp_path_factory.mktemp("keyed"), environment | keys).start()
        running.client.headers["authorization"] = f"Bearer {FIRST}"
        yield running
        running.close()


@pytest.fixture(scope="module")
def other(keyed: Service) -> Iterator[httpx2.Client]:
    """The second user's client."""
    with httpx2.Client(base_url=keyed.url, headers={"X-API-Key": SECOND}, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def owned(keyed: Service) -> tuple[str, str]:
    """The first user's ended job and upload key, with a callback."""
    key = keyed.upload("P0001", "a.txt", b"first's")
    path = keyed.submit("echo", "P0001", {"input_path": key}, callback_url=f"{keyed.url}/healthz")
    assert keyed.wait(path)["status"] == "completed"
    return path, key


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer wrong-key"},
        {"authorization": f"Bearer {FIRST} "[:-2]},
        {"authorization": f"Bearer {FIRST}x"},
        {"authorization": f"Basic {FIRST}"},
        {"x-api-key": "wrong-key"},
        {"x-api-key": ""},
        {"x-api-key": f"{FIRST}:0001"},
        {"x-api-key": FIRST.upper()},
        {"x-api-key": "k\u00e9y".encode("latin-1")},
    ],
)
def test_without_a_known_key_nothing_is_answered(keyed: Service, headers: dict[str, Any]) -> None:
    with httpx2.Client(base_url=keyed.url, headers=headers, trust_env=False) as stranger:
        for method, path in (
            ("GET", "/optimizing/jobs"),
            ("GET", "/optimizing/kinds"),
            ("GET", "/optimizing/jobs/P0001/O0001"),
            ("GET", "/optimizing/jobs/P0001/O0001/events"),
            ("POST", "/optimizing/jobs/P0001/O0001/cancel"),
            ("GET", "/optimizing/jobs/P0001/O0001/artifacts/a.txt"),
        ):
            answer = stranger.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHENTICATED"), (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["content-type"] == "application/problem+json"
        body = {"pid": "P0001", "parameters": {"kind": "nap"}}
        assert stranger.post("/optimizing/nap", json=body).status_code == 401
        assert stranger.post("/optimizing/uploads", params={"pid": "P1", "name": "a"}).status_code == 401
        for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
            assert stranger.get(path).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {FIRST}"},
        {"authorization": f"bearer {FIRST}"},
        {"x-api-key": FIRST},
        {"x-api-key": "another-key-of-user-1"},
    ],
)
def test_every_form_of_a_key_is_its_user(keyed: Service, owned: tuple[str, str], headers: dict[str, str]) -> None:
    with httpx2.Client(base_url=keyed.url, headers=headers, trust_env=False) as client:
        assert client.get(owned[0]).json()["uid"] == "0001"


def test_a_user_s_jobs_bear_their_uid(keyed: Service, other: httpx2.Client) -> None:
    answer = other.post("/optimizing/nap", json={"pid": "P0009", "parameters": {"kind": "nap", "seconds": 0}})
    assert answer.json()["uid"] == "0002"
    assert "/jobs/0002/P0009/" in answer.json()["info"]["workdir"]
    eventually(lambda: other.get(answer.headers["location"]).json()["status"] == "completed", 20)


def test_another_user_s_job_does_not_exist(keyed: Service, owned: tuple[str, str], other: httpx2.Client) -> None:
    path, _ = owned
    unknown = path.rpartition("/")[0] + "/O9999"
    for method, rest in (
        ("GET", ""),
        ("POST", "/cancel"),
        ("POST", "/retry"),
        ("GET", "/events"),
        ("GET", "/log"),
        ("GET", "/artifacts"),
        ("GET", "/artifacts/a_echo.txt"),
        ("GET", "/artifacts/not-there.txt"),
        ("GET", "/callbacks"),
        ("POST", "/callbacks/replay"),
    ):
        theirs, nothing = other.request(method, path + rest), other.request(method, unknown + rest)
        assert theirs.status_code == nothing.status_code == 404, (method, rest)
        shown, expected = (
            {name: value for name, value in answer.json().items() if name not in {"received", "instance"}}
            for answer in (theirs, nothing)
        )
        assert shown == expected
        assert "0001" not in theirs.text.replace(path, "").replace("P0001/", "")
    assert keyed.job(path)["status"] == "completed"


def test_lists_show_one_s_own(keyed: Service, owned: tuple[str, str], other: httpx2.Client) -> None:
    assert {job["uid"] for job in other.get("/optimizing/jobs").json()["jobs"]} <= {"0002"}
    assert other.get("/optimizing/jobs", params={"pid": "P0001"}).json()["jobs"] == []
    assert {job["uid"] for job in keyed.client.get("/optimizing/jobs").json()["jobs"]} == {"0001"}


@pytest.mark.parametrize("place", ["input_path", "images", "annotations", "prefix"])
def test_another_user_s_key_is_no_input(
    keyed: Service, owned: tuple[str, str], other: httpx2.Client, place: str
) -> None:
    key = owned[1]
    mine = other.post("/optimizing/uploads", params={"pid": "P0001", "name": "b.txt"}, content=b"b").json()["key"]
    parameters: dict[str, Any] = {
        "input_path": {"input_path": key},
        "images": {"input_path": mine, "data": {"images": key.rpartition("/")[0]}},
        "annotations": {"input_path": mine, "data": {"images": mine.rpartition("/")[0], "annotations": key}},
        "prefix": {"input_path": mine, "data": {"images": f"{key.rpartition('/')[0]}/nested"}},
    }[place]
    answer = other.post("/optimizing/echo", json={"pid": "P0001", "parameters": {"kind": "echo", **parameters}})
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


def test_a_prefix_above_several_users_gives_only_one_s_own(
    keyed: Service, owned: tuple[str, str], other: httpx2.Client
) -> None:
    mine = other.post("/optimizing/uploads", params={"pid": "P0001", "name": "mine.txt"}, content=b"b").json()["key"]
    parameters = {"kind": "echo", "input_path": mine, "data": {"images": "artifacts/P0001/optimizing"}}
    answer = other.post("/optimizing/echo", json={"pid": "P0001", "parameters": parameters})
    path = answer.headers["location"]
    eventually(lambda: other.get(path).json()["status"] == "completed", 20)
    images = other.get(path).json()["metrics"]["images"]
    assert images
    assert not any(name.endswith(("/a.txt", "/a_echo.txt")) for name in images)
    assert all(name.endswith((".txt", ".log")) for name in images)


def test_another_user_s_work_folder_and_the_service_s_own_files_are_no_input(
    keyed: Service, other: httpx2.Client
) -> None:
    path = keyed.submit("nap", "P0001", {"seconds": 30})
    workdir = keyed.wait(path, statuses={"running"})["info"]["workdir"]
    eventually(lambda: "job.log" in [name.name for name in (keyed.workspace / "jobs").rglob("*")])
    refused = [f"{workdir}/job.log", f"{keyed.workspace}/state/records.sqlite3", f"{keyed.workspace}/store/x/y"]
    for location in refused:
        parameters = {"kind": "echo", "input_path": location}
        answer = other.post("/optimizing/echo", json={"pid": "P0001", "parameters": parameters})
        assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST"), location
    for folder in (workdir, f"{keyed.workspace}/jobs", f"{keyed.workspace}", f"{keyed.workspace}/jobs/0001", "/"):
        images = {"kind": "echo", "input_path": "models/x.txt", "data": {"images": folder}}
        answer = other.post("/optimizing/echo", json={"pid": "P0001", "parameters": images})
        assert answer.status_code == 422, folder
    keyed.client.post(f"{path}/cancel")
    assert keyed.wait(path)["status"] == "cancelled"


def test_users_do_not_share_results_or_keys(keyed: Service, owned: tuple[str, str], other: httpx2.Client) -> None:
    """Nobody learns from a quick answer what somebody else has done."""
    key = other.post("/optimizing/uploads", params={"pid": "P0001", "name": "a.txt"}, content=b"first's").json()["key"]
    body = {"pid": "P0001", "parameters": {"kind": "echo", "input_path": key}}
    keyed.post("nap", "P0001", {"seconds": 0}, headers={"Idempotency-Key": "shared"})
    answer = other.post("/optimizing/echo", json=body, headers={"Idempotency-Key": "shared"})
    assert answer.status_code == 202
    path = answer.headers["location"]
    eventually(lambda: other.get(path).json()["status"] == "completed", 20)
    assert other.get(path).json()["cached"] is False


def test_keys_are_in_no_log(keyed: Service, owned: tuple[str, str]) -> None:
    with httpx2.Client(base_url=keyed.url, headers={"x-api-key": "a-wrong-key-of-somebody"}, trust_env=False) as client:
        client.get("/optimizing/jobs")
    text = keyed.text()
    assert f"sha256:{hashlib.sha256(b'a-wrong-key-of-somebody').hexdigest()[:12]}" in text
    for key in (FIRST, SECOND, "another-key-of-user-1", "a-wrong-key-of-somebody"):
        assert key not in text
    assert "NO API KEY" not in text


def test_without_keys_there_is_one_local_user_and_a_loud_line(service: Service) -> None:
    assert "NO API KEY IS SET: everybody who can reach this service is user 0001" in service.text()
    assert service.client.get("/optimizing/jobs", headers={"x-api-key": "any"}).status_code == 200


def test_cold_children_work_as_forked_ones(keyed: Service) -> None:
    seen = keyed.run("secrets", "P0001", {})["metrics"]
    assert seen["parent_pid"] == keyed.process.pid if keyed.process else False
    assert seen["session"] == seen["pid"]
    assert FIRST not in str(seen["environment"])
    assert "API_KEYS" not in seen["environment"]
