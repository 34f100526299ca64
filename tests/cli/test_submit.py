"""From a command line to a job: uploads, keys, parameters, and what comes back."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.cli.conftest import Optimizing
from tests.cli.cutting_proxy import cutting
from tests.harness import Service


def test_a_local_file_is_uploaded_first(optimizing: Optimizing, pid: str, hello: Path) -> None:
    ended = optimizing("submit", "echo", hello.name, "--pid", pid, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["parameters"]["input_path"] == f"artifacts/{pid}/optimizing/O0001/hello.txt"
    assert ended.json["metrics"]["size_bytes"] == hello.stat().st_size


def test_a_key_is_used_as_it_is(optimizing: Optimizing, service: Service, pid: str) -> None:
    key = service.upload(pid, "note.txt", b"hello")
    ended = optimizing("submit", "echo", key, "--pid", pid, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["parameters"]["input_path"] == key
    assert ended.json["oid"] == "O0002", "nothing was uploaded"


def test_parameters_come_from_a_file_and_from_set(optimizing: Optimizing, tmp_path: Path, pid: str) -> None:
    (tmp_path / "nap.json").write_text(json.dumps({"seconds": 0.3, "phases": 2, "note": "from the file"}))
    settings = ("--param-file", "nap.json", "--set", "seconds=0.05", "--set", "note=17 naps")
    ended = optimizing("submit", "nap", "--pid", pid, *settings, "--json")
    assert ended.code == 0, ended.err
    given = ended.json["parameters"]
    assert (given["seconds"], given["phases"], given["note"]) == (0.05, 2, "17 naps")


def test_a_dotted_name_sets_a_field_inside(optimizing: Optimizing, service: Service, pid: str) -> None:
    image = service.upload(pid, "a.png", b"no picture, but echo does not look")
    ended = optimizing(
        "submit", "echo", image, "--pid", pid, "--set", f"data.images={image.rpartition('/')[0]}", "--json"
    )
    assert ended.code == 0, (ended.out, ended.err)
    assert ended.json["metrics"]["images"] == ["a.png"]


def test_no_wait_answers_as_the_service_did(optimizing: Optimizing, service: Service, pid: str) -> None:
    ended = optimizing("submit", "nap", "--pid", pid, "--no-wait", "--json")
    assert ended.code == 0
    assert ended.json["status"] == "started"
    assert set(ended.json) == {"uid", "pid", "oid", "action", "status", "details", "info"}
    plain = optimizing("submit", "nap", "--pid", pid, "--no-wait")
    assert plain.out == f"{pid}/O0002\n", "what a pipe can use"
    service.wait(f"/optimizing/jobs/{pid}/O0002")


def test_an_idempotency_key_gives_the_same_job(optimizing: Optimizing, pid: str) -> None:
    words = ("submit", "nap", "--pid", pid, "--no-wait", "--json", "--idempotency-key", f"key-{pid}")
    assert optimizing(*words).json["oid"] == optimizing(*words).json["oid"]
    other = optimizing(*words, "--set", "seconds=0.2")
    assert other.code == 3


def test_the_same_work_again_is_answered_from_the_first_unless_forced(
    optimizing: Optimizing, service: Service, pid: str
) -> None:
    key = service.upload(pid, "note.txt", pid.encode())
    words = ("submit", "echo", key, "--pid", pid, "--json")
    first, second, third = optimizing(*words).json, optimizing(*words).json, optimizing(*words, "--force").json
    assert second["cached_from"] == f"{pid}/{first['oid']}"
    assert third["cached_from"] is None


def test_a_job_is_followed_with_its_log(optimizing: Optimizing, service: Service, pid: str) -> None:
    key = service.upload(pid, "note.txt", b"hello")
    ended = optimizing("submit", "echo", key, "--pid", pid, "--set", "lines=3", "--set", "seconds=0.5", "-v")
    assert ended.code == 0
    for number in range(3):
        assert ended.err.count(f"echo {number}: note.txt") == 1
    assert "read" in ended.err
    assert "completed" in ended.out
    assert "note_echo.txt" in ended.out
    quiet = optimizing("submit", "echo", key, "--pid", pid, "--force")
    assert "echo 0: note.txt" not in quiet.err


def test_a_broken_stream_is_taken_up_where_it_broke(optimizing: Optimizing, service: Service, pid: str) -> None:
    with cutting(service.port, b"/events", cut_after=600, cuts=2) as proxy:
        ended = optimizing(
            "submit", "nap", "--pid", pid, "--set", "seconds=1.5", "--set", "phases=15", "--url", proxy.url
        )
        assert ended.code == 0, ended.err
        followed = proxy.asked(b"/events")
    assert len(followed) == 3
    assert b"last-event-id" not in followed[0].lower()
    assert all(b"last-event-id: " in head.lower() for head in followed[1:])
    shown = [line for line in ended.err.splitlines() if ": nap " in line]
    assert len(shown) == len(set(shown)) == 15, "no phase twice, none lost"


def test_a_service_that_comes_back_is_waited_for(optimizing: Optimizing, service: Service, pid: str) -> None:
    job = service.submit("nap", pid, {"seconds": 1.5})
    with cutting(service.port, b"/events", cut_after=10, cuts=1) as proxy:
        began = time.monotonic()
        ended = optimizing("watch", f"{pid}/{job.rpartition('/')[2]}", "--url", proxy.url, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["status"] == "completed"
    assert time.monotonic() - began < 20


def test_retry_makes_a_new_job(optimizing: Optimizing, pid: str) -> None:
    first = optimizing("submit", "fail", "--pid", pid, "--json").json
    again = optimizing("retry", f"{pid}/{first['oid']}", "--json")
    assert again.code == 1
    assert again.json["retry_of"] == first["oid"]
    assert again.json["oid"] != first["oid"]


def test_jobs_are_listed_and_filtered(optimizing: Optimizing, pid: str) -> None:
    for _ in range(2):
        optimizing("submit", "nap", "--pid", pid, "--set", "seconds=0")
    optimizing("submit", "fail", "--pid", pid)
    listed = optimizing("jobs", "--pid", pid, "--json").json["jobs"]
    assert [job["oid"] for job in listed] == ["O0003", "O0002", "O0001"]
    failed = optimizing("jobs", "--pid", pid, "--status", "failed").out
    assert "TOY_REFUSED" in failed
    assert "O0001" not in failed
    newest = optimizing("jobs", "--pid", pid, "--action", "nap", "--limit", "1", "--json").json
    assert [job["oid"] for job in newest["jobs"]] == ["O0002"]
    assert newest["next_cursor"]


def test_kinds_are_shown_with_their_parameters(optimizing: Optimizing) -> None:
    assert "pt_to_onnx_fp16" in optimizing("kinds").out
    one = optimizing("kinds", "pt_to_onnx_fp32").out
    assert "input_size" in one
    assert "[H, W] in px" in one
    assert optimizing("kinds", "nap", "--json").json["action"] == "nap"


def test_upload_prints_the_key(optimizing: Optimizing, pid: str, hello: Path) -> None:
    ended = optimizing("upload", str(hello), "--pid", pid, "--name", "other.txt")
    assert ended.out == f"artifacts/{pid}/optimizing/O0001/other.txt\n"
