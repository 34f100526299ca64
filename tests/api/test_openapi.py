"""Schemathesis over the OpenAPI document, against the running service: no 5xx, nothing undeclared."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.harness import Service

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    unsupported_method,
]
FEW, MANY = 60, 400
JOB = "/optimizing/jobs/{pid}/{oid}"


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The product as it ships, without the tests' kinds, which would do whatever they are asked."""
    environment = {"KIND_PACKAGES": "", "JOB_START_METHOD": "exec", "UPLOAD_MAX_MIB": "1"}
    running = Service(tmp_path_factory.mktemp("fuzzed"), environment).start()
    yield running
    running.close()


@pytest.fixture(scope="module")
def things(fuzzed: Service) -> list[tuple[str, str, str]]:
    """(pid, oid, file) of what there is: a failed job with a callback, and an upload."""
    fuzzed.upload("P0001", "best.pt", b"no model")
    parameters = {"input_path": "artifacts/P0001/optimizing/O0001/best.pt"}
    path = fuzzed.submit("check_model_stats", "P0001", parameters, callback_url=f"{fuzzed.url}/healthz")
    assert fuzzed.wait(path)["status"] == "failed"
    return [("P0001", "O0001", "best.pt"), ("P0001", "O0002", "job.log")]


def _operations(service: Service) -> Any:
    return schemathesis.openapi.from_url(f"{service.url}/openapi.json")


def _fuzz(service: Service, things: list[tuple[str, str, str]], examples: int) -> dict[str, set[int]]:
    """Every operation with generated requests, half of those that name a job with one that is there; what came."""
    schema, pick = _operations(service), random.Random(7)
    seen: dict[str, set[int]] = {}
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )

    def send(case: Any) -> None:
        if "oid" in (case.path_parameters or {}) and pick.random() < 0.5:
            pid, oid, name = pick.choice(things)
            known = {"pid": pid, "oid": oid, "name": name}
            case.path_parameters = {part: known[part] for part in case.path_parameters}
        answer = case.call_and_validate(checks=CHECKS, timeout=20)
        seen.setdefault(case.operation.label, set()).add(answer.status_code)

    for result in schema.get_all_operations():
        settings(hypothesis.given(case=result.ok().as_strategy())(send))()
    return seen


@pytest.mark.slow
def test_no_5xx_and_no_undeclared_status(fuzzed: Service, things: list[tuple[str, str, str]]) -> None:
    seen = _fuzz(fuzzed, things, FEW)
    print(seen)
    assert set(seen) == {
        f"{method.upper()} {path}"
        for path, operations in fuzzed.client.get("/openapi.json").json()["paths"].items()
        for method in operations
    }
    never_well = {label for label, statuses in seen.items() if not any(status < 300 for status in statuses)}
    kinds = fuzzed.client.get("/optimizing/kinds").json()["kinds"]
    lacking = {f"POST {kind['route']}" for kind in kinds if not kind["available"]}
    redirects = {"GET /optimizing/projects/{pid}/{name}"}
    assert never_well == {f"POST {JOB}/cancel", *redirects, *lacking}  # the job there has ended
    assert fuzzed.client.get("/readyz").status_code == 200


@pytest.mark.slow
def test_the_same_at_length(fuzzed: Service, things: list[tuple[str, str, str]]) -> None:
    _fuzz(fuzzed, things, MANY)


def test_the_document_is_valid(fuzzed: Service) -> None:
    _operations(fuzzed).validate()


def test_the_document_names_no_path_of_the_machine(fuzzed: Service) -> None:
    text = fuzzed.client.get("/openapi.json").text
    assert str(fuzzed.workspace) not in text
    assert str(Path.home()) not in text
