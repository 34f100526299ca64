"""Each checkpoint exported under a versioned name, proven, and published only if every stage was (S4 E-1, E-2, E-6).

An export is made in `unproven/` of the output folder and moves out when it has passed: S4 E-5's service takes the
newest file of that folder. The links `latest_detection.onnx` and `latest_classification.onnx` move when all passed.

S4 has one `export_report.json` and two models. So each stage's report lies beside its model, as `<stem>_report.json`
and `<stem>_report.html`, and `export_report.json` and `report.html` are those of the last stage, or of the first that
failed; `extra.stages` of the former leads to all.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from app.toolkit.errors import MachineError, ToolkitError
from app.toolkit.images import DEFAULT_IMAGES
from app.toolkit.models.open_model import open_model
from app.toolkit.onnx_file import write_whole
from app.toolkit.parity import FP32_LIMITS, ParityLimits
from app.toolkit.pipeline import export_and_prove
from app.toolkit.verification.advice import CAUSES_OF_GRAPHS, advice, reasons
from app.toolkit.verification.facts import ReportFacts
from app.toolkit.verification.html import report_html
from app.toolkit.verification.pipeline import verify
from app.toolkit.verification.report import PAGE_NAME, REPORT_NAME, export_report
from app.toolkit.verification.request import Device, Limits, Sampling, VerifyRequest
from app.two_stage.config import ConfigFault, ExportConfig, Stage, StageData
from app.two_stage.unmeasured import report_of_error
from app.version_tag import version_tag

UNPROVEN = "unproven"
NEXT_OPSET = 18


@dataclass(frozen=True)
class Outcome:
    """How a stage ended. `onnx` is the published file, of a failed stage the unproven one, None where there is none."""

    stage: Stage
    failed: bool
    onnx: Path | None
    report_path: Path
    report: Mapping[str, Any]
    page_path: Path | None


def export_stages(config: ExportConfig, stages: Sequence[Stage], sha: str) -> tuple[list[Outcome], Path]:
    """Export and prove every stage, write the reports, and move the links if all passed.

    Returns how each stage ended and the path of `export_report.json`. What goes wrong with a stage is said on stderr.
    Raises ConfigFault for limits of unknown names, OSError where the output folder cannot be written.
    """
    _check_limits(config)
    config.out_dir.mkdir(parents=True, exist_ok=True)
    tag = version_tag(datetime.now(timezone.utc), sha)
    unproven = config.out_dir / UNPROVEN
    unproven.mkdir(exist_ok=True)
    outcomes = [_Export(config, stage, tag, sha).run() for stage in stages]
    if not any(unproven.iterdir()):
        unproven.rmdir()
    report = _write_whole_report(config.out_dir, outcomes)
    if any(outcome.failed for outcome in outcomes):
        _say(f"[FAIL] the links in {config.out_dir} stay where they were; report: {report}")
    else:
        for outcome in outcomes:
            _link(config.out_dir / outcome.stage.link, f"{outcome.stage.name}-{tag}.onnx")
    return outcomes, report


class _Export:
    """One stage."""

    def __init__(self, config: ExportConfig, stage: Stage, tag: str, sha: str) -> None:
        self.config = config
        self.stage = stage
        self.sha = sha
        self.target = config.out_dir / f"{stage.name}-{tag}.onnx"
        self.unproven = config.out_dir / UNPROVEN / self.target.name

    def run(self) -> Outcome:
        try:
            self._export()
            facts = self._verified()
        except ToolkitError as error:
            return self._errored(error)
        onnx = self.unproven if facts.failed else self._published()
        facts = replace(facts, candidate=replace(facts.candidate, path=str(onnx)))
        if facts.verdict != "passed":
            self._say_failed(facts)
        page = self._beside("_report.html")
        write_whole(report_html(facts).encode(), page)
        return self._outcome(export_report(facts), facts.failed, onnx, page)

    def _export(self) -> None:
        config, shape = self.config, self.config.input_shape.get(self.stage.name)
        asked: dict[str, Any] = {}
        if shape is not None:
            asked = {"batch_size": shape[0], "channels": shape[1], "input_size": (shape[2], shape[3])}
        export_and_prove(
            self.stage.checkpoint,
            self.unproven,
            opset=config.opset,
            dynamic=config.dynamic_axes,
            limits=replace(FP32_LIMITS, **dict[str, Any](config.kernel_limits)),
            **asked,
        )

    def _verified(self) -> ReportFacts:
        """S4 knows no "undecided": what `auto` could not decide was not shown, and is not published."""
        data, sampling = self._data(), Sampling(**self.config.sampling)
        notes: tuple[str, ...] = ()
        if data is None:
            data, sampling = StageData(DEFAULT_IMAGES[0].parent, None), Sampling("smoke", len(DEFAULT_IMAGES))
            notes = ("no validation data: a smoke test on the two pictures that Ultralytics carries",)
            _say(f"{self.stage.name}: {notes[0]}; name yours under export.compare.data")
        device: Device = "cuda" if torch.cuda.is_available() else "cpu"
        shape = self.config.input_shape.get(self.stage.name)
        request = VerifyRequest(
            reference=self.stage.checkpoint,
            candidate=self.unproven,
            images=data.images,
            folder=self.unproven.parent,
            names=(str(self.stage.checkpoint), str(self.target)),
            annotations=data.annotations,
            sampling=sampling,
            limits=self.config.limits,
            kernel_limits=self.config.kernel_limits,
            input_size=shape and (shape[2], shape[3]),
            devices=(device, device),
            strict=True,
            git_sha=self.sha,
        )
        facts = verify(request)
        return replace(facts, notes=(*facts.notes, *notes))

    def _data(self) -> StageData | None:
        name = self.stage.name
        if name == "model":
            name = "detection" if open_model(self.stage.checkpoint).head == "boxes" else "classification"
        return self.config.data.get(name)

    def _published(self) -> Path:
        """Moves the export, and the parity report that its making wrote, out of `unproven/`."""
        parity = self.unproven.with_name(f"{self.unproven.stem}_parity.json")
        parity.replace(self.target.with_name(parity.name))
        self.unproven.replace(self.target)
        return self.target

    def _errored(self, error: ToolkitError) -> Outcome:
        _say(f"[FAIL] {self.stage.name}: {error}")
        if isinstance(error, MachineError):
            self._guide(["likely causes:", *CAUSES_OF_GRAPHS])
        onnx = self.unproven if self.unproven.exists() else None
        report = report_of_error(self.config, self.stage, error, onnx, self.sha)
        return self._outcome(report, True, onnx, None)

    def _say_failed(self, facts: ReportFacts) -> None:
        _say(f"[FAIL] {self.stage.name}: {'; '.join(reasons(facts.comparisons))}")
        self._guide(advice(facts))

    def _guide(self, lines: Sequence[str]) -> None:
        """S4 E-2 and E-11: looser limits, likely causes, and the next opset."""
        for line in lines:
            _say(f"  {line}")
        _say("  limits are set under export.compare.limits and export.compare.kernel_limits")
        if self.config.opset < NEXT_OPSET:
            _say(f"  or try opset {NEXT_OPSET} (OPSET={NEXT_OPSET}), and a newer ONNX Runtime if that is refused")

    def _outcome(self, report: Mapping[str, Any], failed: bool, onnx: Path | None, page: Path | None) -> Outcome:
        path = self._beside("_report.json")
        _write_json(report, path)
        return Outcome(self.stage, failed, onnx, path, report, page)

    def _beside(self, ending: str) -> Path:
        return self.target.with_name(self.target.stem + ending)


def _check_limits(config: ExportConfig) -> None:
    for key, given, known in (
        ("limits", config.limits, Limits),
        ("kernel_limits", config.kernel_limits, ParityLimits),
    ):
        names = [field.name for field in fields(known) if field.type == "float"]
        unknown = [name for name in given if name not in names]
        if unknown:
            raise ConfigFault(f"export.compare.{key}: expected names of {', '.join(names)}, got {', '.join(unknown)}")


def _write_whole_report(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """`export_report.json` and `report.html`; a page of an earlier run does not stay beside a report that has none."""
    told = next((outcome for outcome in outcomes if outcome.failed), outcomes[-1])
    index = {
        outcome.stage.name: {
            "failed": outcome.failed,
            "onnx_path": outcome.onnx and str(outcome.onnx),
            "report_path": str(outcome.report_path),
            "page_path": outcome.page_path and str(outcome.page_path),
        }
        for outcome in outcomes
    }
    report, page = folder / REPORT_NAME, folder / PAGE_NAME
    _write_json({**told.report, "extra": {**told.report["extra"], "stages": index}}, report)
    if told.page_path is None:
        page.unlink(missing_ok=True)
    else:
        write_whole(told.page_path.read_bytes(), page)
    return report


def _write_json(report: Mapping[str, Any], path: Path) -> None:
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(f"{text}\n".encode(), path)


def _link(link: Path, name: str) -> None:
    """Let `link` lead to its neighbour `name`; whoever looks sees the old file or the new one."""
    new = link.with_name(f".{link.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(name)
    new.replace(link)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
