"""Where clients can reach the artifact store themselves, downloads are sent there; the API key is not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.cli.conftest import Optimizing
from tests.cli.cutting_proxy import CuttingProxy, cutting
from tests.harness import Service
from tests.services.servers import S3Server

KEY, OTHER_KEY = "key-of-user-1", "key-of-user-2"
CONTENT = bytes(range(256)) * 40_000


@dataclass(frozen=True)
class Redirecting:
    """A service whose store clients reach by a proxy that notes what they ask there, and can cut."""

    service: Service
    store: CuttingProxy
    url: str
    """The path of an uploaded file `모델.pt` with CONTENT."""

    @property
    def job(self) -> str:
        """Its `PID/OID`."""
        return "/".join(self.url.split("/")[3:5])

    def get(self, **headers: str) -> httpx2.Response:
        return self.service.client.get(
            self.url, headers={name.replace("_", "-"): text for name, text in headers.items()}
        )


@pytest.fixture(scope="module")
def running(minio_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redirecting]:
    port = int(minio_server.endpoint.rpartition(":")[2])
    with minio_server.fresh() as environment, cutting(port, b"X-Amz-Signature", 1_000_000, cuts=0) as proxy:
        more = {
            "S3_PUBLIC_ENDPOINT": proxy.url,
            "API_KEYS": f"{KEY}:0001,{OTHER_KEY}:0002",
            "JOB_START_METHOD": "exec",
        }
        service = Service(tmp_path_factory.mktemp("redirecting"), environment | more).start()
        service.client.headers["authorization"] = f"Bearer {KEY}"
        answer = service.client.post("/optimizing/uploads", params={"pid": "P0001", "name": "모델.pt"}, content=CONTENT)
        assert answer.status_code == 201, answer.text
        yield Redirecting(service, proxy, answer.headers["location"])
        service.close()


@pytest.fixture
def redirecting(running: Redirecting) -> Redirecting:
    running.store.requests.clear()
    running.store.cuts = 0
    return running


def test_a_download_is_sent_to_the_store_and_keeps_its_name(redirecting: Redirecting) -> None:
    sent = redirecting.get()
    assert (sent.status_code, sent.content) == (307, b"")
    assert sent.headers["location"].startswith(f"{redirecting.store.url}/")
    assert sent.headers["etag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    assert sent.headers["cache-control"] == "no-store"
    got = httpx2.get(sent.headers["location"], trust_env=False)
    assert (got.status_code, got.content) == (200, CONTENT)
    assert got.headers["content-disposition"] == sent.headers["content-disposition"]
    assert got.headers["content-disposition"] == "attachment; filename*=UTF-8''%EB%AA%A8%EB%8D%B8.pt"


def test_a_part_is_the_stores_to_answer(redirecting: Redirecting) -> None:
    link = redirecting.get(range="bytes=10-19").headers["location"]
    got = httpx2.get(link, headers={"Range": "bytes=10-19"}, trust_env=False)
    assert (got.status_code, got.content) == (206, CONTENT[10:20])


def test_who_has_it_already_is_sent_nowhere(redirecting: Redirecting) -> None:
    etag = redirecting.get().headers["etag"]
    assert redirecting.get(if_none_match=etag).status_code == 304
    assert redirecting.get(if_none_match='"None"').status_code == 307


def test_what_is_not_there_or_anothers_has_no_link(redirecting: Redirecting) -> None:
    for url, key in (
        (redirecting.url + ".not", KEY),
        (redirecting.url.replace("O0001", "O0009"), KEY),
        (redirecting.url, OTHER_KEY),
    ):
        answer = redirecting.service.client.get(url, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 404
        assert "location" not in answer.headers
    assert redirecting.service.client.get(redirecting.url, headers={"authorization": "Bearer no"}).status_code == 401


def test_the_document_says_so(redirecting: Redirecting) -> None:
    paths = redirecting.service.client.get("/openapi.json").json()["paths"]
    answers = paths["/optimizing/jobs/{pid}/{oid}/artifacts/{name}"]["get"]["responses"]
    assert "Location" in answers["307"]["headers"]


def test_jobs_read_and_write_in_the_store(redirecting: Redirecting) -> None:
    key = redirecting.service.upload("P0002", "a.txt", b"hello")
    job = redirecting.service.run("echo", "P0002", {"input_path": key})
    assert job["status"] == "completed"
    listed = redirecting.service.client.get("/optimizing/jobs/P0002/O0002/artifacts").json()["artifacts"]
    echoed = {one["name"]: one for one in listed}["a_echo.txt"]
    assert (echoed["size_bytes"], echoed["sha256"]) == (5, hashlib.sha256(b"hello").hexdigest())


# -- the command line ---------------------------------------------------------------------------------------------
@pytest.fixture
def optimizing(redirecting: Redirecting, tmp_path: Path) -> Optimizing:
    return Optimizing(tmp_path, redirecting.service.url)


def test_the_key_is_not_sent_to_the_store(optimizing: Optimizing, redirecting: Redirecting, tmp_path: Path) -> None:
    ended = optimizing("fetch", redirecting.job, "--to", "here", "--json", OPTIMIZING_API_KEY=KEY)
    assert ended.code == 0, ended.err
    assert (tmp_path / "here" / "모델.pt").read_bytes() == CONTENT
    assert ended.json["files"][0]["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    (head,) = redirecting.store.asked(b"X-Amz-Signature")
    assert b"authorization" not in head.lower() and b"x-api-key" not in head.lower()
    assert KEY.encode() not in head


def test_a_broken_download_goes_on_by_a_new_link(
    optimizing: Optimizing, redirecting: Redirecting, tmp_path: Path
) -> None:
    redirecting.store.cuts = 2
    ended = optimizing("fetch", redirecting.job, "--to", "here", "--json", OPTIMIZING_API_KEY=KEY)
    assert ended.code == 0, ended.err
    assert (tmp_path / "here" / "모델.pt").read_bytes() == CONTENT
    ranges = [b"range: bytes=" in head.lower() for head in redirecting.store.asked(b"X-Amz-Signature")]
    assert ranges == [False, True, True]


def test_a_part_of_another_file_is_found_out(optimizing: Optimizing, redirecting: Redirecting, tmp_path: Path) -> None:
    part = tmp_path / "here" / f".모델.pt.{hashlib.sha256(CONTENT).hexdigest()[:12]}.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 500_000)
    ended = optimizing("fetch", redirecting.job, "--to", "here", "--json", OPTIMIZING_API_KEY=KEY)
    assert (ended.code, ended.json["error"]["code"]) == (4, "DOWNLOAD_DAMAGED")
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.slow
def test_a_store_that_cannot_be_reached_is_named(
    optimizing: Optimizing, redirecting: Redirecting, minio_server: S3Server, tmp_path: Path
) -> None:
    """Only the clients' way to it is gone: the service has another."""
    with minio_server.fresh() as environment:
        more = {"S3_PUBLIC_ENDPOINT": "http://127.0.0.1:9", "JOB_START_METHOD": "exec"}
        service = Service(tmp_path / "service", environment | more).start()
        try:
            service.upload("P0001", "a.txt", b"hello")
            ended = optimizing("fetch", "P0001/O0001", "--json", "--url", service.url)
        finally:
            service.close()
    assert (ended.code, ended.json["error"]["code"]) == (4, "UNREACHABLE")
    assert "artifact store" in ended.json["error"]["detail"]
    assert "S3_PUBLIC_ENDPOINT" in ended.json["error"]["hint"]
