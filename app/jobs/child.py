"""A job's own process, from its first line to its last. Started by `app.jobs.process`, or by hand:

    python -m app.jobs.child WORKDIR/.job.json

runs a job again from its spec and prints its messages.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import multiprocessing
import os
import re
import resource
import select
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.jobs import protocol
from app.jobs.context import JobContext

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

OOM_SCORE_ADJ = 500
"""When memory runs out the kernel should take a job, not the service."""


def main(spec_path: str, pipe: Connection) -> None:
    """The process's whole life under the fork server; `pipe` is the writing end."""
    os.setsid()
    # Else multiprocessing allows a job no processes of its own, such as loaders of images; they end with its group.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # noqa: SLF001
    _die_with_parent()
    run(Path(spec_path), pipe.fileno())


def run(spec_path: Path, pipe: int) -> None:
    _set_limits()
    spec = protocol.JobSpec.load(spec_path)
    _write(pipe, protocol.encode("ready", pid=os.getpid()))
    log = os.open(Path(spec.workdir) / protocol.LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (
        os.fdopen(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False) for fd in (1, 2)
    )
    os.chdir(spec.workdir)
    os.environ[protocol.MARK_VARIABLE] = spec.mark
    try:
        _write(pipe, _outcome(spec, pipe))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _outcome(spec: protocol.JobSpec, pipe: int) -> bytes:
    """Runs the handler; its metrics or its failure as the last message."""
    try:
        if spec.preloaded and "torch" not in sys.modules:
            sys.stdout.write("the fork server did not preload torch: this job starts cold\n")
            _write(pipe, protocol.encode("cold"))
        kind = importlib.import_module(spec.schema).KIND
        handler = importlib.import_module(spec.handler)
        _set_threads(spec.threads)
        context = JobContext(spec, lambda name, part: _write(pipe, protocol.encode("phase", phase=name, progress=part)))
        metrics = handler.run(kind.parameters.model_validate(spec.parameters), context)
        document: str = metrics.model_dump_json()
    except Exception as error:  # noqa: BLE001 - whatever it is, it must reach the service as a message
        traceback.print_exc()
        return protocol.encode("error", **error_fields(error))
    return b'{"type":"result","metrics":' + document.encode() + b"}\n"


def error_fields(error: Exception) -> dict[str, Any]:
    """An exception as a typed error. The toolkit's and the handlers' own errors bear their code themselves."""
    code = getattr(error, "code", None)
    if isinstance(code, str) and re.fullmatch(r"[A-Z0-9_]+", code):
        fields = {name: getattr(error, name, "") or None for name in ("expected", "received", "hint")}
        return {"code": code, "message": str(getattr(error, "message", error)), **fields}
    if isinstance(error, MemoryError):
        return {"code": "OUT_OF_MEMORY", "message": "the job ran out of memory", "hint": "take a smaller batch or size"}
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return {"code": "DISK_FULL", "message": "the work folder's disk is full", "hint": "free space in WORKSPACE_DIR"}
    return {
        "code": "HANDLER_ERROR",
        "message": "the job stopped on an error that this service did not foresee",
        "received": f"{type(error).__name__}: {error}"[:2000],
        "hint": "the traceback is in the job's log",
    }


def _die_with_parent() -> None:
    """Ends the whole group when the service is gone: a killed service cannot do it any more."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("main() is for processes that multiprocessing started")

    def watch() -> None:
        parent.join()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _set_limits() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # not every container may
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
        os.setpriority(os.PRIO_PROCESS, 0, protocol.NICENESS)
        # A session of its own is a scheduling group of its own, within which alone nice(2) counts (sched(7)).
        Path("/proc/self/autogroup").write_text(str(protocol.NICENESS))


def _set_threads(threads: int) -> None:
    """By API: the fork server loaded the libraries long before, so that variables come too late."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for what the job itself starts
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


def _write(pipe: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(pipe, view) :]


def _exec_main(arguments: list[str]) -> None:
    """`python -m app.jobs.child SPEC [PIPE PARENT]`: the cold start, and the run by hand."""
    if len(arguments) == 1:
        pipe = os.dup(1)
    else:
        pipe = int(arguments[1])
        os.set_inheritable(pipe, False)  # a grandchild that holds it would hide the end
        _die_with_pid(int(arguments[2]))
    run(Path(arguments[0]), pipe)


def _die_with_pid(parent: int) -> None:
    """As `_die_with_parent`, for a process that multiprocessing did not start."""
    handle = os.pidfd_open(parent)

    def watch() -> None:
        select.select([handle], [], [])
        os.killpg(0, signal.SIGKILL)

    if os.getppid() != parent:
        os.killpg(0, signal.SIGKILL)
    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


if __name__ == "__main__":
    _exec_main(sys.argv[1:])
