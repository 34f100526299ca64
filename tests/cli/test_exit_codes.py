"""Exit codes mean what `--help` and docs/cli.md say."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app import __version__
from tests.cli.conftest import Optimizing
from tests.harness import ROOT, Receiver, Service, eventually, free_port


def test_a_completed_job_is_0(optimizing: Optimizing, pid: str, hello: Path) -> None:
    ended = optimizing("submit", "echo", str(hello), "--pid", pid, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["status"] == "completed"
    assert ended.json["artifact_files"] == ["hello_echo.txt", "job.log"]


def test_a_failed_job_is_1_and_says_why(optimizing: Optimizing, pid: str) -> None:
    ended = optimizing("submit", "fail", "--pid", pid)
    assert ended.code == 1
    assert "TOY_REFUSED" in ended.err
    assert "try: try again" in ended.err
    again = optimizing("submit", "fail", "--pid", pid, "--json")
    assert again.code == 1
    assert again.json["error"]["code"] == "TOY_REFUSED"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "pt_to_onx_fp32", "x.pt", "--pid", "P1"], "did you mean pt_to_onnx_fp32?"),
        (["submit", "echo", "no-such-file.txt", "--pid", "P1"], "no such file here"),
        (["submit", "nap", "artifacts/P1/optimizing/O1/a.txt", "--pid", "P1"], "nap takes no file"),
        (["submit", "nap", "--pid", "P1", "--set", "seconds"], "name=value"),
        (["submit", "nap", "--pid", "P1", "--param-file", "absent.json"], "parameter file cannot be read"),
        (["submit", "nap"], "--pid"),
        (["watch", "P0001"], "PID/OID"),
        (["fetch", "../../etc/passwd"], "PID/OID"),
        (["cancel", "P0001/O0001", "more"], "more than one"),
        (["jobs", "--limit", "0"], "--limit"),
        (["jobs", "--url", "127.0.0.1:8000"], "expected the service's URL"),
        (["kinds", "nip"], "did you mean nap?"),
    ],
)
def test_a_wrong_command_line_is_2(optimizing: Optimizing, words: list[str], said: str) -> None:
    ended = optimizing(*words)
    assert ended.code == 2, (ended.out, ended.err)
    assert said in ended.err


def test_an_unknown_action_lists_the_known_ones(optimizing: Optimizing) -> None:
    ended = optimizing("submit", "paint_it_blue", "--pid", "P1", "--json")
    assert ended.code == 2
    assert ended.json["error"]["code"] == "USAGE"
    for action in ("check_model_stats", "pt_to_onnx_fp16", "pt_to_onnx_fp32", "nap"):
        assert action in ended.json["error"]["expected"]


def test_a_refusal_is_3_and_names_the_field(optimizing: Optimizing, pid: str) -> None:
    ended = optimizing("submit", "nap", "--pid", pid, "--set", "secnds=1")
    assert ended.code == 3
    assert "parameters.secnds" in ended.err
    assert "did you mean seconds?" in ended.err
    absent = optimizing("watch", f"{pid}/O9999", "--json")
    assert absent.code == 3
    assert absent.json["error"]["code"] == "JOB_NOT_FOUND"


@pytest.mark.slow
def test_a_missing_key_is_3_and_a_key_opens(make_service: Callable[..., Service], tmp_path: Path) -> None:
    guarded = make_service(API_KEYS="a-key-for-tests:0007")
    optimizing = Optimizing(tmp_path, guarded.url)
    assert optimizing("jobs").code == 3
    assert optimizing("jobs", "--key", "another-key").code == 3
    assert optimizing("jobs", "--key", "a-key-for-tests").code == 0
    assert optimizing("jobs", OPTIMIZING_API_KEY="a-key-for-tests").code == 0


def test_nobody_there_is_4(optimizing: Optimizing) -> None:
    ended = optimizing("jobs", "--url", f"http://127.0.0.1:{free_port()}", "--json")
    assert ended.code == 4
    assert ended.json["error"]["code"] == "UNREACHABLE"
    assert "optimizing serve" in ended.json["error"]["hint"]


def test_a_service_in_trouble_is_4(optimizing: Optimizing, receiver: Receiver) -> None:
    ended = optimizing("cancel", "P0001/O0001", "--url", receiver.url)
    assert ended.code == 4, "an empty 200 is none of the service's answers"
    receiver.script("/optimizing/jobs/P0001/O0001/cancel", 503)
    ended = optimizing("cancel", "P0001/O0001", "--url", receiver.url)
    assert ended.code == 4
    assert "503" in ended.err


def test_a_cancelled_job_is_5(optimizing: Optimizing, service: Service, pid: str) -> None:
    job = service.submit("nap", pid, {"seconds": 60})
    oid = job.rpartition("/")[2]
    watching = optimizing.start("watch", pid, oid, "--json")
    service.wait(job, statuses={"running"})
    cancelled = optimizing("cancel", f"{pid}/{oid}")
    assert cancelled.code == 0, cancelled.err
    out, err = watching.communicate(timeout=20)
    assert watching.returncode == 5, err
    assert '"status": "cancelled"' in out
    assert optimizing("cancel", f"{pid}/{oid}").code == 0, "cancelling twice is no fault"


def test_ctrl_c_is_130_and_leaves_the_job_running(optimizing: Optimizing, service: Service, pid: str) -> None:
    job = service.submit("nap", pid, {"seconds": 60})
    oid = job.rpartition("/")[2]
    watching = optimizing.start("watch", f"{pid}/{oid}")
    assert watching.stderr is not None
    assert "nap" in watching.stderr.readline(), "it follows"
    service.wait(job, statuses={"running"})
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert f"optimizing watch {pid}/{oid}" in err
    assert service.job(job)["status"] == "running"
    service.client.post(f"{job}/cancel")
    service.wait(job)


def test_every_command_that_talks_to_the_service_documents_the_codes(optimizing: Optimizing) -> None:
    documented = (ROOT / "docs" / "cli.md").read_text()
    for code in ("0", "1", "2", "3", "4", "5", "130"):
        assert f"| {code} |" in documented
    for command in ([], ["submit"], ["watch"], ["fetch"], ["jobs"], ["cancel"], ["retry"], ["upload"], ["kinds"]):
        shown = " ".join(optimizing(*command, "--help").out.split())
        assert "1 the job failed; 2 the command line is wrong; 3 the service refused" in shown


def test_serve_becomes_the_service(tmp_path: Path, optimizing: Optimizing) -> None:
    port = free_port()
    words = ["serve", "--port", str(port), "--workspace", str(tmp_path / "work"), "--host", "127.0.0.1"]
    serving = optimizing.start(*words)
    try:
        eventually(lambda: optimizing("jobs", "--url", f"http://127.0.0.1:{port}").code == 0, 30, what="serving")
        assert (tmp_path / "work" / "state").is_dir()
        command = Path(f"/proc/{serving.pid}/cmdline").read_bytes().split(b"\0")
        assert command[1:3] == [b"-m", b"app"], "the same process, so that signals reach it"
        serving.send_signal(signal.SIGTERM)
        serving.communicate(timeout=40)
        assert serving.returncode == 0
    finally:
        if serving.poll() is None:
            serving.kill()
            serving.communicate()


def test_the_console_script_is_installed() -> None:
    command = Path(sys.executable).with_name("optimizing")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout == f"optimizing {__version__}\n"
