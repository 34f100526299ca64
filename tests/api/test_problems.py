"""Every refusal is a problem document (RFC 9457) with a stable code."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx2
import pytest

from tests.harness import Service

ALLOWED = {"type", "title", "status", "code", "detail", "expected", "received", "hint", "errors", "instance"}


def check(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The body of a refusal, after everything that all of them share was looked at."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert set(problem) <= ALLOWED
    assert {"type", "title", "status", "code", "detail", "instance"} <= set(problem)
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["instance"] == answer.request.url.path
    assert problem["type"] in {"about:blank", f"urn:optimizing:problem:{code.lower()}"}
    assert "Traceback" not in answer.text
    assert "site-packages" not in answer.text
    return problem


def _raw(service: Service, body: bytes, **headers: str) -> httpx2.Response:
    fields = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return service.client.post("/optimizing/nap", content=body, headers=fields)


@pytest.mark.parametrize(
    "body", [b"{", b"{]", b'{"pid": P1}', b"{'pid': 1}", b"\xff\xfe", b'{"pid": "\xff"}', b"NaN,", b"1" * 5000]
)
def test_400_for_what_cannot_be_read(service: Service, body: bytes) -> None:
    check(_raw(service, body), 400, "MALFORMED_REQUEST")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"5",
        b"{}",
        b'{"pid": "P0001"}',
        b'{"pid": "P0001", "parameters": null}',
        b'{"pid": "P0001", "parameters": []}',
        b'{"pid": "P0001", "parameters": {"kind": "nap", "seconds": NaN}}',
        b'{"pid": "P0001", "parameters": {"kind": "nap", "seconds": Infinity}}',
        b'{"pid": "P0001", "parameters": {"kind": "nap", "seconds": 1e999}}',
        b'{"pid": "P0001", "parameters": {"kind": "nap", "note": "\\ud800"}}',
        b'{"pid": "P0001", "parameters": {"kind": "nap", "\\udfff": 1}}',
        b'{"pid": "\\ud800"}',
    ],
)
def test_422_for_what_is_not_acceptable(service: Service, body: bytes) -> None:
    problem = check(_raw(service, body), 422, "INVALID_REQUEST")
    assert problem["errors"]
    assert all(set(fault) <= {"field", "message", "received", "did_you_mean"} for fault in problem["errors"])


def test_a_body_of_many_brackets_is_refused(service: Service) -> None:
    answer = _raw(service, b'{"pid":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    assert answer.status_code in {400, 422}
    assert answer.json()["code"] in {"MALFORMED_REQUEST", "INVALID_REQUEST"}


@pytest.mark.parametrize("headers", [{"origin": "https://127.0.0.1"}, {"host": "[::1"}, {"host": ""}])
def test_403_for_a_page_of_another_site(service: Service, headers: dict[str, str]) -> None:
    check(service.client.get("/optimizing/jobs", headers=headers), 403, "FOREIGN_ORIGIN")


@pytest.mark.parametrize("path", ["/", "/optimizing", "/optimizing/", "/optimizing/onnx_to_trtx", "/nothing/here"])
def test_404_for_what_is_not_there(service: Service, path: str) -> None:
    check(service.client.get(path), 404, "NOT_FOUND")


def test_404_for_a_job_that_is_not_there(service: Service) -> None:
    problem = check(service.client.get("/optimizing/jobs/P0404/O0404"), 404, "JOB_NOT_FOUND")
    assert problem["received"] == "P0404/O0404"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/optimizing/nap", "POST"),
        ("PUT", "/optimizing/uploads", "POST"),
        ("POST", "/optimizing/kinds", "GET"),
        ("DELETE", "/optimizing/jobs", "GET"),
        ("PATCH", "/optimizing/jobs/P0001/O0001", "GET"),
        ("GET", "/optimizing/jobs/P0001/O0001/cancel", "POST"),
        ("POST", "/optimizing/jobs/P0001/O0001/artifacts/x/y", "GET"),
        ("POST", "/healthz", "GET"),
        ("DELETE", "/metrics", "GET"),
    ],
)
def test_405_says_what_is_allowed(service: Service, method: str, path: str, allowed: str) -> None:
    answer = service.client.request(method, path)
    check(answer, 405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == allowed


def test_409_for_what_does_not_fit_the_state(service: Service, pid: str) -> None:
    path = service.submit("nap", pid, {"seconds": 0})
    service.wait(path)
    check(service.client.post(f"{path}/cancel"), 409, "JOB_FINISHED")
    check(service.client.post(f"{path}/retry"), 409, "JOB_NOT_RETRYABLE")
    check(service.client.post(f"{path}/callbacks/replay"), 409, "NO_CALLBACKS")


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("path", ["/optimizing/nap", "/optimizing/jobs/P0001/O0001/cancel", "/healthz"])
def test_413_for_a_body_that_would_fill_the_memory(service: Service, path: str, announced: bool) -> None:
    body = b'{"pid": "P0001", "parameters": {"kind": "nap", "note": "' + b"x" * (2 << 20) + b'"}}'
    content = body if announced else iter([body[: 1 << 20], body[1 << 20 :]])
    answer = service.client.post(path, content=content, headers={"content-type": "application/json"})
    if path == "/optimizing/nap":
        check(answer, 413, "TOO_LARGE")
    else:
        assert answer.status_code in {401, 404, 405, 413}


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"])
def test_415_for_a_body_of_another_type(service: Service, media: str) -> None:
    body = json.dumps({"pid": "P0001", "parameters": {"kind": "nap"}}).encode()
    problem = check(_raw(service, body, content_type=media), 415, "UNSUPPORTED_MEDIA_TYPE")
    assert "application/json" in problem["expected"]


@pytest.mark.parametrize("media", ["application/json; charset=utf-8", "Application/JSON", "application/merge+json"])
def test_json_under_any_of_its_names_is_taken(service: Service, pid: str, media: str) -> None:
    body = json.dumps({"pid": pid, "parameters": {"kind": "nap", "seconds": 0}}).encode()
    assert _raw(service, body, content_type=media).status_code == 202


def test_416_for_a_range_that_is_not_there(service: Service, pid: str) -> None:
    key = service.upload(pid, "a.txt", b"abc")
    url = f"/optimizing/jobs/{pid}/{key.split('/')[3]}/artifacts/a.txt"
    check(service.client.get(url, headers={"range": "bytes=3-"}), 416, "RANGE_NOT_SATISFIABLE")


def test_what_is_no_http_is_answered_as_such_and_the_service_goes_on(service: Service) -> None:
    for rubbish in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"A" * 100_000 + b"\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", service.port), timeout=5) as connection:
            connection.sendall(rubbish)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100)[:12] in {b"", b"HTTP/1.1 400"}
    assert service.client.get("/healthz").status_code == 200
