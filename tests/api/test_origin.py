"""Without API keys, a page of another site cannot drive the service through the browser of who runs it."""

from __future__ import annotations

import pytest

from tests.harness import Service


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
        {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"},
        {"Host": "127.0.0.1.evil.example"},
    ],
)
def test_a_foreign_page_is_refused_and_nothing_is_stored(service: Service, pid: str, headers: dict[str, str]) -> None:
    answer = service.client.post(
        "/optimizing/uploads", params={"pid": pid, "name": "a.pt"}, content=b"x", headers=headers
    )
    assert (answer.status_code, answer.json()["code"]) == (403, "FOREIGN_ORIGIN")
    assert not list(service.workspace.glob(f"store/artifacts/{pid}"))


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]"])
def test_a_page_of_the_service_itself_may_ask(service: Service, name: str) -> None:
    host = f"{name}:{service.port}"
    answer = service.client.get("/optimizing/jobs", headers={"Host": host, "Origin": f"http://{host}"})
    assert answer.status_code == 200
