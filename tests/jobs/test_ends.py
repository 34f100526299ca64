"""Every way in which a job's process can end badly has its own code, and the neighbours finish."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import Service, alive, eventually

MAKE = Callable[..., Service]


def pids_of(path: Path) -> list[int]:
    found = eventually(lambda: path.read_text().split() if path.exists() else None, 20, what=str(path))
    return [int(pid) for pid in found]


@pytest.mark.every_store
@pytest.mark.parametrize(
    ("mode", "code"),
    [
        ("segfault", "JOB_CRASHED"),
        ("sigkill", "JOB_KILLED"),
        ("exit", "JOB_EXITED"),
        ("exit_zero", "JOB_EXITED"),
        ("memory", "OUT_OF_MEMORY"),
        ("huge_result", "JOB_EXITED"),
    ],
)
def test_a_dead_process_has_its_own_code_and_the_neighbour_finishes(
    service: Service, pid: str, mode: str, code: str
) -> None:
    neighbour = service.submit("nap", pid, {"seconds": 0.5})
    ended = service.run("crash", pid, {"mode": mode})
    assert (ended["status"], ended["error"]["code"]) == ("failed", code)
    assert service.wait(neighbour)["status"] == "completed"
    assert "job.log" in ended["artifact_files"], "what it left behind is kept"


@pytest.mark.slow
def test_a_process_that_hangs_is_ended_at_its_limit_and_the_wait_in_the_queue_does_not_count(
    make_service: MAKE,
) -> None:
    service = make_service(JOB_TIMEOUT_SEC="1.5", JOB_CPU_CONCURRENCY="1")
    first = service.submit("hang", "P1", {})
    waiting = service.submit("nap", "P1", {"seconds": 1.0})
    ended = service.wait(first)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "JOB_TIMEOUT")
    assert service.wait(waiting)["status"] == "completed", "it waited for 1.5 s and then had 1.5 s of its own"


@pytest.mark.slow
def test_a_flooded_log_ends_the_job_and_its_beginning_is_kept(make_service: MAKE) -> None:
    service = make_service(JOB_LOG_MAX_MIB="2")
    neighbour = service.submit("nap", "P1", {"seconds": 1.0})
    job = service.submit("flood", "P1", {})
    ended = service.wait(job)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "JOB_LOG_LIMIT")
    assert len(service.job_log(job)) == 2 * 1024 * 1024
    assert service.wait(neighbour)["status"] == "completed"


@pytest.mark.parametrize("leave_group", [False, True])
def test_cancel_ends_a_grandchild_that_ignores_sigterm(
    service: Service, pid: str, tmp_path: Path, leave_group: bool
) -> None:
    neighbour = service.submit("nap", pid, {"seconds": 2.0})
    file = tmp_path / "pids"
    job = service.submit("hang", pid, {"grandchild": True, "leave_group": leave_group, "pids_file": str(file)})
    pids = pids_of(file)
    assert all(alive(one) for one in pids)
    service.client.post(f"{job}/cancel").raise_for_status()
    assert service.wait(job)["status"] == "cancelled"
    assert not any(alive(one) for one in pids)
    assert service.wait(neighbour)["status"] == "completed"


@pytest.mark.slow
def test_a_time_limit_ends_the_grandchild_too(make_service: MAKE, tmp_path: Path) -> None:
    service = make_service(JOB_TIMEOUT_SEC="2")
    file = tmp_path / "pids"
    job = service.submit("hang", "P1", {"grandchild": True, "pids_file": str(file)})
    pids = pids_of(file)
    assert service.wait(job)["error"]["code"] == "JOB_TIMEOUT"
    assert not any(alive(one) for one in pids)


@pytest.mark.slow
def test_a_queued_job_is_cancelled_without_ever_starting(make_service: MAKE) -> None:
    service = make_service(JOB_CPU_CONCURRENCY="1")
    running = service.submit("hang", "P1", {})
    queued = [service.submit("nap", "P1", {}) for _ in range(12)]  # more than are claimed ahead
    for job in queued:
        assert service.client.post(f"{job}/cancel").status_code == 202
    for job in queued:
        ended = service.wait(job, 5)
        assert (ended["status"], ended["attempt"], ended["started_at"]) == ("cancelled", 0, None)
    service.client.post(f"{running}/cancel")
    service.wait(running)


@pytest.mark.every_store
def test_the_end_leaves_no_work_folder(service: Service, pid: str) -> None:
    service.run("nap", pid, {})
    service.run("crash", pid, {})
    eventually(lambda: not list(service.workspace.glob(f"jobs/*/{pid}/*")), 5, what="the work folders gone")


@pytest.mark.slow
def test_a_dead_fork_server_is_replaced_and_its_job_runs_again(make_service: MAKE) -> None:
    service = make_service()
    job = service.submit("nap", "P1", {"seconds": 3.0})
    service.wait(job, statuses={"running"})
    eventually(lambda: service.job(job)["phase"] == "nap 1")
    assert service.process is not None
    servers = [one for one in service.processes() if _parent(one) == service.process.pid and _is_fork_server(one)]
    assert len(servers) == 1
    os.kill(servers[0], signal.SIGKILL)
    ended = service.wait(job)
    assert (ended["status"], ended["attempt"]) == ("completed", 2)


def test_jobs_run_without_a_fork_server_where_the_setting_says_so(make_service: MAKE) -> None:
    service = make_service(JOB_START_METHOD="exec")
    assert service.run("nap", "P1", {})["status"] == "completed"
    assert service.run("crash", "P1", {})["error"]["code"] == "JOB_CRASHED"
    hanging = service.submit("hang", "P1", {"grandchild": True})
    eventually(lambda: service.job(hanging)["phase"] == "hang", 20)
    service.client.post(f"{hanging}/cancel")
    assert service.wait(hanging)["status"] == "cancelled"


@pytest.mark.slow
@pytest.mark.every_store
def test_a_stop_gives_unfinished_jobs_back_and_the_next_start_runs_them(make_service: MAKE) -> None:
    service = make_service("same", DRAIN_TIMEOUT_SEC="0.5")
    long = service.submit("nap", "P1", {"seconds": 6.0})
    short = service.submit("nap", "P1", {"seconds": 0.4})
    queued = service.submit("nap", "P1", {})
    eventually(lambda: service.job(long)["phase"] == "nap 1", 20, what="the fork server up and the long job at work")
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began < 5, "a stop does not wait for the long job"
    service.start()
    assert {service.wait(job)["status"] for job in (long, short, queued)} == {"completed"}
    assert service.job(long)["attempt"] == 1, "a stop of the service is not the job's fault"


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """A memory cgroup (version 1 or 2) with a hard limit, for the kernel's own out-of-memory killer."""
    root = next(
        (Path(p) for p in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup") if (Path(p) / "cgroup.procs").exists()), None
    )
    if root is None or not os.access(root, os.W_OK) or os.geteuid() != 0:
        pytest.skip("the kernel's out-of-memory killer needs a writable memory cgroup")
    group = root / f"optimizing-test-{os.getpid()}"
    group.mkdir()
    try:
        name = "memory.limit_in_bytes" if (group / "memory.limit_in_bytes").exists() else "memory.max"
        if not (group / name).exists():
            pytest.skip("this cgroup tree has no memory controller")
        (group / name).write_text(str(limit_bytes))
        yield group
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text().strip(), 20)
        group.rmdir()


@pytest.mark.slow
def test_out_of_memory_takes_the_job_and_neither_the_service_nor_the_neighbour(make_service: MAKE) -> None:
    with memory_group(1536 * 1024 * 1024) as group:
        service = make_service(start=False)
        service.start(wait=False)
        assert service.process is not None
        (group / "cgroup.procs").write_text(str(service.process.pid))
        service.wait_ready()
        neighbour = service.submit("nap", "P1", {"seconds": 3.0})
        ended = service.run("crash", "P1", {"mode": "hog"})
        assert (ended["status"], ended["error"]["code"]) == ("failed", "JOB_KILLED")
        assert service.wait(neighbour)["status"] == "completed"
        service.stop()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _is_fork_server(pid: int) -> bool:
    return b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()
