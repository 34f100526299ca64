"""The service's own process stays light, and what a job's process is forked from only imports."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT

HEAVY = ("torch", "torchvision", "ultralytics", "onnx", "onnxruntime", "onnxslim", "tensorrt", "numpy", "PIL", "cv2")
MAX_LINES, MAX_FUNCTION_LINES = 400, 60
SOURCES = sorted((ROOT / "app").rglob("*.py"))


def _python(code: str, tmp_path: Path, **environment: str) -> str:
    """What a fresh interpreter prints, with the environment that a fork server gets."""
    from app.library_variables import FIXED_VARIABLES

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **FIXED_VARIABLES, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_the_parent_never_imports_what_is_heavy(tmp_path: Path) -> None:
    code = f"import app.main, app.__main__, sys; print([name for name in {HEAVY} if name in sys.modules])"
    assert _python(code, tmp_path) == "[]"


def test_a_wired_application_is_light_too(tmp_path: Path) -> None:
    """Finding the kinds and their libraries' versions must not import them."""
    code = (
        "import sys; from app.config import Settings; from app.main import create_app;"
        "create_app(Settings(kind_packages=('tests.kinds',))).openapi();"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert _python(code, tmp_path) == "[]"


def test_the_command_s_entry_is_light(tmp_path: Path) -> None:
    if not (ROOT / "app" / "cli.py").exists():
        pytest.skip("the command line is not there yet")
    assert _python(f"import app.cli, sys; print([n for n in {HEAVY} if n in sys.modules])", tmp_path) == "[]"


def test_the_preload_imports_and_does_nothing_else(tmp_path: Path) -> None:
    """No CUDA, no threads (BLAS pools apart, which survive a fork and are held to one here), no files kept open."""
    code = """
import os, sys, threading
def open_files():
    folder = "/proc/self/fd"
    return {os.readlink(f"{folder}/{name}") for name in os.listdir(folder) if os.path.exists(f"{folder}/{name}")}
before = open_files()
import app.jobs.preload
import torch
opened = sorted(path for path in open_files() - before if not path.startswith(("/proc", "/dev/null", "pipe:")))
print({
    "cuda": torch.cuda.is_initialized(),
    "bad fork": torch.cuda._is_in_bad_fork(),
    "tensorrt": "tensorrt" in sys.modules,
    "loaded": [name in sys.modules for name in ("torch", "ultralytics", "onnx", "onnxruntime", "onnxslim")],
    "threads": [thread.name for thread in threading.enumerate()],
    "native threads": len(os.listdir("/proc/self/task")),
    "opened": opened,
    "children": open(f"/proc/self/task/{os.getpid()}/children").read().split(),
})
"""
    seen = ast.literal_eval(_python(code, tmp_path, OPENBLAS_NUM_THREADS="1"))
    assert seen == {
        "cuda": False,
        "bad fork": False,
        "tensorrt": False,
        "loaded": [True] * 5,
        "threads": ["MainThread"],
        "native threads": 1,
        "opened": [],
        "children": [],
    }


def test_the_preload_calls_nothing_of_cuda(tmp_path: Path) -> None:
    """Even `is_available()` and `device_count()` may initialise what a fork cannot use: none is called."""
    code = """
import sys
called = []
NAMES = {
    "is_available", "device_count", "_device_count_nvml", "_lazy_init", "init", "current_device",
    "get_device_properties",
}
def profile(frame, event, argument):
    if event == "call" and "torch/cuda/" in frame.f_code.co_filename and frame.f_code.co_name in NAMES:
        called.append(frame.f_code.co_name)
import torch
sys.setprofile(profile)
import app.jobs.preload
sys.setprofile(None)
print(called)
"""
    assert _python(code, tmp_path) == "[]"


# -- shape of the source ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{path.name}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text))
