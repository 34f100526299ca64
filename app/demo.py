"""`optimizing demo`: a service of its own, a real model over HTTP, and only what was measured of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.cli_view import View
from app.client import Client, JobName
from app.demo_report import show_report

PILLS = Path(__file__).resolve().parent.parent / "tests" / "assets" / "pills" / "pills_yolov8n.pt"
PID = "P0001"
ACTIONS = ("check_model_stats", "pt_to_onnx_fp32", "pt_to_onnx_fp16")
REPEATED = "pt_to_onnx_fp32"
QUANTISED = "quantize_onnx"
VERIFIED = "verify"
SCENES, CALIBRATION_SCENES = 60, 20
"""Drawn for the pills model: some calibrate, the others prove."""
VERIFIED_SCENES = 20
READY_SEC = 120.0
STOP_SEC = 40.0

# The demo's figures must not depend on settings that happen to be exported where it is run.
KEPT_VARIABLES = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV")
KEPT_PREFIXES = ("CUDA_", "LC_", "NVIDIA_", "PYTHON", "XDG_")


class DemoFailed(Exception):
    """The demo cannot go on; `exit_code` as the command line has them."""

    def __init__(self, exit_code: int, code: str, detail: str, **fields: str) -> None:
        super().__init__(detail)
        self.exit_code = exit_code
        self.problem: dict[str, Any] = {"code": code, "detail": detail, **fields}


@dataclass(frozen=True)
class DemoRun:
    """One job of the demo, as the client saw it."""

    job: dict[str, Any]
    artifacts: list[dict[str, Any]]
    seconds: float
    """From the POST to the job's end, on the client's clock."""
    start_seconds: float | None
    """From the start of the job's process to its first phase, on the service's clock."""

    @property
    def name(self) -> JobName:
        return JobName(self.job["pid"], self.job["oid"])


@dataclass
class Demo:
    """All that the demo saw."""

    model: Path
    workspace: Path
    url: str
    ready_seconds: float = 0.0
    upload: dict[str, Any] = field(default_factory=dict)
    runs: list[DemoRun] = field(default_factory=list)
    repeated: DemoRun | None = None
    int8: DemoRun | None = None
    verified: DemoRun | None = None

    def run_of(self, action: str) -> DemoRun:
        return next(run for run in self.runs if run.job["action"] == action)

    def store_folder(self, run: DemoRun) -> Path:
        """Where the artifacts lie on this disk, by the workspace's documented layout."""
        return self.workspace / "store" / str(run.job["artifacts_path"])

    def document(self) -> dict[str, Any]:
        return {
            "model": str(self.model),
            "workspace": str(self.workspace),
            "service": {"url": self.url, "ready_seconds": self.ready_seconds},
            "upload": self.upload,
            "jobs": [_run_document(self, run) for run in self.runs],
            "repeated": _run_document(self, self.repeated) if self.repeated else None,
            "int8": _run_document(self, self.int8) if self.int8 else None,
            "verified": _run_document(self, self.verified) if self.verified else None,
        }


def _run_document(demo: Demo, run: DemoRun) -> dict[str, Any]:
    return {
        "seconds": run.seconds,
        "start_seconds": run.start_seconds,
        "folder": str(demo.store_folder(run)),
        "artifacts": run.artifacts,
        "job": run.job,
    }


def run_demo(view: View, model: Path | None, below: Path) -> dict[str, Any]:
    """Runs the whole demo and returns what it saw. Raises DemoFailed."""
    path = _model(model)
    workspace = below.absolute() / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    workspace.mkdir(parents=True, exist_ok=True)
    url = f"http://127.0.0.1:{_free_port()}"
    demo = Demo(path, workspace, url)
    with _service(demo, view), Client(url) as client:
        with view.transfer(f"uploading {path.name}") as on_progress:
            demo.upload = client.upload(path, PID, path.name, on_progress)
        view.say(f"[green]✓[/] uploaded {path.name}, {path.stat().st_size:,} bytes: {demo.upload['key']}")
        source = {"input_path": demo.upload["key"]}
        for action in ACTIONS:
            demo.runs.append(_run(client, view, action, source))
        demo.repeated = _run(client, view, REPEATED, source)
        if path == PILLS:  # of no other model does the demo know images
            data = _drawn_scenes(demo)
            demo.verified = _run(client, view, VERIFIED, _verify_parameters(demo, data))
            demo.int8 = _run(client, view, QUANTISED, _int8_parameters(demo, data))
    show_report(view, demo)
    return demo.document()


