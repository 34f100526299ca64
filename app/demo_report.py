"""What the demo shows at its end: tables of what came out, and what it proves."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rich.markup import escape
from rich.table import Table

from app.cli_view import View, plain_table

if TYPE_CHECKING:
    from app.demo import Demo, DemoRun


def show_report(view: View, demo: Demo) -> None:
    """Everything that the demo measured, for a person; nothing where JSON was asked for."""
    exports = [run for run in demo.runs if "parity" in (run.job["metrics"] or {})]
    for table in (_model_table(demo), _files_table(demo, exports), _proof_table(exports), _time_table(demo)):
        view.result("")
        view.table(table)
    view.result("[dim]start: until the job's process began its work; the first one waits for PyTorch to be loaded[/]\n")
    _cache_lines(view, demo)
    more = [run for run in (demo.verified, demo.int8) if run is not None]
    for run, table_of in zip(more, (_verified_table, _int8_table), strict=False):
        view.result("")
        view.table(table_of(run))
    view.result("\n[bold]Where it lies[/]")
    for run in [*demo.runs, *more]:
        view.result(f"  {run.job['action']}: {escape(str(demo.store_folder(run)))}")
        view.result(f"    [dim]{demo.url}{run.name.path}/artifacts while the demo's service ran[/]")
    view.result("\n[bold]The same by hand[/]")
    for line in curl_lines(demo):
        view.result(f"  {escape(line)}")


def _model_table(demo: Demo) -> Table:
    metrics = demo.run_of("check_model_stats").job["metrics"]
    stats, model = metrics["stats"], metrics["model"]
    table = plain_table(
        "What went in", "file", "bytes", "parameters", "not zero", "kept as", "network", right=("bytes",)
    )
    network = str(model.get("details", {}).get("network") or model.get("format", ""))
    table.add_row(
        escape(demo.model.name),
        f"{demo.upload['size_bytes']:,}",
        f"{stats['total_params']:,}",
        f"{stats['nonzero_params']:,}",
        escape(", ".join(model.get("dtypes", {}))),
        escape(network.rpartition(".")[2]),
    )
    return table


def _files_table(demo: Demo, exports: list[DemoRun]) -> Table:
    table = plain_table(
        "What came out", "file", "bytes", "of the .pt", "opset", "sha256", right=("bytes", "of the .pt", "opset")
    )
    before = demo.upload["size_bytes"]
    for run in exports:
        for artifact in run.artifacts:
            if artifact["name"].endswith(".onnx"):
                size = artifact["size_bytes"]
                opset = str(run.job["metrics"]["onnx"]["opset"])
                table.add_row(
                    escape(artifact["name"]), f"{size:,}", f"{size / before:.2f} x", opset, artifact["sha256"][:16]
                )
    return table


def _proof_table(exports: list[DemoRun]) -> Table:
    table = plain_table(
        "What it proves: both runtimes answer alike (largest difference / limit)",
        "export",
        "proven on",
        "box edges, px",
        "scores",
        "1 - cosine",
        "verdict",
        right=("box edges, px", "scores", "1 - cosine"),
    )
    for run in exports:
        parity = run.job["metrics"]["parity"]
        limits = parity["limits"]
        # FP16 is judged where a detection could come from; the report has the others too.
        judged = "boxes_detectable_max_abs_px" if limits["detectable_only"] else "boxes_max_abs_px"
        table.add_row(
            run.job["metrics"]["onnx"]["precision"],
            _inputs(parity["inputs"]),
            _against(parity.get(judged), limits["boxes_px"]),
            _against(parity.get("scores_max_abs"), limits["scores"]),
            _cosine(parity["outputs"]),
            "[green]passed[/]" if parity["passed"] else "[red]failed[/]",
        )
    return table


def _inputs(inputs: list[dict[str, Any]]) -> str:
    images = [entry["name"] for entry in inputs if entry["kind"] == "image"]
    return f"{len(inputs) - len(images)} random, {len(images)} images"


def _against(value: float | None, limit: float) -> str:
    return "-" if value is None else f"{value:.2g} / {limit:g}"


def _cosine(outputs: dict[str, dict[str, Any]]) -> str:
    found = [output["cosine"] for output in outputs.values() if output["cosine"] is not None]
    return f"{1 - min(found):.1g}" if found else "-"


def _time_table(demo: Demo) -> Table:
    phases: list[str] = []
    for run in demo.runs:
        phases += [phase for phase in _phase_seconds(run) if phase not in phases]
    columns = ("start", *phases, "POST to end")
    table = plain_table("Where the time went, in seconds", "action", *columns, right=columns)
    for run in [*demo.runs, *([demo.repeated] if demo.repeated else [])]:
        cached = bool(run.job["cached_from"])
        seconds = {} if cached else _phase_seconds(run)
        table.add_row(
            run.job["action"] + (" (again)" if cached else ""),
            "-" if run.start_seconds is None or cached else f"{run.start_seconds:.2f}",
            *(f"{seconds[phase]:.2f}" if phase in seconds else "-" for phase in phases),
            f"{run.seconds:.2f}",
        )
    return table


def _phase_seconds(run: DemoRun) -> dict[str, float]:
    return dict((run.job["metrics"] or {}).get("onnx", {}).get("phase_seconds", {}))


def _verified_table(run: DemoRun) -> Table:
    """Every limit of the task, for the FP16 file fed as its own metadata says."""
    report = run.job["metrics"]["report"]
    columns = ("measured", "limit")
    title = f"Proven on the task: FP16 against the checkpoint on {report['compare']['sampled_images']} labelled images"
    table = plain_table(title, "what may differ", *columns, "verdict", right=columns)
    for gate in run.job["metrics"]["pipeline"]["gates"]:
        verdict = "[green]passed[/]" if gate["verdict"] == "passed" else f"[red]{gate['verdict']}[/]"
        table.add_row(gate["name"], f"{gate['measured']:.2g}", f"{gate['limit']:g}", verdict)
    return table


def _int8_table(run: DemoRun) -> Table:
    """What INT8 brought here, and what it cost on images that did not calibrate it."""
    metrics = run.job["metrics"]
    accuracy, race = metrics["accuracy"], metrics["latency"][0]
    columns = ("MB", "ms on 1 thread", "times as fast", f"mAP50-95 on {accuracy['images']} other images")
    table = plain_table("Smaller and faster: INT8 for ONNX Runtime on this CPU", "file", *columns, right=columns)
    before, after = metrics["before"], metrics["after"]
    table.add_row("FP32", f"{before['size_mb']:g}", f"{race['before_p50_ms']:.1f}", "1", f"{accuracy['before']:.4f}")
    speedup = f"{race['speedup']:.2f} [{race['speedup_low']:.2f}, {race['speedup_high']:.2f}]"
    table.add_row(
        "INT8", f"{after['size_mb']:g}", f"{race['after_p50_ms']:.1f}", escape(speedup), f"{accuracy['after']:.4f}"
    )
    return table


def _cache_lines(view: View, demo: Demo) -> None:
    """Whether the same POST again was answered with the earlier result, byte for byte."""
    run = demo.repeated
    if run is None:
        return
    first = demo.run_of(run.job["action"])
    digests = [{a["name"]: a["sha256"] for a in one.artifacts if a["name"].endswith(".onnx")} for one in (first, run)]
    same = "with the same bytes" if digests[0] == digests[1] else "[red]with other bytes[/]"
    if run.job["cached_from"]:
        view.result(
            f"[bold]The same POST again[/] was answered as {run.name} in {run.seconds:.2f} s "
            f"from the result of {run.job['cached_from']}, {same}."
        )
    else:
        view.result(f"[bold]The same POST again[/] ran anew as {run.name} in {run.seconds:.2f} s, {same}.")


def curl_lines(demo: Demo) -> list[str]:
    """The same by hand."""
    run = demo.run_of("pt_to_onnx_fp32")
    parameters = {"kind": run.job["details"]["kind"], "input_path": demo.upload["key"]}
    body = shlex.quote(json.dumps({"pid": run.name.pid, "parameters": parameters}))
    upload = f"uploads?pid={run.name.pid}&name={quote(demo.model.name)}"
    result = next(name for name in run.job["artifact_files"] if name.endswith(".onnx"))
    return [
        f"{_command()} serve --workspace {shlex.quote(str(demo.workspace))} &",
        "API=http://127.0.0.1:8000/optimizing",
        f'curl -sX POST "$API/{upload}" --data-binary @{shlex.quote(str(demo.model))}',
        f'curl -sX POST "$API/{run.job["action"]}" -H "content-type: application/json" -d {body}',
        f'curl -sN "$API/jobs/{run.name}/events"',
        f'curl -sO "$API/jobs/{run.name}/artifacts/{quote(result)}"',
    ]


def _command() -> str:
    """How a person calls this command here: by its name, or by the place where it was installed."""
    if shutil.which("optimizing"):
        return "optimizing"
    installed = Path(sys.executable).with_name("optimizing")
    return shlex.quote(str(installed.relative_to(Path.cwd()) if installed.is_relative_to(Path.cwd()) else installed))
