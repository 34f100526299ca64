"""Path tricks in every place that takes a name: all refused with a 4xx, and nothing is written anywhere."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.harness import Service, tree

CLIMBING = ["..", "../x", "a/../../x", "./x", "a/./x", "a//x", "/etc/passwd", "//etc/passwd", "~/../x/..", "x/.."]
HIDDEN = [".", ".hidden", ".digests/x", "a/.hidden/x", ".incoming", "...", "x.", " x", "x ", "a/ x"]
UNSEEN = [
    "a\0b",
    "a\nb",
    "a\rb",
    "a\tb",
    "a\x7fb",
    "a\u200bb",
    "a\u202eb",
    "a\u2028b",
    "\ufeffa",
    "a\ue000b",
    "a\u0085b",
]
SEPARATORS = [
    "a\\b",
    "..\\x",
    "C:\\x",
    "a\u2215b",
    "a\u2044b",
    "a\u29f8b",
    "a\uff0fb",
    "a\uff3cb",
    "a\u29f5b",
    "a\u2571b",
]
LOOKALIKES = ["\uff0e\uff0e/x", "\u2025/x", "\u2024\u2024/x", "\ufe52x", "\uff21.pt", "\u2460", "\ufb01le"]
LONG = ["x" * 300, "a/" + "x" * 300, "\uac00" * 70, "/".join(["x"] * 600)]
TRICKS = [*CLIMBING, *HIDDEN, *UNSEEN, *SEPARATORS, *LOOKALIKES, *LONG, ""]
"""None of these is a safe name or key."""

ENCODED = [
    "%2e%2e",
    "%2e%2e%2fx",
    "..%2fx",
    "%2fetc%2fpasswd",
    "a%2f..%2f..%2fx",
    "%00",
    "a%00b",
    "%5cx",
    "%252e%252e%252fx",
]
tricks = pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: ascii(trick)[:40])


def _snapshot(service: Service) -> dict[str, str]:
    """Everything under the workspace and beside it, but for the records, their log and libraries' caches."""
    found = tree(service.folder)
    return {
        name: what for name, what in found.items() if not name.startswith(("workspace/state/", "home", "service.log"))
    }


@pytest.fixture(scope="module")
def before(service: Service) -> Iterator[None]:
    """Nothing is there after all these tests that was not there before."""
    earlier = _snapshot(service)
    yield
    assert _snapshot(service) == earlier


def _refused(service: Service, action: str, parameters: dict[str, Any], pid: str = "P0001") -> None:
    answer = service.post(action, pid, parameters)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


# -- in a body ----------------------------------------------------------------------------------------------------
@tricks
def test_in_the_body(service: Service, before: None, trick: str) -> None:
    if not trick.startswith("/etc/passwd"):  # without an ending that is asked for, an absolute path is judged below
        _refused(
            service,
            "check_model_stats",
            {"input_path": trick + ".pt" if not trick.endswith(".pt") else trick, "kind": "x"},
        )
    _refused(service, "echo", {"input_path": trick})
    _refused(service, "echo", {"input_path": "models/a.txt", "data": {"images": trick}})
    _refused(service, "echo", {"input_path": "models/a.txt", "data": {"images": "models/a", "annotations": trick}})
    _refused(service, "nap", {"seconds": 0}, pid=trick)
    _refused(service, "nap", {"seconds": 0}, pid=f"P0001{trick}" if trick else "")


@tricks
def test_in_an_output_path(service: Service, before: None, trick: str) -> None:
    names = [trick, f"folder/{trick}", f"{trick}/a.txt"]
    if trick.rstrip(". ") == trick:  # else the ending makes a good name of it
        names.append(f"{trick}.txt")
    for name in names:
        _refused(service, "echo", {"input_path": "models/a.txt", "output_path": name})


@pytest.mark.parametrize("output", ["x.exe", "x", "txt", ".txt", "a/.txt", "x.txt/", "x.TXT", "x.txt.pt"])
def test_an_output_with_a_wrong_ending(service: Service, before: None, output: str) -> None:
    _refused(service, "echo", {"input_path": "models/a.txt", "output_path": output})


# -- in a URL -----------------------------------------------------------------------------------------------------
@tricks
def test_in_an_upload_s_query(service: Service, before: None, trick: str) -> None:
    for query in ({"pid": "P0001", "name": trick}, {"pid": trick, "name": "a.pt"}):
        answer = service.client.post("/optimizing/uploads", params=query, content=b"content")
        assert answer.status_code == 422, (query, answer.text)


def test_an_upload_s_name_is_one_segment(service: Service, before: None) -> None:
    answer = service.client.post("/optimizing/uploads", params={"pid": "P0001", "name": "a/b.pt"}, content=b"x")
    assert answer.status_code == 422


@tricks
def test_in_the_path(service: Service, before: None, trick: str) -> None:
    for quoted in {quote(trick), quote(trick, safe="")}:
        for path in (
            f"/optimizing/jobs/P0001/O0001/artifacts/{quoted}",
            f"/optimizing/jobs/{quoted}/O0001",
            f"/optimizing/jobs/P0001/{quoted}",
            f"/optimizing/jobs/P0001/{quoted}/artifacts/a.pt",
        ):
            if path.rstrip("/") in {"/optimizing/jobs/P0001/O0001/artifacts"}:
                continue
            assert 400 <= _status(service, path) < 500, path


@pytest.mark.parametrize("encoded", ENCODED)
def test_encoded_in_the_path(service: Service, before: None, encoded: str) -> None:
    for path in (
        f"/optimizing/jobs/P0001/O0001/artifacts/{encoded}",
        f"/optimizing/jobs/P0001/O0001/artifacts/a/{encoded}",
        f"/optimizing/jobs/{encoded}/O0001/artifacts/a.pt",
        f"/optimizing/jobs/P0001/{encoded}/log",
        f"/{encoded}/optimizing/jobs",
    ):
        assert 400 <= _status(service, path) < 500, path


def _status(service: Service, path: str) -> int:
    """As it stands: a client library would tidy the path up."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status