def _model(model: Path | None) -> Path:
    path = model or PILLS
    if not path.is_file():
        raise DemoFailed(
            2,
            "NO_MODEL",
            "the demo has no model to export",
            expected="a .pt file" if model else "the checkout's pills model, as this runs outside of a checkout",
            received=f"{path}, which is not a file",
            hint="name one: optimizing demo MODEL.pt",
        )
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _service(demo: Demo, view: View) -> Iterator[None]:
    """The service, ready; ended cleanly afterwards."""
    log = demo.workspace / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "app"],
            env=_environment(demo),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours; the service is told by us
        )
    try:
        _wait_ready(process, demo, view, log)
        yield
    finally:
        _stop(process, view)


def _environment(demo: Demo) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)
    }
    port = demo.url.rpartition(":")[2]
    return {**kept, "HOST": "127.0.0.1", "PORT": port, "WORKSPACE_DIR": str(demo.workspace)}


def _wait_ready(process: subprocess.Popen[bytes], demo: Demo, view: View, log: Path) -> None:
    began = time.monotonic()
    with Client(demo.url) as client, view.err.status("starting the service"):
        while not client.is_ready():
            if process.poll() is not None or time.monotonic() - began > READY_SEC:
                raise DemoFailed(
                    4,
                    "SERVICE_NOT_READY",
                    "the demo's service did not become ready",
                    expected=f"/readyz to answer within {READY_SEC:g} s",
                    received=f"exit code {process.poll()}; its last lines: {log.read_text(errors='replace')[-1500:]}",
                    hint=f"the whole log is {log}",
                )
            time.sleep(0.05)
    demo.ready_seconds = round(time.monotonic() - began, 3)
    view.say(f"[green]✓[/] service ready after {demo.ready_seconds:.1f} s at {demo.url}, log in {log}")


def _stop(process: subprocess.Popen[bytes], view: View) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(STOP_SEC)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    if code == 0:
        view.say("[green]✓[/] service stopped")
    else:
        view.say(f"[red]the service ended with exit code {code}[/]")


def _drawn_scenes(demo: Demo) -> dict[str, str]:
    """Images with labels that no training saw."""
    scenes = demo.workspace / "scenes"
    command = [sys.executable, str(PILLS.with_name("make_pills.py")), str(scenes), "--images", str(SCENES)]
    subprocess.run([*command, "--size", "640", "--seed", "7"], check=True, stdout=subprocess.DEVNULL)
    return {"images": str(scenes / "images"), "annotations": str(scenes / "instances.json")}


def _verify_parameters(demo: Demo, data: dict[str, str]) -> dict[str, Any]:
    """The FP16 export against the checkpoint that was uploaded."""
    return {
        "reference_path": demo.upload["key"],
        "candidate_path": f"{demo.run_of('pt_to_onnx_fp16').job['artifacts_path']}{demo.model.stem}_fp16.onnx",
        "data": {**data, "sample": VERIFIED_SCENES},
        "mode": "full",
    }


def _int8_parameters(demo: Demo, data: dict[str, str]) -> dict[str, Any]:
    """INT8 of the FP32 export for this machine's CPU."""
    return {
        "input_path": f"{demo.run_of(REPEATED).job['artifacts_path']}{demo.model.stem}_fp32.onnx",
        "target": "onnxruntime-cpu",
        "calib_dir": data["images"],
        "num_samples": CALIBRATION_SCENES,
        "data": data,
    }


def _run(client: Client, view: View, action: str, parameters: dict[str, Any]) -> DemoRun:
    """One job, from the POST to its end."""
    began = time.monotonic()
    started = client.submit(action, request_body(client, action, parameters))
    name = JobName(started["pid"], started["oid"])
    moments: dict[str, float] = {}
    with view.following(f"{name} {action}") as progress:
        for event in client.events(name):
            moments.setdefault(str(event.data.get("status", event.type)), float(event.data.get("at", 0)))
            progress.show(event)
    seconds = time.monotonic() - began
    job = client.job(name)
    if job["status"] != "completed":
        error = job["error"] or {}
        raise DemoFailed(
            1,
            str(error.get("code", job["status"])),
            f"{name} {action} {job['status']}: {error.get('message', '')}",
            expected=error.get("expected") or "",
            received=error.get("received") or "",
            hint=error.get("hint") or "",
        )
    both = "running" in moments and "progress" in moments
    cached = f", the result of {job['cached_from']} again" if job["cached_from"] else ""
    view.say(f"[green]✓[/] {name} {action} completed in {seconds:.2f} s{cached}")
    return DemoRun(
        job,
        client.artifacts(name)["artifacts"],
        round(seconds, 3),
        round(moments["progress"] - moments["running"], 3) if both else None,
    )


def request_body(client: Client, action: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The request as a person would write it, with the kind's word as the service gives it."""
    word = next(kind["kind"] for kind in client.kinds() if kind["action"] == action)
    return {"pid": PID, "parameters": {"kind": word, **parameters}}
