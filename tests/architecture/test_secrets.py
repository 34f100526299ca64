"""Nothing secret reaches a job's process: not by its environment, not by what it finds open."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.jobs.process import KEPT_PREFIXES, KEPT_VARIABLES
from app.jobs.protocol import MARK_VARIABLE
from app.library_variables import FIXED_VARIABLES
from tests.harness import Service, alive, eventually

KEY = "a-secret-api-key"
SECRETS = {
    "API_KEYS": f"{KEY}:0001",
    "CALLBACK_SECRET": "whsec_" + "dG9wIHNlY3JldCB0b3Agc2VjcmV0IHRvcCBzZWNyZXQh",
    "AWS_SECRET_ACCESS_KEY": "an-aws-secret",
    "MINIO_SECRET_KEY": "a-minio-secret",
    "MONGO_URL": "mongodb://user:a-mongo-secret@host/",
    "SOME_PASSWORD": "some-password",
}
ALLOWED = {*KEPT_VARIABLES, *FIXED_VARIABLES, MARK_VARIABLE, "OMP_NUM_THREADS"}
"""What a cold job's process may have; in a forked one, libraries have set more of their own."""


def _look(service: Service, uid_pid: str = "P0001") -> dict[str, Any]:
    seen: dict[str, Any] = service.run("secrets", uid_pid, {})["metrics"]
    return seen


def _check(seen: dict[str, Any], service: Service) -> None:
    for name, secret in SECRETS.items():
        assert name not in seen["environment"]
        for value in (secret, secret.partition(":")[0]):
            assert value not in str(seen["environment"].values()), name
    assert seen["environment"]["ORT_DISABLE_TELEMETRY"] == "1"
    assert seen["environment"]["YOLO_OFFLINE"] == "true"
    state = str(service.workspace / "state")
    assert not [path for path in seen["open_files"] if path.startswith((state, "socket:"))], seen["open_files"]
    assert seen["session"] == seen["pid"]
    assert seen["may_have_children"]
    assert (seen["core_limit"], seen["modules"]["tensorrt"]) == (0, False)
    assert seen["workdir"].startswith(str(service.workspace / "jobs"))


@pytest.fixture
def secretive(make_service: Callable[..., Service], request: pytest.FixtureRequest) -> Service:
    running = make_service(start=False, JOB_START_METHOD=request.param, **SECRETS)
    running.client.headers["authorization"] = f"Bearer {KEY}"
    running.start()
    found: Service = running
    return found


@pytest.mark.parametrize("secretive", ["forkserver", "exec"], indirect=True)
def test_a_job_s_process_knows_no_secret(secretive: Service) -> None:
    assert secretive.process is not None
    assert f"API_KEYS={KEY}".encode() in Path(f"/proc/{secretive.process.pid}/environ").read_bytes()
    seen = _look(secretive)
    _check(seen, secretive)
    forked = seen["parent_pid"] != secretive.process.pid
    if not forked:
        assert {name for name in seen["environment"] if not name.startswith(KEPT_PREFIXES)} <= ALLOWED


@pytest.mark.slow
@pytest.mark.parametrize("secretive", ["forkserver"], indirect=True)
def test_nor_does_one_of_a_fork_server_that_was_started_again(secretive: Service) -> None:
    """It is started when a job needs it, in the midst of a service whose environment holds everything."""
    first = _look(secretive)
    _check(first, secretive)
    os.kill(first["parent_pid"], signal.SIGKILL)
    eventually(lambda: not alive(first["parent_pid"]))
    again = _look(secretive, "P0002")
    assert again["parent_pid"] != first["parent_pid"]
    _check(again, secretive)
    assert again["modules"]["torch"]
    text = secretive.text()
    assert not any(secret in text for secret in SECRETS.values())
