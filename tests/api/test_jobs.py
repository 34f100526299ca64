"""A job after it was accepted: list and pages, cancel, retry, log, repeated requests, what it may leave behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.harness import Service, eventually

pytestmark = pytest.mark.every_store


def _list(service: Service, **query: Any) -> dict[str, Any]:
    answer = service.client.get("/optimizing/jobs", params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def _oids(page: dict[str, Any]) -> list[str]:
    return [job["oid"] for job in page["jobs"]]


# -- reading ------------------------------------------------------------------------------------------------------
def test_a_job_shows_its_whole_life(service: Service, pid: str) -> None:
    path = service.submit("nap", pid, {"seconds": 0.3, "phases": 3})
    job = service.wait(path)
    assert set(job) == {
        *("uid", "pid", "oid", "action", "status", "phase", "progress", "attempt", "created_at", "started_at"),
        *("finished_at", "cached", "error", "details", "info", "parameters", "cached_from", "retry_of", "metrics"),
        *("artifacts_path", "artifact_files"),
    }
    assert (job["uid"], job["pid"], job["oid"], job["action"], job["attempt"]) == ("0001", pid, "O0001", "nap", 1)
    assert (job["status"], job["progress"], job["phase"], job["error"], job["cached"]) == (
        *("completed", 1.0, None, None),
        False,
    )
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    assert job["created_at"].endswith("Z")
    assert job["parameters"]["seconds"] == 0.3
    assert job["artifact_files"] == ["job.log"]


def test_a_failure_that_announced_itself_is_told_in_its_words(service: Service, pid: str) -> None:
    job = service.run("fail", pid, {"leave_file": True})
    assert job["status"] == "failed"
    assert job["error"] == {
        "code": "TOY_REFUSED",
        "message": "the toy refuses",
        "expected": "another toy",
        "received": "this toy",
        "hint": "try again",
    }
    assert job["metrics"] is None
    assert job["artifact_files"] == ["job.log", "report.txt"]


def test_a_failure_that_nobody_foresaw_shows_its_traceback_in_the_log_only(service: Service, pid: str) -> None:
    path = service.submit("fail", pid, {"mode": "unforeseen"})
    job = service.wait(path)
    assert job["error"]["code"] == "HANDLER_ERROR"
    assert "ZeroDivisionError: nobody foresaw this" in job["error"]["received"]
    assert "Traceback" not in str(job)
    log = service.job_log(path)
    assert "about to fail" in log
    assert "Traceback (most recent call last)" in log
    assert "HANDLER_ERROR" in log


def test_a_message_that_is_no_text_is_told_all_the_same(service: Service, pid: str) -> None:
    path = service.submit("fail", pid, {"mode": "undecodable"})
    job = service.wait(path)
    assert job["error"]["code"] == "HANDLER_ERROR"
    assert "a file name: ?" in job["error"]["received"]
    assert "a file name: \\udcff" in service.job_log(path)


def test_a_full_disk_has_its_own_code(service: Service, pid: str) -> None:
    assert service.run("fail", pid, {"mode": "disk"})["error"]["code"] == "DISK_FULL"


def test_an_input_that_is_not_there_fails_the_job_before_any_work(service: Service, pid: str) -> None:
    path = service.submit("echo", pid, {"input_path": f"artifacts/{pid}/optimizing/O0099/best.pt"})
    job = service.wait(path)
    assert (job["status"], job["error"]["code"], job["attempt"]) == ("failed", "INPUT_NOT_FOUND", 0)
    assert "INPUT_NOT_FOUND" in service.job_log(path)
    assert job["artifact_files"] == ["job.log"]


def test_an_output_s_folders_are_dropped(service: Service, pid: str) -> None:
    key = service.upload(pid, "a.txt", b"a")
    job = service.run("echo", pid, {"input_path": key, "output_path": "some/folders/named.txt"})
    assert job["artifact_files"] == ["job.log", "named.txt"]


def test_data_may_be_a_prefix_an_archive_or_a_folder(service: Service, pid: str, tmp_path: Path) -> None:
    import io
    import zipfile

    key = service.upload(pid, "a.txt", b"a")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("one.jpg", b"1")
        archive.writestr("nested/two.png", b"2")
    prefix = service.run("echo", pid, {"input_path": key, "data": {"images": key.rpartition("/")[0]}})
    assert prefix["metrics"]["images"] == ["a.txt"]
    zipped = service.upload(pid, "images.zip", packed.getvalue())
    archive_job = service.run("echo", pid, {"input_path": key, "data": {"images": zipped}})
    assert archive_job["metrics"]["images"] == ["nested/two.png", "one.jpg"], archive_job
    folder = service.workspace / "images"
    folder.mkdir(exist_ok=True)
    (folder / "three.bmp").write_bytes(b"3")
    on_server = service.run("echo", pid, {"input_path": key, "data": {"images": str(folder)}})
    assert on_server["metrics"]["images"] == ["three.bmp"]
    broken = service.upload(pid, "broken.zip", b"PK no zip")
    assert service.run("echo", pid, {"input_path": key, "data": {"images": broken}})["error"]["code"] == "BAD_ARCHIVE"


# -- the list -----------------------------------------------------------------------------------------------------
def test_the_list_filters_and_pages(service: Service, pid: str) -> None:
    done = [service.submit("nap", pid, {"seconds": 0}) for _ in range(5)]
    bad = [service.submit("fail", pid, {}, force=True) for _ in range(2)]
    for path in (*done, *bad):
        service.wait(path)
    everything = _list(service, pid=pid)
    assert _oids(everything) == [f"O{n:04d}" for n in range(7, 0, -1)]
    assert everything["next_cursor"] is None
    assert _oids(_list(service, pid=pid, status="failed")) == ["O0007", "O0006"]
    assert _oids(_list(service, pid=pid, action="nap")) == ["O0005", "O0004", "O0003", "O0002", "O0001"]
    assert _oids(_list(service, pid=pid, action="nap", status="failed")) == []
    assert _list(service, pid=pid, status="failed")["jobs"][0]["error"]["code"] == "TOY_REFUSED"
    seen, cursor = [], None
    while True:
        page = _list(service, pid=pid, limit=3, **({"cursor": cursor} if cursor else {}))
        seen += _oids(page)
        cursor = page["next_cursor"]
        if cursor is None:
            break
        assert len(page["jobs"]) == 3
    assert seen == _oids(everything)
    assert _oids(_list(service, limit=2))[:1] == ["O0007"]


@pytest.mark.parametrize(
    "query",
    [
        {"cursor": "x"},
        {"cursor": ""},
        {"cursor": "LTE="},
        {"cursor": "MA=="},
        {"cursor": "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5"},
        {"cursor": "MTA\u00e9"},
        {"cursor": "MV8w"},
        {"limit": 0},
        {"limit": 201},
        {"limit": "many"},
        {"status": "started"},
        {"pid": "x"},
        {"action": "NAP;"},
    ],
)
def test_a_list_that_cannot_be_is_refused(service: Service, query: dict[str, Any]) -> None:
    answer = service.client.get("/optimizing/jobs", params=query)
    assert answer.status_code == 422, answer.text


# -- cancel and retry ---------------------------------------------------------------------------------------------
def test_a_running_job_is_cancelled(service: Service, pid: str) -> None:
    path = service.submit("hang", pid, {"grandchild": True})
    eventually(lambda: service.job(path)["phase"] == "hang")
    answer = service.client.post(f"{path}/cancel")
    assert answer.status_code == 202
    job = service.wait(path, 5)
    assert (job["status"], job["error"], job["artifact_files"]) == ("cancelled", None, ["job.log"])
    again = service.client.post(f"{path}/cancel")
    assert (again.status_code, again.json()["status"]) == (202, "cancelled")


def test_a_queued_job_is_cancelled_at_once(service: Service, pid: str) -> None:
    blocking = [service.submit("nap", pid, {"seconds": 30, "note": str(n)}) for n in range(2)]
    for path in blocking:
        service.wait(path, statuses={"running"})
    waiting = [service.submit("nap", pid, {"seconds": 0}) for _ in range(10)]  # more than are claimed ahead
    for path in waiting:
        assert service.client.post(f"{path}/cancel").status_code == 202
    for path in waiting:
        job = service.wait(path, 3)
        assert (job["status"], job["attempt"], job["started_at"]) == ("cancelled", 0, None)
    for path in blocking:
        service.client.post(f"{path}/cancel")
        assert service.wait(path, 5)["status"] == "cancelled"


@pytest.mark.parametrize(("action", "status"), [("nap", "completed"), ("fail", "failed")])
def test_an_ended_job_is_not_cancelled(service: Service, pid: str, action: str, status: str) -> None:
    path = service.submit(action, pid, {})
    assert service.wait(path)["status"] == status
    answer = service.client.post(f"{path}/cancel")
    assert answer.status_code == 409
    assert (answer.json()["code"], answer.json()["received"]) == ("JOB_FINISHED", status)
    assert service.job(path)["status"] == status


def test_a_retry_is_a_new_job_with_the_same_request(service: Service, pid: str) -> None:
    path = service.submit("fail", pid, {"leave_file": True}, callback_url=f"http://127.0.0.1:{service.port}/healthz")
    assert service.wait(path)["status"] == "failed"
    answer = service.client.post(f"{path}/retry")
    assert answer.status_code == 202
    assert set(answer.json()) == {"uid", "pid", "oid", "action", "status", "details", "info"}
    assert (answer.json()["oid"], answer.json()["status"]) == ("O0002", "started")
    again = service.wait(answer.headers["location"])
    assert (again["retry_of"], again["status"]) == ("O0001", "failed")
    assert again["parameters"] == service.job(path)["parameters"]
    assert len(service.client.get(f"{answer.headers['location']}/callbacks").json()["callbacks"]) == 1


def test_what_ended_well_or_has_not_ended_is_not_retried(service: Service, pid: str) -> None:
    path = service.submit("nap", pid, {"seconds": 30})
    for status in ("running", "completed"):
        if status == "completed":
            service.client.post(f"{path}/cancel")
            path = service.submit("nap", pid, {"seconds": 0})
        service.wait(path, statuses={status})
        answer = service.client.post(f"{path}/retry")
        assert (answer.status_code, answer.json()["code"], answer.json()["received"]) == (
            *(409, "JOB_NOT_RETRYABLE"),
            status,
        )


# -- the same request again ---------------------------------------------------------------------------------------
def test_an_idempotency_key_makes_two_posts_one_job(service: Service, pid: str) -> None:
    headers = {"Idempotency-Key": f"key-of-{pid}"}
    first = service.post("nap", pid, {"seconds": 0}, headers=headers)
    again = service.post("nap", pid, {"seconds": 0}, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert first.headers["location"] == again.headers["location"]
    service.wait(first.headers["location"])
    assert service.post("nap", pid, {"seconds": 0}, headers=headers).json() == first.json()
    assert len(_list(service, pid=pid)["jobs"]) == 1


@pytest.mark.parametrize("change", ["parameters", "route", "force", "callback", "pid"])
def test_an_idempotency_key_with_another_request_is_refused(service: Service, pid: str, change: str) -> None:
    headers = {"Idempotency-Key": f"key-of-{pid}-{change}"}
    assert service.post("nap", pid, {"seconds": 0}, headers=headers).status_code == 202
    other = {
        "parameters": lambda: service.post("nap", pid, {"seconds": 0.01}, headers=headers),
        "route": lambda: service.post("hang", pid, {"seconds": 0}, headers=headers),
        "force": lambda: service.post("nap", pid, {"seconds": 0}, headers=headers, force=True),
        "callback": lambda: service.post("nap", pid, {"seconds": 0}, headers=headers, callback_url="http://1.1.1.1/"),
        "pid": lambda: service.post("nap", pid + "0", {"seconds": 0}, headers=headers),
    }[change]()
    assert (other.status_code, other.json()["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert len(_list(service, pid=pid)["jobs"]) == 1


@pytest.mark.parametrize("key", ["", "a b", "k" * 256, "caf\u00e9".encode()])
def test_an_idempotency_key_is_plain_text(service: Service, pid: str, key: str | bytes) -> None:
    answer = service.post("nap", pid, {"seconds": 0}, headers={"Idempotency-Key": key})
    assert answer.status_code == 422


def test_the_same_work_is_done_once(service: Service, pid: str) -> None:
    key = service.upload(pid, "a.txt", b"the same")
    first = service.run("echo", pid, {"input_path": key})
    again = service.run("echo", pid, {"input_path": key})
    assert (first["cached"], again["cached"]) == (False, True)
    assert again["cached_from"] == f"{pid}/{first['oid']}"
    assert again["metrics"] == first["metrics"]
    assert again["artifact_files"] == first["artifact_files"] == ["a_echo.txt", "job.log"]
    path = f"/optimizing/jobs/{pid}/{again['oid']}"
    assert service.client.get(f"{path}/artifacts/a_echo.txt").content == b"the same"
    assert first["oid"] in service.job_log(path)


def test_the_same_content_under_another_key_is_the_same_work(service: Service, pid: str) -> None:
    for number in range(2):
        key = service.upload(pid, "a.txt", b"same content")
        assert service.run("echo", pid, {"input_path": key})["cached"] == (number == 1)


@pytest.mark.parametrize("change", ["content", "name", "parameters", "output", "force", "project"])
def test_other_work_is_done_anew(service: Service, pid: str, change: str) -> None:
    parameters = {"input_path": service.upload(pid, "a.txt", f"{pid} 1".encode())}
    assert not service.run("echo", pid, parameters)["cached"]
    other = {
        "content": lambda: service.run("echo", pid, {"input_path": service.upload(pid, "a.txt", b"2")}),
        "name": lambda: service.run("echo", pid, {"input_path": service.upload(pid, "b.txt", f"{pid} 1".encode())}),
        "parameters": lambda: service.run("echo", pid, {**parameters, "note": "other"}),
        "output": lambda: service.run("echo", pid, {**parameters, "output_path": "other.txt"}),
        "force": lambda: service.run("echo", pid, parameters, force=True),
        "project": lambda: service.run("nap", pid, {"seconds": 0}),
    }[change]()
    assert other["status"] == "completed"
    assert not other["cached"]


def test_a_kind_that_is_not_reusable_is_done_anew(service: Service, pid: str) -> None:
    jobs = [service.run("nap", pid, {"seconds": 0}) for _ in range(2)]
    assert [job["cached"] for job in jobs] == [False, False]


def test_a_failure_is_not_reused(service: Service, pid: str) -> None:
    jobs = [service.run("fail", pid, {}) for _ in range(2)]
    assert [(job["status"], job["attempt"], job["cached"]) for job in jobs] == [("failed", 1, False)] * 2


# -- what a job leaves behind -------------------------------------------------------------------------------------
@pytest.mark.parametrize("fail", [False, True])
def test_links_pipes_and_hidden_files_stay_behind(service: Service, pid: str, tmp_path: Path, fail: bool) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret\n")
    path = service.submit("escape", pid, {"target": str(secret), "fail": fail})
    job = service.wait(path)
    assert job["status"] == ("failed" if fail else "completed")
    assert job["artifact_files"] == ["job.log", "nested/deeper/inner.txt", "plain.txt"]
    listed = service.client.get(f"{path}/artifacts").json()["artifacts"]
    assert [one["name"] for one in listed] == job["artifact_files"]
    assert service.client.get(f"{path}/artifacts/nested/deeper/inner.txt").content == b"inner\n"
    for name in ("link.txt", ".hidden", ".folder/file.txt", "dangling", "pipe", "outside/secret.txt"):
        assert service.client.get(f"{path}/artifacts/{name}").status_code in {404, 422}
    assert not Path(job["info"]["workdir"]).exists()
    assert secret.read_text() == "secret\n"


def test_files_that_nobody_could_ask_for_are_left_and_the_job_ends(service: Service, pid: str) -> None:
    path = service.submit("escape", pid, {"odd_names": True})
    job = service.wait(path)
    assert job["status"] == "completed"
    assert job["artifact_files"] == ["job.log", "nested/deeper/inner.txt", "plain.txt"]
    assert "left behind" in service.job_log(path)
    assert _oids(_list(service, pid=pid)) == [job["oid"]]


@pytest.mark.parametrize("fail", [False, True])
def test_a_log_that_became_a_link_harms_nobody(service: Service, pid: str, tmp_path: Path, fail: bool) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("outside\n")
    path = service.submit("escape", pid, {"target": str(outside), "swap_log": True, "fail": fail})
    job = service.wait(path)
    assert job["status"] == ("failed" if fail else "completed")
    assert outside.read_text() == "outside\n"
    assert "outside" not in service.job_log(path)
