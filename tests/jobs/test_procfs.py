"""Processes as /proc shows them, whatever they are called and whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from app.jobs import procfs
from app.jobs.protocol import MARK_VARIABLE
from tests.harness import alive, eventually

MARK = "0001/P1/O0001#1"
CUT_NAME = "open('/proc/self/comm', 'wb').write('aa한국어한국'.encode()[:15])"
STAY = "import time; time.sleep(600)"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """The leader of a session of its own, with a name that is cut within a character, and a child that left it."""
    program = f"{CUT_NAME}; import subprocess, sys; subprocess.Popen(['sleep', '600'], start_new_session=True); {STAY}"
    environment = {**os.environ, MARK_VARIABLE: MARK}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, start_new_session=True)
    eventually(lambda: len(procfs.family(process.pid, procfs.start_ticks(process.pid), MARK)) == 2)
    yield process
    procfs.end_family(process.pid, procfs.start_ticks(process.pid), MARK)
    process.kill()
    process.wait()


def test_a_name_that_is_no_text_hides_nothing(child: subprocess.Popen[bytes]) -> None:
    assert procfs.start_ticks(child.pid) is not None
    assert child.pid in procfs.group_members(child.pid)


def test_a_family_is_ended_with_those_who_left_its_group(child: subprocess.Popen[bytes]) -> None:
    family = procfs.family(child.pid, procfs.start_ticks(child.pid), MARK)
    assert procfs.end_family(child.pid, procfs.start_ticks(child.pid), MARK) == len(family) == 2
    child.wait(5)
    assert not any(alive(pid) for pid in family)


def test_a_pid_that_was_given_to_somebody_else_is_left_alone(child: subprocess.Popen[bytes]) -> None:
    assert procfs.end_family(child.pid, 12345, "0001/P1/O0001#2") == 0
    assert child.poll() is None


def test_only_a_process_that_is_no_more_is_a_dead_owner(child: subprocess.Popen[bytes]) -> None:
    ours = procfs.owner_name()
    assert not procfs.is_dead_owner(ours)
    owner = f"{procfs.this_host()}|{child.pid}|{procfs.start_ticks(child.pid)}"
    assert not procfs.is_dead_owner(owner)
    assert procfs.is_dead_owner(f"{procfs.this_host()}|{child.pid}|1"), "the same pid, another start"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert procfs.is_dead_owner(owner)
    assert not procfs.is_dead_owner(f"elsewhere{owner}"), "another host's processes cannot be seen from here"
