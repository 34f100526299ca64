"""Files in and out over HTTP: uploads, listings, downloads with ranges and conditions."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator

import httpx2
import pytest

from tests.harness import Service, eventually
from tests.services import by_hand

pytestmark = pytest.mark.every_store

CONTENT = bytes(range(256)) * 20


@pytest.fixture(scope="module")
def file_url(service: Service) -> str:
    """The URL of an uploaded file with CONTENT."""
    key = service.upload("P777777", "data.bin", CONTENT)
    return f"/optimizing/jobs/P777777/{key.split('/')[3]}/artifacts/data.bin"


def _get(service: Service, url: str, **headers: str) -> httpx2.Response:
    return service.client.get(url, headers={name.replace("_", "-"): value for name, value in headers.items()})


# -- uploads ------------------------------------------------------------------------------------------------------
def test_an_upload_answers_with_a_key_of_the_documented_form(service: Service, pid: str) -> None:
    content = os.urandom(3_000_000)
    answer = service.client.post("/optimizing/uploads", params={"pid": pid, "name": "best.pt"}, content=content)
    assert answer.status_code == 201
    assert answer.json() == {
        "uid": "0001",
        "pid": pid,
        "oid": "O0001",
        "name": "best.pt",
        "key": f"artifacts/{pid}/optimizing/O0001/best.pt",
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert answer.headers["location"] == f"/optimizing/jobs/{pid}/O0001/artifacts/best.pt"
    assert service.client.get(answer.headers["location"]).content == content


@pytest.mark.parametrize("name", ["모델.pt", "a b.pt", "100%.pt", "a#b?c&d.pt", "ü.pt", "x" * 200, "+.pt"])
def test_names_of_every_script_come_back(service: Service, pid: str, name: str) -> None:
    answer = service.client.post("/optimizing/uploads", params={"pid": pid, "name": name}, content=b"x")
    assert answer.status_code == 201, answer.text
    assert answer.json()["name"] == name
    loaded = service.client.get(answer.headers["location"])
    assert (loaded.status_code, loaded.content) == (200, b"x")
    assert loaded.headers["content-disposition"].startswith("attachment; filename*=UTF-8''")
    (listed,) = service.client.get(answer.headers["location"].rpartition("/")[0]).json()["artifacts"]
    assert listed["name"] == name


def test_an_empty_upload_and_one_in_chunks(service: Service, pid: str) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b"y" * 1000

    for content, size in ((b"", 0), (parts(), 100_000)):
        query = {"pid": pid, "name": "a.bin"}
        answer = service.client.post("/optimizing/uploads", params=query, content=content)
        assert (answer.status_code, answer.json()["size_bytes"]) == (201, size)


@pytest.mark.parametrize("announced", [True, False])
def test_an_upload_beyond_the_limit_is_refused_and_leaves_nothing(
    make_service: pytest.FixtureRequest, pid: str, announced: bool
) -> None:
    service: Service = make_service(UPLOAD_MAX_MIB="1", JOB_START_METHOD="exec")  # type: ignore[operator]
    before = by_hand.everything(service)
    body = b"x" * (1024 * 1024 + 1)
    content = body if announced else iter([body[:1000], body[1000:]])
    answer = service.client.post("/optimizing/uploads", params={"pid": pid, "name": "a.bin"}, content=content)
    assert (answer.status_code, answer.json()["code"]) == (413, "TOO_LARGE")
    assert answer.headers["content-type"] == "application/problem+json"
    assert by_hand.everything(service) == before
    assert service.upload(pid, "a.bin", body[:-1])


def test_a_cut_connection_leaves_nothing(service: Service, pid: str) -> None:
    before = by_hand.everything(service)
    head = (
        f"POST /optimizing/uploads?pid={pid}&name=a.bin HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(head.encode() + b"z" * 4_000_000)
        eventually(lambda: len(by_hand.everything(service)) > len(before), what="the upload has begun")
    eventually(lambda: by_hand.everything(service) == before, what="nothing is left of it")


def test_a_form_is_told_to_come_as_a_raw_body(service: Service, pid: str) -> None:
    answer = service.client.post(
        "/optimizing/uploads", params={"pid": pid, "name": "best.pt"}, files={"file": ("best.pt", b"model")}
    )
    assert (answer.status_code, answer.json()["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert "--data-binary" in answer.json()["hint"]


# -- listings -----------------------------------------------------------------------------------------------------
def test_a_listing_has_sizes_and_digests(service: Service, pid: str) -> None:
    key = service.upload(pid, "a.txt", b"hello")
    path = service.submit("echo", pid, {"input_path": key})
    service.wait(path)
    answer = service.client.get(f"{path}/artifacts").json()
    assert answer["artifacts_path"] == f"artifacts/{pid}/optimizing/O0002/"
    listed = {one["name"]: one for one in answer["artifacts"]}
    assert list(listed) == ["a_echo.txt", "job.log"]
    assert listed["a_echo.txt"] == {
        "name": "a_echo.txt",
        "key": f"artifacts/{pid}/optimizing/O0002/a_echo.txt",
        "size_bytes": 5,
        "sha256": hashlib.sha256(b"hello").hexdigest(),
    }


@pytest.mark.parametrize("oid", ["O0009", "O1", "O00001"])
def test_what_nobody_drew_has_no_listing(service: Service, pid: str, oid: str) -> None:
    service.upload(pid, "a.txt", b"hello")
    answer = service.client.get(f"/optimizing/jobs/{pid}/{oid}/artifacts")
    assert (answer.status_code, answer.json()["code"]) == (404, "JOB_NOT_FOUND")


# -- downloads ----------------------------------------------------------------------------------------------------
def test_a_whole_file(service: Service, file_url: str) -> None:
    answer = _get(service, file_url)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["etag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert "content-range" not in answer.headers


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-9", 0, 10),
        ("bytes=10-", 10, 5120),
        ("bytes=-10", 5110, 5120),
        ("bytes=-999999", 0, 5120),
        ("bytes=5119-5119", 5119, 5120),
        ("bytes=100-999999", 100, 5120),
    ],
)
def test_a_part(service: Service, file_url: str, asked: str, start: int, end: int) -> None:
    answer = _get(service, file_url, range=asked)
    assert (answer.status_code, answer.content) == (206, CONTENT[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/5120"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("asked", ["bytes=5120-", "bytes=99999-100000", "bytes=-0"])
def test_a_part_that_is_not_there(service: Service, file_url: str, asked: str) -> None:
    answer = _get(service, file_url, range=asked)
    assert (answer.status_code, answer.json()["code"]) == (416, "RANGE_NOT_SATISFIABLE")
    assert answer.headers["content-range"] == "bytes */5120"


@pytest.mark.parametrize("asked", ["bytes=5-4", "bytes=0-1,5-6", "lines=0-1", "bytes=x-y", "bytes=-", "0-5", "bytes=1"])
def test_a_range_that_is_none_is_ignored(service: Service, file_url: str, asked: str) -> None:
    """RFC 9110, 14.2: an invalid Range header, or one of another unit, is as if it were not there."""
    answer = _get(service, file_url, range=asked)
    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_conditions(service: Service, file_url: str) -> None:
    etag = _get(service, file_url).headers["etag"]
    for condition in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        answer = _get(service, file_url, if_none_match=condition)
        assert (answer.status_code, answer.content) == (304, b""), condition
        assert answer.headers["etag"] == etag
    assert _get(service, file_url, if_none_match='"other"').status_code == 200
    assert _get(service, file_url, range="bytes=0-4", if_range=etag).status_code == 206
    assert _get(service, file_url, range="bytes=0-4", if_range='"other"').content == CONTENT
    assert _get(service, file_url, range="bytes=0-4", if_none_match=etag).status_code == 304


def test_an_empty_file_has_no_parts(service: Service, pid: str) -> None:
    key = service.upload(pid, "empty", b"")
    url = f"/optimizing/jobs/{pid}/{key.split('/')[3]}/artifacts/empty"
    assert (_get(service, url).status_code, _get(service, url).content) == (200, b"")
    assert _get(service, url, range="bytes=0-").status_code == 416


def test_a_file_that_the_platform_put_there_by_hand(service: Service, pid: str) -> None:
    key = service.upload(pid, "a.txt", b"a")
    by_hand.put(service, f"{key.rpartition('/')[0]}/by-hand.txt", b"by hand")
    url = f"/optimizing/jobs/{pid}/O0001/artifacts"
    assert [one["name"] for one in service.client.get(url).json()["artifacts"]] == ["a.txt", "by-hand.txt"]
    assert service.client.get(f"{url}/by-hand.txt").content == b"by hand"
    assert service.run("echo", pid, {"input_path": f"{key.rpartition('/')[0]}/by-hand.txt"})["status"] == "completed"


def test_keys_that_the_platform_put_there_without_a_job_of_ours(service: Service, pid: str) -> None:
    for key in (f"artifacts/{pid}/training/best.txt", f"artifacts/{pid}/optimizing/O0042/best.txt", "models/best.txt"):
        by_hand.put(service, key, key.encode())
        job = service.run("echo", pid, {"input_path": key})
        assert (job["status"], job["metrics"]["size_bytes"]) == ("completed", len(key))
