"""What importing the toolkit may not do, in a process of its own."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import app.toolkit
from app.toolkit import errors

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(module.name for module in pkgutil.walk_packages(app.toolkit.__path__, "app.toolkit."))

PROBE = """
import socket, sys, threading

def refuse(*arguments, **named):
    raise RuntimeError("the import opened a connection")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
import torch
print(torch.cuda.is_initialized(), threading.active_count())
print(sorted(name for name in sys.modules if name.startswith("app.") and not name.startswith("app.toolkit")))
import os
print(len(os.listdir("/proc/self/task")))
"""


def test_importing_every_module_opens_nothing_starts_nothing_and_touches_no_gpu() -> None:
    # NumPy's OpenBLAS keeps workers from its import on, and stops and restarts them around a fork by itself.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "YOLO_OFFLINE": "true", "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    command = [sys.executable, "-c", PROBE, *MODULES]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
    first, second, third = done.stdout.splitlines()[-3:]
    assert first == "False 1"
    assert second == "[]"
    assert third == "1", "native threads are running (a library's telemetry?), so a fork of this process is unsafe"


def test_every_error_is_in_the_drawn_tree_with_its_own_code() -> None:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ToolkitError)]
    codes = [kind.code for kind in found]
    assert len(set(codes)) == len(codes)
    assert all(code == code.upper() for code in codes)
    drawn = errors.__doc__ or ""
    missing = [kind.__name__ for kind in found if kind.__name__ not in drawn]
    leaves = [kind for kind in found if not kind.__subclasses__()]
    assert not missing and all(kind.code in drawn for kind in leaves)
